"""Reinforcement learning: environments, and the actors that play in them, remember and learn."""
