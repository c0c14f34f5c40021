"""W&B: the dashboard, offline runs, and tables pulled from a project."""
