"""Reads runs from the tracking store.

A run's result is the value at its **last** step. The best step of a curve is chosen by looking at the answer, so it is
never read as a result.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from heliostat.errors import InputError, Problem, nearest
from heliostat.tracking.client import connect
from heliostat.tracking.location import StoreError, display_uri, scrub, sqlite_path
from heliostat.tracking.metrics import direction

if TYPE_CHECKING:
    from mlflow import MlflowClient

Result = TypeVar("Result")
ENVIRONMENT = "environment.json"
"""The run's file that says what it ran on: versions, hardware, git state."""
_PICTURES = (".png", ".jpg", ".jpeg", ".svg")
_SYSTEM = "system/"
_LARGEST = 1.7976931348623157e308  # what MLflow's databases hold for infinity


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """One run as the store has it."""

    name: str
    id: str
    experiment: str
    status: str
    """RUNNING, FINISHED, FAILED, KILLED or SCHEDULED."""
    start: float
    """Seconds since 1970."""
    duration: float | None
    """Seconds from start to end; None while it runs."""
    parameters: Mapping[str, str]
    metrics: Mapping[str, float]
    """Of each metric the value at its last step."""
    tags: Mapping[str, str]
    histories: Mapping[str, Sequence[tuple[int, float]]] = field(default_factory=dict)
    """(step, value) of each metric, by step; without system metrics."""
    figures: Sequence[str] = ()
    """Paths of the run's pictures among its artifacts."""
    artifacts: Sequence[str] = ()
    """Paths of the run's files, folders not unfolded."""

    environment: Mapping[str, str] = field(default_factory=dict)
    """What the run ran on, nested names joined by dots."""


def list_runs(
    uri: str,
    experiment: str | None = None,
    *,
    status: str | None = None,
    filters: str = "",
    sort: str | None = None,
    limit: int | None = None,
) -> list[RunRecord]:
    """Runs without histories and files, the latest first.

    Args:
        uri: the store, absolute.
        experiment: only this one.
        status: only runs with this status.
        filters: a filter in MLflow's language, such as ``params.seed = '0'``.
        sort: a metric, best first (highest first where its name does not tell), or ``name``, ``start``, ``duration``.
            Runs without it come last.
        limit: at most so many.

    Raises:
        InputError: no store, no such experiment, status, metric, or the filter cannot be read.
        StoreError: the store does not answer.
    """
    if status is not None:
        valid = ("RUNNING", "FINISHED", "FAILED", "KILLED", "SCHEDULED")
        if status.upper() not in valid:
            raise InputError(f"There is no status '{status}'.{nearest(status.upper(), valid)}")
        filters = " AND ".join(filter(None, (filters, f"attributes.status = '{status.upper()}'")))
    records = _reading(uri, lambda client: _search(client, experiment, filters, None if sort else limit))
    if sort is not None:
        records = _sorted(records, sort)
    return records[:limit]


def load_runs(
    uri: str, names_or_ids: Sequence[str] = (), experiment: str | None = None, filters: str = ""
) -> list[RunRecord]:
    """Runs with histories and lists of files, in the order of their names.

    Args:
        uri: the store, absolute.
        names_or_ids: names of runs, beginnings that only one name or id has, MLflow's ids, or paths of run directories.
            Empty: all runs that match.
        experiment: only runs of this one.
        filters: a filter in MLflow's language.

    Raises:
        InputError: no store, unknown or ambiguous names (all of them at once), or the filter cannot be read.
        StoreError: the store does not answer.
    """

    def read(client: MlflowClient) -> list[RunRecord]:
        found = _search(client, experiment, filters, None)
        return [_complete(client, record) for record in _resolve(found, names_or_ids)]

    return _reading(uri, read)


def download(uri: str, run: RunRecord, path: str, folder: Path) -> Path:
    """Copy one of a run's files into ``folder``; returns where it is."""
    return _reading(uri, lambda client: Path(client.download_artifacts(run.id, path, str(folder))))


def summary(run: RunRecord) -> dict[str, Any]:
    """A run as JSON, without its curves."""
    metrics = {key: value if math.isfinite(value) else str(value) for key, value in run.metrics.items()}
    return {
        "name": run.name,
        "id": run.id,
        "experiment": run.experiment,
        "status": run.status,
        "start": run.start,
        "duration": run.duration,
        "parameters": dict(run.parameters),
        "metrics": metrics,
        "tags": dict(run.tags),
    }


def _reading(uri: str, read: Callable[[MlflowClient], Result]) -> Result:
    path = sqlite_path(uri)
    if path is not None and not path.exists():  # MLflow would make it
        raise InputError(Problem(f"There is no tracking store at {path}. Name another with --uri.", "--uri"))
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        return read(connect(uri))
    except MlflowException as error:
        text = scrub(str(error), uri)
        if error.error_code == "INVALID_PARAMETER_VALUE":
            raise InputError(f"The tracking store does not understand the question: {text}") from error
        raise StoreError(f"The tracking store {display_uri(uri)} cannot be read: {text}") from error
    except SQLAlchemyError as error:
        raise StoreError(f"{display_uri(uri)} is no tracking store: {scrub(str(error), uri)}") from error


def _search(client: MlflowClient, experiment: str | None, filters: str, limit: int | None) -> list[RunRecord]:
    experiments = {e.experiment_id: e.name for e in _pages(client.search_experiments)}
    chosen = [key for key, name in experiments.items() if experiment in (None, name)]
    if not chosen:
        raise InputError(f"There is no experiment '{experiment}'.{nearest(experiment or '', experiments.values())}")

    def search(**page: Any) -> Any:
        size = 1000 if limit is None else min(limit, 1000)
        return client.search_runs(
            chosen, filters, order_by=["attributes.start_time DESC"], **{"max_results": size, **page}
        )

    return [_record(run, experiments[run.info.experiment_id]) for run in _pages(search, limit)]


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


def _record(run: Any, experiment: str) -> RunRecord:
    start, end, status = run.info.start_time or 0, run.info.end_time, run.info.status
    return RunRecord(
        name=run.info.run_name or run.info.run_id,
        id=run.info.run_id,
        experiment=experiment,
        status=status,
        start=start / 1000,
        duration=(end - start) / 1000 if end and status != "RUNNING" else None,  # a resumed run has an old end
        parameters=dict(run.data.params),
        metrics={key: _value(value) for key, value in run.data.metrics.items()},
        tags=dict(run.data.tags),
    )


def _value(value: float) -> float:
    return math.copysign(math.inf, value) if abs(value) >= _LARGEST else value


def _sorted(records: Iterable[RunRecord], sort: str) -> list[RunRecord]:
    records = list(records)
    if sort == "name":
        return sorted(records, key=lambda run: run.name)
    if sort == "start":
        return sorted(records, key=lambda run: -run.start)
    if sort == "duration":
        return sorted(records, key=lambda run: (run.duration is None, run.duration))
    known = {name for run in records for name in run.metrics}
    if known and sort not in known:
        raise InputError(
            Problem(f"No run has a metric '{sort}'.{nearest(sort, known | {'name', 'start', 'duration'})}", "--sort")
        )
    sign = 1 if direction(sort) == "lower" else -1

    def key(run: RunRecord) -> tuple[bool, float]:
        value = run.metrics.get(sort, math.nan)
        return math.isnan(value), 0.0 if math.isnan(value) else sign * value

    return sorted(records, key=key)


def _resolve(found: Sequence[RunRecord], names: Sequence[str]) -> list[RunRecord]:
    if not names:
        return list(found)
    chosen: dict[str, RunRecord] = {}
    problems = []
    for given in names:
        name = Path(given).name if "/" in given or "\\" in given else given
        exact = [run for run in found if name in (run.name, run.id)]
        matching = exact or [run for run in found if name and (run.name.startswith(name) or run.id.startswith(name))]
        if len(matching) == 1:
            chosen.setdefault(matching[0].id, matching[0])
        elif matching:
            which = ", ".join(f"{run.name} ({run.id[:8]})" for run in matching[:6])
            more = f" and {len(matching) - 6} more" if len(matching) > 6 else ""
            problems.append(Problem(f"'{given}' could be {which}{more}. Write more of the name, or the id."))
        elif not found:
            problems.append(Problem(f"There is no run '{given}': the store has no runs here."))
        else:
            problems.append(Problem(f"There is no run '{given}'.{_hint(name, [run.name for run in found])}"))
    if problems:
        raise InputError(problems)
    return list(chosen.values())


def _hint(name: str, names: Sequence[str]) -> str:
    hint = nearest(name, set(names))
    if "Did you mean" in hint or len(names) <= 8:
        return hint
    return f" The latest are: {', '.join(names[:5])}; `heliostat runs` lists all."


def _complete(client: MlflowClient, run: RunRecord) -> RunRecord:
    histories = {}
    for key in run.metrics:
        if key.startswith(_SYSTEM):
            continue
        points = sorted(client.get_metric_history(run.id, key), key=lambda point: (point.step, point.timestamp))
        histories[key] = [*{point.step: _value(point.value) for point in points}.items()]
    top = client.list_artifacts(run.id)
    environment: dict[str, str] = {}
    if any(file.path == ENVIRONMENT for file in top):
        with tempfile.TemporaryDirectory(prefix="heliostat-") as folder:
            text = Path(client.download_artifacts(run.id, ENVIRONMENT, folder)).read_text(encoding="utf-8")
        try:
            environment = dict(_flat(json.loads(text)))
        except ValueError as error:
            environment = {ENVIRONMENT: f"cannot be read: {error}"}
    figures = [file.path for file in client.list_artifacts(run.id, "figures")]
    return replace(
        run,
        histories=histories,
        environment=environment,
        artifacts=[file.path for file in top],
        figures=[path for path in figures if path.lower().endswith(_PICTURES)],
    )


def _flat(value: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _flat(inner, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, value if isinstance(value, str) else json.dumps(value)
