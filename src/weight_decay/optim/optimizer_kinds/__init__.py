"""The optimizers, one file each: their settings, and the torch optimizer that they make."""
