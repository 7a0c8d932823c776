"""Published weights: finding, reading and checking them."""
