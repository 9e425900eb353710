"""A run does not depend on how many workers share it: the first rule of the design, for SimCLR."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from heliostat_algorithms.algorithm import Clock, DataSpec
from heliostat_algorithms.augmentation import ViewAugmentation
from heliostat_algorithms.backbones import ResNet18
from heliostat_algorithms.backbones.batch_norm import synchronize_batch_norm
from heliostat_algorithms.collectives import mean_over_workers, rank, world_size
from heliostat_algorithms.optimizers import Lars
from heliostat_algorithms.randomness import Random
from heliostat_algorithms.representation.simclr import SimCLR

BATCH, STEPS, SIDE = 8, 5, 8


def images() -> Tensor:
    return torch.randint(256, (BATCH, 3, SIDE, SIDE), generator=torch.Generator().manual_seed(3), dtype=torch.uint8)


def train() -> dict[str, Any]:
    """Losses and metrics of all steps, first and last gradients, final weights and buffers."""
    torch.manual_seed(0)  # the weights' start is the same on all workers
    # Blocks that begin as the identity would hide the gradients of what is inside them.
    backbone = ResNet18(stem="cifar", width=4, zero_init_residual=False)
    config = SimCLR.Config(
        backbone=backbone, projection_dim=8, temperature=0.5, augmentation=ViewAugmentation(crop_area=(0.3, 1.0))
    )
    algorithm = SimCLR(config, DataSpec(image_shape=(3, SIDE, SIDE), classes=None)).double()
    algorithm = synchronize_batch_norm(algorithm, "cpu")
    lars = Lars(learning_rate=0.2, per=None, weight_decay=1e-2, trust_coefficient=0.1)
    optimizer = lars.build(algorithm.parameter_groups(), BATCH)
    module: nn.Module = algorithm
    if world_size() > 1:
        module = DistributedDataParallel(algorithm, broadcast_buffers=False)

    share = BATCH // world_size()
    rows = range(rank() * share, (rank() + 1) * share)
    batch = {"image": images()[rows.start : rows.stop]}
    result: dict[str, Any] = {}
    for step in range(STEPS):
        clock = Clock(step=step, total_steps=STEPS, steps_per_epoch=1, batch_size=BATCH)
        inputs = algorithm.prepare(batch, clock, Random(11, step, rows))
        done = module({name: view.double() for name, view in inputs.items()}, clock)
        optimizer.zero_grad()
        done.loss.backward()
        result |= {f"loss{step}": mean_over_workers(done.loss)}
        result |= {f"{name}{step}": mean_over_workers(value) for name, value in done.metrics.items()}
        if step in (0, STEPS - 1):
            result |= {f"gradient{step}/{n}": p.grad.clone() for n, p in algorithm.named_parameters()}
        optimizer.step()
    return result | {f"state/{name}": tensor for name, tensor in algorithm.state_dict().items()}


@pytest.fixture(scope="module")
def alone() -> dict[str, Any]:
    return train()


def test_the_run_moves_and_every_gradient_counts(alone: dict[str, Any]) -> None:
    gradients = {key: value for key, value in alone.items() if key.startswith("gradient")}
    assert len(gradients) == 2 * len(
        [key for key in alone if key.startswith("state/") and key.endswith(("weight", "bias"))]
    )
    assert all(value.abs().max() > 1e-5 for value in gradients.values())
    assert len({round(alone[f"loss{step}"].item(), 4) for step in range(STEPS)}) == STEPS


@pytest.mark.parametrize("workers", [2, 4])
def test_any_number_of_workers_follows_the_same_trajectory(
    workers: int, on_workers: Any, alone: dict[str, Any]
) -> None:
    results = on_workers(train, workers)
    for result in results:
        assert set(result) == set(alone)
        for key, expected in alone.items():
            found = result[key].double()
            error = float((found - expected.double()).abs().max() / (1 + expected.double().abs().max()))
            limit = 1e-10 if key.startswith(("gradient0", "loss0", "contrastive")) else 1e-8
            assert error < limit, f"{key} differs by {error:.1e}"
    for key, value in results[0].items():
        assert all(torch.equal(value, result[key]) for result in results[1:]), f"{key} differs between workers"
