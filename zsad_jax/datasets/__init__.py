"""Data sets: indices, decoding, batches and synthetic images."""
