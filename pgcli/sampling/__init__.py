"""From a policy and seeds to trajectories."""
