"""Each finding of the paper, judged from the tables."""
