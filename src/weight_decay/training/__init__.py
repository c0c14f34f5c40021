"""One run from its first step to its last: loop, branches, measurements, checkpoints, record."""
