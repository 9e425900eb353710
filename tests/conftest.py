"""What tests of several subjects use: functions on several workers that talk through gloo, and a job that trains in a
second or two."""

from __future__ import annotations

import multiprocessing
import os
import runpy
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeAlias

import pytest
import torch
import torch.distributed as dist

Results: TypeAlias = list[dict[str, Any]]
OnWorkers: TypeAlias = Callable[..., Results]

# Where a token is stored on the machine, Ray would turn tokens on in this process, for good, as soon as it starts or
# asks a cluster; nodes that later tests start without one could not answer to it. Tests of tokens say so to the
# processes that they start.
os.environ.setdefault("RAY_AUTH_MODE", "disabled")


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """What tests compute in their own process has one thread, as workers of one CPU have: the last digits depend on how
    many there are, and networks as small as theirs are slower with several."""
    torch.set_num_threads(1)


SECONDS = 60
"""A worker that waits longer for the others has hung."""


def work(folder: str, world_size: int, rank: int, file: str, function: str, arguments: tuple[Any, ...]) -> None:
    """One worker: join the others, call the function, leave what it returns in the folder."""
    torch.set_num_threads(1)
    meeting = f"file://{folder}/meeting"
    dist.init_process_group(
        "gloo", init_method=meeting, rank=rank, world_size=world_size, timeout=timedelta(seconds=SECONDS)
    )
    result = runpy.run_path(file)[function](*arguments)
    torch.save(result, f"{folder}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture
def on_workers(tmp_path: Path) -> OnWorkers:
    """``on_workers(function, world_size, *arguments)``: what a module's function returned, by rank."""
    # A server that has torch loaded forks each worker: quicker than to start as many interpreters. Workers cannot
    # import test modules by name, so they run this file and the test's by path.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "heliostat.training.loop"])

    def run(function: Callable[..., dict[str, Any]], world_size: int, *arguments: Any) -> Results:
        folder = tmp_path / f"{function.__name__}-{world_size}"
        folder.mkdir()
        jobs = [
            (str(folder), world_size, rank, function.__code__.co_filename, function.__name__, arguments)
            for rank in range(world_size)
        ]
        workers = [
            context.Process(target=runpy.run_path, args=(__file__, {"JOB": job}, "__worker__"), daemon=True)
            for job in jobs
        ]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(5 * SECONDS)
            worker.kill()
        codes = [worker.exitcode for worker in workers]
        assert codes == [0] * world_size, f"workers ended with {codes}; their errors stand in the captured output"
        return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(world_size)]

    return run


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


if __name__ == "__worker__":
    work(*JOB)  # type: ignore[name-defined]  # noqa: F821 - handed over by ``run`` above
