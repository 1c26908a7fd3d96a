"""The gradient oracle: estimators held against gradients that are known."""
