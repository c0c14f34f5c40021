"""Labelled images: their files, fixed batches and the stream that trains."""
