"""Measuring checkpoints on data sets, and the files that keep the results."""
