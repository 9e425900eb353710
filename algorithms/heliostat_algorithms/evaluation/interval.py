"""Confidence intervals of means over few trials, by Student's t distribution."""

from __future__ import annotations

import math
from collections.abc import Sequence


def half_width(values: Sequence[float], confidence: float = 0.95) -> float:
    """Half the width of the interval that covers the mean of the distribution behind ``values`` with this confidence.

    Raises:
        ValueError: fewer than two values, whose spread is unknown.
    """
    count = len(values)
    if count < 2:
        raise ValueError(f"an interval needs at least 2 values, not {count}")
    mean = math.fsum(values) / count
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (count - 1))
    return student_t(confidence, count - 1) * deviation / math.sqrt(count)


def student_t(confidence: float, degrees: int) -> float:
    """The t that Student's variable with so many degrees of freedom stays within, on both sides, with this probability.

    Inverts the exact finite series (Abramowitz and Stegun, 26.7.3 and 26.7.4) by bisection over the angle atan(t /
    sqrt(degrees)).

    Raises:
        ValueError: confidence outside (0, 1) or degrees below 1.
    """
    if not 0 < confidence < 1 or degrees < 1:
        raise ValueError(f"student_t needs a confidence in (0, 1) and degrees >= 1, not {confidence} and {degrees}")
    low, high = 0.0, math.pi / 2
    while (middle := (low + high) / 2) not in (low, high):
        low, high = (middle, high) if _within(middle, degrees) < confidence else (low, middle)
    return math.tan(low) * math.sqrt(degrees)


def _within(angle: float, degrees: int) -> float:
    """Probability of |t| <= tan(angle) * sqrt(degrees)."""
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = degrees % 2
    term = cosine if odd else 1.0
    total = term if degrees > 1 else 0.0
    for k in range(2 + odd, degrees, 2):
        term *= (k - 1) / k * cosine * cosine
        total += term
    return 2 / math.pi * (angle + sine * total) if odd else sine * total
