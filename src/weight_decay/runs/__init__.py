"""What lies on disk: run folders, their locks, summaries and records. Knows neither torch nor hydra."""
