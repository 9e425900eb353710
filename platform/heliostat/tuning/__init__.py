"""Sweeps: many runs of one job with other values in some of its fields, and which of them was best."""
