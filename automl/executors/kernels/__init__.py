"""Compiled inner loops; nothing here is imported before a packed layer runs."""
