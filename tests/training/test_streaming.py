"""Training from a prepared set through the one loop: as from memory, with any workers, and across an interruption."""

from __future__ import annotations

import runpy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from heliostat.config.job import Job
from heliostat.config.loading import parse
from heliostat.data.digits import load_digits
from heliostat.data.images import ImageData
from heliostat.data.order import Order
from heliostat.data.prepared.index import Settings
from heliostat.data.prepared.inputs import find_inputs
from heliostat.data.prepared.preparation import prepare
from heliostat.data.prepared.streamed import StreamedImages
from heliostat.data.sources import ParquetImages
from heliostat.errors import InputError
from heliostat.training import launch, loop
from heliostat.training.datasets import Datasets
from heliostat.training.loop import TrainingLoop
from heliostat.training.run_folder import RunFolder
from heliostat.training.runtime import SilentRuntime
from heliostat_algorithms.collectives import mean_over_workers, rank, world_size

MakeJob = Callable[..., Job]
# Workers cannot import test modules by name.
DoubleState = runpy.run_path(str(Path(__file__).with_name("test_every_method.py")))["DoubleState"]
STEPS = 8


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> str:
    """360 digits in 36 row groups."""
    place = tmp_path_factory.mktemp("digits")
    data = load_digits("test")
    assert data.labels is not None
    for number, (image, label) in enumerate(zip(data.images, data.labels.tolist(), strict=True)):
        folder = place / "images" / str(label)
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[0]).save(folder / f"{number:04d}.png")
    settings = Settings(rows_per_group=10, rows_per_file=60, channels=1)
    prepare(find_inputs(str(place / "images")), str(place / "set"), settings)
    return str(place / "set")


def streaming(path: str, ahead: int = 2) -> str:
    return f"data.train={{source: prepared, path: {path}, shards: 4, pool: 2, ahead: {ahead}}}"


def losses(training: TrainingLoop, first: int = 0) -> list[float]:
    found = []
    for step in range(first, STEPS):
        found.append(float(mean_over_workers(training.advance(step).step.loss.double())))
    return found


def loop_of(job: Job, data: Datasets | None = None) -> TrainingLoop:
    runtime = SilentRuntime(torch.device("cpu"), rank(), world_size())
    return TrainingLoop(job, data or launch.load(job), runtime, RunFolder("unused"))


def test_the_trajectory_is_that_of_the_same_order_in_memory(tiny: MakeJob, prepared: str) -> None:
    job = tiny(streaming(prepared))
    streamed = loop_of(job)
    data = streamed.loader.data
    assert isinstance(data, StreamedImages)

    class Ordered(ImageData):
        def order(self, **options: Any) -> Order:
            return data.order(**options)

    whole = ParquetImages(source="parquet", path=prepared, channels=1).load()
    ordered = Ordered(images=whole.images, labels=whole.labels, classes=whole.classes, name="digits")
    in_memory = loop_of(job, Datasets(ordered, None))
    assert losses(streamed) == losses(in_memory)
    for name, value in streamed.state.algorithm.state_dict().items():
        assert torch.equal(value, in_memory.state.algorithm.state_dict()[name]), name
    plain = loop_of(job, Datasets(whole, None))
    assert not np.array_equal(plain.loader.indices(0), streamed.loader.indices(0))


def follow(text: str, *overrides: str) -> dict[str, Any]:
    """What a worker sees, in float64: the batches' samples, the losses of the global batch, the weights at the end."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "TrainingState", DoubleState)
        training = loop_of(parse(text, "tiny.yaml", list(overrides)))
    samples = [training.loader.batch(step)["index"] for step in range(STEPS)]
    found = torch.tensor(losses(training), dtype=torch.float64)
    weights = torch.cat([p.detach().flatten() for p in training.state.algorithm.parameters()])
    assert isinstance(training.loader.data, StreamedImages)
    return {"samples": torch.stack(samples), "losses": found, "weights": weights}


def test_workers_follow_one_trajectory(prepared: str, tiny_text: str, on_workers: Any) -> None:
    arguments = (tiny_text, streaming(prepared), "algorithm.backbone.zero_init_residual=false")
    alone = follow(*arguments)
    for workers in (2, 4):
        together = on_workers(follow, workers, *arguments)
        samples = torch.cat([each["samples"] for each in together], 1)
        assert torch.equal(samples, alone["samples"])
        for each in together:
            torch.testing.assert_close(each["losses"], alone["losses"], rtol=1e-9, atol=0)
            torch.testing.assert_close(each["weights"], alone["weights"], rtol=1e-7, atol=1e-9)


def test_an_interrupted_run_goes_on_within_the_epoch(tiny: MakeJob, prepared: str) -> None:
    job = tiny(streaming(prepared, ahead=0), f"optimization.steps={STEPS}")
    whole = loop_of(job)
    expected = losses(whole)
    assert whole.loader.steps_per_epoch == 5
    first, second = loop_of(job), loop_of(job)
    for step in range(3):
        first.advance(step)
    second.state.load_state_dict(first.state.state_dict(), "memory")
    assert losses(second, first=3) == expected[3:]
    data = second.loader.data
    assert isinstance(data, StreamedImages)
    fresh = replace(data)
    loop_of(job, Datasets(fresh, None)).advance(3)
    assert fresh.groups.reads < 36


def test_a_whole_run_with_evaluators(tiny: MakeJob, prepared: str) -> None:
    job = tiny(
        streaming(prepared),
        f"data.test={{source: prepared, path: {prepared}}}",
        "evaluation=[{type: knn, k: 3}, {type: collapse}, {type: retrieval}]",
        f"optimization.steps={STEPS}",
    )
    folder = RunFolder.planned(job)
    folder.create(job)
    outcome = TrainingLoop(job, launch.load(job), SilentRuntime(torch.device("cpu")), folder).run()
    assert outcome.status == "finished"
    assert outcome.results["eval/knn_top1"] > 0.5  # the same images on both sides
    assert (Path(folder.storage.path("figures")) / "neighbours.png").exists()


def test_what_does_not_fit_is_said_before_training(tiny: MakeJob, prepared: str) -> None:
    job = tiny(f"data.train={{source: prepared, path: {prepared}/nothing}}")
    assert any("does not exist" in str(problem) for problem in launch.check(job))
    with pytest.raises(InputError, match="larger than"):
        launch.load(tiny(streaming(prepared), "optimization.batch_size=400"))
