"""Images and captions -> batches."""
