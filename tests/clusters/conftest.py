"""A cluster of real Ray nodes on this machine, and jobs small enough for it."""

from __future__ import annotations

import runpy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

Nodes: Any = runpy.run_path(str(Path(__file__).with_name("nodes.py")))["Nodes"]

SIMCLR = """
name: tiny
seed: 3
algorithm:
  type: simclr
  backbone: {type: resnet18, stem: cifar, width: 4}
  projection_dim: 8
  temperature: 0.5
data:
  train: {source: digits, split: train}
  test: {source: digits, split: test}
optimization:
  optimizer: {type: lars, learning_rate: 2.0, per: 256, weight_decay: 1.0e-4}
  schedule: {type: cosine, warmup_epochs: 0.1}
  batch_size: 64
  steps: 60
evaluation: []
resources: {runtime: ray, workers: 4}
checkpoint: {every_steps: 4, keep: 2}
tracking: {experiment: tests, every_steps: 1, system_metrics: false}
"""
DQN = """
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
  steps: 600
evaluation: {episodes: 2, environments: 2, max_steps: 30}
resources: {runtime: ray, shards: 2}
checkpoint: {keep: 2}
tracking: {experiment: tests, every_steps: 50, system_metrics: false}
"""


@pytest.fixture
def jobs(tmp_path: Path) -> Path:
    """A folder with both job files."""
    (tmp_path / "simclr.yaml").write_text(SIMCLR)
    (tmp_path / "dqn.yaml").write_text(DQN)
    return tmp_path


@pytest.fixture
def start_nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Any]]:
    """Starts a head and workers with two CPUs each."""
    started = []

    def start(workers: int = 2, **options: Any) -> Any:
        folder = tmp_path_factory.mktemp("cluster")
        (folder / "simclr.yaml").write_text(SIMCLR)
        (folder / "dqn.yaml").write_text(DQN)
        nodes = Nodes(folder, **options)
        started.append(nodes)
        nodes.start_head()
        for _ in range(workers):
            nodes.add_worker()
        return nodes

    yield start
    for nodes in started:
        nodes.close()
