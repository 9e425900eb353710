"""The tiny job of the training's tests, here as well."""

from __future__ import annotations

import pytest

TINY = """
name: tiny
seed: 3
algorithm:
  type: simclr
  backbone: {type: resnet18, stem: cifar, width: 4}
  projection_dim: 8
  temperature: 0.5
  augmentation: {crop_area: [0.3, 1.0], blur: {probability: 0.0}}
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
    """A job that trains in a second or two, as a user would write it."""
    return TINY
