"""What is being learned: the loss of a batch, and the evaluation of a model on fixed batches."""
