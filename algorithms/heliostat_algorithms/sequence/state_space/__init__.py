"""The parts that state-space models share."""
