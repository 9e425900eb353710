"""Generative models: one file per paper."""
