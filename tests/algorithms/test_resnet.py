from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heliostat_algorithms.backbones import ResNet18, ResNet34, ResNet50

CONFIGS: list[Any] = [ResNet18, ResNet34, ResNet50]
DEPTHS = {ResNet18: (2, 2, 2, 2), ResNet34: (3, 4, 6, 3), ResNet50: (3, 4, 6, 3)}
PARAMETERS = {ResNet18: 11_176_512, ResNet34: 21_284_672, ResNet50: 23_508_032}


def batch_norm_shapes(name: str, channels: int) -> dict[str, tuple[int, ...]]:
    shapes = {f"{name}.{part}": (channels,) for part in ("weight", "bias", "running_mean", "running_var")}
    return {**shapes, f"{name}.num_batches_tracked": ()}


def torchvision_shapes(kind: Any) -> dict[str, tuple[int, ...]]:
    """Names and shapes of torchvision's state dict without fc, in order, from its naming rule."""
    bottleneck = kind is ResNet50
    shapes: dict[str, tuple[int, ...]] = {"conv1.weight": (64, 3, 7, 7), **batch_norm_shapes("bn1", 64)}
    inside = 64
    for stage, depth in enumerate(DEPTHS[kind], start=1):
        planes = 64 * 2 ** (stage - 1)
        out = 4 * planes if bottleneck else planes
        for block in range(depth):
            prefix = f"layer{stage}.{block}"
            convolutions = (
                [(planes, inside, 1, 1), (planes, planes, 3, 3), (out, planes, 1, 1)]
                if bottleneck
                else [(planes, inside, 3, 3), (planes, planes, 3, 3)]
            )
            for number, shape in enumerate(convolutions, start=1):
                shapes[f"{prefix}.conv{number}.weight"] = shape
                shapes |= batch_norm_shapes(f"{prefix}.bn{number}", shape[0])
            if block == 0 and (stage > 1 or bottleneck):
                shapes[f"{prefix}.downsample.0.weight"] = (out, inside, 1, 1)
                shapes |= batch_norm_shapes(f"{prefix}.downsample.1", out)
            inside = out
    return shapes


def reference(state: dict[str, Tensor], x: Tensor, kind: Any, stem: str) -> Tensor:
    """The network in evaluation mode, written with functions over a torchvision state dict."""

    def norm(x: Tensor, name: str) -> Tensor:
        mean, variance, gain, bias = (
            state[f"{name}.{part}"].view(-1, 1, 1) for part in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / (variance + 1e-5).sqrt() * gain + bias

    def convolve(x: Tensor, name: str, stride: int = 1) -> Tensor:
        weight = state[f"{name}.weight"]
        return F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2)

    strided = 2 if kind is ResNet50 else 1  # v1.5: the bottleneck strides in its 3 x 3 convolution
    last = 3 if kind is ResNet50 else 2
    x = norm(convolve(x, "conv1", 2 if stem == "imagenet" else 1), "bn1").relu()
    if stem == "imagenet":
        x = F.max_pool2d(x, 3, 2, 1)
    for stage, depth in enumerate(DEPTHS[kind], start=1):
        for block in range(depth):
            prefix, stride = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
            y = x
            for number in range(1, last + 1):
                y = convolve(y, f"{prefix}.conv{number}", stride if number == strided else 1)
                y = norm(y, f"{prefix}.bn{number}")
                if number < last:
                    y = y.relu()
            if f"{prefix}.downsample.0.weight" in state:
                x = norm(convolve(x, f"{prefix}.downsample.0", stride), f"{prefix}.downsample.1")
            x = (x + y).relu()
    return x.mean((2, 3))


@pytest.mark.parametrize("kind", CONFIGS)
def test_parameters_are_those_of_torchvision(kind: Any) -> None:
    with torch.device("meta"):
        network = kind().build(3, (32, 32))
    assert sum(parameter.numel() for parameter in network.parameters()) == PARAMETERS[kind]
    assert {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()} == torchvision_shapes(kind)
    assert list(network.state_dict()) == list(torchvision_shapes(kind))


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("stem", ["imagenet", "cifar"])
def test_features_follow_the_paper(kind: Any, stem: Any) -> None:
    torch.manual_seed(1)
    network = kind(width=4, stem=stem, zero_init_residual=False).build(2, (32, 32)).double().eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.running_mean, module.running_var, module.weight, module.bias):
                assert tensor is not None
                nn.init.uniform_(tensor, 0.5, 1.5)
    images = torch.rand(2, 2, 33, 20, dtype=torch.float64)
    with torch.no_grad():
        features = network(images)
        expected = reference(network.state_dict(), images, kind, stem)
    assert network.feature_dim == (128 if kind is ResNet50 else 32)
    assert features.shape == (2, network.feature_dim)
    torch.testing.assert_close(features, expected, rtol=1e-10, atol=0)


def test_feature_widths_and_strides() -> None:
    with torch.device("meta"):
        assert [kind().build(3, (32, 32)).feature_dim for kind in CONFIGS] == [512, 512, 2048]
        image = torch.empty(1, 3, 224, 224)
        for stem, sides in (("imagenet", [56, 28, 14, 7]), ("cifar", [224, 112, 56, 28])):
            network = ResNet18(stem=stem).build(3, (32, 32))
            x = network.maxpool(network.relu(network.bn1(network.conv1(image))))
            found = []
            for stage in (network.layer1, network.layer2, network.layer3, network.layer4):
                x = stage(x)
                found.append(x.shape[-1])
            assert found == sides
        cifar = ResNet18(stem="cifar").build(1, (32, 32))
        assert (cifar.conv1.kernel_size, cifar.conv1.stride, cifar.conv1.in_channels) == ((3, 3), (1, 1), 1)
        assert isinstance(cifar.maxpool, nn.Identity)


@pytest.mark.parametrize("kind", CONFIGS)
def test_initialisation(kind: Any) -> None:
    torch.manual_seed(0)
    network = kind(width=16).build(3, (32, 32))
    last = "bn3" if kind is ResNet50 else "bn2"
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d):
            if module.weight.numel() > 2000:
                expected = (2 / (module.out_channels * module.kernel_size[0] ** 2)) ** 0.5
                assert module.weight.std().item() == pytest.approx(expected, rel=0.08), name
        elif isinstance(module, nn.BatchNorm2d):
            gain = 0.0 if name.startswith("layer") and name.endswith(last) else 1.0
            assert torch.equal(module.weight, torch.full_like(module.weight, gain)), name
            assert not module.bias.any()
    plain = kind(width=4, zero_init_residual=False).build(3, (32, 32))
    assert all(bool((m.weight == 1).all()) for m in plain.modules() if isinstance(m, nn.BatchNorm2d))


def test_a_width_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="width is 0"):
        ResNet18(width=0)
