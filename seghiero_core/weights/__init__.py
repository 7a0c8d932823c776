"""Published weights: find, download, read and validate them."""
