"""Explain, check and verify runs, environments and estimators."""
