"""From what is typed to what runs: everything that speaks to Hydra."""
