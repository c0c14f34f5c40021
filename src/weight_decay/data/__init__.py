"""Data sets and the pure `batch(step)` streams of them: images for one regime, tokens for the other."""
