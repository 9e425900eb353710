"""A connection to an MLflow store without MLflow's global state and without its chatter, and a store's first use."""

from __future__ import annotations

import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from heliostat.errors import InputError
from heliostat.tracking.location import StoreError, display_uri, scrub, sqlite_path

if TYPE_CHECKING:
    from mlflow import MlflowClient

_KIND = {"mlflow.experimentKind": "custom_model_development"}
"""Makes MLflow's pages open with the views for training runs rather than those for language-model applications."""

_ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",  # the tracker retries itself, after asking what the store already has
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",  # seconds; MLflow waits 120
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",  # a run reports to its own store and to nobody else
}


def connect(uri: str) -> MlflowClient:
    """A client of the store at ``uri``; a database is opened here, a server is not asked before the first question.

    The first call in a process imports MLflow, which takes seconds. One process at a time opens a database of a folder.
    Environment variables that are already set win over the settings made here.
    """
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient

    for name in ("mlflow", "alembic"):
        logger = logging.getLogger(name)
        logger.setLevel(max(logging.WARNING, logger.level))
    path = sqlite_path(uri)
    if path is None:
        return MlflowClient(tracking_uri=uri)
    with _alone(path.parent):
        return MlflowClient(tracking_uri=uri)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold ``folder``, so that one process at a time opens a database in it: MLflow makes its tables where there are
    none, and of two first uses at once one would fail.

    The lock is on the folder, so that no file is left of it. Where there is no folder, or its file system has no locks,
    nothing is held: a first use may fail then, as MLflow's do.
    """
    with ExitStack() as held:
        with suppress(OSError):
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
            held.callback(os.close, descriptor)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield


def prepare_store(uri: str, experiment: str) -> str:
    """Create the schema and the experiment where they do not exist; returns the experiment's id.

    Raises:
        InputError: the experiment's name cannot be used, or the experiment was deleted.
        StoreError: the store did not answer.
    """
    path = sqlite_path(uri)
    try:
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
        return ensure_experiment(connect(uri), uri, experiment)
    except InputError:
        raise
    except Exception as error:
        raise StoreError(
            f"The tracking store {display_uri(uri)} does not answer: {scrub(str(error), uri)}. "
            "Start it, or choose another with tracking.uri."
        ) from error


def ensure_experiment(client: MlflowClient, uri: str, experiment: str) -> str:
    """The id of ``experiment``, created where it does not exist.

    For SQLite its files go to ``mlartifacts/<experiment>`` beside the database; a server decides for itself.

    Raises:
        InputError: the name cannot be used, or the experiment was deleted.
    """
    from mlflow.exceptions import MlflowException

    if not experiment.strip(".") or not experiment.isprintable():
        raise InputError(f"The experiment's name {experiment!r} cannot be used; choose a word such as 'cifar10'.")
    found = client.get_experiment_by_name(experiment)
    if found is None:
        path = sqlite_path(uri)
        files = None if path is None else (path.parent / "mlartifacts" / quote(experiment, safe=" ")).as_uri()
        try:
            return str(client.create_experiment(experiment, artifact_location=files, tags=_KIND))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            found = client.get_experiment_by_name(experiment)  # somebody else was faster
    if found is None or found.lifecycle_stage != "active":
        raise InputError(
            f"The experiment '{experiment}' was deleted. Choose another name, or restore it with "
            f"`mlflow experiments restore` in {display_uri(uri)}."
        )
    return str(found.experiment_id)
