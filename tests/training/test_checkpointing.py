"""Activation checkpointing: the same bits everywhere, batch statistics included, from less memory."""

from __future__ import annotations

import runpy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from heliostat.config.job import Job
from heliostat.config.loading import parse
from heliostat.errors import InputError
from heliostat.training import launch
from heliostat.training.loop import TrainingLoop
from heliostat.training.run_folder import RunFolder
from heliostat.training.runtime import SilentRuntime
from heliostat_algorithms.backbones import ResNet18, ResNet50, ViTTiny
from heliostat_algorithms.backbones.checkpointing import Blockwise, checkpoint_blocks
from heliostat_algorithms.backbones.drop_path import draw_keep
from heliostat_algorithms.collectives import rank, world_size
from heliostat_algorithms.randomness import Random

# Workers cannot import test modules by name.
_TABLE = runpy.run_path(str(Path(__file__).with_name("methods.py")))
job_text: Callable[[str, str], str] = _TABLE["job_text"]
METHODS = ["simclr", "simclr-cached", "moco", "moco-symmetric", "moco-v3", "dino", "dinov2", "mae", "vjepa", "vit"]
ON = "resources.activation_checkpointing=true"


@contextmanager
def recomputed(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[type]]:
    """Inside, the blocks that were checkpointed."""
    import heliostat_algorithms.backbones.checkpointing as module

    seen: list[type] = []
    checkpoint = module.checkpoint

    def noted(block: Any, *args: Any, **options: Any) -> Any:
        seen.append(type(block))
        return checkpoint(block, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(module, "checkpoint", noted)
        yield seen


def follow(method: str, *changes: str) -> dict[str, Tensor]:
    """Gradients and state, running statistics included, of three steps on one worker."""
    job = parse(job_text(method, ""), "tiny.yaml", list(changes))
    training = TrainingLoop(
        job, launch.load(job), SilentRuntime(torch.device("cpu"), rank(), world_size()), RunFolder("unused")
    )
    seen: dict[str, Tensor] = {}
    for step in range(3):
        seen[f"{step}/loss"] = training.advance(step).step.loss
        named = training.state.algorithm.named_parameters()
        seen |= {f"{step}/{name}": p.grad.clone() for name, p in named if p.grad is not None}
    return seen | {name: value.clone() for name, value in training.state.algorithm.state_dict().items()}


def assert_same_bits(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


@pytest.mark.parametrize("method", METHODS)
def test_a_run_keeps_its_bits(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = follow(method)
    with recomputed(monkeypatch) as blocks:
        found = follow(method, ON)
    assert blocks
    assert_same_bits(found, expected)


def follow_some(*changes: str) -> dict[str, dict[str, Tensor]]:
    """With statistics over all workers, and in groups that lie across them."""
    return {method: follow(method, *changes) for method in ("simclr", "moco")}


def test_two_workers_keep_their_bits(on_workers: Any) -> None:
    results = on_workers(follow_both, 2)
    for found, expected in results:
        for method, values in expected.items():
            assert_same_bits(found[method], values)


def follow_both() -> list[dict[str, dict[str, Tensor]]]:
    return [follow_some(ON), follow_some()]


def test_batch_statistics_are_counted_once() -> None:
    network = ResNet18(width=4, stem="cifar").build(3, (8, 8))
    assert checkpoint_blocks(nn.Sequential(network)) == 1
    network.train()
    for passes in (1, 2):
        network(torch.rand(4, 3, 8, 8)).sum().backward()  # type: ignore[no-untyped-call]
        layers = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
        assert {int(m.num_batches_tracked) for m in layers if m.num_batches_tracked is not None} == {passes}


@pytest.mark.parametrize("selective", [False, True])
def test_bottlenecks_and_evaluation_mode(selective: bool) -> None:
    made = []
    for on in (False, True):
        torch.manual_seed(0)
        network = ResNet50(width=4, stem="cifar", selective_kernels=selective).build(3, (8, 8))
        network.checkpointing = on
        images = torch.rand(4, 3, 8, 8, requires_grad=True)
        network(images).square().sum().backward()  # type: ignore[no-untyped-call]
        network.eval()
        out = network(images)
        out.sum().backward()
        gradients = {name: p.grad for name, p in network.named_parameters()}
        made.append(
            {**network.state_dict(), **{f"g/{n}": g for n, g in gradients.items() if g is not None}, "out": out}
        )
    assert_same_bits(made[1], made[0])


def test_dropped_branches_are_the_same_ones() -> None:
    made = []
    for on in (False, True):
        torch.manual_seed(0)
        network = ViTTiny(patch_size=4, width=8, depth=3, heads=2).build(3, (8, 8))
        network.checkpointing = on
        keep = draw_keep(Random(0, 0, range(6)), [0.4] * network.branches)
        images = torch.rand(6, 3, 8, 8, requires_grad=True)
        network(images, keep).square().sum().backward()  # type: ignore[no-untyped-call]
        made.append({name: p.grad for name, p in network.named_parameters() if p.grad is not None} | {"x": images.grad})
    assert_same_bits(made[1], made[0])


def kept_bytes(network: Blockwise, on: bool) -> int:
    """What autograd holds at the end of a forward pass."""
    network.checkpointing = on
    kept = 0

    def pack(tensor: Tensor) -> Tensor:
        nonlocal kept
        kept += 0 if isinstance(tensor, nn.Parameter) else tensor.numel() * tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        network(torch.rand(4, 3, 16, 16))
    return kept


def test_of_a_block_only_the_input_is_kept() -> None:
    vit = ViTTiny(patch_size=4, width=16, depth=8, heads=2).build(3, (16, 16))
    resnet = ResNet18(width=8, stem="cifar").build(3, (16, 16))
    assert kept_bytes(vit, True) < kept_bytes(vit, False) / 4
    assert kept_bytes(resnet, True) < kept_bytes(resnet, False) / 2


def test_a_method_without_such_blocks_is_refused() -> None:
    job: Job = parse(job_text("vae", ""), "tiny.yaml", [ON])
    with pytest.raises(InputError, match="activation_checkpointing is for Vision Transformers and ResNets, and vae"):
        launch.load(job)
