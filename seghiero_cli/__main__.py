"""`python -m seghiero_cli` is the `seghiero` command, for launchers that start modules."""

from seghiero_cli.main import main

main()
