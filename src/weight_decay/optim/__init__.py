"""What changes the weights: decay rules, optimizers, schedules, averages, the sphere, low precision."""
