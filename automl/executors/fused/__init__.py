"""Whole networks as a few fused steps in buffers that are kept."""
