"""Rule 1: 1, 2 and 4 workers follow the same trajectory: augmentation, global batch statistics, negatives and LARS
included."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from heliostat.config.job import Job
from heliostat.config.loading import dump, parse
from heliostat.data.images import ImageData
from heliostat.training import launch, loop
from heliostat.training.loop import Datasets, TrainingLoop
from heliostat.training.run_folder import RunFolder
from heliostat.training.runtime import SilentRuntime
from heliostat.training.state import TrainingState
from heliostat_algorithms.algorithm import Batch, Clock, Inputs
from heliostat_algorithms.collectives import mean_over_workers, rank, world_size
from heliostat_algorithms.randomness import Random
from heliostat_algorithms.representation.simclr import SimCLR

STEPS = 5
OnWorkers = Callable[..., Any]


class DoubleState(TrainingState):
    """The same weights in float64, where sums in another order differ by 1e-16 and a wrong factor does not hide."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.algorithm.double()


def prepare_in_double(self: SimCLR, batch: Batch, clock: Clock, random: Random) -> Inputs:
    return {name: view.double() for name, view in prepare(self, batch, clock, random).items()}


prepare = SimCLR.prepare


def train(text: str, steps: int = STEPS) -> dict[str, Any]:
    """What one worker sees of the first steps of a job."""
    job = parse(text, "tiny.yaml")
    runtime = SilentRuntime(torch.device("cpu"), rank(), world_size())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "TrainingState", DoubleState)
        patch.setattr(SimCLR, "prepare", prepare_in_double)
        training = TrainingLoop(job, colours(launch.load(job)), runtime, RunFolder(job.output))
        losses, gradients = [], {}
        for step in range(steps):
            made = training.advance(step).step
            losses.append(mean_over_workers(made.loss))
            if step == 0:
                parameters = training.state.algorithm.named_parameters()
                gradients = {name: p.grad.clone() for name, p in parameters if p.grad is not None}
    everything = training.state.state_dict()
    return {"losses": losses, "gradients": gradients, "state": everything["algorithm"], "everything": everything}


def colours(data: Datasets) -> Datasets:
    """The digits in three different channels, so that hue and saturation matter."""

    def tinted(images: ImageData) -> ImageData:
        grey = images.images
        rgb = torch.cat([torch.tensor(grey // k) for k in (1, 2, 4)], dim=1).numpy()
        return ImageData(images=rgb, labels=images.labels, classes=images.classes, name=images.name)

    return Datasets(tinted(data.train), None)


def test_one_two_and_four_workers_are_the_same(tiny: Callable[..., Job], on_workers: OnWorkers) -> None:
    job = tiny("optimization.batch_size=16", "optimization.schedule.warmup_epochs=0.02")
    single = train(dump(job))
    assert len(single["gradients"]) > 50
    assert all(torch.isfinite(loss) for loss in single["losses"])
    first = TrainingState(job, colours(launch.load(job)).train.spec(), torch.device("cpu"), 1).algorithm.state_dict()
    assert not torch.allclose(single["state"]["backbone.conv1.weight"], first["backbone.conv1.weight"].double())
    for workers in (2, 4):
        shared = on_workers(train, workers, dump(job))[0]
        for one, many in zip(single["losses"], shared["losses"], strict=True):
            torch.testing.assert_close(many, one, rtol=1e-10, atol=1e-10)
        assert shared["gradients"].keys() == single["gradients"].keys()
        for name, gradient in single["gradients"].items():
            torch.testing.assert_close(shared["gradients"][name], gradient, rtol=1e-10, atol=1e-10, msg=name)
        assert shared["state"].keys() == single["state"].keys()
        for name, value in single["state"].items():
            torch.testing.assert_close(shared["state"][name], value, rtol=1e-8, atol=1e-8, msg=name)


def test_another_number_of_workers_takes_over_a_checkpoint(tiny: Callable[..., Job], on_workers: OnWorkers) -> None:
    job = tiny("optimization.batch_size=16", "optimization.schedule.warmup_epochs=0.02")
    whole = train(dump(job))
    two = on_workers(train, 2, dump(job), 3)[0]["everything"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "TrainingState", DoubleState)
        patch.setattr(SimCLR, "prepare", prepare_in_double)
        runtime = SilentRuntime(torch.device("cpu"))
        alone = TrainingLoop(job, colours(launch.load(job)), runtime, RunFolder(job.output))
        alone.state.load_state_dict(two, "two workers")
        for step in range(3, STEPS):
            alone.advance(step)
    for name, value in whole["state"].items():
        torch.testing.assert_close(alone.state.algorithm.state_dict()[name], value, rtol=1e-8, atol=1e-8, msg=name)
