"""Proportional prioritisation (Schaul et al. 2015, arXiv 1511.05952, section 3.3, equation 1)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FIRST_PRIORITY = 1.0
"""What an item of unknown TD error counts as before any other was seen (algorithm 1)."""


@dataclass(frozen=True, kw_only=True)
class Prioritization:
    """Items are sampled in proportion to (|TD error| + epsilon)^exponent."""

    exponent: float = 0.6
    """How much priorities matter, from 0, uniform, to 1; 0.6 in section 4 and in Ape-X, 0.5 in Rainbow."""
    epsilon: float = 1e-6
    """Keeps items of no error in the game; above 0."""

    def __post_init__(self) -> None:
        if not 0 <= self.exponent <= 1:
            raise ValueError(f"exponent is {self.exponent}; it must be from 0 to 1")
        if not 0 < self.epsilon < math.inf:
            raise ValueError(f"epsilon is {self.epsilon}; it must be finite and above 0")

    def masses(self, priorities: NDArray[np.float64]) -> NDArray[np.float64]:
        """What each |TD error| weighs in sampling."""
        masses: NDArray[np.float64] = np.power(priorities + self.epsilon, self.exponent)
        return masses
