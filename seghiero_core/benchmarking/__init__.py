"""Measuring the speed, memory and size of networks on this machine."""
