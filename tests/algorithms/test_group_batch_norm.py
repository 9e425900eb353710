"""Batch normalisation in groups of rows: each group as if it were a batch of its own, wherever its rows lie."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from heliostat_algorithms.backbones import ResNet18
from heliostat_algorithms.backbones.batch_norm import (
    GlobalBatchNorm,
    GroupBatchNorm,
    assigned,
    group_batch_norm,
    synchronize_batch_norm,
)
from heliostat_algorithms.collectives import rank, world_size
from heliostat_algorithms.heads.projection import ProjectionHead

ROWS, CHANNELS, STEPS = 24, 3, 2
SHAPES: dict[str, tuple[int, ...]] = {
    "images": (ROWS, CHANNELS, 3, 2),
    "vectors": (ROWS, CHANNELS),
    "sequences": (ROWS, CHANNELS, 5),
}
# Name -> shape, groups, whether rows are assigned at random, and options of the layer.
CASES: dict[str, tuple[str, int, bool, dict[str, Any]]] = {
    "eight_in_order": ("images", 8, False, {}),
    "eight_shuffled": ("images", 8, True, {}),
    "three_in_order": ("images", 3, False, {}),
    "three_shuffled": ("vectors", 3, True, {"eps": 0.3, "momentum": 0.7}),
    "vectors_in_order": ("vectors", 4, False, {}),
    "one_of_all": ("sequences", 1, False, {}),
    "one_shuffled": ("sequences", 1, True, {"affine": False}),
    "plain_in_order": ("images", 4, False, {"affine": False}),
    "cumulative": ("images", 2, True, {"momentum": None}),
    "cumulative_in_order": ("images", 4, False, {"momentum": None}),
    "untracked": ("images", 4, True, {"track_running_stats": False}),
}


def case(name: str) -> tuple[list[Tensor], list[Tensor], list[Tensor], nn.Module]:
    """Inputs, loss weights and groups (of all rows) of each step, and torch's own layer in float64."""
    shape_name, groups, shuffled, options = CASES[name]
    shape = SHAPES[shape_name]
    generator = torch.Generator().manual_seed(len(name))
    inputs = [torch.randn(shape, generator=generator, dtype=torch.float64) * (1 + s) + s for s in range(STEPS)]
    # Rows differ in their mean, so that statistics of other groups are far off.
    inputs = [x + torch.arange(ROWS, dtype=x.dtype).view(-1, *[1] * (x.ndim - 1)) for x in inputs]
    weights = [torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(STEPS)]
    in_order = torch.arange(ROWS) // (ROWS // groups)
    members = [in_order[torch.randperm(ROWS, generator=generator)] if shuffled else in_order for _ in range(STEPS)]
    layer = (nn.BatchNorm2d if len(shape) == 4 else nn.BatchNorm1d)(CHANNELS, **options).double()
    if layer.affine:
        with torch.no_grad():
            layer.weight.copy_(torch.tensor([0.5, -1.5, 2.0]))
            layer.bias.copy_(torch.tensor([0.1, 0.0, -3.0]))
    return inputs, weights, members, layer


def reference(name: str) -> dict[str, Tensor]:
    """torch's own layer on each group by itself; running statistics from numpy."""
    inputs, weights, members, layer = case(name)
    groups = CASES[name][1]
    momentum = layer.momentum
    running_mean, running_var = np.zeros(CHANNELS), np.ones(CHANNELS)
    result: dict[str, Tensor] = {}
    for step, (x, w, member) in enumerate(zip(inputs, weights, members, strict=True)):
        leaf = x.clone().requires_grad_()
        y = torch.zeros_like(x)
        means, variances = [], []
        for group in range(groups):
            rows = (member == group).nonzero().squeeze(1)
            y = y.index_copy(0, rows, layer(leaf[rows]))
            values = np.moveaxis(x[rows].numpy(), 1, 0).reshape(CHANNELS, -1)
            means.append(values.mean(axis=1))
            variances.append(values.var(axis=1, ddof=1))
        (w * y.sin()).sum().backward()
        result |= {f"output{step}": y.detach(), f"input_gradient{step}": leaf.grad}
        share = 1 / (step + 1) if momentum is None else momentum
        running_mean = (1 - share) * running_mean + share * np.mean(means, axis=0)
        running_var = (1 - share) * running_var + share * np.mean(variances, axis=0)
    result |= {f"{key}.grad": parameter.grad for key, parameter in layer.named_parameters()}
    if layer.track_running_stats:
        result |= {"running_mean": torch.from_numpy(running_mean), "running_var": torch.from_numpy(running_var)}
        result["num_batches_tracked"] = torch.tensor(float(STEPS), dtype=torch.float64)
    return result


def mine(x: Tensor) -> Tensor:
    return x.chunk(world_size())[rank()]


def train(name: str) -> dict[str, Tensor]:
    inputs, weights, members, layer = case(name)
    _, groups, shuffled, _ = CASES[name]
    network = group_batch_norm(nn.Sequential(layer))
    result: dict[str, Tensor] = {}
    for step, (x, w, member) in enumerate(zip(inputs, weights, members, strict=True)):
        leaf = mine(x).clone().requires_grad_()
        with assigned(network, groups, mine(member) if shuffled else None):
            y = network(leaf)
        (mine(w) * y.sin()).sum().backward()
        result |= {f"output{step}": y.detach(), f"input_gradient{step}": leaf.grad}
    result |= {f"{key}.grad": parameter.grad for key, parameter in network[0].named_parameters()}
    return result | {key: buffer.double() for key, buffer in network[0].named_buffers()}


def train_all() -> dict[str, Any]:
    results: dict[str, Any] = {name: train(name) for name in CASES}

    # A mean of 1e5 and a deviation of about 3 in float32.
    x, member = large_mean()
    network = nn.Sequential(GroupBatchNorm(CHANNELS))
    for key, members in (("shuffled", mine(member)), ("in_order", None)):
        with assigned(network, 4, members):
            results[f"large_{key}"] = network(mine(x).float()).detach()
    with assigned(network, 4, mine(member)):
        half = network(mine(x).bfloat16())
    results["half"] = {"dtype": str(half.dtype), "finite": bool(half.isfinite().all())}

    # A worker may evaluate alone: this would hang if it waited for the others.
    results["alone"] = network.eval()(torch.ones(2, CHANNELS)) if rank() == 0 else None
    return results


def large_mean() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(ROWS, CHANNELS, 2, 2, generator=generator, dtype=torch.float64) * 3 + 1e5
    return x, (torch.arange(ROWS) % 4)[torch.randperm(ROWS, generator=generator)]


def joined(results: list[dict[str, Any]], key: str, pick: Any) -> list[Tensor]:
    """What the workers found, made comparable with one process."""
    found = [pick(result) for result in results]
    if key.startswith(("output", "input_gradient")):
        return [torch.cat(found)]
    if key.endswith(".grad"):
        return [torch.stack(found).sum(dim=0)]  # each worker holds its own loss's share
    return found


def check(results: list[dict[str, Any]]) -> None:
    for name in CASES:
        expected = reference(name)
        assert set(results[0][name]) == set(expected)
        for key, value in expected.items():
            for tensor in joined(results, key, lambda result, name=name, key=key: result[name][key]):
                message = f"{name}.{key}"
                torch.testing.assert_close(tensor, value, rtol=1e-9, atol=1e-10, msg=lambda m, at=message: f"{at}: {m}")
        for key in ("running_mean", "running_var"):
            if key in expected:
                assert all(torch.equal(result[name][key], results[0][name][key]) for result in results)
    x, shuffled = large_mean()
    for key, member in (("shuffled", shuffled), ("in_order", torch.arange(ROWS) // 6)):
        found = torch.cat([result[f"large_{key}"] for result in results]).double()
        for group in range(4):
            rows = x[member == group]
            exact = (rows - rows.mean((0, 2, 3), keepdim=True)) / rows.var((0, 2, 3), correction=0, keepdim=True).sqrt()
            assert (found[member == group] - exact).abs().max() < 0.02
    assert all(result["half"] == {"dtype": "torch.bfloat16", "finite": True} for result in results)


def test_one_process_normalises_each_group_like_torch() -> None:
    check([train_all()])


@pytest.mark.parametrize("workers", [2, 8])
def test_groups_do_not_depend_on_the_workers(workers: int, on_workers: Any) -> None:
    check(on_workers(train_all, workers))


def count_exchanges() -> dict[str, Any]:
    """How often workers talk in a forward pass of two layers, by kind of group."""
    network = group_batch_norm(nn.Sequential(nn.BatchNorm1d(CHANNELS), nn.BatchNorm1d(CHANNELS)))
    calls = []
    original = torch.distributed.all_reduce
    torch.distributed.all_reduce = lambda *arguments: (calls.append(1), original(*arguments))[1]
    found = {}
    x = mine(torch.randn(ROWS, CHANNELS))
    for name, count, members in (("whole", 4, None), ("across", 3, None), ("random", 4, mine(torch.arange(ROWS) % 4))):
        calls.clear()
        with assigned(network, count, members):
            network(x)
        found[name] = len(calls)
    torch.distributed.all_reduce = original
    return found


def convert() -> dict[str, Any]:
    """What ``synchronize_batch_norm`` makes of a network with both kinds, for both kinds of device."""
    kinds = {}
    for device in ("cpu", "cuda"):
        network = nn.ModuleDict({"own": nn.Sequential(nn.BatchNorm2d(2)), "other": nn.Sequential(nn.BatchNorm1d(2))})
        network["own"] = group_batch_norm(network["own"])
        layer = network["own"][0]
        found = synchronize_batch_norm(network, device)
        kinds[device] = [type(found["own"][0]).__name__, type(found["other"][0]).__name__, found["own"][0] is layer]
        again = synchronize_batch_norm(found, device)
        kinds[f"{device} again"] = [type(again["own"][0]).__name__, type(again["other"][0]).__name__]
    return kinds


def exchange_and_convert() -> dict[str, Any]:
    return {"exchanges": count_exchanges(), "kinds": convert()}


def test_local_groups_need_one_exchange_and_synchronisation_leaves_groups_alone(on_workers: Any) -> None:
    for result in on_workers(exchange_and_convert, 2):
        # One for the running statistics of all layers; else a mean and a variance for each layer.
        assert result["exchanges"] == {"whole": 1, "across": 4, "random": 4}
        assert result["kinds"] == {
            "cpu": ["GroupBatchNorm", "GlobalBatchNorm", True],
            "cpu again": ["GroupBatchNorm", "GlobalBatchNorm"],
            "cuda": ["GroupBatchNorm", "SyncBatchNorm", True],
            "cuda again": ["GroupBatchNorm", "SyncBatchNorm"],
        }


def test_conversion_keeps_tensors_names_and_modes() -> None:
    network = nn.ModuleDict({"backbone": ResNet18(width=4).build(3, (8, 8)), "head": ProjectionHead(32, 8, 4)})
    network["head"].eval()
    before = {name: id(tensor) for name, tensor in [*network.named_parameters(), *network.named_buffers()]}
    converted = group_batch_norm(network)
    after = {name: id(tensor) for name, tensor in [*converted.named_parameters(), *converted.named_buffers()]}
    assert converted is network
    assert list(before.items()) == list(after.items())
    norms = [module for module in network.modules() if "Norm" in type(module).__name__]
    assert {type(module) for module in norms} == {GroupBatchNorm}
    assert network["backbone"].bn1.training
    assert not network["head"].norms[0].training
    assert network["head"].norms[1].bias is None
    layer = network["backbone"].bn1
    assert group_batch_norm(network)["backbone"].bn1 is layer
    assert type(group_batch_norm(nn.BatchNorm1d(2))) is GroupBatchNorm
    assert type(group_batch_norm(nn.Sequential(GlobalBatchNorm(2)))[0]) is GlobalBatchNorm


def test_evaluation_is_torchs_own_and_needs_no_groups() -> None:
    inputs, _, _, layer = case("eight_in_order")
    network = group_batch_norm(nn.Sequential(nn.BatchNorm2d(CHANNELS)).double())
    with torch.no_grad():
        layer(inputs[0])
        network.load_state_dict({f"0.{name}": tensor for name, tensor in layer.state_dict().items()})
        state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
        torch.testing.assert_close(network.eval()(inputs[1]), layer.eval()(inputs[1]), rtol=0, atol=0)
        with assigned(network, 8):
            torch.testing.assert_close(network(inputs[1]), layer(inputs[1]), rtol=0, atol=0)
    assert all(torch.equal(tensor, state[name]) for name, tensor in network.state_dict().items())


def test_groups_hold_inside_assigned_alone_and_a_failed_pass_leaves_no_trace() -> None:
    network = nn.Sequential(GroupBatchNorm(CHANNELS))
    x = torch.randn(8, CHANNELS)
    with pytest.raises(RuntimeError, match="assigned"):
        network(x)
    with contextlib.suppress(KeyError), assigned(network, 2):
        network(x)
        raise KeyError
    assert int(network[0].num_batches_tracked) == 0
    with pytest.raises(RuntimeError, match="assigned"):
        network(x)
    with assigned(network, 2):  # two passes inside are two batches
        network(x)
        network(x)
    assert int(network[0].num_batches_tracked) == 2


def test_a_single_group_is_plain_batch_normalisation_to_the_last_bit() -> None:
    inputs, _, _, layer = case("one_of_all")
    network = group_batch_norm(nn.Sequential(layer))
    plain = case("one_of_all")[3]
    with assigned(network, 1):
        found = network(inputs[0])
    assert torch.equal(found, plain(inputs[0]))
    torch.testing.assert_close(network[0].running_var, plain.running_var, rtol=1e-14, atol=0)


def test_a_group_sees_no_other_group() -> None:
    network = nn.Sequential(GroupBatchNorm(CHANNELS)).double()
    x = torch.randn(8, CHANNELS, 2, 2, dtype=torch.float64)
    member = torch.tensor([0, 1, 1, 0, 0, 1, 0, 1])
    changed = torch.where((member == 0).view(-1, 1, 1, 1), x, x**3 * 50 + 7)
    with assigned(network, 2, member):
        before, after = network(x), network(changed)
    assert torch.equal(before[member == 0], after[member == 0])
    assert not torch.allclose(before[member == 1], after[member == 1])


def test_what_cannot_be_normalised_is_refused() -> None:
    network = nn.Sequential(GroupBatchNorm(CHANNELS))
    with assigned(network, 3), pytest.raises(ValueError, match="8 rows cannot be split into 3 groups"):
        network(torch.randn(8, CHANNELS))
    for member in (None, torch.arange(8)):
        with assigned(network, 8, member), pytest.raises(ValueError, match="single value per channel"):
            network(torch.randn(8, CHANNELS))
        with assigned(network, 8, member):
            assert network(torch.randn(8, CHANNELS, 2)).isfinite().all()
    with assigned(network, 1), pytest.raises(ValueError, match="needs"):
        network(torch.randn(8))
