"""Estimators of ∇J: pure functions of tensors [T, N], T steps of N trajectories."""
