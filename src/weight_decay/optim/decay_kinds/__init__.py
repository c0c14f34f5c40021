"""Every kind of weight decay: the optimizer's own in `own.py`, else a file for each rule beside any torch optimizer."""
