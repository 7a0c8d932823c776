"""The networks behind the registered heads. Importing one imports torch."""
