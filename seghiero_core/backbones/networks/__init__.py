"""The networks behind the registered backbones. Importing one imports torch."""
