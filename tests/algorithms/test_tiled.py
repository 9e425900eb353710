"""The loss by tiles is the loss at once: values, metrics, gradients, on any number of workers, in a fraction of the
memory."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeAlias

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from heliostat_algorithms.collectives import gather_rows, rank, world_size
from heliostat_algorithms.objectives.info_nce import batch_info_nce
from heliostat_algorithms.objectives.nt_xent import nt_xent
from heliostat_algorithms.objectives.tiled import tiled_cross_entropy
from heliostat_algorithms.representation.moco_v3 import MoCoV3
from heliostat_algorithms.representation.simclr import SimCLR
from heliostat_algorithms.representation.simclr_v2 import SimCLRv2, nt_xent_to_keys

Made: TypeAlias = dict[str, Tensor]
TILES = [1, 2, 3, 7, 13, 26, 1000]
"""Of 13 images, 26 views: one tile, tiles that divide and tiles that do not."""


def views(count: int, dim: int = 5, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(count)
    first = torch.randn(count, dim, generator=generator, dtype=torch.float64) * 3
    second = first + torch.randn(count, dim, generator=generator, dtype=torch.float64)
    return first.to(dtype), second.to(dtype)


def to_keys(first: Tensor, second: Tensor, temperature: float, tile: int | None) -> tuple[Tensor, Made]:
    """SimCLRv2's, with keys of another network and a memory."""
    keys = [torch.nn.functional.normalize(gather_rows(view.detach().flip(1)), dim=1) for view in (first, second)]
    memory = torch.nn.functional.normalize(views(9, first.shape[1])[0], dim=1).to(first)
    return nt_xent_to_keys(first, second, torch.cat(keys), memory, temperature, tile)


LOSSES: dict[str, Callable[..., tuple[Tensor, Made]]] = {
    "nt_xent": nt_xent,
    "info_nce": batch_info_nce,
    "to_keys": to_keys,
}


def computed(name: str, first: Tensor, second: Tensor, temperature: float, tile: int | None) -> Made:
    """Loss, metrics and gradients; that of keys is zero."""
    leaves = [first.clone().requires_grad_(), second.clone().requires_grad_()]
    loss, metrics = LOSSES[name](*leaves, temperature, tile)
    (3 * loss).backward()  # type: ignore[no-untyped-call]
    gradients = {f"gradient {k}": torch.zeros_like(x) if x.grad is None else x.grad for k, x in enumerate(leaves)}
    return {"loss": loss.detach(), **metrics, **gradients}


def assert_alike(found: Made, expected: Made) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-10, atol=1e-12, msg=lambda text, n=name: f"{n}: {text}")


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("temperature", [0.005, 0.1, 1.0])
@pytest.mark.parametrize("tile", TILES)
def test_tiles_give_the_loss_the_metrics_and_the_gradients(name: str, temperature: float, tile: int) -> None:
    first, second = views(13)
    expected = computed(name, first, second, temperature, None)
    assert float(expected["gradient 0"].abs().max()) > 1e-6
    assert_alike(computed(name, first, second, temperature, tile), expected)


@pytest.mark.parametrize("name", LOSSES)
def test_a_single_image(name: str) -> None:
    first, second = views(1)
    assert_alike(computed(name, first, second, 0.5, 4), computed(name, first, second, 0.5, None))


def test_the_normaliser_is_that_of_a_double_loop() -> None:
    """The tiled form by itself, against the formula and not against the plain form."""
    anchors, candidates = views(5)[0] / 4, views(6)[0] / 4
    positive, own = torch.tensor([3, 0, 5, 1, 2]), torch.tensor([0, 1, 2, 3, 4])
    candidates[3], candidates[5] = 3 * anchors[0], 3 * anchors[2]  # two find theirs
    found = tiled_cross_entropy(anchors, candidates, positive, own, 0.3, 4)
    for i in range(5):
        scores = {k: float(anchors[i] @ candidates[k]) / 0.3 for k in range(6) if k != own[i]}
        total = sum(math.exp(score) for score in scores.values())
        shares = {k: math.exp(score) / total for k, score in scores.items()}
        aim = int(positive[i])
        assert found.loss[i].item() == pytest.approx(-math.log(shares[aim]), rel=1e-10)
        assert found.entropy[i].item() == pytest.approx(-sum(p * math.log(p) for p in shares.values()), rel=1e-10)
        assert found.first[i].item() == all(scores[aim] > score for k, score in scores.items() if k != aim)
    assert 2 <= int(found.first.sum()) < 5


@pytest.mark.parametrize("tile", [2, 3, 50])
def test_gradients_are_those_of_finite_differences(tile: int) -> None:
    first, second = views(4)
    first.requires_grad_()
    second.requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: nt_xent(a, b, 0.3, tile)[0], (first, second))
    positive = torch.tensor([1, 2, 3, 0])

    def each(anchors: Tensor, candidates: Tensor) -> Tensor:
        return tiled_cross_entropy(anchors / 3, candidates / 3, positive, None, 0.7, tile).loss

    assert torch.autograd.gradcheck(each, (first, second))


def test_candidates_without_gradient_get_none() -> None:
    anchors, candidates = views(4)
    found = tiled_cross_entropy(anchors.requires_grad_(), candidates, torch.arange(4), None, 1.0, 3)
    found.loss.sum().backward()  # type: ignore[no-untyped-call]
    assert anchors.grad is not None
    assert candidates.grad is None
    assert not found.entropy.requires_grad
    assert not found.first.requires_grad


@pytest.mark.parametrize("tile", [None, 3])
def test_in_a_collapse_nobody_finds_its_view(tile: int | None) -> None:
    same = torch.ones(6, 3, dtype=torch.float64)
    loss, metrics = nt_xent(same, same, 0.1, tile)
    assert loss.item() == pytest.approx(math.log(11))
    assert metrics["contrastive_entropy"].item() == pytest.approx(math.log(11))
    assert metrics["contrastive_top1"].item() == 0
    assert batch_info_nce(same, same, 0.1, tile)[1]["contrastive_top1"].item() == 0


@pytest.mark.parametrize("name", LOSSES)
def test_float32_under_autocast_forward_and_backward(name: str) -> None:
    first, second = views(40, 16, torch.float32)
    outside = computed(name, first, second, 0.1, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = computed(name, first, second, 0.1, 16)
        halves = LOSSES[name](first.bfloat16(), second.bfloat16(), 0.1, 16)[0]
    for key, value in outside.items():
        assert torch.equal(inside[key], value), key
    assert halves.dtype == torch.float32
    exact = computed(name, first.double(), second.double(), 0.1, None)
    for key, value in exact.items():
        torch.testing.assert_close(outside[key].double(), value, rtol=1e-4, atol=1e-5)


def test_far_apart_logits_neither_overflow_nor_vanish() -> None:
    first = torch.eye(8)
    found = computed("nt_xent", first, -first, 0.005, 3)  # the positive is the least likely, at exp(-200)
    expected = computed("nt_xent", first, -first, 0.005, None)
    for name, value in expected.items():
        assert found[name].isfinite().all(), name
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-6)


def on_worker(count: int, tile: int) -> dict[str, Any]:
    """One worker's share of all losses, plain and by tiles."""
    rows = slice(rank() * count // world_size(), (rank() + 1) * count // world_size())
    first, second = (view[rows] for view in views(count))
    return {name: [computed(name, first, second, 0.2, size) for size in (None, tile)] for name in LOSSES}


@pytest.mark.parametrize("workers", [2, 4])
def test_workers_with_tiles_have_the_gradients_of_one_without(workers: int, on_workers: Any) -> None:
    count = 12
    results = on_workers(on_worker, workers, count, 5)
    for name, (expected, _) in on_worker(count, 5).items():
        plain, tiled = ([result[name][k] for result in results] for k in (0, 1))
        for found, same in zip(tiled, plain, strict=True):
            assert_alike(found, same)
        for key in ("loss", "contrastive_top1"):
            mean = torch.stack([found[key] for found in tiled]).mean()
            torch.testing.assert_close(mean, expected[key], rtol=1e-10, atol=1e-12)
        for key in ("gradient 0", "gradient 1"):  # a worker's loss is the mean over its own rows
            whole = torch.cat([found[key] for found in tiled]) / workers
            torch.testing.assert_close(whole, expected[key], rtol=1e-10, atol=1e-12)


class Largest(TorchDispatchMode):
    """The largest tensor, in bytes, that any operation inside gives."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = function(*args, **(kwargs or {}))
        for value in made if isinstance(made, tuple | list) else [made]:
            if isinstance(value, Tensor):
                self.bytes = max(self.bytes, value.numel() * value.element_size())
        return made


def largest(name: str, count: int, tile: int | None) -> int:
    first, second = views(count, 4, torch.float32)
    with Largest() as seen:
        computed(name, first, second, 0.2, tile)
    return seen.bytes


@pytest.mark.parametrize("name", ["nt_xent", "info_nce"])
def test_no_tensor_is_quadratic_in_the_batch(name: str) -> None:
    sides = 2 if name == "nt_xent" else 1
    assert largest(name, 512, None) >= (sides * 512) ** 2 * 4  # the test would notice
    few, many = largest(name, 512, 64), largest(name, 1024, 64)
    linear = sides * 1024 * 8 * 5  # numbers of 8 bytes (positions), some for each row
    assert few <= many <= max(linear, 64 * 64 * 8)


@pytest.mark.parametrize("method", [SimCLR, SimCLRv2, MoCoV3])
def test_a_tile_holds_something(method: Any) -> None:
    assert method.Config().tile is None
    assert method.Config(tile=7).tile == 7
    with pytest.raises(ValueError, match="tile is 0; it must be at least 1, or null"):
        method.Config(tile=0)
    with pytest.raises(ValueError, match="tile is 0"):
        tiled_cross_entropy(*views(3), torch.arange(3), None, 1.0, 0)
