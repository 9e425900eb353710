"""A profile tells where the time goes, and changes nothing of what is computed."""

from __future__ import annotations

import gzip
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from heliostat.config.job import Job
from heliostat.config.loading import dump, parse
from heliostat.training import launch
from heliostat.training.loop import TrainingLoop
from heliostat.training.peaks import peak_of, peak_of_gpu
from heliostat.training.profiling import PHASES, STEPS, WARM_UP, advise
from heliostat.training.run_folder import RunFolder
from heliostat.training.runtime import SilentRuntime
from heliostat.training.storage import Storage
from heliostat_algorithms.collectives import rank, world_size

MakeJob = Callable[..., Job]
LONG = f"optimization.steps={STEPS + 2}"


def trained(job: Job, *, profile: bool, change: Callable[[TrainingLoop], None] = lambda _: None) -> TrainingLoop:
    folder = RunFolder.planned(job)
    folder.create(job)
    runtime = SilentRuntime(torch.device("cpu"), rank(), world_size())
    loop = TrainingLoop(job, launch.load(job), runtime, folder, profile=profile)
    change(loop)
    assert loop.run().status == "finished"
    return loop


def profile_of(loop: TrainingLoop) -> dict[str, Any]:
    found: dict[str, Any] = loop.folder.storage.read_json("profile.json")
    return found


def tensors(loop: TrainingLoop) -> dict[str, Tensor]:
    return dict(loop.state.algorithm.state_dict())


def test_a_profile_is_whole_and_changes_no_bit(tiny: MakeJob) -> None:
    plain, profiled = trained(tiny(LONG), profile=False), trained(tiny(LONG), profile=True)
    assert not plain.folder.storage.exists("profile.json")
    for name, value in tensors(plain).items():
        assert torch.equal(value, tensors(profiled)[name]), name
    found = profile_of(profiled)
    assert found["first_step"] == WARM_UP
    assert set(found["parts"]) == {*PHASES, "other"}
    assert sum(part["share"] for part in found["parts"].values()) == pytest.approx(1)
    assert sum(part["seconds"] for part in found["parts"].values()) == pytest.approx(found["step_seconds"])
    assert all(part["seconds"] >= 0 for part in found["parts"].values())
    assert found["samples_per_second"] == pytest.approx(64 / found["step_seconds"])
    assert found["exchange_seconds"] is None
    assert 0 < found["utilisation"] < 1.5
    layers = operations_of_layers(plain)  # the rest: similarities of views
    assert layers < found["step_flops"] < 1.05 * layers
    trace = json.loads(gzip.decompress(profiled.folder.storage.read("trace.json.gz")))
    assert {"data", "prepare", "forward", "backward", "optimizer"} <= {e.get("name") for e in trace["traceEvents"]}


def operations_of_layers(loop: TrainingLoop) -> float:
    """Forward and backward of a step's convolutions and linear layers, from their shapes: per output and weight that
    makes it one product and one sum, twice as many backward, but no gradient of the pictures themselves."""
    seen: list[float] = []

    def see(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        assert isinstance(module, nn.Conv2d | nn.Linear)
        forward = 2.0 * output.numel() * module.weight[0].numel()
        seen.append(3 * forward if inputs[0].requires_grad else 2 * forward)

    for module in loop.state.algorithm.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(see)
    loop.advance(0)
    return sum(seen)


def shared(text: str, folder: str, *, profile: bool = True) -> dict[str, Any]:
    """What one of several workers ends with."""
    job = parse(text, "tiny.yaml")
    runtime = SilentRuntime(torch.device("cpu"), rank(), world_size())
    loop = TrainingLoop(job, launch.load(job), runtime, RunFolder(folder), profile=profile)
    loop.run()
    return tensors(loop)


def undisturbed(text: str, folder: str) -> dict[str, Any]:
    """The same without a profile."""
    return shared(text, folder, profile=False)


def test_several_workers_are_profiled_together(tiny: MakeJob, on_workers: Any, tmp_path: Path) -> None:
    ends = []
    for profile in (False, True):
        job = tiny(LONG, f"name=profile-{profile}")
        folder = RunFolder(str(tmp_path / job.name))
        folder.create(job)
        ends.append(on_workers(shared if profile else undisturbed, 2, dump(job), folder.storage.uri))
    plain, profiled = ends
    for name, value in plain[0].items():
        assert torch.equal(value, profiled[0][name]), name
    found = json.loads((tmp_path / "profile-True" / "profile.json").read_text())
    assert found["workers"] == 2
    assert found["exchange_seconds"] > 0
    assert sum(part["share"] for part in found["parts"].values()) == pytest.approx(1)
    assert all(part["least"] <= part["seconds"] <= part["most"] for part in found["parts"].values())
    trace = json.loads(gzip.decompress((tmp_path / "profile-True" / "trace.json.gz").read_bytes()))
    assert any("allreduce" in e.get("name", "").replace("_", "") for e in trace["traceEvents"])


@pytest.mark.parametrize(("part", "phase"), [("loader.batch", "data"), ("state.algorithm.prepare", "prepare")])
def test_what_is_slow_shows_as_what_it_is(tiny: MakeJob, part: str, phase: str) -> None:
    def slow(loop: TrainingLoop) -> None:
        *path, name = part.split(".")
        owner: Any = loop
        for step in path:
            owner = getattr(owner, step)
        original = getattr(owner, name)

        def later(*arguments: Any) -> Any:
            time.sleep(0.1)
            return original(*arguments)

        setattr(owner, name, later)

    found = profile_of(trained(tiny(LONG), profile=True, change=slow))
    assert found["parts"][phase]["seconds"] >= 0.1
    others = [name for name in ("data", "prepare") if name != phase]
    assert found["step_seconds"] - sum(found["parts"][name]["seconds"] for name in others) >= 0.1


def test_a_run_too_short_says_so_and_trains(tiny: MakeJob) -> None:
    notices: list[str] = []
    loop = trained(tiny(), profile=True, change=lambda it: setattr(it.runtime, "notice", notices.append))
    assert not loop.folder.storage.exists("profile.json")
    assert any(f"no profile: it takes {STEPS} steps, and 12 are left" in notice for notice in notices)


CALM = {"data": 0.02, "copy": 0.0, "prepare": 0.1, "forward": 0.3, "backward": 0.5, "optimizer": 0.05, "other": 0.03}


@pytest.mark.parametrize(
    ("change", "exchange", "gpu", "said"),
    [
        ({"data": 0.4}, 0.0, False, "waiting for data takes 40%"),
        ({"copy": 0.2}, 0.0, True, "copies to the device take 20%"),
        ({"prepare": 0.5}, 0.0, False, "resources.gpus_per_worker"),
        ({"prepare": 0.5}, 0.0, True, "fewer or cheaper operations"),
        ({"optimizer": 0.3}, 0.0, False, "the optimiser takes 30%"),
        ({}, 0.6, False, "exchanging gradients takes as long as 60%"),
        ({"other": 0.25}, 0.0, False, "25% of the step is none of this"),
    ],
)
def test_each_advice(change: dict[str, float], exchange: float, gpu: bool, said: str) -> None:
    (advice,) = advise(CALM | change, exchange=exchange, gpu=gpu, precision="bf16")
    assert said in advice


def test_advice_on_precision_is_for_gpus_and_a_calm_step_needs_none() -> None:
    assert advise(CALM, exchange=0.0, gpu=False, precision="fp32") == []
    (advice,) = advise(CALM, exchange=0.0, gpu=True, precision="fp32")
    assert "precision=bf16" in advice


def test_peaks_of_known_devices_only() -> None:
    h100, pcie = (peak_of_gpu(f"NVIDIA {name}", "bf16", tf32=False) for name in ("H100 80GB HBM3", "H100 PCIe"))
    assert h100 is not None
    assert pcie is not None
    assert h100.flops > pcie.flops
    a100 = [peak_of_gpu("NVIDIA A100-SXM4-80GB", "fp32", tf32=tf32) for tf32 in (True, False)]
    assert [peak and peak.flops for peak in a100] == [156e12, 19.5e12]
    assert peak_of_gpu("Some GPU", "bf16", tf32=False) is None
    measured = peak_of(torch.device("cpu"), "fp32")
    assert measured is not None
    assert measured.flops > 1e8
    assert "measured" in measured.source


@pytest.mark.parametrize("remote", [False, True])
def test_a_compressed_file_is_stored_and_read_as_it_is(tmp_path: Path, remote: bool) -> None:
    storage = Storage("mock:///bucket" if remote else str(tmp_path))
    assert storage.local is not remote
    storage.make()
    storage.replace("trace.json.gz", gzip.compress(b"{}"))
    assert gzip.decompress(storage.read("trace.json.gz")) == b"{}"
