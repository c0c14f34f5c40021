"""From run folders to tidy tables, and from those to data frames."""
