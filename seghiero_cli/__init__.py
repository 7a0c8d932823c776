"""The `seghiero` command: the only code that parses arguments, prints or exits."""
