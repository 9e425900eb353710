"""The algorithm of population-based training, Jaderberg et al. 2017 (arXiv 1711.09846), section 3: truncation selection
and perturbation. Pure: who copies whom, and with which values, follows from seed, step and scores."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from heliostat.config.sweep import Choice, Grid, Integers, PopulationBased, Simple
from heliostat.tuning.space import Assignment, Space, at, options, unit


@dataclass(frozen=True)
class Exploit:
    """A member that goes on from another's state."""

    donor: int
    """Its number."""
    assigned: Assignment
    """Its new values."""


def generation(
    space: Space,
    settings: PopulationBased,
    seed: int,
    step: int,
    scores: Mapping[int, float],
    values: Mapping[int, Assignment],
) -> dict[int, Exploit]:
    """Who is replaced by whom.

    Args:
        step: of the training; decides the draws, with ``seed``.
        scores: of each member that can go on, by number; higher is better.
        values: of each member, by number.
    """
    ranked = sorted(scores, key=lambda member: (scores[member], member))
    count = min(math.ceil(len(ranked) * settings.quantile), len(ranked) // 2)
    if count == 0:
        return {}
    best = ranked[-count:]
    found = {}
    for member in ranked[:count]:
        key = f"{seed}:sweep/pbt/{member}"
        donor = best[int(unit(f"{key}/donor", step) * count)]
        found[member] = Exploit(donor, explore(space, settings, f"{key}/explore", step, values[donor]))
    return found


def explore(space: Space, settings: PopulationBased, key: str, step: int, donor: Assignment) -> Assignment:
    """A donor's values, each a little changed or drawn anew; never outside its range."""
    changed: Assignment = {}
    for path in space.order:
        simple = space.simple(path, changed)
        if simple is None:
            continue
        share = unit(f"{key}/{path}", step)
        if path not in donor or unit(f"{key}/{path}/resample", step) < settings.resample:
            changed[path] = at(simple, share)
        else:
            changed[path] = _perturbed(simple, donor[path], share, settings)
    return changed


def _perturbed(simple: Simple, value: float, share: float, settings: PopulationBased) -> object:
    upwards = share >= 0.5
    if isinstance(simple, Choice | Grid):
        listed = options(simple) or []
        place = listed.index(value) + (1 if upwards else -1)
        return listed[min(max(place, 0), len(listed) - 1)]
    moved = value * settings.factors[upwards]
    if isinstance(simple, Integers):
        nearest = simple.low + round((moved - simple.low) / simple.step) * simple.step
        last = range(simple.low, simple.high + 1, simple.step)[-1]
        return min(max(nearest, simple.low), last)
    return min(max(moved, simple.low), simple.high)
