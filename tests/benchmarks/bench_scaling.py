"""What one worker does itself, as the number of workers grows with the global batch: 32 images each, always.

Each row is a worker of 1,024 over the only worker there is, in turn. Workers that are not there are not needed: what a
worker draws, loads and compares depends on their number alone. The last rows are of what there is one of: an actor of
Ray that all ask, and the writer of the record.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from heliostat.data.images import ImageData
from heliostat.data.loader import Loader
from heliostat.tracking.client import prepare_store
from heliostat.tracking.tracker import Tracker
from heliostat_algorithms.objectives import nt_xent as objective
from heliostat_algorithms.randomness import Random

EACH, MANY = 32, 1024


def rows(quick: bool = False) -> list[dict[str, Any]]:
    """Loading, drawing, comparing; the order of an epoch; and calls of one actor."""
    rounds = 3 if quick else 15
    found = [
        _against("a worker's batch, 1,024 workers over one", *(_loading(workers) for workers in (MANY, 1)), rounds),
        _against("a worker's draws, 1,024 workers over one", *(_drawing(workers) for workers in (MANY, 1)), rounds),
        _against("NT-Xent with 1,024 times the negatives", *(_comparing(workers) for workers in (MANY, 1)), rounds),
    ]
    found.append(_order(100_000 if quick else 1_281_167))
    found.append(_calls(200 if quick else 2000))
    found.append(_points(500 if quick else 20_000))
    return found


def _loading(workers: int) -> Callable[[], object]:
    images = np.zeros((EACH * MANY, 3, 32, 32), np.uint8)
    data = ImageData(name="none", images=images, labels=None, classes=())
    loader = Loader(data, batch_size=EACH * workers, seed=0, rank=workers // 2, world_size=workers)
    loader.batch(0)  # the order of the epoch is measured by itself
    return lambda: loader.batch(0)


def _drawing(workers: int) -> Callable[[], object]:
    first = workers // 2 * EACH
    return lambda: Random(0, 1, range(first, first + EACH)).uniform("crop", 8)


def _comparing(workers: int) -> Callable[[], object]:
    """The real objective of the first of many workers, whose views all have the same projections."""
    views = torch.nn.functional.normalize(torch.randn(2, EACH, 128, generator=torch.Generator().manual_seed(0)), dim=-1)

    def gather(part: torch.Tensor) -> torch.Tensor:
        return part.repeat(workers, 1)

    def step() -> object:
        original, objective.gather_rows = objective.gather_rows, gather
        try:
            return objective.nt_xent(views[0], views[1], 0.1)
        finally:
            objective.gather_rows = original

    return step


def _order(images: int) -> dict[str, Any]:
    """The order of an epoch, which each worker computes whole."""
    data = ImageData(name="none", images=np.zeros((images, 1, 1, 1), np.uint8), labels=None, classes=())
    loader = Loader(data, batch_size=EACH, seed=0)
    seconds = _seconds(lambda: loader.indices(0))
    return {
        "name": f"the order of {images:,} images, once an epoch, over a second",
        "ours": seconds,
        "other": 1.0,
        "ratio": seconds,
        "unit": "s",
        "higher_is_better": False,
    }


def _calls(count: int) -> dict[str, Any]:
    import ray

    class Answers:
        def nothing(self) -> None:
            pass

    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level="error")
    try:
        actor: Any = ray.remote(Answers).options(num_cpus=0).remote()
        ray.get(actor.nothing.remote())
        together = _seconds(lambda: ray.get([actor.nothing.remote() for _ in range(count)])) / count
        alone = statistics.median(_seconds(lambda: ray.get(actor.nothing.remote())) for _ in range(count // 10))
    finally:
        ray.shutdown()
    return {
        "name": "calls that one actor answers, all at once over one after the other",
        "ours": 1 / together,
        "other": 1 / alone,
        "ratio": alone / together,
        "unit": "calls/s",
        "higher_is_better": True,
    }


def _points(count: int) -> dict[str, Any]:
    """Points of curves that one writer stores in SQLite, over those of ten curves each tenth of a second."""
    with tempfile.TemporaryDirectory() as folder:
        uri = f"sqlite:///{folder}/mlflow.db"
        prepare_store(uri, "scaling")
        tracker = Tracker(uri, "scaling", "one", parameters={}, tags={}, system_metrics=False, spool=None)

        def write() -> None:
            for step in range(count // 10):
                tracker.log_metrics({f"train/{name}": 0.5 for name in range(10)}, step)
            assert tracker.finish("FINISHED", 600).pending == 0

        rate = count / _seconds(write)
    return {
        "name": "points that one writer stores, over ten each tenth of a second",
        "ours": rate,
        "other": 100.0,
        "ratio": rate / 100,
        "unit": "points/s",
        "higher_is_better": True,
    }


def _against(name: str, many: Callable[[], object], one: Callable[[], object], rounds: int) -> dict[str, Any]:
    times = [(_seconds(many), _seconds(one)) for _ in range(rounds + 1)][1:]
    ours, other = (1e3 * statistics.median(each) for each in zip(*times, strict=True))
    return {"name": name, "ours": ours, "other": other, "ratio": ours / other, "unit": "ms", "higher_is_better": False}


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
