"""Comparisons of config variants over several seeds."""
