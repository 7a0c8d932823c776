"""Exporting a checkpoint to one file, checked against the network it came from."""
