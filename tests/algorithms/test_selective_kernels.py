"""ResNets with selective kernels, as SimCLRv2's official code defines them, and the deeper plain ones."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heliostat_algorithms.backbones.resnet import (
    LocalMean,
    ResNet18,
    ResNet50,
    ResNet101,
    ResNet152,
    SelectiveKernels,
)

# Millions of weights and moving statistics in the table of the official repository: depth, width, selective kernels.
PUBLISHED = [
    (ResNet50, 1, False, 24),
    (ResNet50, 1, True, 35),
    (ResNet101, 1, True, 65),
    (ResNet152, 1, False, 58),
    (ResNet152, 1, True, 89),
    (ResNet152, 2, False, 233),
    (ResNet152, 2, True, 354),
    (ResNet152, 3, True, 795),
]


@pytest.mark.parametrize(("kind", "width", "selective", "millions"), PUBLISHED)
def test_sizes_are_those_of_the_paper(kind: Any, width: int, selective: bool, millions: int) -> None:
    with torch.device("meta"):
        network = kind(width=64 * width, selective_kernels=selective).build(3, (224, 224))
    state = network.state_dict()
    count = sum(tensor.numel() for name, tensor in state.items() if not name.endswith("num_batches_tracked"))
    assert round(count / 1e6) == millions
    assert network.feature_dim == 2048 * width


def test_the_deeper_plain_networks_are_torchvision_s() -> None:
    with torch.device("meta"):
        deep, deeper = (kind().build(3, (224, 224)) for kind in (ResNet101, ResNet152))
    # torchvision's counts, less those of the classifier of 1000 classes.
    assert sum(p.numel() for p in deep.parameters()) == 44_549_160 - 2_049_000
    assert sum(p.numel() for p in deeper.parameters()) == 60_192_808 - 2_049_000
    assert [len(stage) for stage in (deep.layer1, deep.layer2, deep.layer3, deep.layer4)] == [3, 4, 23, 3]
    assert [len(stage) for stage in (deeper.layer1, deeper.layer2, deeper.layer3, deeper.layer4)] == [3, 8, 36, 3]
    assert "layer3.22.bn3.running_var" in deep.state_dict()
    assert "layer3.35.conv3.weight" in deeper.state_dict()


def test_the_narrow_layer_has_a_sixteenth_of_the_channels_and_at_least_32() -> None:
    for channels, units in ((8, 32), (64, 32), (512, 32), (528, 33), (1024, 64)):
        kernels = SelectiveKernels(channels, 1)
        assert kernels.reduce.weight.shape == (units, channels, 1, 1)
        assert kernels.select.weight.shape == (2 * channels, units, 1, 1)
        assert kernels.conv.weight.shape == (2 * channels, channels, 3, 3)
        assert kernels.reduce.bias is kernels.select.bias is kernels.conv.bias is None


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [(4, 6), (5, 4), (1, 3)])
def test_the_local_mean_is_the_official_pooling(stride: int, size: tuple[int, int]) -> None:
    images = np.random.default_rng(0).normal(size=(2, 3, *size))
    H, W = size
    expected = np.zeros((2, 3, -(-H // stride), -(-W // stride)))
    for row in range(expected.shape[2]):
        for column in range(expected.shape[3]):
            top, left = row * stride, column * stride
            window = images[:, :, top : top + 2, left : left + 2]
            # "same" padding with stride 1: only positions inside count; with stride 2 the border is padded with zeros.
            count = window.shape[2] * window.shape[3] if stride == 1 else 4
            expected[:, :, row, column] = window.sum((2, 3)) / count
    found = LocalMean(stride)(torch.from_numpy(images))
    np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=1e-14)


def normalise(x: Tensor, state: dict[str, Tensor], name: str, training: bool) -> Tensor:
    mean, variance = state[f"{name}.running_mean"], state[f"{name}.running_var"]
    if training:
        mean, variance = x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0)
    gain, bias, mean, variance = (
        t.view(-1, 1, 1) for t in (state[f"{name}.weight"], state[f"{name}.bias"], mean, variance)
    )
    return (x - mean) / (variance + 1e-5).sqrt() * gain + bias


def convolve(x: Tensor, state: dict[str, Tensor], name: str, stride: int = 1) -> Tensor:
    weight = state[f"{name}.weight"]
    return F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2)


def mixed(x: Tensor, state: dict[str, Tensor], name: str, stride: int, training: bool) -> Tensor:
    """Selective kernels, one channel at a time."""
    streams = normalise(convolve(x, state, f"{name}.conv", stride), state, f"{name}.bn", training).clamp(min=0)
    channels = streams.shape[1] // 2
    a, b = streams[:, :channels], streams[:, channels:]
    summary = (a + b).mean((2, 3), keepdim=True)
    narrow = normalise(convolve(summary, state, f"{name}.reduce"), state, f"{name}.reduce_bn", training).clamp(min=0)
    scores = convolve(narrow, state, f"{name}.select")[:, :, 0, 0]
    out = torch.empty_like(a)
    for sample in range(len(x)):
        for channel in range(channels):
            one, other = scores[sample, channel].exp(), scores[sample, channels + channel].exp()
            out[sample, channel] = (one * a[sample, channel] + other * b[sample, channel]) / (one + other)
    return out


def reference(x: Tensor, state: dict[str, Tensor], stem: str, training: bool) -> Tensor:
    """The whole network, from names and weights alone."""
    if stem == "imagenet":
        x = normalise(convolve(x, state, "conv1.0", 2), state, "conv1.1", training).clamp(min=0)
        x = normalise(convolve(x, state, "conv1.3"), state, "conv1.4", training).clamp(min=0)
        x = normalise(convolve(x, state, "conv1.6"), state, "bn1", training).clamp(min=0)
        x = F.max_pool2d(x, 3, 2, 1)
    else:
        x = normalise(convolve(x, state, "conv1"), state, "bn1", training).clamp(min=0)
    for stage, depth in enumerate((3, 4, 6, 3), start=1):
        for block in range(depth):
            name, stride = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
            y = normalise(convolve(x, state, f"{name}.conv1"), state, f"{name}.bn1", training).clamp(min=0)
            y = mixed(y, state, f"{name}.conv2", stride, training)
            y = normalise(convolve(y, state, f"{name}.conv3"), state, f"{name}.bn3", training)
            if block == 0:
                x = convolve(LocalMean(stride)(x), state, f"{name}.downsample.1")
                x = normalise(x, state, f"{name}.downsample.2", training)
            x = (x + y).clamp(min=0)
    return x.mean((2, 3))


@pytest.mark.parametrize("stem", ["imagenet", "cifar"])
@pytest.mark.parametrize("training", [False, True])
def test_the_network_follows_the_official_code(stem: Any, training: bool) -> None:
    torch.manual_seed(3)
    config = ResNet50(width=4, stem=stem, selective_kernels=True, zero_init_residual=False)
    network = config.build(2, (33, 20)).double().train(training)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.running_mean, module.running_var, module.weight, module.bias):
                nn.init.uniform_(tensor, 0.5, 1.5)
    images = torch.rand(3, 2, 33, 20, dtype=torch.float64)
    with torch.no_grad():
        state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
        expected = reference(images, state, stem, training)
        found = network(images)
    assert found.shape == (3, 128)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_equal_streams_are_mixed_into_themselves_and_a_strong_score_chooses_one() -> None:
    torch.manual_seed(0)
    kernels = SelectiveKernels(4, 1).double().eval()
    x = torch.rand(2, 4, 5, 5, dtype=torch.float64)
    with torch.no_grad():
        kernels.conv.weight[4:] = 2 * kernels.conv.weight[:4]
        first = kernels.bn(kernels.conv(x)).relu()[:, :4]
        # The second stream is twice the first; scores of zero average them.
        kernels.select.weight.zero_()
        torch.testing.assert_close(kernels(x), 1.5 * first)
        kernels.reduce_bn.bias.fill_(1.0)
        kernels.select.weight[:4] = 50.0
        torch.testing.assert_close(kernels(x), first)
        kernels.conv.weight[4:] = kernels.conv.weight[:4]
        kernels.select.weight.normal_()
        torch.testing.assert_close(kernels(x), first)


def test_every_weight_of_the_network_has_a_gradient() -> None:
    torch.manual_seed(0)
    network = ResNet50(width=4, selective_kernels=True, zero_init_residual=False).build(3, (32, 32)).double()
    network(torch.rand(4, 3, 32, 32, dtype=torch.float64)).square().mean().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


def test_strides_and_initialisation() -> None:
    with torch.device("meta"):
        network = ResNet50(selective_kernels=True).build(3, (224, 224))
        x = network.maxpool(network.relu(network.bn1(network.conv1(torch.empty(2, 3, 224, 224)))))
        sides = [x.shape[-1]]
        for stage in (network.layer1, network.layer2, network.layer3, network.layer4):
            x = stage(x)
            sides.append(x.shape[-1])
    assert sides == [56, 56, 28, 14, 7]
    blocks = ResNet50(width=4, selective_kernels=True).build(3, (32, 32)).layer2
    assert [bool(block.bn3.weight.any()) for block in blocks] == [False] * 4
    assert bool((blocks[0].conv2.bn.weight == 1).all())


def test_only_bottlenecks_have_selective_kernels() -> None:
    assert "selective_kernels" not in {field.name for field in dataclasses.fields(ResNet18)}
    assert ResNet50().selective_kernels is False
    with pytest.raises(ValueError, match="width is 1; with selective kernels"):
        ResNet50(width=1, selective_kernels=True)
    assert ResNet50(width=1, selective_kernels=True, stem="cifar").build(3, (8, 8)).feature_dim == 32
