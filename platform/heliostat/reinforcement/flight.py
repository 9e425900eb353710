"""Updates on the way: what shards and learners were asked for, and how samples are drawn over all shards."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from heliostat.reinforcement.crew import Member
from heliostat.reinforcement.learner import Shares
from heliostat.reinforcement.roster import Roster
from heliostat.reinforcement.shard import ShardReport
from heliostat_algorithms.randomness import Random
from heliostat_algorithms.reinforcement.replay.sampling import allocate, stratified

if TYPE_CHECKING:
    from heliostat.config.reinforcement import ReinforcementJob


@dataclass
class Flight:
    """Updates that were asked for and are not done."""

    first: int
    """Number of the first of them, from 1."""
    count: int
    learners: list[Member]
    shards: list[Member]
    """Who was asked, as they were then."""
    reports: list[Any]
    """Of each learner."""
    feedback: list[list[Any]]
    """Of each learner, for each shard."""
    since: float
    """When they were asked for."""


def set_out(roster: Roster, stands: Sequence[ShardReport], first: int, count: int, progress: float) -> Flight:
    """Ask shards for samples, and learners for updates with them.

    Args:
        roster: who is asked.
        stands: how each shard stood when it was last heard of.
        first: number of the first of the updates, from 1.
        count: how many.
        progress: share of the run's steps that are played.
    """
    job, masses = roster.job, [stand.mass for stand in stands]
    points: list[list[npt.NDArray[np.float64]]] = [[] for _ in roster.shards]
    for number in range(first, first + count):
        for shard, part in enumerate(allocate(masses, _points(job, number))):
            points[shard].append(part)
    sampled = [
        roster.ask(shard, "sample", np.concatenate(part), tuple(map(len, part)))
        for shard, part in zip(roster.shards, points, strict=True)
    ]
    total = sum(masses)
    shares = Shares(mass=tuple(mass / total for mass in masses), items=sum(stand.items for stand in stands))
    reports, feedback = [], []
    for member in roster.learners:
        report, *rest = roster.ask(
            member, "update", first, count, progress, shares, *sampled, returns=1 + len(roster.shards)
        )
        reports.append(report)
        feedback.append(rest)
    return Flight(first, count, list(roster.learners), list(roster.shards), reports, feedback, time.monotonic())


def _points(job: ReinforcementJob, number: int) -> npt.NDArray[np.float64]:
    """(B,) points of the whole mass, from 0 to 1, at which an update samples."""
    random = Random(job.seed, number, range(job.optimization.batch_size), scope="replay/")
    draws = random.uniform("item").numpy()
    if job.algorithm.prioritization is not None:
        return stratified(draws)
    # Independent draws; the low digits make them finer than the 2^24 steps of one draw.
    fine = random.uniform("digits").numpy()
    return np.minimum(draws.astype(np.float64) + fine.astype(np.float64) * 2.0**-24, 1 - 2.0**-53)
