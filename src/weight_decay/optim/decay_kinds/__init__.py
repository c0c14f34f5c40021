"""Every kind of weight decay, one file each: a rule beside the update of any torch optimizer, and its settings."""
