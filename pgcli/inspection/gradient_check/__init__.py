"""The gradient check: compare an estimator with known gradients."""
