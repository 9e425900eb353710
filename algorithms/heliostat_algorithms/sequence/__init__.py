"""Sequence models: networks of causal blocks, and the tasks that they are trained for."""
