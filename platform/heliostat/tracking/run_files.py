"""A run's files: read where they lie if that is a folder of this machine, else through MLflow's client."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from heliostat.tracking.location import StoreError, display_uri, scrub
from heliostat.tracking.run_record import Head, RunRecord

if TYPE_CHECKING:
    from mlflow import MlflowClient

ENVIRONMENT = "environment.json"
"""The run's file that says what it ran on: versions, hardware, git state."""
_PICTURES = (".png", ".jpg", ".jpeg", ".svg")


def with_files(uri: str, run: RunRecord) -> RunRecord:
    """The run with its environment and the paths of its pictures.

    Raises:
        StoreError: the store does not answer.
    """
    environment: dict[str, str] = {}
    if ENVIRONMENT in _names(uri, run, ""):
        try:
            environment = dict(_flat(json.loads(read_file(uri, run, ENVIRONMENT))))
        except ValueError as error:
            environment = {ENVIRONMENT: f"cannot be read: {error}"}
    pictures = [path for path in _names(uri, run, "figures") if path.lower().endswith(_PICTURES)]
    return replace(run, environment=environment, figures=pictures)


def read_file(uri: str, run: Head, path: str) -> bytes:
    """One of a run's files.

    Raises:
        OSError: it is not there.
        StoreError: the store does not answer.
    """
    folder = _folder(run)
    if folder is not None:
        return (folder / path).read_bytes()
    with _client(uri) as client, tempfile.TemporaryDirectory(prefix="heliostat-") as copies:
        return Path(client.download_artifacts(run.id, path, copies)).read_bytes()


def _names(uri: str, run: Head, path: str) -> list[str]:
    """Paths of the files in a folder of the run."""
    folder = _folder(run)
    if folder is not None:
        inside = folder / path if path else folder
        names = sorted(file.name for file in inside.iterdir()) if inside.is_dir() else []
        return [f"{path}/{name}" if path else name for name in names]
    with _client(uri) as client:
        return [file.path for file in client.list_artifacts(run.id, path or None)]


def _folder(run: Head) -> Path | None:
    """Where the run's files lie on this machine; None where MLflow has to be asked."""
    parts = urlsplit(run.files)
    return Path(unquote(parts.path)) if parts.scheme == "file" and not parts.netloc else None


@contextmanager
def _client(uri: str) -> Iterator[MlflowClient]:
    """MLflow's client, whose errors become ours."""
    from mlflow.exceptions import MlflowException

    from heliostat.tracking.client import connect

    try:
        yield connect(uri)
    except MlflowException as error:
        raise StoreError(f"Files of a run in {display_uri(uri)} cannot be read: {scrub(str(error), uri)}") from error


def _flat(value: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _flat(inner, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, value if isinstance(value, str) else json.dumps(value)
