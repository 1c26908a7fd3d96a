"""Inspect runs, environments and gradient estimators."""
