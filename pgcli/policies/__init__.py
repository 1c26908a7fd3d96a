"""Policies: an encoder of observations, a network, and a distribution over actions."""
