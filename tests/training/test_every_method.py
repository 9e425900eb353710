"""What the design promises of every method: the number of workers changes nothing, and a killed run ends with the same
bits as an undisturbed one. Queues, teachers, centres and batch statistics are part of what is compared."""

from __future__ import annotations

import copy
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.tensor import DTensor

from heliostat.config.job import Job
from heliostat.config.loading import parse
from heliostat.config.registry import ALGORITHMS
from heliostat.data.images import ImageData
from heliostat.errors import InputError
from heliostat.training import launch, loop
from heliostat.training.checkpoint import mapped
from heliostat.training.datasets import Datasets
from heliostat.training.loop import TrainingLoop
from heliostat.training.run_folder import RunFolder
from heliostat.training.runtime import SilentRuntime
from heliostat.training.state import TrainingState
from heliostat_algorithms.algorithm import Batch, Clock, Inputs
from heliostat_algorithms.collectives import mean_over_workers, rank, world_size
from heliostat_algorithms.randomness import Random

# Workers cannot import test modules by name.
_TABLE = runpy.run_path(str(Path(__file__).with_name("methods.py")))
METHODS: dict[str, str] = _TABLE["METHODS"]
job_text: Callable[[str, str], str] = _TABLE["job_text"]
STEPS, HALF = 5, 3


class DoubleState(TrainingState):
    """The same weights in float64, where sums in another order differ by 1e-16 and a wrong factor does not hide."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.algorithm.double()
        prepare = self.algorithm.prepare

        def prepare_double(batch: Batch, clock: Clock, random: Random) -> Inputs:
            made = prepare(batch, clock, random)
            return {name: x.double() if x.is_floating_point() else x for name, x in made.items()}

        self.algorithm.prepare = prepare_double  # type: ignore[method-assign]


def colours(data: Datasets) -> Datasets:
    """The digits in three different channels, so that hue and saturation matter; clips stay as they are."""
    if not isinstance(data.train, ImageData):
        return Datasets(data.train, None)

    def tinted(images: ImageData) -> ImageData:
        grey = images.images
        rgb = torch.cat([torch.tensor(grey // k) for k in (1, 2, 4)], dim=1).numpy()
        return ImageData(images=rgb, labels=images.labels, classes=images.classes, name=images.name)

    return Datasets(tinted(data.train), None)


def flattened(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested state as path -> leaf."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list | tuple) else None
    if items is None:
        return {prefix: value}
    return {path: leaf for key, inner in items for path, leaf in flattened(inner, f"{prefix}/{key}").items()}


def in_double(text: str, *overrides: str) -> TrainingLoop:
    """The loop of one worker."""
    job = parse(text, "tiny.yaml", overrides)
    runtime = SilentRuntime(torch.device("cpu"), rank(), world_size())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "TrainingState", DoubleState)
        data = colours(launch.load(launch.settled(job)))
        return TrainingLoop(job, data, runtime, RunFolder("unused"))


def whole(value: Any) -> Any:
    """State with all rows of what is spread over workers."""
    return mapped(value, lambda x: x.full_tensor() if isinstance(x, DTensor) else x)


def follow(text: str, *overrides: str) -> dict[str, Any]:
    """What one worker sees of the first steps of a job."""
    training = in_double(text, *overrides)
    training.begin()
    seen: dict[str, Any] = {}
    for step in range(STEPS):
        if step == HALF:
            seen["checkpoint"] = copy.deepcopy(whole(training.state.state_dict()))
        made = training.advance(step).step
        values = {"loss": made.loss, **made.metrics}
        seen |= {f"step {step}/{name}": mean_over_workers(value.double().mean()) for name, value in values.items()}
        if step in (0, STEPS - 1):
            named = training.state.algorithm.named_parameters()
            seen |= {f"step {step}/gradient/{name}": whole(p.grad).clone() for name, p in named if p.grad is not None}
    return seen | weights(training)


def weights(training: TrainingLoop) -> dict[str, torch.Tensor]:
    """Everything that a checkpoint would hold of the algorithm and the optimiser."""
    state = flattened(whole(training.state.state_dict()["algorithm"]), "state")
    optimizer = flattened(whole(training.state.optimizer.state_dict()["state"]), "optimizer")
    return {path: leaf.double() for path, leaf in (state | optimizer).items() if isinstance(leaf, torch.Tensor)}


def follow_all(origin: str) -> dict[str, Any]:
    """All methods in one group of workers."""
    return {method: follow(job_text(method, origin)) for method in METHODS}


WHOLE_ONLY = {
    "gan": "for methods of one player",
    "gan-dcgan": "for methods of one player",
    "gan-points": "for methods of one player",
    "vae-conv-gaussian": "log_variance is a single number",
}
"""Methods whose weights cannot be spread, and what is said of them."""


def follow_all_spread(origin: str) -> dict[str, Any]:
    """The same, with weights, gradients and the optimiser's state spread over the workers."""
    return {m: follow(job_text(m, origin), "resources.strategy=fsdp") for m in METHODS if m not in WHOLE_ONLY}


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A run of fine-tuning, from which distillation begins."""
    folder = RunFolder(str(tmp_path_factory.mktemp("origin") / "fine-tune"))
    job = parse(job_text("simclr-v2-fine-tune", ""), "tiny.yaml")
    folder.create(job)
    data = colours(launch.load(job))
    assert TrainingLoop(job, data, SilentRuntime(torch.device("cpu")), folder).run().status == "finished"
    return folder.storage.uri


@pytest.fixture(scope="module")
def alone(origin: str) -> dict[str, Any]:
    return follow_all(origin)


@pytest.mark.parametrize("method", METHODS)
def test_the_test_would_notice(alone: dict[str, Any], origin: str, method: str) -> None:
    """The run moves: weights, losses and gradients are not those of the start, nor all zero. (The first step has a
    learning rate of 0.)"""
    seen = alone[method]
    job = parse(job_text(method, origin), "tiny.yaml")
    data = colours(launch.load(launch.settled(job)))
    start = TrainingState(job, data.train.spec(), torch.device("cpu"), 1).algorithm
    moved = [n for n, p in start.named_parameters() if p.requires_grad and not torch.equal(seen[f"state/{n}"], p)]
    still = [n for n, p in start.named_parameters() if p.requires_grad and n not in moved]
    assert len(moved) >= 0.8 * len(moved + still), still
    assert len({round(float(seen[f"step {step}/loss"]), 6) for step in range(STEPS)}) >= STEPS - 1
    gradients = [value for key, value in seen.items() if key.startswith(f"step {STEPS - 1}/gradient/")]
    assert sum(float(value.abs().max()) > 1e-7 for value in gradients) >= 0.8 * len(gradients)


def error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest difference, relative to the largest value where that is above 1."""
    return float((found - expected).abs().max() / (1 + expected.abs().max()))


@pytest.mark.parametrize(("workers", "strategy"), [(2, "ddp"), (4, "ddp"), (2, "fsdp")])
def test_any_number_of_workers_follows_the_same_trajectory(
    workers: int, strategy: str, on_workers: Any, alone: dict[str, Any], origin: str
) -> None:
    results = on_workers(follow_all if strategy == "ddp" else follow_all_spread, workers, origin)
    assert results[0].keys() == alone.keys() - (WHOLE_ONLY.keys() if strategy == "fsdp" else set())
    wrong = []
    for method in results[0]:
        expected = alone[method]
        for number, result in enumerate(results):
            assert result[method].keys() == expected.keys(), method
            for key in expected.keys() - {"checkpoint"}:
                found, limit = result[method][key], 1e-10 if key.startswith("step 0/") else 1e-8
                if not error(found, expected[key]) < limit:
                    wrong.append(f"{method}, worker {number}: {key} differs by {error(found, expected[key]):.1e}")
                if key.startswith("state/") and not torch.equal(found, results[0][method][key]):
                    wrong.append(f"{method}: {key} differs between workers")
        resumed = in_double(job_text(method, origin))  # alone, from what the workers have saved
        resumed.state.load_state_dict(results[0][method]["checkpoint"], "the workers")
        for step in range(HALF, STEPS):
            resumed.advance(step)
        for key, found in weights(resumed).items():
            if not error(found, expected[key]) < 1e-8:
                wrong.append(f"{method}, continued alone: {key} differs by {error(found, expected[key]):.1e}")
    assert not wrong, "\n".join(wrong[:20])


@pytest.mark.parametrize(("method", "why"), WHOLE_ONLY.items())
def test_what_cannot_be_spread_is_refused_before_anything_starts(method: str, why: str, origin: str) -> None:
    job = parse(job_text(method, origin), "tiny.yaml", ["resources.strategy=fsdp"])
    with pytest.raises(InputError, match=why):
        launch.check_algorithm(job, colours(launch.load(launch.settled(job))))


class Killed(Exception):  # noqa: N818 - a signal, not an error
    """Stands for SIGKILL: nothing is saved, nothing is tidied up."""


@pytest.mark.parametrize("method", METHODS)
def test_a_killed_run_ends_with_the_same_bits(method: str, tmp_path: Path, origin: str) -> None:
    job = parse(job_text(method, origin), "tiny.yaml", [f"output={tmp_path}"])
    data = colours(launch.load(launch.settled(job)))

    def make(name: str) -> TrainingLoop:
        return TrainingLoop(job, data, SilentRuntime(torch.device("cpu")), RunFolder(str(tmp_path / name)))

    whole = make("whole")
    assert whole.run().status == "finished"
    killed = make("killed")
    advance = killed.advance

    def until_killed(step: int, *, measure: bool = False) -> Any:
        if step == 7:
            raise Killed
        return advance(step, measure=measure)

    killed.advance = until_killed  # type: ignore[method-assign]
    with pytest.raises(Killed):
        killed.run()
    assert killed.checkpoints.steps() == [4]
    resumed = make("killed")
    assert resumed.run().status == "finished"
    one, other = (flattened(each.checkpoints.load(10)) for each in (whole, resumed))
    assert one.keys() == other.keys()
    for path, value in one.items():
        same = torch.equal(value, other[path]) if isinstance(value, torch.Tensor) else value == other[path]
        assert same, path


def test_every_algorithm_is_here() -> None:
    assert {parse(job_text(method, "x"), "tiny.yaml").algorithm.type for method in METHODS} == set(ALGORITHMS)


def test_every_job_here_is_sound(origin: str) -> None:
    for method in METHODS:
        job: Job = parse(job_text(method, origin), "tiny.yaml")
        assert launch.check(job) == []
