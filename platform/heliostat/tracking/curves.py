"""Curves over steps: the runs of a group together, with the interval of their mean."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from heliostat.tracking.grouping import Group
from heliostat.tracking.run_record import History

Numbers = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Curve:
    """One metric of one group over steps."""

    mean: History
    """Over the runs, at steps that all of them cover; NaN where a run's value is. A single run's own curve."""
    low: History
    """Lower end of the 95 % interval of the mean (Student's t); empty of a single run."""
    high: History
    members: Sequence[History]
    """The runs one by one."""
    interpolated: bool
    """Whether runs logged at different steps, so that the mean is of values read between points."""


def curve(group: Group, metric: str) -> Curve | None:
    """The curve of a group; None where no run of it has a finite point."""
    members = [list(run.histories[metric]) for run in group.runs if run.histories.get(metric)]
    if not any(math.isfinite(value) for member in members for _, value in member):
        return None
    if len(members) == 1:
        return Curve(members[0], (), (), members, interpolated=False)
    steps = sorted({step for member in members for step, _ in member})
    first, last = max(member[0][0] for member in members), min(member[-1][0] for member in members)
    shared = [step for step in steps if first <= step <= last]
    interpolated = any([step for step, _ in member if first <= step <= last] != shared for member in members)
    if not shared:  # runs that never overlap have no mean
        return Curve((), (), (), members, interpolated=False)
    values = np.stack([_at(member, shared) for member in members])
    mean, half = values.mean(axis=0), _half_width(values)
    return Curve(
        _points(shared, mean), _points(shared, mean - half), _points(shared, mean + half), members, interpolated
    )


def _at(member: History, steps: Sequence[int]) -> Numbers:
    """(S,): a run's values at these steps, on the line between its points; NaN beside a point that is NaN."""
    known = dict(member)
    if all(step in known for step in steps):
        return np.array([known[step] for step in steps], np.float64)
    x, y = zip(*member, strict=True)
    return np.asarray(np.interp(steps, x, np.where(np.isfinite(y), y, np.nan)), np.float64)


def _half_width(values: Numbers) -> Numbers:
    """(S,): half of Student's t interval of the mean of (R, S)."""
    from scipy.special import stdtrit

    runs = len(values)
    return np.asarray(stdtrit(runs - 1, 0.975) * values.std(axis=0, ddof=1) / math.sqrt(runs), np.float64)


def _points(steps: Sequence[int], values: Numbers) -> History:
    return list(zip(steps, values.tolist(), strict=True))
