"""The network of video diffusion: what its parts compute, and what no part may tell another."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from heliostat_algorithms.backbones.video_unet import (
    Level,
    ResidualBlock,
    SpaceAttention,
    TimeAttention,
    VideoUNet,
    VideoUNetConfig,
)
from heliostat_algorithms.randomness import Random

SMALL = VideoUNetConfig(width=8, multipliers=(1, 2), blocks=1, attention=(0, 1), head_width=4, norm_groups=4, reach=2)
T, IMAGES = 4, 2


def network(config: VideoUNetConfig = SMALL, classes: int | None = 3, dtype: torch.dtype = torch.float64) -> VideoUNet:
    """With all weights random: as initialised, every branch is off."""
    made = VideoUNet(config, 2, classes).to(dtype)
    for n, parameter in enumerate(made.parameters()):
        parameter.data = 0.3 * Random(n, 0, range(1)).normal("w", *parameter.shape)[0].to(dtype)
    return made.requires_grad_(False)


def inputs(frames: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    random = Random(seed, 0, range(2))
    levels = random.uniform("level", frames, low=-5, high=5).to(dtype)
    return random.normal("z", frames, 2, 8, 8).to(dtype), levels, random.integers("label", 4, frames)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("conditioning", ["add", "adaptive-norm"])
def test_the_video_leaves_no_trace_in_an_image(conditioning: Any, dtype: torch.dtype) -> None:
    unet = network(replace(SMALL, conditioning=conditioning), dtype=dtype)
    z, level, label = inputs(T + IMAGES, dtype=dtype)
    out = unet(z, level, label, T)
    other = z.clone()
    other[:, :T] = 100 * inputs(T, seed=1, dtype=dtype)[0]
    others_level, others_label = level.clone(), label.clone()
    others_level[:, :T] += 1
    others_label[:, :T] = (label[:, :T] + 1) % 4
    moved = unet(other, others_level, others_label, T)
    assert torch.equal(moved[:, T:], out[:, T:])
    assert (moved[:, :T] - out[:, :T]).abs().min() > 0
    other = z.clone()
    other[:, T] += 1  # the first image tells neither the video nor the second one
    moved = unet(other, level, label, T)
    assert torch.equal(moved[:, :T], out[:, :T])
    assert torch.equal(moved[:, T + 1 :], out[:, T + 1 :])
    assert not torch.equal(moved[:, T], out[:, T])


def test_without_the_mask_images_would_see_the_video() -> None:
    unet = network()
    z, level, label = inputs(T + IMAGES)
    assert (unet(z, level, label)[:, T:] - unet(z, level, label, T)[:, T:]).abs().max() > 1e-3


def test_gradients_of_an_image_come_from_it_alone() -> None:
    unet = network()
    z, level, label = inputs(T + IMAGES)
    z.requires_grad_()
    (gradient,) = torch.autograd.grad(unet(z, level, label, T)[:, T].sum(), z)
    assert gradient[:, T].abs().max() > 0
    gradient[:, T] = 0
    assert not gradient.any()


def test_each_frame_of_a_video_sees_all_others() -> None:
    unet = network()
    z, level, label = inputs(T)
    out = unet(z, level, label)
    for frame in range(T):
        other = z.clone()
        other[:, frame] += 1
        assert ((unet(other, level, label) - out).abs().amax(dim=(0, 2, 3, 4)) > 1e-6).all()


def flat(unet: VideoUNet, z: Tensor, level: Tensor, label: Tensor) -> Tensor:
    """The 2-D U-Net of pictures (N, C, H, W) with these weights, in plain functions: attention over time is its value
    projection."""

    def norm(layer: Any, x: Tensor) -> Tensor:
        grouped = x.reshape(len(x), layer.num_groups, -1)
        grouped = (grouped - grouped.mean(2, keepdim=True)) / (grouped.var(2, keepdim=True, correction=0) + 1e-5).sqrt()
        return grouped.view(x.shape) * layer.weight.view(-1, 1, 1) + layer.bias.view(-1, 1, 1)

    def swish(x: Tensor) -> Tensor:
        return x / (1 + torch.exp(-x))

    def residual(block: ResidualBlock, x: Tensor) -> Tensor:
        h = F.conv2d(swish(norm(block.norm1, x)), block.conv1.weight, block.conv1.bias, padding=1)
        said = swish(embedding) @ block.condition.weight.T + block.condition.bias
        h = norm(block.norm2, h + said[:, :, None, None])
        h = F.conv2d(swish(h), block.conv2.weight, block.conv2.bias, padding=1)
        short = x if isinstance(block.skip, torch.nn.Identity) else F.conv2d(x, block.skip.weight, block.skip.bias)
        return short + h

    def space(layer: SpaceAttention, x: Tensor) -> Tensor:
        n, c, height, width = x.shape
        tokens = norm(layer.norm, x).flatten(2).transpose(1, 2)
        q, k, v = (tokens @ layer.qkv.weight.T + layer.qkv.bias).split(c, dim=2)
        d = c // layer.heads
        parts = []
        for head in range(layer.heads):
            here = slice(head * d, (head + 1) * d)
            weights = (q[:, :, here] @ k[:, :, here].transpose(1, 2) / math.sqrt(d)).softmax(dim=2)
            parts.append(weights @ v[:, :, here])
        out = torch.cat(parts, dim=2) @ layer.out.weight.T + layer.out.bias
        return x + out.transpose(1, 2).reshape(n, c, height, width)

    def time(layer: TimeAttention, x: Tensor) -> Tensor:
        c = x.shape[1]
        both = layer.out.weight @ layer.qkv.weight[2 * c :]
        bias = layer.out.weight @ layer.qkv.bias[2 * c :] + layer.out.bias
        return x + torch.einsum("dc,nchw->ndhw", both, norm(layer.norm, x)) + bias.view(-1, 1, 1)

    def whole(part: Any, x: Tensor) -> Tensor:
        x = residual(part.block, x)
        return x if part.space is None else time(part.time, space(part.space, x))

    u = 2000 / math.pi * torch.atan(torch.exp(-level / 2))
    half = unet.embedding.frequencies
    angles = u[:, None] * torch.tensor([10_000 ** (-n / (half - 1)) for n in range(half)]).double()
    linear = [unet.embedding.mlp[0], unet.embedding.mlp[2]]
    embedding = swish(torch.cat([angles.sin(), angles.cos()], 1) @ linear[0].weight.T + linear[0].bias)
    embedding = embedding @ linear[1].weight.T + linear[1].bias + unet.embedding.label.weight[label]
    x = F.conv2d(z, unet.first.weight, unet.first.bias, padding=1)
    skips = [x]
    for part in unet.down:
        x = whole(part, x) if isinstance(part, Level) else F.conv2d(x, part.weight, part.bias, stride=2, padding=1)
        skips.append(x)
    for part in unet.middle:
        x = whole(part, x)
    for part in unet.up:
        if isinstance(part, Level):
            x = whole(part, torch.cat([x, skips.pop()], 1))
        else:
            x = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
            x = F.conv2d(x, part.weight, part.bias, padding=1)
    assert not skips
    return F.conv2d(swish(norm(unet.norm, x)), unet.last.weight, unet.last.bias, padding=1)


def test_one_frame_and_each_image_is_what_the_2d_network_makes() -> None:
    unet = network()
    z, level, label = inputs(T + IMAGES)
    alone = unet(z[:, :1], level[:, :1], label[:, :1])
    torch.testing.assert_close(alone[:, 0], flat(unet, z[:, 0], level[:, 0], label[:, 0]), rtol=1e-5, atol=1e-8)
    images = unet(z, level, label, T)[:, T:]
    for n in range(IMAGES):
        expected = flat(unet, z[:, T + n], level[:, T + n], label[:, T + n])
        torch.testing.assert_close(images[:, n], expected, rtol=1e-5, atol=1e-8)


def test_attention_over_time_token_by_token() -> None:
    layer = TimeAttention(8, SMALL).double()
    for n, parameter in enumerate(layer.parameters()):
        parameter.data = Random(n, 0, range(1)).normal("w", *parameter.shape)[0].double()
    x = Random(0, 0, range(2 * T)).normal("x", 8, 3, 3).double()
    found = layer(x, T, T)
    tokens = F.group_norm(x, 4, layer.norm.weight, layer.norm.bias).view(2, T, 8, 3, 3)
    q, k, v = (tokens.movedim(2, 4) @ layer.qkv.weight.T + layer.qkv.bias).split(8, dim=4)
    b, i, j = 1, 2, 0
    for frame in range(T):
        seen = []
        for head in range(2):
            here = slice(4 * head, 4 * head + 4)
            scores = torch.stack(
                [
                    q[b, frame, i, j, here] @ k[b, other, i, j, here] / 2
                    + layer.bias[head, max(-2, min(2, other - frame)) + 2]
                    for other in range(T)
                ]
            )
            seen.append(scores.softmax(0) @ v[b, :, i, j, here])
        expected = x[b * T + frame, :, i, j] + layer.out(torch.cat(seen))
        torch.testing.assert_close(found[b * T + frame, :, i, j], expected)


def test_every_temporal_layer_is_given_the_mask() -> None:
    """Each of them, alone, with all others switched off."""
    unet = network()
    layers = [part for part in unet.modules() if isinstance(part, TimeAttention)]
    assert len(layers) == 7  # two resolutions with one block down and two up each, and the middle
    z, level, label = inputs(T + IMAGES)
    other = z.clone()
    other[:, :T] += 1
    for layer in layers:
        rest = [each for each in layers if each is not layer]
        kept = [each.out.weight.clone() for each in rest]
        for each in rest:
            each.out.weight.zero_()
        assert torch.equal(unet(z, level, label, T)[:, T:], unet(other, level, label, T)[:, T:])
        assert not torch.equal(unet(z, level, label)[:, T:], unet(other, level, label)[:, T:])
        for each, weight in zip(rest, kept, strict=True):
            each.out.weight.copy_(weight)


def test_the_order_of_frames_is_known_by_distances_alone() -> None:
    """Backwards with mirrored biases is the same backwards; without mirroring it is not."""
    unet = network()
    z, level, label = inputs(T)
    back = [x.flip(1) for x in (z, level, label)]
    out = unet(z, level, label)
    assert (unet(*back).flip(1) - out).abs().max() > 1e-4
    for part in unet.modules():
        if isinstance(part, TimeAttention):
            part.bias.copy_(part.bias.flip(1))
    torch.testing.assert_close(unet(*back).flip(1), out)


def test_as_initialised_attention_over_time_tells_frames_apart() -> None:
    """Were all biases alike at first, frames in another order would give the same in that order."""
    torch.manual_seed(0)
    layer = TimeAttention(8, SMALL).double().requires_grad_(False)
    layer.out.weight.copy_(torch.eye(8))
    x = Random(0, 0, range(T)).normal("x", 8, 3, 3).double()
    other = torch.tensor([1, 0, 3, 2])
    change = layer(x[other], T, T) - layer(x, T, T)[other]
    per_head = change.view(T, 2, 4, 3, 3).abs().amax(dim=(0, 2, 3, 4))
    assert (per_head > 0.05).all()
    layer.bias.zero_()
    torch.testing.assert_close(layer(x[other], T, T), layer(x, T, T)[other])


@pytest.mark.parametrize(("heads", "own_distances"), [(1, [0]), (2, [-2, 2]), (4, [-3, -1, 1, 3])])
def test_heads_begin_at_distances_of_their_own(heads: int, own_distances: list[int]) -> None:
    layer = TimeAttention(8, replace(SMALL, head_width=8 // heads, reach=5))
    distances = torch.arange(-5, 6)
    assert layer.bias.shape == (heads, 11)
    assert [int(distances[best]) for best in layer.bias.argmax(dim=1)] == own_distances
    expected = torch.stack([-(distances - own).abs() for own in own_distances]).float()
    torch.testing.assert_close(layer.bias.detach(), expected)


def test_as_initialised_it_predicts_nothing() -> None:
    unet = VideoUNet(SMALL, 2, None)
    z, level, _ = inputs(T, dtype=torch.float32)
    assert not unet(z, level).any()


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"width": 0}, "width is 0"),
        ({"multipliers": ()}, "multipliers are"),
        ({"norm_groups": 3}, "does not divide a width of 8"),
        ({"attention": (2,)}, "from 0 to 1"),
        ({"head_width": 3}, "does not divide the 8 channels of resolution 0"),
    ],
)
def test_wrong_sizes_are_refused(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        replace(SMALL, **fields)
