"""Finds runs in the tracking store and reads them.

A run's result is the value at its **last** step. The best step of a curve is chosen by looking at the answer, so it is
never read as a result.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from heliostat.errors import InputError, Problem, nearest
from heliostat.tracking.conditions import STATUSES, Condition, unknown_name
from heliostat.tracking.database import Database
from heliostat.tracking.location import StoreError, display_uri, scrub, sqlite_path
from heliostat.tracking.metrics import direction
from heliostat.tracking.run_files import with_files
from heliostat.tracking.run_record import PARENT_TAG, Head, Kind, Reader, RunRecord, summary

__all__ = ["RunRecord", "list_runs", "load_runs", "summary"]

ALGORITHM = "algorithm.type"
"""The parameter that tells a run's algorithm."""
POWER = "system/gpu_"
"""How the names of the system metrics begin that are read with a run's curves: they tell what GPUs drew."""
_KINDS: tuple[Kind, ...] = ("parameter", "metric", "tag")
_ATTRIBUTES = ("name", "status", "experiment", "duration", "start")


def list_runs(
    uri: str,
    experiment: str | None = None,
    *,
    status: str | None = None,
    conditions: Sequence[Condition] = (),
    sort: str | None = None,
    limit: int | None = None,
) -> list[RunRecord]:
    """Runs without histories and files, the latest first; those that belong to a run that is there follow it.

    Args:
        uri: the store, absolute.
        experiment: only this one.
        status: only runs with this status.
        conditions: only runs of which all hold.
        sort: a metric, best first (highest first where its name does not tell), a parameter, or ``name``, ``start``,
            ``duration``. Runs without it come last.
        limit: at most so many; those that follow the run they belong to do not count.

    Raises:
        InputError: no store, or no such experiment, status or name.
        StoreError: the store does not answer.
    """
    if status is not None:
        if status.upper() not in STATUSES:
            raise InputError(f"There is no status '{status}'.{nearest(status.upper(), STATUSES)}")
        conditions = [*conditions, Condition("status", "=", status)]
    with _reading(uri) as reader:
        experiments = _experiments(reader, experiment)
        enough = None if conditions or sort is not None else limit
        heads = reader.heads(experiments, enough)
        parents = reader.column("tag", PARENT_TAG, heads)
        if parents and enough is not None:  # children do not count, so that these may be too few
            heads = reader.heads(experiments, None)
            parents = reader.column("tag", PARENT_TAG, heads)
        chosen = _sorted(reader, _filtered(reader, heads, conditions, "--where"), sort)
        return reader.records(_nested(chosen, {key: str(parent) for key, parent in parents.items()}, limit))


def load_runs(
    uri: str,
    names_or_ids: Sequence[str] = (),
    experiment: str | None = None,
    conditions: Sequence[Condition] = (),
) -> list[RunRecord]:
    """Runs with histories and lists of files, in the order of their names.

    Args:
        uri: the store, absolute.
        names_or_ids: names of runs, beginnings that only one name or id has, MLflow's ids, or paths of run directories.
            A run to which others belong, such as a sweep, stands for those. Empty: all runs that match.
        experiment: only runs of this one.
        conditions: only runs of which all hold.

    Raises:
        InputError: no store, unknown or ambiguous names (all of them at once).
        StoreError: the store does not answer.
    """
    with _reading(uri) as reader:
        found = reader.heads(_experiments(reader, experiment), None)
        parents = reader.column("tag", PARENT_TAG, found)
        chosen = _unfolded(_resolve(found, names_or_ids), found, {key: str(value) for key, value in parents.items()})
        chosen = _filtered(reader, chosen, conditions, "--where")
        records = reader.records(chosen)
        histories = reader.histories([run.id for run in records], (POWER,))
    return [with_files(uri, replace(run, histories=histories[run.id])) for run in records]


def find_run(uri: str, name_or_id: str, experiment: str | None = None) -> RunRecord:
    """One run, itself even where others belong to it; without histories and files.

    Raises:
        InputError: no store, or an unknown or ambiguous name.
        StoreError: the store does not answer.
    """
    with _reading(uri) as reader:
        found = reader.heads(_experiments(reader, experiment), None)
        return reader.records(_resolve(found, [name_or_id]))[0]


@contextmanager
def _reading(uri: str) -> Iterator[Reader]:
    """The store, read directly where it is a SQLite file of a known form, else through MLflow's client."""
    path = sqlite_path(uri)
    if path is not None:
        if not path.exists():  # MLflow would make it
            raise InputError(Problem(f"There is no tracking store at {path}. Name another with --uri.", "--uri"))
        with Database.open(path) as database:
            if database is not None:
                yield database
                return
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    from heliostat.tracking.client import connect
    from heliostat.tracking.service import Service

    try:
        yield Service(connect(uri))
    except MlflowException as error:
        text = scrub(str(error), uri)
        raise StoreError(f"The tracking store {display_uri(uri)} cannot be read: {text}") from error
    except SQLAlchemyError as error:
        raise StoreError(f"{display_uri(uri)} is no tracking store: {scrub(str(error), uri)}") from error


def _experiments(reader: Reader, experiment: str | None) -> list[str]:
    """Ids of the experiments to look in."""
    names = reader.experiments()
    chosen = [key for key, name in names.items() if experiment in (None, name)]
    if experiment is not None and not chosen:
        raise InputError(f"There is no experiment '{experiment}'.{nearest(experiment, names.values())}")
    return chosen


def _column(
    reader: Reader, name: str, heads: Sequence[Head], where: str
) -> tuple[Kind | None, Mapping[str, str | float]]:
    """A value of each run, by its id: of the run itself (None), a parameter, a metric or a tag.

    Raises:
        InputError: nothing has this name.
    """
    if name in _ATTRIBUTES:
        values = {head.id: getattr(head, name) for head in heads}
        return None, {key: value for key, value in values.items() if value is not None}
    key = ALGORITHM if name == "algorithm" else name
    for kind in _KINDS:
        if found := reader.column(kind, key, heads):
            return kind, found
    known = {*_ATTRIBUTES, "algorithm"}.union(*(reader.keys(kind, heads) for kind in _KINDS))
    if key not in known and heads:
        raise unknown_name(name, known, where)
    return None, {}


def _filtered(reader: Reader, heads: Sequence[Head], conditions: Sequence[Condition], where: str) -> list[Head]:
    problems: list[Problem] = []
    columns = {}
    for condition in conditions:
        try:
            columns[condition.name] = _column(reader, condition.name, heads, where)[1]
        except InputError as error:
            problems += error.problems
    if problems:
        raise InputError(problems)
    return [
        head for head in heads if all(condition.holds(columns[condition.name].get(head.id)) for condition in conditions)
    ]


def _sorted(reader: Reader, heads: Sequence[Head], sort: str | None) -> list[Head]:
    if sort is None:
        return list(heads)
    kind, values = _column(reader, sort, heads, "--sort")
    highest_first = sort == "start" or (kind == "metric" and direction(sort) != "lower")

    def key(head: Head) -> tuple[int, float, str]:
        value = values.get(head.id, math.nan)
        try:
            number = float(value)
        except ValueError:
            return 1, 0.0, str(value)
        if math.isnan(number):
            return 2, 0.0, ""
        return 0, -number if highest_first else number, ""

    return sorted(heads, key=key)


def _nested(heads: Sequence[Head], parents: Mapping[str, str], limit: int | None) -> list[Head]:
    """Each run followed by those that belong to it."""
    here = {head.id for head in heads}
    children: dict[str, list[Head]] = {}
    top = []
    for head in heads:
        parent = parents.get(head.id)
        if parent in here and parent is not None and parent != head.id:
            children.setdefault(parent, []).append(head)
        else:
            top.append(head)
    ordered: list[Head] = []
    waiting = top[:limit][::-1]
    while waiting:
        ordered.append(waiting.pop())
        waiting += children.get(ordered[-1].id, [])[::-1]
    return ordered


def _unfolded(chosen: Sequence[Head], found: Sequence[Head], parents: Mapping[str, str]) -> list[Head]:
    """Runs that have children replaced by them, oldest first."""
    children: dict[str, list[Head]] = {}
    for head in reversed(found):
        if (parent := parents.get(head.id)) is not None:
            children.setdefault(parent, []).append(head)
    unfolded: dict[str, Head] = {}
    for head in chosen:
        for each in children.get(head.id, [head]):
            unfolded.setdefault(each.id, each)
    return list(unfolded.values())


def _resolve(found: Sequence[Head], names: Sequence[str]) -> list[Head]:
    if not names:
        return list(found)
    chosen: dict[str, Head] = {}
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
