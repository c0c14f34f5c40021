"""How a sweep stands: once, or live."""
