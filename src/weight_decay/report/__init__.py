"""What the runs say: tables, effects, figures and pages, made from files alone (never imports torch)."""
