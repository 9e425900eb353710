"""Whether a representation collapses while it trains, by what the algorithm itself says of its metrics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from heliostat.training.state import TrainingState

_UNTRAINED = 0.1
"""Share of the training in which a collapse is not looked for: some networks begin with features that are all alike."""
_TOLD_POINTS, _LASTING_POINTS = 3, 10
"""Points of the curves in a row after which a collapse is told, and after which it is taken to be lasting."""


@dataclass(frozen=True)
class Collapse:
    """A collapse that has been seen for some points in a row."""

    reason: str
    """What shows it, and its likely cause."""
    first: bool
    """Whether it is to be told now."""
    lasting: bool
    """Whether it is there for so long that training on is hardly worth it."""


def watch(state: TrainingState, metrics: Mapping[str, float], done: int, total_steps: int) -> Collapse | None:
    """Look at one point of the curves, the same on every worker. The count of points is part of the state: a resumed
    run says and does what an uninterrupted one would."""
    if done < _UNTRAINED * total_steps:
        return None
    reason = state.algorithm.diagnose({name.removeprefix("train/"): value for name, value in metrics.items()})
    state.collapsed_points = 0 if reason is None else state.collapsed_points + 1
    if reason is None:
        return None
    return Collapse(reason, state.collapsed_points == _TOLD_POINTS, state.collapsed_points >= _LASTING_POINTS)
