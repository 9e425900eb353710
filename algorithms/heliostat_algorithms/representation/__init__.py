"""Representation learning: one file per paper."""
