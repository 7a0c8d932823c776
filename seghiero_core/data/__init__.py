"""From folders to batches: find, check, decode and augment images and their masks."""
