"""One file from a checkpoint, checked against the network."""
