"""The training loop, the runtimes that carry it, and what a run leaves on disk."""
