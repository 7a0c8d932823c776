"""Converters of published and exported data sets to folders of images and masks, with a config."""
