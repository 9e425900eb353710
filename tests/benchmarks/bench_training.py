"""The platform's loop against a loop written by hand: the same model, data, views, loss and optimiser, nothing else.

The hand-written loop is what a researcher would type into one file. It reads the same decoded images, draws views by
the same augmentation and calls the same network, loss and LARS, so the ratio is what the platform itself costs: its
clock, its deterministic order, its checks, its points of curves, its runtime.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import torch

from heliostat.config.job import Job
from heliostat.config.loading import parse
from heliostat.data.images import ImageData
from heliostat.training.datasets import Datasets
from heliostat.training.loop import TrainingLoop
from heliostat.training.monitor import Monitor
from heliostat.training.run_folder import RunFolder
from heliostat.training.runtime import Runtime, SilentRuntime
from heliostat_algorithms.objectives.nt_xent import nt_xent
from heliostat_algorithms.optimizers import LARS
from heliostat_algorithms.randomness import Random
from heliostat_algorithms.representation.simclr import SimCLR

Rates: TypeAlias = tuple[float, float, float]
"""Images per second of ours and the other, and the ratio."""
JOB = """
name: bench
algorithm:
  type: simclr
  backbone: {type: resnet18, stem: cifar, width: 16}
  temperature: 0.5
  augmentation: {jitter: {strength: 0.5}, blur: {probability: 0.0}}
data: {train: {source: digits, split: train}}
optimization:
  optimizer: {type: lars, learning_rate: 1.0}
  schedule: {type: constant}
  batch_size: 64
  steps: 100000
"""


def images(count: int = 1024) -> ImageData:
    """Coloured noise of 32 x 32 pixels: the time of a step does not depend on what is seen."""
    pixels = torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return ImageData(images=pixels.numpy(), labels=None, classes=(), name="noise")


def platform_loop(job: Job, data: ImageData, folder: str, runtime: Runtime) -> Callable[[int], object]:
    """One turn of the platform's loop: the step, and every ten steps a point of the curves."""
    return TrainingLoop(job, Datasets(data, None), runtime, RunFolder(folder)).turn


def bare_loop(job: Job, data: ImageData) -> Callable[[int], object]:
    """One step of the loop that one would write by hand."""
    size, augment = job.optimization.batch_size, job.algorithm.augmentation
    pixels = torch.from_numpy(data.images)
    generator = torch.Generator().manual_seed(0)
    model = SimCLR(job.algorithm, data.spec()).train()
    weights = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    rate = job.optimization.optimizer.peak_learning_rate(size)
    optimizer = LARS([{"params": weights}, {"params": others, "adapt": False}], lr=rate)

    def train(step: int) -> None:
        batch = pixels[torch.randint(len(pixels), (size,), generator=generator)]
        random = Random(0, step, range(size))
        with torch.no_grad():
            views = torch.cat([augment(batch, random.within("a")), augment(batch, random.within("b"))])
        first, second = model.projection(model.backbone(views)).chunk(2)
        loss, _ = nt_xent(first, second, job.algorithm.temperature)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return train


def rates(ours: Callable[[int], object], other: Callable[[int], object], size: int, steps: int) -> Rates:
    """Images per second of both and their ratio: steps in turn, so that what disturbs the machine disturbs both.

    The first ten steps are a warm-up. The ratio is that of the total times.
    """
    seconds = {ours: 0.0, other: 0.0}
    for step in range(steps + 10):
        for work in (ours, other) if step % 2 == 0 else (other, ours):
            start = time.perf_counter()
            work(step)
            if step >= 10:
                seconds[work] += time.perf_counter() - start
    first, second = (size * steps / seconds[work] for work in (ours, other))
    return first, second, first / second


def rows(quick: bool = False) -> list[dict[str, Any]]:
    """Images per second of the platform's loop over the bare loop: in this process, and in one Ray worker."""
    steps = 20 if quick else 100
    with tempfile.TemporaryDirectory() as folder:
        here = compare(folder, steps, SilentRuntime(torch.device("cpu")), images())
        on_ray = compare_on_ray(folder, steps)
    return [
        _row("training loop over a bare PyTorch loop, in-process", *here),
        _row("training loop over a bare PyTorch loop, in one Ray Train worker", *on_ray),
    ]


def _row(name: str, ours: float, other: float, ratio: float) -> dict[str, Any]:
    return {"name": name, "ours": ours, "other": other, "ratio": ratio, "unit": "images/s", "higher_is_better": True}


def compare(folder: str, steps: int, runtime: Runtime, data: ImageData) -> Rates:
    """Both loops in this process, in turn."""
    job = parse(JOB, "bench.yaml")
    ours, other = platform_loop(job, data, folder, runtime), bare_loop(job, images())
    return rates(ours, other, job.optimization.batch_size, steps)


class NoTracker:
    """Takes the points of the curves and keeps none."""

    run_id = None

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Not kept."""

    def link_model(self, name: str, uri: str, step: int, metrics: Mapping[str, float]) -> None:
        """Not kept."""

    def persist(self) -> None:
        """Nothing to persist."""


def work_on_ray(config: dict[str, Any]) -> None:
    """What the one worker does."""
    from heliostat.training.ray_runtime import RayRuntime

    found = compare(config["folder"], config["steps"], RayRuntime(config["monitor"]), config["data"].open())
    Path(config["result"]).write_text(json.dumps(found))


def compare_on_ray(folder: str, steps: int) -> Rates:
    """Both loops in one Ray Train worker, in turn: the platform's reads the object store and tells a monitor's
    actor."""
    import ray
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    from heliostat.data.sharing import share
    from heliostat.training.ray_runtime import connect

    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import this file by name
    connect(parse(JOB, "bench.yaml"))
    result = Path(folder) / "rates.json"
    actor: Any = ray.remote(Monitor)
    TorchTrainer(
        work_on_ray,
        train_loop_config={
            "data": share(images()),
            "folder": folder,
            "result": str(result),
            "steps": steps,
            "monitor": actor.options(num_cpus=0).remote(NoTracker),
        },
        scaling_config=ScalingConfig(num_workers=1, resources_per_worker={"CPU": 1}),
        run_config=RunConfig(name="bench", storage_path=folder),
    ).fit()
    ray.shutdown()
    ours, other, ratio = json.loads(result.read_text())
    return ours, other, ratio
