"""Reads MLflow's SQLite file as it is, without MLflow, which takes longer to import than all questions take together.

It asks only for tables and columns that all MLflow versions since 1.0 have, opens the file for reading alone, and
stands aside (:meth:`Database.open` gives None) where they are not there. What it answers is what MLflow's client would;
tests hold it to that.
"""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

from heliostat.tracking.location import StoreError
from heliostat.tracking.run_record import Head, History, Kind, RunRecord, stored

_COLUMNS = {
    "experiments": ("experiment_id", "name", "lifecycle_stage"),
    "runs": ("run_uuid", "name", "status", "start_time", "end_time", "lifecycle_stage", "artifact_uri"),
    "params": ("key", "value", "run_uuid"),
    "tags": ("key", "value", "run_uuid"),
    "latest_metrics": ("key", "value", "is_nan", "run_uuid"),
    "metrics": ("key", "value", "timestamp", "step", "is_nan", "run_uuid"),
}
_TABLES: dict[Kind, str] = {"parameter": "params", "metric": "latest_metrics", "tag": "tags"}
_AT_ONCE = 500
"""Ids in one question; SQLite takes 999 on old systems."""
_PATIENCE = 20.0
"""Seconds to wait for a writer, as MLflow does."""


class Database:
    """One SQLite file of MLflow's, open for reading."""

    def __init__(self, connection: sqlite3.Connection, path: Path) -> None:
        self._connection, self._path = connection, path

    @staticmethod
    @contextmanager
    def open(path: Path) -> Iterator[Database | None]:
        """The file, closed at the end; None where it has other tables than this class knows.

        Raises:
            StoreError: it is no database, or cannot be read.
        """
        try:
            connection = sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True, timeout=_PATIENCE)
        except sqlite3.Error as error:
            raise StoreError(f"{path} cannot be opened: {error}.") from error
        try:
            known = all(
                set(columns) <= {row[1] for row in connection.execute(f"PRAGMA table_info({table})")}
                for table, columns in _COLUMNS.items()
            )
            yield Database(connection, path) if known else None
        except sqlite3.Error as error:
            raise StoreError(f"{path} is no tracking store, or cannot be read: {error}.") from error
        finally:
            connection.close()

    def experiments(self) -> dict[str, str]:
        """Names of experiments by id."""
        rows = self._ask("SELECT experiment_id, name FROM experiments WHERE lifecycle_stage = 'active'")
        return {str(key): name for key, name in rows}

    def heads(self, experiments: Sequence[str], limit: int | None) -> list[Head]:
        """Runs of these experiments, the latest first."""
        names = self.experiments()
        marks = ",".join("?" * len(experiments))
        rows = self._ask(
            "SELECT run_uuid, name, experiment_id, status, start_time, end_time, artifact_uri FROM runs "
            f"WHERE lifecycle_stage = 'active' AND experiment_id IN ({marks}) "
            f"ORDER BY start_time DESC, run_uuid LIMIT {-1 if limit is None else int(limit)}",
            [int(key) for key in experiments],
        )
        return [
            Head.of(run_id, name, names[str(experiment)], status, start, end, files)
            for run_id, name, experiment, status, start, end, files in rows
        ]

    def column(self, kind: Kind, key: str, heads: Sequence[Head]) -> dict[str, str] | dict[str, float]:
        """One value of each run that has it, by run id."""
        wanted = {head.id for head in heads}
        if kind == "metric":
            rows = self._ask("SELECT run_uuid, value, is_nan FROM latest_metrics WHERE key = ?", [key])
            return {run_id: _number(value, is_nan) for run_id, value, is_nan in rows if run_id in wanted}
        rows = self._ask(f"SELECT run_uuid, value FROM {_TABLES[kind]} WHERE key = ?", [key])
        return {run_id: value for run_id, value in rows if run_id in wanted}

    def keys(self, kind: Kind, heads: Sequence[Head]) -> set[str]:
        """All names of a kind, in the whole store: the primary key is sorted by them, so each is one look."""
        table = _TABLES[kind]
        rows = self._ask(
            f"WITH RECURSIVE names(key) AS (SELECT min(key) FROM {table} UNION ALL "
            f"SELECT (SELECT min(key) FROM {table} WHERE key > names.key) FROM names WHERE names.key IS NOT NULL) "
            "SELECT key FROM names WHERE key IS NOT NULL"
        )
        return {key for (key,) in rows}

    def records(self, heads: Sequence[Head]) -> list[RunRecord]:
        """Whole runs, without histories and files."""
        ids = [head.id for head in heads]
        parameters, tags = self._texts("params", ids), self._texts("tags", ids)
        metrics: dict[str, dict[str, float]] = {run_id: {} for run_id in ids}
        for run_id, key, value, is_nan in self._of("run_uuid, key, value, is_nan", "latest_metrics", ids):
            metrics[run_id][key] = _number(value, is_nan)
        return [head.record(parameters[head.id], metrics[head.id], tags[head.id]) for head in heads]

    def histories(self, ids: Sequence[str], wanted: Sequence[str]) -> dict[str, dict[str, History]]:
        """Curves by run and metric: of a step its last value. ``wanted``: beginnings of system metrics' names that
        are read too."""
        found: dict[str, dict[str, dict[int, float]]] = {run_id: {} for run_id in ids}
        extra = "".join(" OR key LIKE ?" for _ in wanted)
        rows = self._of(
            "run_uuid, key, step, value, is_nan",
            "metrics",
            ids,
            f" AND (key NOT LIKE 'system/%'{extra}) ORDER BY step, timestamp",
            [f"{name}%" for name in wanted],
        )
        for run_id, key, step, value, is_nan in rows:
            found[run_id].setdefault(key, {})[step] = _number(value, is_nan)
        return {
            run_id: {key: list(points.items()) for key, points in curves.items()} for run_id, curves in found.items()
        }

    def _texts(self, table: str, ids: Sequence[str]) -> dict[str, dict[str, str]]:
        found: dict[str, dict[str, str]] = {run_id: {} for run_id in ids}
        for run_id, key, value in self._of("run_uuid, key, value", table, ids):
            found[run_id][key] = value
        return found

    def _of(
        self, columns: str, table: str, ids: Sequence[str], also: str = "", arguments: Sequence[str] = ()
    ) -> Iterator[tuple[Any, ...]]:
        for first in range(0, len(ids), _AT_ONCE):
            part = ids[first : first + _AT_ONCE]
            marks = ",".join("?" * len(part))
            yield from self._ask(
                f"SELECT {columns} FROM {table} WHERE run_uuid IN ({marks}){also}", [*part, *arguments]
            )

    def _ask(self, question: str, arguments: Iterable[Any] = ()) -> sqlite3.Cursor:
        return self._connection.execute(question, list(arguments))


def _number(value: float, is_nan: int) -> float:
    return math.nan if is_nan else stored(value)
