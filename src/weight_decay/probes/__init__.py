"""Measurements of a model: weights, Jacobian norm, noise scale, curvature and divergence.

A probe reads; it never changes parameters, gradients, batch-norm statistics, training mode or the random
streams of the run.
"""
