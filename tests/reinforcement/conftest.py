"""Jobs small enough to play and learn in a second, and those who watch them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from heliostat.config.loading import parse_any
from heliostat.config.reinforcement import ReinforcementJob
from heliostat.training.monitor import Outcome, Progress, Snapshot

SMALL = """
name: small
seed: 3
algorithm:
  type: dqn
  network: {type: mlp, hidden_units: [16]}
  reward_clip: null
  target: {type: periodic, every: 7}
  epsilon: {type: linear, start: 1.0, end: 0.1, begin: 0, steps: 300}
environment: {type: gymnasium, id: CartPole-v1}
rollout: {environments: 4, calls: 8}
replay: {capacity: 2000, minimum: 64, samples_per_insert: 4}
optimization:
  optimizer: {type: adam, learning_rate: 1.0e-3, per: null}
  batch_size: 16
  steps: 300
evaluation: {episodes: 2, environments: 2, max_steps: 30}
resources: {runtime: ray}
checkpoint: {keep: 2}
tracking: {experiment: tests, every_steps: 50, system_metrics: false}
"""


@pytest.fixture(scope="session")
def small_text() -> str:
    """The small job as a user would write it."""
    return SMALL


@pytest.fixture
def small(tmp_path: Path) -> Callable[..., ReinforcementJob]:
    """Makes the small job, with changes, that writes below the test's own folder."""

    def make(*overrides: str) -> ReinforcementJob:
        places = [f"output={tmp_path / 'runs'}", f"tracking.uri=sqlite:///{tmp_path / 'mlflow.db'}"]
        job = parse_any(SMALL, "small.yaml", [*places, *overrides])
        assert isinstance(job, ReinforcementJob)
        return job

    return make


class Told:
    """A runtime that keeps what it is told."""

    rank, world_size, device = 0, 1, torch.device("cpu")

    def __init__(self) -> None:
        self.points: list[tuple[int, dict[str, float]]] = []
        self.notices: list[str] = []
        self.shown: list[Progress] = []
        self.checkpoints = 0
        self.links: list[tuple[str, int]] = []
        self.stop: Callable[[], bool] = lambda: False

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        self.points.append((step, dict(metrics)))

    def progress(self, progress: Progress) -> None:
        self.shown.append(progress)

    def notice(self, text: str) -> None:
        self.notices.append(text)

    def before_checkpoint(self) -> None:
        self.checkpoints += 1

    def link_checkpoint(self, name: str, uri: str, step: int, metrics: Mapping[str, float]) -> None:
        self.links.append((uri, step))

    def conclude(self, outcome: Outcome) -> None:
        raise AssertionError("only the launcher knows how a run ended")

    def stop_requested(self) -> bool:
        return self.stop()

    def curve(self, name: str) -> list[tuple[int, float]]:
        """Points of one curve in the order in which they were logged."""
        return [(step, metrics[name]) for step, metrics in self.points if name in metrics]


@pytest.fixture
def told() -> Told:
    """A runtime that keeps what it is told."""
    return Told()


class Nobody:
    """Watches without a word, and keeps what it saw last."""

    last: Snapshot | None = None

    def show(self, snapshot: Snapshot) -> None:
        self.last = snapshot


@pytest.fixture
def nobody() -> Nobody:
    """A watcher who says nothing."""
    return Nobody()


def same(one: Any, other: Any) -> bool:
    """Whether nested data with tensors are the same, bit for bit."""
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and torch.equal(one, other)
    if isinstance(one, Mapping):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(same(a, b) for a, b in zip(one, other, strict=True))
    return bool(one == other)


@pytest.fixture(scope="session")
def same_bits() -> Callable[[Any, Any], bool]:
    """Compares nested data with tensors."""
    return same
