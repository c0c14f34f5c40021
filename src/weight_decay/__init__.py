"""What weight decay does to a training run, and whether you need it: the laboratory."""
