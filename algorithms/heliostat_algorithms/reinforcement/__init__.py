"""Reinforcement learning: agents, what they are made of, and the memory that they learn from."""
