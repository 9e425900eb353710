from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from heliostat_algorithms.backbones import ViTTiny
from heliostat_algorithms.backbones.positions import sincos_positions_3d
from heliostat_algorithms.backbones.video import VideoTransformer, check_for_video

Array = npt.NDArray[np.float64]

CONFIG = ViTTiny(
    width=16,
    depth=2,
    heads=2,
    patch_size=3,
    mlp_ratio=2.0,
    class_token=False,
    pool="mean",
    positions="sincos",
    initialization="trunc-normal-by-depth",
)
B, T, H, W = 2, 4, 6, 9
GRID = (2, 2, 3)


def built(config: ViTTiny = CONFIG, **options: Any) -> VideoTransformer:
    """In float64, with biases and norms that are not those of the start."""
    torch.manual_seed(0)
    network = VideoTransformer(config, 3, T, (H, W), **options).double()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return network


def clips(count: int = B, frames: int = T, height: int = H, width: int = W) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(count, 3, frames, height, width, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("width", [9, 10, 12, 16, 24, 1024])
@pytest.mark.parametrize("grid", [(2, 3, 4), (1, 2, 2), (3, 1, 5)])
def test_positions_share_the_width_evenly_and_cut_the_columns(grid: tuple[int, int, int], width: int) -> None:
    found = sincos_positions_3d(grid, width)
    share = math.ceil(width / 6) * 2
    assert found.shape == (math.prod(grid), width)
    assert found.dtype == torch.float32
    place = 0
    for t in range(grid[0]):
        for row in range(grid[1]):
            for column in range(grid[2]):
                expected = []
                for where in (t, row, column):
                    angles = [where / 10000 ** (k / (share / 2)) for k in range(share // 2)]
                    expected += [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
                np.testing.assert_allclose(found[place].numpy(), expected[:width], atol=1e-6)
                place += 1


def test_all_positions_differ() -> None:
    assert len(sincos_positions_3d((8, 14, 14), 9).unique(dim=0)) == 8 * 14 * 14


@pytest.mark.parametrize("width", [1, 4, 8])
def test_widths_that_leave_the_columns_without_positions_are_refused(width: int) -> None:
    with pytest.raises(ValueError, match=f"width of 9 or more, not {width}"):
        sincos_positions_3d((2, 2, 2), width)


def layer_norm(x: Array, norm: Any) -> Array:
    mean, variance = x.mean(axis=-1, keepdims=True), x.var(axis=-1, keepdims=True)
    scaled: Array = (x - mean) / np.sqrt(variance + 1e-6)
    return scaled * norm.weight.detach().numpy() + norm.bias.detach().numpy()


def linear(x: Array, layer: Any) -> Array:
    y: Array = x @ layer.weight.detach().numpy().T + layer.bias.detach().numpy()
    return y


def tokens_of(network: VideoTransformer, clip: Array, visible: list[int] | None = None) -> Array:
    """One clip (C, T, H, W) through the network, in numpy and by the formulas."""
    p, weight = network.patch_embed.proj, network.patch_embed.proj.weight.detach().numpy()
    embedded = []
    for t in range(0, clip.shape[1], 2):
        for row in range(0, clip.shape[2], 3):
            for column in range(0, clip.shape[3], 3):
                tubelet = clip[:, t : t + 2, row : row + 3, column : column + 3]
                embedded.append((weight * tubelet).sum(axis=(1, 2, 3, 4)) + p.bias.detach().numpy())
    x = np.stack(embedded)
    grid = (clip.shape[1] // 2, clip.shape[2] // 3, clip.shape[3] // 3)
    x = x + sincos_positions_3d(grid, 16).double().numpy()
    if visible is not None:
        x = x[visible]
    for block in network.blocks:
        y = linear(layer_norm(x, block.norm1), block.attn.qkv)
        heads = []
        for head in range(2):
            q, k, v = (y[:, part * 16 + head * 8 : part * 16 + head * 8 + 8] for part in range(3))
            scores = np.exp(q @ k.T / math.sqrt(8))
            heads.append(scores / scores.sum(axis=1, keepdims=True) @ v)
        x = x + linear(np.concatenate(heads, axis=1), block.attn.proj)
        y = linear(layer_norm(x, block.norm2), block.mlp.fc1)
        y = y * 0.5 * (1 + np.vectorize(math.erf)(y / math.sqrt(2)))
        x = x + linear(y, block.mlp.fc2)
    return layer_norm(x, network.norm)


def test_tokens_follow_the_formulas() -> None:
    network, batch = built(), clips()
    with torch.no_grad():
        found = network.tokens(batch)
    assert found.shape == (B, math.prod(GRID), 16)
    for clip, tokens in zip(batch, found, strict=True):
        np.testing.assert_allclose(tokens.numpy(), tokens_of(network, clip.numpy()), rtol=1e-9, atol=1e-10)


def test_visible_tokens_follow_the_formulas_and_nothing_else_is_known() -> None:
    network, batch = built(), clips()
    visible = torch.tensor([[7, 0, 3], [11, 4, 5]])
    with torch.no_grad():
        found = network.tokens(batch, visible=visible)
        for clip, tokens, places in zip(batch, found, visible, strict=True):
            expected = tokens_of(network, clip.numpy(), places.tolist())
            np.testing.assert_allclose(tokens.numpy(), expected, rtol=1e-9, atol=1e-10)
        hidden = torch.ones(B, 12, dtype=torch.bool).scatter_(1, visible, False)
        pixels = hidden.view(B, 1, *GRID).repeat_interleave(2, 2).repeat_interleave(3, 3).repeat_interleave(3, 4)
        other = torch.where(pixels, torch.rand_like(batch), batch)
        assert not torch.equal(other, batch)
        assert torch.equal(network.tokens(other, visible=visible), found)


def test_the_feature_is_the_mean_of_the_sequence() -> None:
    network, batch = built(), clips()
    with torch.no_grad():
        sequence = network.sequence(batch)
        np.testing.assert_allclose(network(batch).numpy(), sequence.numpy().mean(axis=1), rtol=1e-12)
        assert torch.equal(sequence, network.tokens(batch))
    assert network.attention(batch) is None


@pytest.mark.parametrize("shape", [(2, 6, 9), (8, 6, 9), (4, 3, 12)])
def test_clips_of_other_sizes_have_positions_of_their_own(shape: tuple[int, int, int]) -> None:
    network, batch = built(), clips(1, *shape)
    with torch.no_grad():
        found = network.tokens(batch)[0]
    np.testing.assert_allclose(found.numpy(), tokens_of(network, batch[0].numpy()), rtol=1e-9, atol=1e-10)


def test_time_matters() -> None:
    network, batch = built(), clips()
    with torch.no_grad():
        assert not torch.allclose(network(batch), network(batch.flip(2)))


def test_weights_begin_small_and_deeper_branches_smaller() -> None:
    torch.manual_seed(0)
    network = VideoTransformer(replace(CONFIG, width=96, depth=4), 3, T, (H, W))
    proj = network.patch_embed.proj
    assert proj.weight.std().item() == pytest.approx(0.02, rel=0.05)
    for number, block in enumerate(network.blocks, start=1):
        for layer in (block.attn.proj, block.mlp.fc2):  # type: ignore[union-attr]
            assert layer.weight.std().item() == pytest.approx(0.02 / math.sqrt(2 * number), rel=0.05)
        assert block.attn.qkv.weight.std().item() == pytest.approx(0.02, rel=0.05)  # type: ignore[union-attr]
    plain = VideoTransformer(replace(CONFIG, width=96, initialization="trunc-normal"), 3, T, (H, W))
    assert plain.blocks[1].mlp.fc2.weight.std().item() == pytest.approx(0.02, rel=0.05)  # type: ignore[union-attr]
    xavier = VideoTransformer(replace(CONFIG, width=96, initialization="xavier"), 3, T, (H, W))
    limit = math.sqrt(6 / (3 * 2 * 3 * 3 + 96))
    assert 0.9 * limit < xavier.patch_embed.proj.weight.abs().max().item() <= limit
    for name, parameter in network.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any(), name


def test_parameters_are_named_as_in_the_public_weights() -> None:
    names = set(built().state_dict())
    assert {"patch_embed.proj.weight", "blocks.1.attn.qkv.bias", "blocks.0.mlp.fc2.weight", "norm.bias"} <= names
    assert "pos_embed" not in names
    assert tuple(built().patch_embed.proj.weight.shape) == (16, 3, 2, 3, 3)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"class_token": True}, "set the backbone's class_token: false"),
        ({"class_token": True, "pool": "cls"}, "set the backbone's class_token: false, pool: mean"),
        ({"positions": "learned"}, "positions: sincos"),
        ({"registers": 4}, "registers: 0"),
        ({"mask_token": True}, "mask_token: false"),
        ({"frozen_patch_embedding": True}, "frozen_patch_embedding: false"),
        ({"position_grid": 37}, "position_grid: null"),
        ({"interpolation_offset": 0.1}, "interpolation_offset: 0.0"),
    ],
)
def test_what_a_video_transformer_has_not_is_refused(wrong: dict[str, Any], said: str) -> None:
    config = replace(CONFIG, **wrong)
    with pytest.raises(ValueError, match=said):
        check_for_video(config)
    with pytest.raises(ValueError, match=said):
        built(config)


@pytest.mark.parametrize(
    ("frames", "size", "said"),
    [
        (5, (6, 9), "frames 5 by 2"),
        (4, (7, 9), "height 7 by 3"),
        (4, (6, 10), "width 10 by 3"),
        (0, (6, 9), "frames 0 by 2"),
        (3, (2, 9), "frames 3 by 2, height 2 by 3"),
    ],
)
def test_clips_that_tubelets_do_not_divide_are_refused(frames: int, size: tuple[int, int], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        built().grid(frames, size)


def test_wrong_shapes_are_refused() -> None:
    network = built()
    with pytest.raises(ValueError, match=r"clips are \(B, C, T, H, W\), not \(3, 4, 6, 9\)"):
        network(clips()[0])
    with pytest.raises(ValueError, match=r"visible is \(1, 2\)"):
        network.tokens(clips(), visible=torch.zeros(1, 2, dtype=torch.int64))
