"""How well agents play: aggregates of returns over runs and games, with intervals that say what few runs can tell.

Agarwal et al. 2021, "Deep Reinforcement Learning at the Edge of the Statistical Precipice" (arXiv 2108.13264). Scores
are (R, G): R independent runs, one seed each, of G games, one number each, brought to one scale across games by
:func:`human_normalized`. Nothing is smoothed, and the best point of a curve is nobody's score.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from heliostat_algorithms.evaluation.interval import half_width
from heliostat_algorithms.randomness import Random

Scores: TypeAlias = npt.NDArray[np.float64]
Statistic: TypeAlias = Callable[[Scores], Scores]
"""One number from scores (..., R, G): gives (...)."""

_MEMORY = 1 << 22
"""Scores that are resampled at a time."""


@dataclass(frozen=True)
class Estimate:
    """A number and the interval that covers, with a stated confidence, what infinitely many runs would give."""

    value: float
    low: float
    high: float


def human_normalized(scores: npt.ArrayLike, random: npt.ArrayLike, human: npt.ArrayLike) -> Scores:
    """(score - random) / (human - random): 0 is random play, 1 the human reference (Mnih et al. 2015).

    Args:
        scores: (..., G), raw returns.
        random: (G,) or one number: what random play gets.
        human: (G,) or one number: what the reference player gets.

    Raises:
        ValueError: human and random scores of a game are the same, or not finite.
    """
    low, high = np.asarray(random, np.float64), np.asarray(human, np.float64)
    if not np.isfinite(high - low).all() or (high == low).any():
        raise ValueError(f"human scores must be finite and differ from random ones: human {high}, random {low}")
    return (np.asarray(scores, np.float64) - low) / (high - low)


def interquartile_mean(scores: Scores) -> Scores:
    """(...): mean of the middle half of all R * G scores (..., R, G), a quarter cut off, rounded down, at each end."""
    pooled = np.sort(scores.reshape(*scores.shape[:-2], -1), axis=-1)
    cut = pooled.shape[-1] // 4
    return np.asarray(pooled[..., cut : pooled.shape[-1] - cut].mean(axis=-1))


def mean(scores: Scores) -> Scores:
    """(...): mean of all R * G scores (..., R, G)."""
    return np.asarray(scores.mean(axis=(-2, -1)))


def median(scores: Scores) -> Scores:
    """(...): median of all R * G scores (..., R, G); of one game, the median over seeds."""
    return np.asarray(np.median(scores, axis=(-2, -1)))


def median_game(scores: Scores) -> Scores:
    """(...): median over games of the games' means over runs: the "median" of most Atari tables."""
    return np.asarray(np.median(scores.mean(axis=-2), axis=-1))


def bootstrap(
    scores: npt.ArrayLike,
    statistic: Statistic = interquartile_mean,
    *,
    seed: int = 0,
    resamples: int = 2000,
    confidence: float = 0.95,
) -> Estimate:
    """A statistic with its percentile interval by the stratified bootstrap (Agarwal et al. 2021, section 4.1).

    Each resample draws, of each game by itself, R of its R runs with repetition. It needs no assumption on the
    distribution, but many scores: of less than about ten it gives intervals that are too narrow. For the mean of one
    game's few seeds take :func:`mean_over_seeds`.

    Args:
        scores: (R, G), or (R,) of one game.
        statistic: what to estimate.
        seed: of the draws, which depend on nothing else.
        resamples: draws; more make the ends of the interval steadier, not narrower.
        confidence: share of such intervals that cover the true value.

    Raises:
        ValueError: fewer than two runs, a score that is not finite (names run and game), or a setting out of range.
    """
    table = _table(scores)
    if resamples < 1 or not 0 < confidence < 1:
        raise ValueError(f"bootstrap needs resamples >= 1 and a confidence in (0, 1), not {resamples} and {confidence}")
    runs, games = table.shape
    chunk = max(1, _MEMORY // table.size)
    found = []
    for first in range(0, resamples, chunk):
        rows = range(first, min(first + chunk, resamples))
        draws = Random(seed, 0, rows, scope="evaluation/returns/").integers("run", runs, runs, games).numpy()
        found.append(statistic(np.take_along_axis(table[None], draws, axis=1)))
    tail = (1 - confidence) / 2
    low, high = np.quantile(np.concatenate(found), [tail, 1 - tail])
    return Estimate(float(statistic(table)), float(low), float(high))


def mean_over_seeds(returns: npt.ArrayLike, confidence: float = 0.95) -> Estimate:
    """Mean of one game's returns (R,), one of each seed, with Student's t interval, which suits as few as two seeds.

    Raises:
        ValueError: fewer than two runs, a return that is not finite, or a confidence outside (0, 1).
    """
    table = _table(returns)
    if table.shape[1] != 1:
        raise ValueError(f"returns must be (R,), of one game, not {list(table.shape)}")
    value, half = float(table.mean()), half_width(table[:, 0].tolist(), confidence)
    return Estimate(value, value - half, value + half)


def _table(scores: npt.ArrayLike) -> Scores:
    """(R, G), checked."""
    table = np.asarray(scores, np.float64)
    if table.ndim == 1:
        table = table[:, None]
    if table.ndim != 2 or table.shape[0] < 2 or table.shape[1] < 1:
        raise ValueError(f"scores must be (R, G) of at least 2 runs and 1 game, not {list(table.shape)}")
    if not np.isfinite(table).all():
        run, game = np.argwhere(~np.isfinite(table))[0].tolist()
        raise ValueError(f"the score of run {run} in game {game} is {table[run, game]}; all must be finite")
    return table
