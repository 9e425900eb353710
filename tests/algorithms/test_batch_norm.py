from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from heliostat_algorithms.backbones import ResNet18
from heliostat_algorithms.backbones.batch_norm import GlobalBatchNorm, synchronize_batch_norm
from heliostat_algorithms.collectives import rank, world_size
from heliostat_algorithms.heads.projection import ProjectionHead

CHANNELS, STEPS = 3, 3
CASES: dict[str, dict[str, Any]] = {
    "images": {"shape": (8, CHANNELS, 4, 5)},
    "vectors": {"shape": (8, CHANNELS)},
    "sequences": {"shape": (8, CHANNELS, 7)},
    "plain": {"shape": (8, CHANNELS, 2, 2), "affine": False},
    "cumulative": {"shape": (8, CHANNELS), "momentum": None},
    "untracked": {"shape": (8, CHANNELS), "track_running_stats": False},
    "large_mean": {"shape": (8, CHANNELS, 4, 4), "offset": 1e5},
    "other_numbers": {"shape": (8, CHANNELS, 2, 2), "eps": 0.3, "momentum": 0.7},
}


def case(name: str) -> tuple[list[Tensor], list[Tensor], nn.Module]:
    """Inputs and loss weights of each step for all workers, and torch's own layer in float64."""
    options = dict(CASES[name])
    shape, offset = options.pop("shape"), options.pop("offset", 0.0)
    generator = torch.Generator().manual_seed(len(name))
    inputs = [torch.randn(shape, generator=generator, dtype=torch.float64) * (1 + s) + offset + s for s in range(STEPS)]
    # Rows differ in their mean, so that statistics of one worker's rows are far from those of all.
    inputs = [x + torch.arange(len(x), dtype=x.dtype).view(-1, *[1] * (x.ndim - 1)) for x in inputs]
    weights = [torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(STEPS)]
    kind = nn.BatchNorm2d if len(shape) == 4 else nn.BatchNorm1d
    layer = kind(CHANNELS, **options).double()
    if layer.affine:
        with torch.no_grad():
            layer.weight.copy_(torch.tensor([0.5, -1.5, 2.0]))
            layer.bias.copy_(torch.tensor([0.1, 0.0, -3.0]))
    return inputs, weights, layer


def train(layer: nn.Module, inputs: list[Tensor], weights: list[Tensor]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for step, (x, w) in enumerate(zip(inputs, weights, strict=True)):
        x = x.clone().requires_grad_()
        y = layer(x)
        (w * y.sin()).sum().backward()
        result |= {f"output{step}": y.detach(), f"input_gradient{step}": x.grad}
    result |= {f"{name}.grad": parameter.grad for name, parameter in layer.named_parameters()}
    return result | {name: buffer.double() for name, buffer in layer.named_buffers()}


def mine(x: Tensor) -> Tensor:
    return x.chunk(world_size())[rank()]


def train_all() -> dict[str, Any]:
    results: dict[str, Any] = {}
    for name in CASES:
        inputs, weights, layer = case(name)
        layer = synchronize_batch_norm(layer, "cpu")
        assert type(layer) is GlobalBatchNorm
        results[name] = train(layer, [mine(x) for x in inputs], [mine(w) for w in weights])

    inputs, weights, layer = case("vectors")
    layer.register_parameter("bias", None)  # as at the end of SimCLR's head
    layer = synchronize_batch_norm(layer, "cpu")
    results["no_bias"] = train(layer, [mine(x) for x in inputs], [mine(w) for w in weights])

    layer = GlobalBatchNorm(CHANNELS)
    precise = mine(case("large_mean")[0][0])
    results["float32"] = {"output0": layer(precise.float()).detach()}
    half = layer(torch.randn(4, CHANNELS).bfloat16())
    results["half"] = {"dtype": str(half.dtype), "finite": bool(half.isfinite().all())}

    # A worker may evaluate alone: this would hang if it waited for the others.
    layer = GlobalBatchNorm(CHANNELS, track_running_stats=False).double().eval()
    x = case("vectors")[0][0]
    results["alone"] = {"output0": layer(x).detach()} if rank() == 0 else {}
    return results


def convert() -> dict[str, Any]:
    network = nn.ModuleDict({"backbone": ResNet18(width=4).build(3, (32, 32)), "head": ProjectionHead(32, 8, 4)})
    network["head"].eval()
    before = {name: id(tensor) for name, tensor in [*network.named_parameters(), *network.named_buffers()]}
    converted = synchronize_batch_norm(network, "cpu")
    after = {name: id(tensor) for name, tensor in [*converted.named_parameters(), *converted.named_buffers()]}
    kinds = sorted({type(module).__name__ for module in converted.modules() if "Norm" in type(module).__name__})
    fused = synchronize_batch_norm(nn.Sequential(nn.BatchNorm1d(2), nn.BatchNorm2d(2)), "cuda")
    return {
        "same_module": converted is network,
        "same_tensors_in_order": list(before.items()) == list(after.items()),
        "kinds": kinds,
        "training": converted["backbone"].bn1.training,
        "head_training": converted["head"].norms[0].training,
        "again_is_same": synchronize_batch_norm(converted, "cpu")["backbone"].bn1 is converted["backbone"].bn1,
        "fused": [type(module).__name__ for module in fused],
    }


@pytest.fixture(scope="module")
def references() -> dict[str, dict[str, Any]]:
    """torch's own batch normalisation of all rows at once."""
    results = {}
    for name in CASES:
        inputs, weights, layer = case(name)
        results[name] = train(layer, inputs, weights)
    inputs, weights, layer = case("vectors")
    layer.register_parameter("bias", None)
    results["no_bias"] = train(layer, inputs, weights)
    return results


@pytest.mark.parametrize("world", [2, 4])
def test_workers_normalise_like_one_process(world: int, on_workers: Any, references: dict[str, dict[str, Any]]) -> None:
    results = on_workers(train_all, world)
    for name, expected in references.items():
        for key, value in expected.items():
            found = [result[name][key] for result in results]
            if key.startswith(("output", "input_gradient")):
                found = [torch.cat(found)]
            elif key.endswith(".grad"):
                found = [torch.stack(found).sum(dim=0)]  # each worker holds its own loss's share
            for tensor in found:
                message = f"{name}.{key}"
                torch.testing.assert_close(tensor, value, rtol=1e-8, atol=1e-9, msg=lambda m, at=message: f"{at}: {m}")
        assert set(results[0][name]) == set(expected)

    # Float32 keeps its digits at a mean of 1e5 and a deviation of about 3, as the variance is taken about the mean.
    single = torch.cat([result["float32"]["output0"] for result in results]).double()
    x = case("large_mean")[0][0]
    exact = (x - x.mean((0, 2, 3), keepdim=True)) / (x.var((0, 2, 3), unbiased=False, keepdim=True) + 1e-5).sqrt()
    assert (single - exact).abs().max() < 0.02
    assert results[0]["half"] == {"dtype": "torch.bfloat16", "finite": True}

    x = case("vectors")[0][0]
    expected_alone = (x - x.mean(0)) / (x.var(0, unbiased=False) + 1e-5).sqrt()
    torch.testing.assert_close(results[0]["alone"]["output0"], expected_alone, rtol=1e-10, atol=1e-12)


def test_conversion_keeps_tensors_names_and_modes(on_workers: Any) -> None:
    for result in on_workers(convert, 2):
        assert result == {
            "same_module": True,
            "same_tensors_in_order": True,
            "kinds": ["GlobalBatchNorm"],
            "training": True,
            "head_training": False,
            "again_is_same": True,
            "fused": ["SyncBatchNorm", "SyncBatchNorm"],
        }


def test_nothing_is_converted_in_one_process() -> None:
    network = ResNet18(width=4).build(3, (32, 32))
    assert synchronize_batch_norm(network, "cpu") is network
    assert type(network.bn1) is nn.BatchNorm2d


def test_one_process_and_evaluation_follow_torch() -> None:
    for name in CASES:
        inputs, weights, layer = case(name)
        own = GlobalBatchNorm(CHANNELS, layer.eps, layer.momentum, layer.affine, layer.track_running_stats).double()
        own.load_state_dict(layer.state_dict())
        expected, found = train(layer, inputs, weights), train(own, inputs, weights)
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
        torch.testing.assert_close(own.eval()(inputs[0]), layer.eval()(inputs[0]), rtol=0, atol=0)


def test_a_tensor_without_channels_is_refused() -> None:
    with pytest.raises(ValueError, match="needs"):
        GlobalBatchNorm(CHANNELS)(torch.zeros(CHANNELS))
