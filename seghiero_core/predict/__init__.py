"""Predicting masks from images."""
