"""From folders to batches: finding, checking, decoding and augmenting images and their masks."""
