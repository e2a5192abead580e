"""Readers of file formats; each finds its files under a root and decodes them."""
