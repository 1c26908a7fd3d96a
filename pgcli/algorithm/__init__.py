"""The policy gradient algorithm: from trajectories to new parameters."""
