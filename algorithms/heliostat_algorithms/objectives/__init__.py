"""Losses that more than one paper uses."""
