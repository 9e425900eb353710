"""What runs cost: time, reserved processors, energy - where the store knows it, else unknown."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from heliostat.tracking.display import duration
from heliostat.tracking.grouping import Group
from heliostat.tracking.metrics import number
from heliostat.tracking.run_record import RunRecord

_THROUGHPUT = ("perf/samples_per_second", "rollout/steps_per_second")
"""Names under which runs log how fast they go."""
_POWER = re.compile(r"system/(.+/)?gpu_\d+_power_usage_watts")


@dataclass(frozen=True)
class Cost:
    """Of one run, or the mean over several; None is unknown."""

    seconds: float | None
    """From start to end, pauses of a resumed run included."""
    throughput: tuple[str, float] | None
    """Its metric, and the mean over the run."""
    cpu_hours: float | None
    """CPU cores that the run reserved from Ray, times hours."""
    gpu_hours: float | None
    """GPUs that the run reserved, times hours."""
    watt_hours: float | None
    """What the GPUs of the driver's machine drew, by the system metrics."""


def cost(group: Group) -> Cost:
    """Means over the runs of a group; unknown where it is of one of them."""
    each = [_cost(run) for run in group.runs]
    named = {one.throughput[0] for one in each if one.throughput}
    speeds = [one.throughput[1] for one in each if one.throughput]
    return Cost(
        seconds=_mean([one.seconds for one in each]),
        throughput=(named.pop(), math.fsum(speeds) / len(speeds))
        if len(named) == 1 and len(speeds) == len(each)
        else None,
        cpu_hours=_mean([one.cpu_hours for one in each]),
        gpu_hours=_mean([one.gpu_hours for one in each]),
        watt_hours=_mean([one.watt_hours for one in each]),
    )


def rows(groups: Sequence[Group]) -> list[tuple[str, list[str]]]:
    """What is known, as people read it: a title and a text per group; nothing that is unknown of all."""
    costs = [cost(group) for group in groups]
    shown = [
        ("time", [duration(one.seconds) if one.seconds is not None else "unknown" for one in costs]),
        ("throughput", [_speed(one) for one in costs]),
        ("CPU-hours reserved", [_hours(one.cpu_hours) for one in costs]),
        ("GPU-hours reserved", [_hours(one.gpu_hours) for one in costs]),
        ("energy of the GPUs", [f"{number(one.watt_hours)} Wh" if one.watt_hours else "unknown" for one in costs]),
    ]
    return [(title, texts) for title, texts in shown if set(texts) != {"unknown"}]


def _cost(run: RunRecord) -> Cost:
    hours = None if run.duration is None else run.duration / 3600
    cpus, gpus = _reserved(run)
    speeds = ((name, [v for _, v in run.histories.get(name, ()) if math.isfinite(v)]) for name in _THROUGHPUT)
    known = next(((name, math.fsum(values) / len(values)) for name, values in speeds if values), None)
    watts = [
        math.fsum(value for _, value in points) / len(points)
        for name, points in run.histories.items()
        if _POWER.fullmatch(name) and points
    ]
    return Cost(
        seconds=run.duration,
        throughput=known,
        cpu_hours=None if hours is None or cpus is None else cpus * hours,
        gpu_hours=None if hours is None or gpus is None else gpus * hours,
        watt_hours=None if hours is None or not watts else math.fsum(watts) * hours,
    )


def _reserved(run: RunRecord) -> tuple[float | None, float | None]:
    """CPU cores and GPUs that the run's job reserved, by its parameters; None where they do not tell."""

    def amount(name: str) -> float | None:
        try:
            return float(run.parameters[f"resources.{name}"])
        except (KeyError, ValueError):
            return None

    kinds = ("worker",) if amount("workers") is not None else ("actor", "learner")
    totals: list[float | None] = []
    for unit in ("cpus", "gpus"):
        parts = [(amount(f"{kind}s"), amount(f"{unit}_per_{kind}")) for kind in kinds]
        totals.append(_sum([a * b if a is not None and b is not None else None for a, b in parts]))
    if run.parameters.get("resources.runtime") != "ray":  # one process takes what it gets
        return None, totals[1]
    return totals[0], totals[1]


def _sum(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return math.fsum(known) if len(known) == len(values) else None


def _mean(values: Sequence[float | None]) -> float | None:
    total = _sum(values)
    return None if total is None else total / len(values)


def _speed(one: Cost) -> str:
    if one.throughput is None:
        return "unknown"
    name, value = one.throughput
    return f"{number(value)} {name.rpartition('/')[2].removesuffix('_per_second')}/s"


def _hours(value: float | None) -> str:
    return "unknown" if value is None else number(value)
