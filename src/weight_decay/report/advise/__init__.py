"""What weight decay will do to a run that somebody describes, from formulas and from the study's own numbers."""
