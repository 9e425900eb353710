"""Accumulation where the loss compares samples: the gradients of the whole batch, the activations of a part."""

from __future__ import annotations

import runpy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn

from heliostat.config.job import Job
from heliostat.config.loading import parse
from heliostat.config.registry import ALGORITHMS
from heliostat.training import launch, stepping
from heliostat.training.loop import TrainingLoop
from heliostat.training.run_folder import RunFolder
from heliostat.training.runtime import SilentRuntime
from heliostat_algorithms.algorithm import Clock, DataSpec, Inputs, Step
from heliostat_algorithms.backbones import BackboneConfig, ViTTiny
from heliostat_algorithms.backbones.dropout import Dropout, draw_keys, number
from heliostat_algorithms.comparing import Comparing, Rows
from heliostat_algorithms.objectives.nt_xent import nt_xent
from heliostat_algorithms.randomness import Random

MakeJob = Callable[..., Job]
# Workers cannot import test modules by name.
_HERE = Path(__file__).parent
_TABLE = runpy.run_path(str(_HERE / "methods.py"))
in_double: Callable[[str], TrainingLoop] = runpy.run_path(str(_HERE / "test_every_method.py"))["in_double"]
VIT, VIEW = _TABLE["VIT"], _TABLE["VIEW"]
_SGD = _TABLE["SGD"]
# Layer normalisation in the backbone, batch normalisation in the heads.
METHODS = {
    "simclr": f"{{type: simclr, backbone: {VIT}, projection_dim: 8, temperature: 0.5, augmentation: {VIEW}}}",
    "simclr-tiled": f"{{type: simclr, backbone: {VIT}, projection_dim: 8, tile: 7, augmentation: {VIEW}}}",
    "simclr-v2": f"{{type: simclr-v2, backbone: {VIT}, projection_dim: 8, memory_size: 48, augmentation: {VIEW}}}",
    "moco-v3": f"{{type: moco-v3, backbone: {VIT}, projection_hidden: 8, projection_dim: 8}}",
}
STEPS = 2


def text(method: str, parts: int, more: str = "") -> str:
    optimization = _SGD.replace("batch_size", f"accumulate: {parts}, {more}batch_size")
    return f"{_TABLE['COMMON']}{_TABLE['DIGITS']}\nalgorithm: {METHODS[method]}\n{optimization}\n"


def follow(method: str, parts: int) -> dict[str, Tensor]:
    """Loss, metrics, gradients and state of a few steps, on one worker."""
    training = in_double(text(method, parts))
    seen: dict[str, Tensor] = {}
    for step in range(STEPS):
        made = training.advance(step).step
        seen |= {f"{step}/loss": made.loss} | {f"{step}/{name}": value for name, value in made.metrics.items()}
        named = training.state.algorithm.named_parameters()
        seen |= {f"{step}/gradient/{name}": p.grad.clone() for name, p in named if p.grad is not None}
    # With running statistics of the heads, queues and key encoders.
    return seen | {f"state/{name}": value.clone() for name, value in training.state.algorithm.state_dict().items()}


def follow_all(parts: int) -> dict[str, dict[str, Tensor]]:
    return {method: follow(method, parts) for method in METHODS}


@pytest.fixture(scope="module")
def plain() -> dict[str, dict[str, Tensor]]:
    return follow_all(1)


def assert_alike(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-10, atol=1e-10, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("parts", [2, 32])
def test_parts_have_the_gradients_of_the_whole(method: str, parts: int, plain: Any) -> None:
    gradients = [value for key, value in plain[method].items() if key.startswith(f"{STEPS - 1}/gradient/")]
    assert sum(float(value.abs().max()) > 1e-5 for value in gradients) > 0.8 * len(gradients)  # not by being zero
    assert_alike(follow(method, parts), plain[method])


@pytest.mark.parametrize("workers", [2, 4])
def test_parts_on_workers_have_the_gradients_of_the_whole(workers: int, on_workers: Any, plain: Any) -> None:
    for result in on_workers(follow_all, workers, 4):
        for method, expected in plain.items():
            shared = {key for key in expected if "/gradient/" in key or key.startswith("state/")}
            found = {key: value for key, value in result[method].items() if key in shared}
            assert_alike(found, {key: expected[key] for key in shared})


def test_without_the_second_pass_gradients_are_others(plain: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What accumulation of a loss of parts would have given: the test would notice."""

    def naive(algorithm: Any, module: Any, parts: Any, clock: Any, scaler: Any, ways: Any) -> Step:
        for part in parts:
            made = module(part(), clock)
            (made.loss / len(parts)).backward()
        return Step(made.loss.detach(), {})

    monkeypatch.setattr(stepping, "cached_backward", naive)
    found = follow("simclr", 4)
    name = "0/gradient/backbone.blocks.0.attn.proj.weight"
    expected = plain["simclr"][name]
    assert float((found[name] - expected).norm() / expected.norm()) > 0.05


@contextmanager
def saved_bytes() -> Iterator[Callable[[], int]]:
    """Inside, the most bytes that autograd has kept at once for backward passes; views of parameters count too."""
    now = peak = 0

    class Kept:
        def __init__(self, tensor: Tensor) -> None:
            nonlocal now, peak
            self.tensor, self.bytes = tensor, tensor.numel() * tensor.element_size()
            now += self.bytes
            peak = max(peak, now)

        def __del__(self) -> None:
            nonlocal now
            now -= self.bytes

    with torch.autograd.graph.saved_tensors_hooks(Kept, lambda kept: kept.tensor):
        yield lambda: peak


def memory(parts: int, batch_size: int) -> int:
    """Of one step of SimCLR by tiles with a network whose activations are most of it."""
    wide = (
        text("simclr-tiled", parts)
        .replace("depth: 2", "depth: 8")
        .replace("batch_size: 32", f"batch_size: {batch_size}")
    )
    training = in_double(wide)
    with saved_bytes() as peak:
        training.advance(0)
        return peak()


def test_the_memory_is_that_of_a_part() -> None:
    whole, twice = memory(1, 64), memory(1, 128)
    assert twice > 1.8 * whole
    few, many = memory(8, 64), memory(16, 128)
    assert few < whole / 5
    assert many < 1.2 * few  # the same rows in each part


class Dropping(Comparing):
    """A network that drops by stateless keys, in float64."""

    @dataclass(frozen=True, kw_only=True)
    class Config:
        type: str = "dropping"
        backbone: BackboneConfig = field(default_factory=ViTTiny)

    def __init__(self, config: Config, data: DataSpec) -> None:
        super().__init__(config, data)
        self.first, self.drop, self.second = nn.Linear(64, 16), Dropout(0.4), nn.Linear(16, 6)
        number(self)
        self.double()

    def prepare(self, batch: Mapping[str, Tensor], clock: Clock, random: Random) -> Inputs:
        x = batch["image"].flatten(1).double() / 16
        return {
            "first": x + random.within("a").normal("noise", 64).double(),
            "second": x + random.within("b").normal("noise", 64).double(),
            "keys": draw_keys(random),
        }

    def represent(self, inputs: Inputs, clock: Clock) -> Rows:
        def embed(x: Tensor) -> Tensor:
            h: Tensor = self.second(self.drop(self.first(x).relu(), inputs["keys"]))
            return h

        return {name: embed(inputs[name]) for name in ("first", "second")}

    def compare(self, rows: Rows, targets: Rows, clock: Clock) -> Step:
        return Step(*nt_xent(rows["first"], rows["second"], 0.3))


def test_both_passes_drop_the_same(tiny: MakeJob, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ALGORITHMS, "dropping", Dropping)
    made = []
    for parts in (1, 4):
        job = tiny(f"optimization.accumulate={parts}", "optimization.clip_gradient_norm=0.01")
        training = TrainingLoop(
            job.model_copy(update={"algorithm": Dropping.Config()}),
            launch.load(tiny()),
            SilentRuntime(torch.device("cpu")),
            RunFolder("unused"),
        )
        for step in range(3):
            done = training.advance(step, measure=True)
        state = {name: value.clone() for name, value in training.state.algorithm.state_dict().items()}
        made.append(state | {"loss": done.step.loss, "norm": done.gradient_norm})
    assert_alike(made[1], made[0])


def gradient(precision: str, parts: int) -> Tensor:
    """Of the first step in single precision weights, all in one."""
    job = parse(text("simclr", parts, f"precision: {precision}, "), "tiny.yaml")
    training = TrainingLoop(job, launch.load(job), SilentRuntime(torch.device("cpu")), RunFolder("unused"))
    scaled = precision == "fp16"
    assert training.state.scaler.is_enabled() == scaled
    training.state.scaler = torch.amp.GradScaler("cpu", init_scale=32.0, enabled=scaled)  # 65,536 would overflow
    training.advance(0)
    return torch.cat([p.grad.flatten() for p in training.state.algorithm.parameters() if p.grad is not None])


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_and_its_scale(precision: str) -> None:
    """What parts change is below what half precision changes."""
    exact, whole, parts = gradient("fp32", 1), gradient(precision, 1), gradient(precision, 4)
    rounding = float((whole - exact).norm())
    assert 0 < rounding < float(exact.norm())
    assert float((parts - whole).norm()) < rounding


def test_backbones_say_whether_they_mix_samples() -> None:
    for kind in get_args(get_args(BackboneConfig)[0]):
        narrow = kind(width=8) if kind.mixes_samples else kind(width=8, heads=2, depth=1)
        network = narrow.build(3, (32, 32))
        normalised = any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in network.modules())
        assert normalised == kind.mixes_samples, kind


def test_a_backbone_with_batch_normalisation_is_refused(tiny: MakeJob) -> None:
    found = launch.check(tiny("optimization.accumulate=2"))
    assert [problem.where for problem in found] == ["optimization.accumulate"]
    assert "batch normalisation in its backbone would see the statistics of each part" in found[0].what
    job = parse(text("simclr", 2), "tiny.yaml")
    assert launch.check(job) == []
