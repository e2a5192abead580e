"""Measured tables: what one operator costs on one device, by signature, and how far to trust it."""
