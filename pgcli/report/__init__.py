"""Learning curves, statistics over runs, displays, logs and videos."""
