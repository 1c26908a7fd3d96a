"""Signals, streams, processes and optional packages."""
