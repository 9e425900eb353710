"""The job file: typed models, loading with line numbers, overrides, checks."""
