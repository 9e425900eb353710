from __future__ import annotations

import math
from typing import Any, TypeAlias

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heliostat_algorithms.backbones import ViTBase, ViTGiant, ViTHuge, ViTLarge, ViTSmall, ViTTiny
from heliostat_algorithms.backbones.positions import interpolate_positions, sincos_positions
from heliostat_algorithms.backbones.transformer import Attention, SwiGLU
from heliostat_algorithms.backbones.vit import VisionTransformer
from heliostat_algorithms.teachers import teacher_of

Array: TypeAlias = np.ndarray[Any, np.dtype[np.float64]]
PARAMETERS = {
    ViTTiny(): 5_524_416,
    ViTSmall(): 21_665_664,
    ViTBase(): 85_798_656,
    ViTLarge(): 303_301_632,
    ViTHuge(patch_size=14): 630_764_800,
    ViTGiant(patch_size=14, layer_scale=1e-5): 1_134_769_664,
}


def tiny(image_size: tuple[int, int] = (8, 8), channels: int = 3, **options: Any) -> VisionTransformer:
    """A network of width 8 in float64, none of whose parameters is 0 or 1."""
    torch.manual_seed(0)
    options = {"width": 8, "depth": 2, "heads": 2, "patch_size": 4, "mlp_ratio": 2.0, **options}
    network = ViTTiny(**options).build(channels, image_size).double()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.4 + (0.7 if parameter.ndim == 1 else 0.0))
    return network


def images(count: int, height: int = 8, width: int = 8, channels: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(count, channels, height, width, generator=generator, dtype=torch.float64)


# The whole network from its formulas


def layer_norm(x: Array, gain: Array, bias: Array) -> Array:
    mean = sum(x) / len(x)
    variance = sum((v - mean) ** 2 for v in x) / len(x)
    return np.array([(v - mean) / math.sqrt(variance + 1e-6) * g + b for v, g, b in zip(x, gain, bias, strict=True)])


def gelu(v: float) -> float:
    return v * 0.5 * (1 + math.erf(v / math.sqrt(2)))


def silu(v: float) -> float:
    return v / (1 + math.exp(-v))


def attention(tokens: list[Array], state: dict[str, Array], prefix: str, heads: int) -> tuple[list[Array], Array]:
    """The sum over values of each token, and the weights (heads, N, N)."""
    D, N = len(tokens[0]), len(tokens)
    d = D // heads
    weight, bias = state[f"{prefix}qkv.weight"], state.get(f"{prefix}qkv.bias", np.zeros(3 * D))
    q, k, v = ([weight[i * D : (i + 1) * D] @ t + bias[i * D : (i + 1) * D] for t in tokens] for i in range(3))
    weights = np.zeros((heads, N, N))
    gathered = [np.zeros(D) for _ in tokens]
    for h in range(heads):
        part = slice(h * d, (h + 1) * d)
        for i in range(N):
            scores = [math.exp(float(q[i][part] @ k[j][part]) / math.sqrt(d)) for j in range(N)]
            for j in range(N):
                weights[h, i, j] = scores[j] / sum(scores)
                gathered[i][part] += weights[h, i, j] * v[j][part]
    return [state[f"{prefix}proj.weight"] @ t + state[f"{prefix}proj.bias"] for t in gathered], weights


def feed_forward(x: Array, state: dict[str, Array], prefix: str) -> Array:
    if f"{prefix}fc1.weight" in state:
        hidden = np.array([gelu(v) for v in state[f"{prefix}fc1.weight"] @ x + state[f"{prefix}fc1.bias"]])
        return np.asarray(state[f"{prefix}fc2.weight"] @ hidden + state[f"{prefix}fc2.bias"])
    both = state[f"{prefix}w12.weight"] @ x + state[f"{prefix}w12.bias"]
    half = len(both) // 2
    hidden = np.array([silu(a) * b for a, b in zip(both[:half], both[half:], strict=True)])
    return np.asarray(state[f"{prefix}w3.weight"] @ hidden + state[f"{prefix}w3.bias"])


def reference(
    network: VisionTransformer, image: Tensor, heads: int = 2, masked: list[bool] | None = None, keep: Any = None
) -> tuple[Array, Array]:
    """All tokens (1 + R + N, D) of one image (C, H, W), and the last block's attention (heads, 1 + R + N, ...)."""
    state: dict[str, Array] = {name: tensor.numpy() for name, tensor in network.state_dict().items()}
    P = network.patch_size
    pixels = image.numpy()
    down, across = pixels.shape[1] // P, pixels.shape[2] // P
    D = state["cls_token"].shape[2]
    positions = state["pos_embed"][0] if "pos_embed" in state else sincos(down, across, D)
    tokens = [state["cls_token"][0, 0] + positions[0]]
    tokens += list(state.get("register_tokens", np.zeros((1, 0, D)))[0])
    for n in range(down * across):
        top, left = n // across * P, n % across * P
        patch = pixels[:, top : top + P, left : left + P]
        token = state["patch_embed.proj.bias"].copy()
        for d in range(D):
            token[d] += (state["patch_embed.proj.weight"][d] * patch).sum()
        if masked is not None and masked[n]:
            token = state["mask_token"][0]
        tokens.append(token + positions[1 + n])
    weights = np.zeros(0)
    for i in range(network.depth):
        prefix = f"blocks.{i}."
        factors = (1.0, 1.0) if keep is None else (keep[2 * i], keep[2 * i + 1])
        gains = [state.get(f"{prefix}ls{k}.gamma", np.ones(D)) for k in (1, 2)]
        normed = [layer_norm(t, state[f"{prefix}norm1.weight"], state[f"{prefix}norm1.bias"]) for t in tokens]
        added, weights = attention(normed, state, f"{prefix}attn.", heads)
        tokens = [t + factors[0] * gains[0] * a for t, a in zip(tokens, added, strict=True)]
        normed = [layer_norm(t, state[f"{prefix}norm2.weight"], state[f"{prefix}norm2.bias"]) for t in tokens]
        added = [feed_forward(t, state, f"{prefix}mlp.") for t in normed]
        tokens = [t + factors[1] * gains[1] * a for t, a in zip(tokens, added, strict=True)]
    return np.stack([layer_norm(t, state["norm.weight"], state["norm.bias"]) for t in tokens]), weights


def sincos(down: int, across: int, width: int) -> Array:
    """(1 + down * across, width), from the formula."""
    quarter = width // 4
    found = np.zeros((1 + down * across, width))
    for r in range(down):
        for c in range(across):
            for k in range(quarter):
                frequency = 1 / 10000 ** (k / quarter)
                found[1 + r * across + c, k] = math.sin(r * frequency)
                found[1 + r * across + c, quarter + k] = math.cos(r * frequency)
                found[1 + r * across + c, 2 * quarter + k] = math.sin(c * frequency)
                found[1 + r * across + c, 3 * quarter + k] = math.cos(c * frequency)
    return found


OPTIONS: list[dict[str, Any]] = [
    {},
    {"feed_forward": "swiglu", "registers": 3, "layer_scale": 0.1, "mask_token": True},
    {"qkv_bias": False, "registers": 1, "mask_token": True},
    {"positions": "sincos", "layer_scale": 1e-5},
]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("channels", [1, 3])
def test_the_network_follows_its_formulas(options: dict[str, Any], channels: int) -> None:
    network = tiny((8, 12), channels, **options)
    pixels = images(3, 8, 12, channels)
    masked = torch.tensor([[True] + [False] * 5, [False] * 6, [False, True] * 3]) if options.get("mask_token") else None
    keep = torch.tensor([[1.0, 0.0, 2.0, 1.0], [0.0, 0.0, 0.0, 0.0], [0.0, 4.0, 2.0, 0.0]])
    R = network.registers
    with torch.no_grad():
        features, weights = network(pixels), network.attention(pixels)
        found = network.tokens(pixels, masked=masked, keep=keep)
    assert network.feature_dim == 8
    assert [tuple(part.shape) for part in found] == [(3, 8), (3, R, 8), (3, 6, 8)]
    # Fixed positions are kept in float32; so many digits are left of them.
    tolerance = 1e-6 if network.fixed_positions else 1e-10
    for b in range(3):
        expected, attended = reference(network, pixels[b])
        np.testing.assert_allclose(features[b], expected[0], rtol=tolerance, atol=tolerance)
        np.testing.assert_allclose(weights[b].flatten(1), attended[:, 0, 1 + R :], rtol=tolerance, atol=tolerance)
        hidden = None if masked is None else masked[b].tolist()
        expected, _ = reference(network, pixels[b], masked=hidden, keep=keep[b].tolist())
        together = torch.cat([found.feature[b : b + 1], found.registers[b], found.patches[b]])
        np.testing.assert_allclose(together, expected, rtol=tolerance, atol=tolerance)


def test_features_are_the_class_token_of_the_tokens() -> None:
    """Though the last block computes nothing else for them."""
    network = tiny(registers=2)
    pixels, pull = images(3), torch.randn(3, 8, dtype=torch.float64)
    keep = torch.tensor([[1.0, 2.0, 0.0, 1.5], [2.0, 0.0, 2.0, 0.0], [0.0, 0.0, 1.0, 3.0]])
    features, tokens = network(pixels, keep), network.tokens(pixels, keep=keep)
    torch.testing.assert_close(features, tokens.feature, rtol=1e-12, atol=1e-13)
    parameters = list(network.parameters())
    found = torch.autograd.grad((features * pull).sum(), parameters)
    expected = torch.autograd.grad((tokens.feature * pull).sum(), parameters)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


# Shapes, names, beginnings


@pytest.mark.parametrize("config", PARAMETERS, ids=lambda config: config.type)
def test_parameters_are_counted(config: Any) -> None:
    with torch.device("meta"):
        network = config.build(3, (224, 224))
    assert sum(parameter.numel() for parameter in network.parameters()) == PARAMETERS[config]


def common_shapes(width: int, depth: int, patch: int, tokens: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a ViT's state dict in timm and DINO."""
    linear = {"attn.qkv": (3 * width, width), "attn.proj": (width, width)}
    linear |= {"mlp.fc1": (4 * width, width), "mlp.fc2": (width, 4 * width)}
    shapes: dict[str, tuple[int, ...]] = {"cls_token": (1, 1, width), "pos_embed": (1, tokens, width)}
    shapes |= {"patch_embed.proj.weight": (width, 3, patch, patch), "patch_embed.proj.bias": (width,)}
    for block in range(depth):
        for name, shape in linear.items():
            shapes[f"blocks.{block}.{name}.weight"] = shape
            shapes[f"blocks.{block}.{name}.bias"] = shape[:1]
        for name in ("norm1", "norm2"):
            shapes |= {f"blocks.{block}.{name}.{part}": (width,) for part in ("weight", "bias")}
    return shapes | {"norm.weight": (width,), "norm.bias": (width,)}


def shapes_of(network: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}


def test_parameters_are_named_as_in_common_state_dicts() -> None:
    with torch.device("meta"):
        small = ViTSmall().build(3, (224, 224))
        giant = ViTGiant(patch_size=14, layer_scale=1e-5, registers=4, mask_token=True, position_grid=37)
        large = giant.build(3, (224, 224))
    assert shapes_of(small) == common_shapes(384, 12, 16, 197)
    shapes = common_shapes(1536, 40, 14, 1370) | {"register_tokens": (1, 4, 1536), "mask_token": (1, 1536)}
    for block in range(40):
        for part in ("fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias"):
            del shapes[f"blocks.{block}.mlp.{part}"]
        # DINOv2's giant: two thirds of 6144, a multiple of 8
        shapes |= {f"blocks.{block}.mlp.w12.weight": (8192, 1536), f"blocks.{block}.mlp.w12.bias": (8192,)}
        shapes |= {f"blocks.{block}.mlp.w3.weight": (1536, 4096), f"blocks.{block}.mlp.w3.bias": (1536,)}
        shapes |= {f"blocks.{block}.ls{k}.gamma": (1536,) for k in (1, 2)}
    assert shapes_of(large) == shapes
    assert "pos_embed" not in shapes_of(tiny(positions="sincos"))


@pytest.mark.parametrize(("hidden", "inner"), [(1536, 1024), (768, 512), (16, 16), (100, 72), (8, 8), (12, 8)])
def test_swiglu_is_two_thirds_as_wide_rounded_up_to_eight(hidden: int, inner: int) -> None:
    assert SwiGLU(4, hidden).w3.in_features == inner


def deviation(tensor: Tensor) -> float:
    return float(tensor.detach().std())


def test_weights_begin_as_in_dino() -> None:
    torch.manual_seed(0)
    network = ViTTiny(depth=2, registers=4, mask_token=True, layer_scale=0.01).build(3, (224, 224))
    for name, parameter in network.named_parameters():
        if name.endswith("weight") and ("attn" in name or "mlp" in name):
            assert deviation(parameter) == pytest.approx(0.02, rel=0.03), name
        elif name == "pos_embed":
            assert deviation(parameter) == pytest.approx(0.02, rel=0.03)
        elif name == "register_tokens":
            assert 0.5e-6 < deviation(parameter) < 2e-6
        elif "norm" in name or "gamma" in name:
            value = 0.01 if "gamma" in name else float(name.endswith("weight"))
            assert torch.equal(parameter, torch.full_like(parameter, value)), name
        elif not name.startswith("patch_embed"):
            assert not parameter.any(), name
    patches = network.patch_embed.proj  # torch's own: uniform to 1 / sqrt(fan-in)
    bound = 1 / math.sqrt(3 * 16 * 16)
    assert 0.98 * bound < float(patches.weight.detach().abs().max()) <= bound
    assert all(parameter.requires_grad for parameter in network.parameters())


def test_weights_begin_as_in_moco_v3() -> None:
    torch.manual_seed(0)
    config = ViTTiny(depth=2, initialization="xavier", positions="sincos", frozen_patch_embedding=True)
    network = config.build(3, (224, 224))
    bounds = {"attn.qkv": 2 * 192, "attn.proj": 2 * 192, "mlp.fc1": 5 * 192, "mlp.fc2": 5 * 192}
    bounds |= {"patch_embed.proj": 3 * 16 * 16 + 192}  # fan-in and fan-out; queries, keys and values each for itself
    for name, fans in bounds.items():
        weights = [p for n, p in network.named_parameters() if n.endswith(f"{name}.weight")]
        assert weights
        for weight in weights:
            bound = math.sqrt(6 / fans)
            assert 0.98 * bound < float(weight.detach().abs().max()) <= bound, name
            assert deviation(weight) == pytest.approx(bound / math.sqrt(3), rel=0.03), name
    assert not any(p.any() for n, p in network.named_parameters() if n.endswith("bias"))
    frozen = {name for name, parameter in network.named_parameters() if not parameter.requires_grad}
    assert frozen == {"patch_embed.proj.weight", "patch_embed.proj.bias"}
    assert "pos_embed" not in dict(network.named_parameters())


def test_a_frozen_patch_embedding_begins_with_xavier_whatever_the_rest_does() -> None:
    torch.manual_seed(0)
    network = ViTTiny(depth=1, frozen_patch_embedding=True).build(3, (32, 32))
    bound = math.sqrt(6 / (3 * 16 * 16 + 192))
    assert deviation(network.patch_embed.proj.weight) == pytest.approx(bound / math.sqrt(3), rel=0.03)
    assert deviation(network.blocks[0].attn.qkv.weight) == pytest.approx(0.02, rel=0.03)  # type: ignore[union-attr, arg-type]


def test_every_parameter_has_a_depth() -> None:
    network = tiny(depth=12, registers=1, mask_token=True, layer_scale=0.1)
    depths: dict[int, set[str]] = {}
    for name, _ in network.named_parameters():
        depths.setdefault(network.depth_of(name), set()).add(name)
    assert sorted(depths) == list(range(14))
    embeddings = {"cls_token", "pos_embed", "register_tokens", "mask_token"}
    assert depths[0] == embeddings | {"patch_embed.proj.weight", "patch_embed.proj.bias"}
    for block in range(12):
        assert len(depths[block + 1]) == 14
        assert all(name.startswith(f"blocks.{block}.") for name in depths[block + 1])
    assert depths[13] == {"norm.weight", "norm.bias"}
    for name in ("head.weight", "blocks", "blocks.12.norm1.weight", "normal.weight", ""):
        with pytest.raises(ValueError, match="no parameter"):
            network.depth_of(name)


def test_branches_are_two_for_each_block() -> None:
    assert tiny(depth=3).branches == 6
    with pytest.raises(ValueError, match=r"keep is \(2, 4\).*\(3, 4\)"):
        tiny()(images(3), torch.ones(2, 4))


# Positions


@pytest.mark.parametrize("offset", [0.0, 0.1])
@pytest.mark.parametrize("grid", [(3, 5), (5, 3), (2, 2), (7, 9), (1, 15), (4, 5)])
def test_positions_are_interpolated_as_torch_does(grid: tuple[int, int], offset: float) -> None:
    torch.manual_seed(0)
    old = (4, 5)
    positions = torch.randn(*old, 6, dtype=torch.float64)
    channels_first = positions.permute(2, 0, 1).unsqueeze(0)
    if offset:
        scale = tuple((new + offset) / side for new, side in zip(grid, old, strict=True))
        expected = F.interpolate(channels_first, scale_factor=scale, mode="bicubic")
    else:
        expected = F.interpolate(channels_first, size=grid, mode="bicubic", antialias=False)
    found = interpolate_positions(positions, grid, offset)
    assert found.shape == (*grid, 6)
    torch.testing.assert_close(found, expected[0].permute(1, 2, 0), rtol=1e-12, atol=1e-13)
    single = interpolate_positions(positions.float(), grid, offset)
    assert single.dtype == torch.float32
    torch.testing.assert_close(single, found.float(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("options", [{}, {"interpolation_offset": 0.1}, {"registers": 2}])
def test_only_grids_of_another_shape_are_interpolated_and_never_the_class_token(options: dict[str, Any]) -> None:
    network = tiny((16, 16), **options)
    with torch.no_grad():
        # A black image: all patches are the patch embedding's bias, so that tokens show the positions.
        def positions(height: int, width: int) -> tuple[Tensor, Tensor]:
            embedded = network._embed(torch.zeros(1, 3, height, width, dtype=torch.float64), None)[0]
            patches = embedded[1 + network.registers :] - network.patch_embed.proj.bias
            return embedded[0] - network.cls_token[0, 0], patches

        learned = network.pos_embed[0]
        cls, square = positions(16, 16)
        torch.testing.assert_close(square, learned[1:], rtol=1e-12, atol=1e-14)
        # As many patches on a wide image, where a count of tokens would see no difference.
        wide_cls, wide = positions(8, 32)
        expected = interpolate_positions(learned[1:].view(4, 4, 8), (2, 8), options.get("interpolation_offset", 0.0))
        torch.testing.assert_close(wide, expected.flatten(0, 1), rtol=1e-12, atol=1e-14)
        assert not torch.allclose(wide, learned[1:])
        torch.testing.assert_close(torch.stack([cls, wide_cls]), learned[0].expand(2, -1), rtol=1e-12, atol=1e-14)


def test_interpolated_positions_learn() -> None:
    network = tiny((16, 16))
    network(images(2, 8, 32)).square().sum().backward()
    gradient = network.pos_embed.grad
    assert gradient is not None
    assert (gradient.abs().sum(dim=2) > 0).all()


def test_interpolation_is_precise_under_autocast() -> None:
    positions = torch.randn(4, 4, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = interpolate_positions(positions, (2, 8))
    assert torch.equal(inside, interpolate_positions(positions, (2, 8)))


def test_a_position_grid_is_kept_whatever_the_images() -> None:
    network = tiny((8, 8), position_grid=5)
    assert network.pos_embed.shape == (1, 26, 8)
    assert network.tokens(images(1, 8, 12)).patches.shape == (1, 6, 8)


@pytest.mark.parametrize("grid", [(3, 3), (2, 5), (1, 1)])
@pytest.mark.parametrize("width", [4, 8, 24])
def test_fixed_positions_follow_their_formula(grid: tuple[int, int], width: int) -> None:
    found = sincos_positions(grid, width)
    assert found.shape == (1, 1 + grid[0] * grid[1], width)
    np.testing.assert_allclose(found[0], sincos(*grid, width), atol=1e-7)


def test_fixed_positions_fit_any_grid_and_do_not_learn() -> None:
    network = tiny((8, 8), positions="sincos")
    expected, _ = reference(network, images(1, 12, 20)[0])
    with torch.no_grad():
        np.testing.assert_allclose(network.tokens(images(1, 12, 20)).patches[0], expected[1:], rtol=1e-6, atol=1e-6)
    assert "pos_embed" in dict(network.named_buffers())
    assert not any(name.startswith("pos_embed") for name in network.state_dict())
    other = tiny((16, 16), positions="sincos")
    other.load_state_dict(network.state_dict())  # of another image size
    torch.testing.assert_close(other(images(2)), network(images(2)), rtol=1e-6, atol=1e-7)


def test_grids() -> None:
    network = tiny((8, 12))
    assert network.grid((8, 12)) == (2, 3)
    assert network.grid((4, 40)) == (1, 10)


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ((30, 32), r"patches of 16 pixels.*height 30 \(the nearest that would do: 16 or 32\)$"),
        ((32, 8), r"width 8 \(the nearest that would do: 16\)$"),
        ((100, 50), r"height 100 \(.*96 or 112\) and width 50 \(.*48 or 64\)"),
        ((0, 16), r"height 0 \(.*16\)"),
    ],
)
def test_images_that_patches_do_not_divide_are_refused(size: tuple[int, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ViTTiny(depth=1).build(3, size)
    network = ViTTiny(depth=1).build(3, (32, 32))
    with pytest.raises(ValueError, match=message):
        network(torch.rand(1, 3, *size))


# What goes on inside


def test_patches_are_a_set_but_for_their_positions() -> None:
    network = tiny((8, 12), registers=2)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    pixels = images(2, 8, 12)
    patches = (
        pixels.unflatten(3, (3, 4)).unflatten(2, (2, 4)).permute(0, 2, 4, 1, 3, 5).flatten(1, 2)
    )  # (B, N, C, P, P)
    shuffled = patches[:, order].unflatten(1, (2, 3)).permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)
    with torch.no_grad():
        before = network.tokens(pixels)
        moved = network.tokens(shuffled)
        network.pos_embed[0, 1:] = network.pos_embed[0, 1:][order]
        after = network.tokens(shuffled)
    torch.testing.assert_close(after.feature, before.feature, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(after.registers, before.registers, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(after.patches, before.patches[:, order], rtol=1e-10, atol=1e-12)
    assert not torch.allclose(moved.feature, before.feature)


def test_attention_weights_sum_to_one_and_are_those_of_the_forward_pass() -> None:
    torch.manual_seed(0)
    layer = Attention(12, 3).double()
    x = torch.randn(2, 7, 12, dtype=torch.float64)
    weights = layer.weights(x)
    assert weights.shape == (2, 3, 7, 7)
    torch.testing.assert_close(weights.sum(dim=3), torch.ones(2, 3, 7, dtype=torch.float64))
    values = (x @ layer.qkv.weight[24:].T + layer.qkv.bias[24:]).view(2, 7, 3, 4).transpose(1, 2)
    expected = layer.proj((weights @ values).transpose(1, 2).reshape(2, 7, 12))
    torch.testing.assert_close(layer(x), expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(layer(x, outputs=2), expected[:, :2], rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(layer.weights(x, outputs=2), weights[:, :, :2])


def test_attention_maps_have_the_shape_of_the_grid_and_leave_registers_out() -> None:
    for registers in (0, 3):
        network = tiny((8, 12), registers=registers)
        with torch.no_grad():
            maps = network.attention(images(2, 16, 12))
        assert maps.shape == (2, 2, 4, 3)
        assert (maps > 0).all()
        assert (maps.sum(dim=(2, 3)) < 1).all()


def test_masked_patches_are_not_seen_but_keep_their_positions() -> None:
    network = tiny(mask_token=True)
    masked = torch.tensor([[True, False, False, True]])
    pixels = images(1)
    other = pixels.clone()
    other[:, :, :4, :4] = 0  # the first patch
    with torch.no_grad():
        a, b = network.tokens(pixels, masked=masked), network.tokens(other, masked=masked)
        assert torch.equal(a.patches, b.patches)
        assert not torch.allclose(a.patches[0, 0], a.patches[0, 3])  # told apart by their positions alone
        visible = network.tokens(pixels, masked=torch.zeros(1, 4, dtype=torch.bool))
        torch.testing.assert_close(visible.patches, network.tokens(pixels).patches)
        assert not torch.allclose(visible.feature, a.feature)
    network.tokens(pixels, masked=masked).feature.sum().backward()
    assert network.mask_token is not None
    assert network.mask_token.grad is not None
    assert network.mask_token.grad.abs().min() > 0


def test_masks_need_a_token_and_the_right_shape() -> None:
    with pytest.raises(ValueError, match="mask_token=True"):
        tiny().tokens(images(1), masked=torch.ones(1, 4, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"masked is \(1, 5\).*\(1, 4\)"):
        tiny(mask_token=True).tokens(images(1), masked=torch.ones(1, 5, dtype=torch.bool))


def test_a_sample_without_branches_gives_them_no_gradient() -> None:
    network = tiny(layer_scale=0.5)
    pixels = images(2)
    keep = torch.tensor([[0.0, 2.0, 1.0, 0.0], [2.0, 0.0, 1.0, 1.0]])
    both = network(pixels, keep)[0].sum()
    found = torch.autograd.grad(both, list(network.parameters()), retain_graph=True)
    by_name = dict(zip((name for name, _ in network.named_parameters()), found, strict=True))
    for name, gradient in by_name.items():
        first_attention = name.startswith(("blocks.0.norm1", "blocks.0.attn", "blocks.0.ls1"))
        last_mlp = name.startswith(("blocks.1.norm2", "blocks.1.mlp", "blocks.1.ls2"))
        assert bool(gradient.any()) != (first_attention or last_mlp), name


def test_without_any_branch_the_embedding_is_normalised_and_gradients_are_zero() -> None:
    network = tiny()
    features = network(images(3), torch.zeros(3, 4))
    cls = (network.cls_token + network.pos_embed[:, :1])[:, 0]
    torch.testing.assert_close(features, network.norm(cls).expand(3, -1))
    features.square().sum().backward()
    for parameter in network.blocks.parameters():
        assert parameter.grad is not None
        assert not parameter.grad.any()


def test_half_precision_keeps_the_residual_stream_in_single() -> None:
    network = tiny(registers=1, layer_scale=0.1).float()
    keep = torch.tensor([[1.0, 0.0, 2.0, 1.0], [2.0, 2.0, 0.0, 0.0]])
    pixels = images(2).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for tokens in (network._embed(pixels), network._encode(pixels, keep=keep), network(pixels, keep)):
            assert tokens.dtype == torch.float32
        half = network(pixels, keep)
    torch.testing.assert_close(half, network(pixels, keep), rtol=0.1, atol=0.1)


def test_a_teacher_begins_as_its_student() -> None:
    for options in ({}, {"positions": "sincos", "frozen_patch_embedding": True}):
        network = tiny(**options)
        teacher = teacher_of(network)
        assert torch.equal(teacher(images(2)), network(images(2)))
        assert not any(parameter.requires_grad for parameter in teacher.parameters())


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"patch_size": 0}, "patch_size is 0"),
        ({"depth": 0}, "depth is 0"),
        ({"heads": 5}, "5 heads do not divide a width of 192"),
        ({"mlp_ratio": 0.0}, "mlp_ratio is 0.0"),
        ({"mlp_ratio": math.nan}, "mlp_ratio is nan"),
        ({"registers": -1}, "registers is -1"),
        ({"layer_scale": 0.0}, "layer_scale is 0.0"),
        ({"positions": "sincos", "width": 6}, "4 divides, not 6"),
        ({"position_grid": 0}, "position_grid is 0"),
        ({"interpolation_offset": 1.0}, "interpolation_offset is 1.0"),
        ({"interpolation_offset": -0.1}, "interpolation_offset is -0.1"),
    ],
)
def test_configs_refuse_impossible_values(bad: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ViTTiny(**bad)
