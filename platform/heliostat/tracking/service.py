"""Reads runs through MLflow's client: servers, and databases other than SQLite."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from heliostat.tracking.run_record import Head, History, Kind, RunRecord, stored

if TYPE_CHECKING:
    from mlflow import MlflowClient

_PAGE = 1000  # runs that a server sends at once
_SYSTEM = "system/"


class Service:
    """What MLflow's client answers, in the terms of :class:`heliostat.tracking.records.Reader`.

    A server has no question for single values of many runs, so that whole runs are read and kept for this one command.
    """

    def __init__(self, client: MlflowClient) -> None:
        self._client = client
        self._records: dict[str, RunRecord] = {}

    def experiments(self) -> dict[str, str]:
        """Names of experiments by id."""
        return {e.experiment_id: e.name for e in _pages(self._client.search_experiments)}

    def heads(self, experiments: Sequence[str], limit: int | None) -> list[Head]:
        """Runs of these experiments, the latest first."""
        names = self.experiments()

        def search(**page: Any) -> Any:
            return self._client.search_runs(
                list(experiments),
                order_by=["attributes.start_time DESC"],
                max_results=_PAGE if limit is None else min(limit, _PAGE),
                **page,
            )

        heads = []
        for run in _pages(search, limit)[:limit]:
            info = run.info
            head = Head.of(
                info.run_id,
                info.run_name,
                names[info.experiment_id],
                info.status,
                info.start_time,
                info.end_time,
                info.artifact_uri,
            )
            metrics = {key: stored(value) for key, value in run.data.metrics.items()}
            self._records[head.id] = head.record(dict(run.data.params), metrics, dict(run.data.tags))
            heads.append(head)
        return heads

    def column(self, kind: Kind, key: str, heads: Sequence[Head]) -> dict[str, str] | dict[str, float]:
        """One value of each run that has it, by run id."""
        found = {head.id: self._values(kind, head) for head in heads}
        return {run_id: values[key] for run_id, values in found.items() if key in values}

    def keys(self, kind: Kind, heads: Sequence[Head]) -> set[str]:
        """All names of a kind among these runs."""
        return {key for head in heads for key in self._values(kind, head)}

    def records(self, heads: Sequence[Head]) -> list[RunRecord]:
        """Whole runs, without histories and files."""
        return [self._records[head.id] for head in heads]

    def histories(self, ids: Sequence[str], wanted: Sequence[str]) -> dict[str, dict[str, History]]:
        """Curves by run and metric: of a step its last value. ``wanted``: beginnings of system metrics' names that
        are read too."""
        found: dict[str, dict[str, History]] = {}
        for run_id in ids:
            curves = found.setdefault(run_id, {})
            for key in self._records[run_id].metrics:
                if not key.startswith(_SYSTEM) or key.startswith(tuple(wanted)):
                    points = self._client.get_metric_history(run_id, key)
                    points = sorted(points, key=lambda point: (point.step, point.timestamp))
                    curves[key] = list({point.step: stored(point.value) for point in points}.items())
        return found

    def _values(self, kind: Kind, head: Head) -> Any:
        record = self._records[head.id]
        return {"parameter": record.parameters, "metric": record.metrics, "tag": record.tags}[kind]


def _pages(search: Callable[..., Any], limit: int | None = None) -> list[Any]:
    found: list[Any] = []
    token = None
    while limit is None or len(found) < limit:
        page = search(page_token=token) if token else search()
        found.extend(page)
        token = page.token
        if not token:
            break
    return found
