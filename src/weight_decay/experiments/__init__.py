"""Which runs make up an experiment, and how they are launched."""
