"""Gymnasium environments by name, checked and stepped together."""
