"""One run as the tracking store has it, and what a store must answer to give it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeAlias

Kind: TypeAlias = Literal["parameter", "metric", "tag"]
History: TypeAlias = Sequence[tuple[int, float]]
"""(step, value), by step."""
PARENT_TAG = "mlflow.parentRunId"
"""MLflow's tag of a child: the id of the run that it belongs to, such as the sweep of a trial."""
_LARGEST = 1.7976931348623157e308  # what MLflow's databases hold for infinity


@dataclass(frozen=True, kw_only=True)
class Head:
    """What the store's list of runs has of one; values come with :class:`RunRecord`."""

    name: str
    id: str
    experiment: str
    status: str
    """RUNNING, FINISHED, FAILED, KILLED or SCHEDULED."""
    start: float
    """Seconds since 1970."""
    duration: float | None
    """Seconds from start to end; None while it runs."""
    files: str = ""
    """Address of the run's files."""

    @staticmethod
    def of(
        run_id: str, name: str | None, experiment: str, status: str, start: int | None, end: int | None, files: str
    ) -> Head:
        """From what MLflow stores; ``start`` and ``end`` in milliseconds since 1970."""
        start = start or 0
        return Head(
            name=name or run_id,
            id=run_id,
            experiment=experiment,
            status=status,
            start=start / 1000,
            duration=(end - start) / 1000 if end and status != "RUNNING" else None,  # a resumed run has an old end
            files=files or "",
        )

    def record(self, parameters: Mapping[str, str], metrics: Mapping[str, float], tags: Mapping[str, str]) -> RunRecord:
        """The run with its values."""
        return RunRecord(**vars(self), parameters=parameters, metrics=metrics, tags=tags)


@dataclass(frozen=True, kw_only=True)
class RunRecord(Head):
    """One run as the store has it."""

    parameters: Mapping[str, str]
    metrics: Mapping[str, float]
    """Of each metric the value at its last step."""
    tags: Mapping[str, str]
    histories: Mapping[str, History] = field(default_factory=dict)
    """(step, value) of each metric, by step; of system metrics only those that begin with ``POWER``."""
    figures: Sequence[str] = ()
    """Paths of the run's pictures among its artifacts."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """What the run ran on, nested names joined by dots."""

    @property
    def parent(self) -> str | None:
        """Id of the run that it belongs to, such as its sweep."""
        return self.tags.get(PARENT_TAG)


class Reader(Protocol):
    """Where runs are read from: a SQLite file, or MLflow's client."""

    def experiments(self) -> dict[str, str]:
        """Names of experiments by id."""

    def heads(self, experiments: Sequence[str], limit: int | None) -> list[Head]:
        """Runs of these experiments, the latest first."""

    def column(self, kind: Kind, key: str, heads: Sequence[Head]) -> dict[str, str] | dict[str, float]:
        """One value of each run that has it, by run id."""

    def keys(self, kind: Kind, heads: Sequence[Head]) -> set[str]:
        """All names of a kind that these runs have, and maybe of others."""

    def records(self, heads: Sequence[Head]) -> list[RunRecord]:
        """Whole runs, without histories and files."""

    def histories(self, ids: Sequence[str], wanted: Sequence[str]) -> dict[str, dict[str, History]]:
        """Curves by run and metric: of a step its last value. ``wanted``: beginnings of system metrics' names that
        are read too."""


def summary(run: RunRecord) -> dict[str, Any]:
    """A run as JSON, without its curves."""
    metrics = {key: value if math.isfinite(value) else str(value) for key, value in run.metrics.items()}
    return {
        "name": run.name,
        "id": run.id,
        "parent": run.parent,
        "experiment": run.experiment,
        "status": run.status,
        "start": run.start,
        "duration": run.duration,
        "parameters": dict(run.parameters),
        "metrics": metrics,
        "tags": dict(run.tags),
    }


def stored(value: float) -> float:
    """A number as it was before MLflow's database, which has no infinities."""
    return math.copysign(math.inf, value) if abs(value) >= _LARGEST else value
