"""Sampling over several shards of one memory, and what corrects for not sampling uniformly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

_BELOW_ONE = float(np.nextafter(1.0, 0.0))


def stratified(draws: NDArray[Any]) -> NDArray[np.float64]:
    """One point in each of B equal pieces of [0, 1), from draws (B,) uniform in [0, 1) (Schaul et al. 2015, arXiv
    1511.05952, appendix B.2.1). It also refines draws of few digits: B pieces of 2^24 steps each, for float32.

    Raises:
        ValueError: draws that are not so.
    """
    if draws.ndim != 1 or not np.all((draws >= 0) & (draws < 1)):
        raise ValueError("draws must be a row of numbers in [0, 1)")
    points: NDArray[np.float64] = (np.arange(len(draws)) + draws.astype(np.float64)) / max(1, len(draws))
    return np.minimum(points, _BELOW_ONE)


def allocate(masses: Sequence[float] | NDArray[np.float64], points: NDArray[np.float64]) -> list[NDArray[np.float64]]:
    """Share points over all items out to the shards that hold them, so that S shards sample as one buffer would.

    Args:
        masses: (S,) of the shards, some above 0.
        points: (B,) in [0, 1), fractions of the masses' sum.

    Returns:
        For each shard the points that fall to it, as fractions of its own mass in [0, 1), in their order; none for a
        shard without mass.

    Raises:
        ValueError: masses or points that are not so.
    """
    mass = np.asarray(masses, np.float64)
    if mass.ndim != 1 or not np.all(np.isfinite(mass) & (mass >= 0)) or not mass.any():
        raise ValueError(f"masses are {mass.tolist()}; they must be finite, at least 0, and one of them above 0")
    if points.ndim != 1 or not np.all((points >= 0) & (points < 1)):
        raise ValueError("points must be a row of numbers in [0, 1)")
    edges = np.concatenate([[0.0], np.cumsum(mass)])
    positions = np.minimum(points * edges[-1], np.nextafter(edges[-1], 0.0))
    shard = np.searchsorted(edges[1:], positions, side="right")
    fractions = np.minimum((positions - edges[shard]) / mass[shard], _BELOW_ONE)
    return [fractions[shard == i] for i in range(len(mass))]


def importance_weights(probability: NDArray[np.float64], items: int, beta: float) -> NDArray[np.float64]:
    """(N * P)^-beta over the largest of the batch (Schaul et al. 2015, section 3.4), (B,) in (0, 1].

    Args:
        probability: (B,) P(i) of each item, its mass over the mass of all shards.
        items: N, the items of all shards.
        beta: how much of the bias is corrected, from 0 to 1.

    Raises:
        ValueError: arguments that are not so.
    """
    if not np.all((probability > 0) & np.isfinite(probability)):
        raise ValueError("probabilities must be finite and above 0")
    if items < 1:
        raise ValueError(f"items is {items}; it must be at least 1")
    if not 0 <= beta <= 1:
        raise ValueError(f"beta is {beta}; it must be from 0 to 1")
    weights: NDArray[np.float64] = (items * probability) ** -beta
    weights /= weights.max(initial=0.0)
    return weights


@dataclass(frozen=True, kw_only=True)
class ImportanceExponent:
    """beta of the importance weights, which rises in a straight line (Schaul et al. 2015, section 3.4)."""

    start: float = 0.4
    """beta at the first update, from 0: no correction, to 1."""
    end: float = 1.0
    """beta at the last update; 1 removes the bias where training converges."""

    def __post_init__(self) -> None:
        for name, value in (("start", self.start), ("end", self.end)):
            if not 0 <= value <= 1:
                raise ValueError(f"{name} is {value}; it must be from 0 to 1")

    def at(self, progress: float) -> float:
        """beta when this share of the training is done; from 1 on ``end``."""
        return self.start + (self.end - self.start) * min(1.0, progress)
