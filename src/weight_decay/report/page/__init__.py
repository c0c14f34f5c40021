"""Claims and figures on one page, and the parts of README that come from tables."""
