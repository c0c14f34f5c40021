"""Each figure of the paper, drawn from the tables."""
