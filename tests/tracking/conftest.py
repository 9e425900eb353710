from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from heliostat.tracking.client import connect, prepare_store
from heliostat.tracking.location import resolve_uri
from heliostat.tracking.tracker import Tracker


class Network:
    """Stands between a tracker and a real store and loses what it is told to lose."""

    def __init__(self) -> None:
        self.down = False
        self.lose_answers_of: dict[str, int] = {}
        self.calls: list[str] = []

    def connect(self, uri: str) -> Any:
        return _Client(connect(uri), self)


class _Client:
    def __init__(self, client: Any, network: Network) -> None:
        self._client, self._network = client, network

    def __getattr__(self, name: str) -> Any:
        method, network = getattr(self._client, name), self._network

        def call(*args: Any, **kwargs: Any) -> Any:
            network.calls.append(name)
            if network.down:
                raise ConnectionError("no route to host")
            result = method(*args, **kwargs)
            if network.lose_answers_of.get(name, 0):
                network.lose_answers_of[name] -= 1
                raise ConnectionError(f"the answer to {name} was lost")
            return result

        return call


@pytest.fixture
def network() -> Network:
    return Network()


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A SQLite store; making its schema takes seconds, so all tests here share it."""
    folder = tmp_path_factory.mktemp("store")
    uri = resolve_uri(f"sqlite:///{folder}/mlflow.db")
    experiment_id = prepare_store(uri, "tests")
    client = connect(uri)

    def points(run_id: str, key: str) -> list[tuple[int, float]]:
        return [(metric.step, metric.value) for metric in client.get_metric_history(run_id, key)]

    return SimpleNamespace(uri=uri, client=client, experiment_id=experiment_id, points=points, folder=folder)


@pytest.fixture
def track(store: SimpleNamespace) -> Callable[..., Tracker]:
    """Makes trackers that are quick to send and to retry."""
    numbers = itertools.count()

    def make(spool: Path | None = None, **changes: Any) -> Tracker:
        settings: dict[str, Any] = {
            "parameters": {},
            "tags": {},
            "system_metrics": False,
            "interval": 0.01,
            "backoff": (0.01, 0.02),
        }
        return Tracker(store.uri, "tests", f"run-{next(numbers)}", spool=spool, **{**settings, **changes})

    return make
