"""Pruning: which units go, and how what is left is repaired."""
