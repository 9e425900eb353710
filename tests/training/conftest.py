"""Jobs small enough to train in a second or two."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from heliostat.config.job import Job
from heliostat.config.loading import parse

TINY = """
name: tiny
seed: 3
algorithm:
  type: simclr
  backbone: {type: resnet18, stem: cifar, width: 4}
  projection_dim: 8
  temperature: 0.5
  augmentation: {crop_area: [0.3, 1.0], blur: {probability: 0.5}}
data:
  train: {source: digits, split: train}
  test: {source: digits, split: test}
optimization:
  optimizer: {type: lars, learning_rate: 2.0, per: 256, weight_decay: 1.0e-4}
  schedule: {type: cosine, warmup_epochs: 0.1}
  batch_size: 64
  steps: 12
evaluation: []
resources: {runtime: local, workers: 1}
checkpoint: {every_steps: 4, keep: 2}
tracking: {experiment: tests, every_steps: 1, system_metrics: false}
"""


@pytest.fixture(scope="session")
def tiny_text() -> str:
    """The tiny job as a user would write it."""
    return TINY


@pytest.fixture
def tiny(tmp_path: Path) -> Callable[..., Job]:
    """Makes the tiny job, with changes, that writes below the test's own folder."""

    def make(*overrides: str) -> Job:
        places = [f"output={tmp_path / 'runs'}", f"tracking.uri=sqlite:///{tmp_path / 'mlflow.db'}"]
        return parse(TINY, "tiny.yaml", [*places, *overrides])

    return make
