"""What a job needs of a cluster, and whether a cluster can ever have it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from heliostat.clusters.cluster_file import NodeGroup
from heliostat.config.loading import AnyJob
from heliostat.config.reinforcement import ReinforcementJob
from heliostat.errors import Problem


@dataclass(frozen=True)
class Demand:
    """So many processes of one kind, each on one node."""

    what: str
    """In the plural."""
    least: int
    most: int
    """More than ``least`` where the group may grow."""
    cpus: float
    gpus: float


def demands(job: AnyJob) -> tuple[Demand, ...]:
    """The processes of a job that take resources. Replay shards, evaluator and driver take no CPU of Ray's."""
    resources = job.resources
    if isinstance(job, ReinforcementJob):
        agents = job.resources
        return (
            Demand("learners", agents.learners, agents.learners, agents.cpus_per_learner, agents.gpus_per_learner),
            Demand("rollout actors", agents.actors, agents.actors, agents.cpus_per_actor, agents.gpus_per_actor),
        )
    workers = job.resources.worker_range
    return (Demand("workers", workers[0], workers[-1], resources.cpus_per_worker, resources.gpus_per_worker),)  # type: ignore[union-attr]


def check_fit(wanted: Sequence[Demand], nodes: Sequence[NodeGroup]) -> tuple[list[Problem], list[Problem]]:
    """What a cluster can never have, and what cannot be told.

    Returns:
        Problems, and remarks.
    """
    problems, remarks = [], []
    unknown = [group.name for group in nodes if group.cpus is None or group.gpus is None]
    if unknown:
        what = f"the file does not say what nodes of type {', '.join(unknown)} have, so whether the job fits is unknown"
        remarks.append(Problem(what))
        return [], remarks
    for demand in wanted:
        room = sum(group.most * _per_node(demand, group) for group in nodes)
        needs = _resources(demand)
        if room < demand.least:
            what = (
                f"{demand.least} {demand.what} of {needs} each are asked for, but the cluster can never hold more than "
                f"{room:g}: {_described(nodes)}"
            )
            problems.append(Problem(what, "resources"))
        elif room < demand.most:
            what = f"of up to {demand.most} {demand.what} of {needs} each, the cluster can hold {room:g}"
            remarks.append(Problem(what, "resources"))
        now = sum(group.least * _per_node(demand, group) for group in nodes)
        if room >= demand.least > now:
            what = (
                f"the job waits until the cluster has grown: at first it holds {now:g} of {demand.least} {demand.what}"
            )
            remarks.append(Problem(what, "resources"))
    if not problems and len(wanted) > 1:
        for kind, of_node in (("CPUs", "cpus"), ("GPUs", "gpus")):
            total = sum(demand.least * getattr(demand, of_node) for demand in wanted)
            have = sum(group.most * getattr(group, of_node) for group in nodes)
            if total > have:
                names = " and ".join(demand.what for demand in wanted)
                problems.append(
                    Problem(
                        f"{names} need {total:g} {kind} together, but the cluster has {have:g} at most", "resources"
                    )
                )
    return problems, remarks


def _per_node(demand: Demand, group: NodeGroup) -> float:
    """How many of the processes one node can hold."""
    room = math.inf
    for need, have in ((demand.cpus, group.cpus), (demand.gpus, group.gpus)):
        if need > 0:
            room = min(room, (have or 0) // need)
    return room if group.most else 0


def _resources(demand: Demand) -> str:
    parts = [
        f"{number:g} {kind}{'s' if number != 1 else ''}"
        for kind, number in (("CPU", demand.cpus), ("GPU", demand.gpus))
        if number
    ]
    return " and ".join(parts) or "nothing"


def _described(nodes: Sequence[NodeGroup]) -> str:
    return ", ".join(f"{group.most} x {group.name} with {group.cpus:g} CPUs and {group.gpus:g} GPUs" for group in nodes)
