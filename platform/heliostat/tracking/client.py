"""A connection to an MLflow store without MLflow's global state and without its chatter."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlflow import MlflowClient

_ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",  # the tracker retries itself, after asking what the store already has
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",  # seconds; MLflow waits 120
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",  # a run reports to its own store and to nobody else
}


def connect(uri: str) -> MlflowClient:
    """A client of the store at ``uri``; a database is opened here, a server is not asked before the first question.

    The first call in a process imports MLflow, which takes seconds. Environment variables that are already set win over
    the settings made here.
    """
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient

    for name in ("mlflow", "alembic"):
        logger = logging.getLogger(name)
        logger.setLevel(max(logging.WARNING, logger.level))
    return MlflowClient(tracking_uri=uri)
