from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from heliostat_algorithms.algorithm import Clock, DataSpec
from heliostat_algorithms.backbones import ViTLarge, ViTTiny
from heliostat_algorithms.randomness import Random
from heliostat_algorithms.representation.mae import MAE, Decoder, MAEView
from heliostat_algorithms.representation.simclr import SimCLR

BATCH = 6
DATA = DataSpec(image_shape=(3, 8, 12), classes=None)
PATCHES, KEPT = 24, 9
RATIO = 0.6  # 24 * 0.4 is 9.6


def clock(step: int = 0) -> Clock:
    return Clock(step=step, total_steps=40, steps_per_epoch=4, batch_size=BATCH)


def config(**options: Any) -> MAE.Config:
    backbone = {"width": 8, "depth": 2, "heads": 2, "patch_size": 2, "positions": "sincos", "initialization": "xavier"}
    return MAE.Config(
        **{
            "backbone": ViTTiny(**(backbone | options.pop("backbone", {}))),
            "decoder": Decoder(width=12, depth=2, heads=3),
            "augmentation": MAEView(size=None),
            "mask_ratio": RATIO,
            **options,
        }
    )


def built(seed: int = 0, data: DataSpec = DATA, **options: Any) -> MAE:
    """With weights and biases under which all parts matter."""
    torch.manual_seed(seed)
    algorithm = MAE(config(**options), data)
    with torch.no_grad():
        for parameter in algorithm.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return algorithm


def images(count: int = BATCH, shape: tuple[int, int, int] = (3, 8, 12)) -> Tensor:
    return torch.randint(256, (count, *shape), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)


def prepared(algorithm: MAE, step: int = 0) -> dict[str, Tensor]:
    inputs = algorithm.prepare({"image": images()}, clock(step), Random(7, step, range(BATCH)))
    return {name: value.double() if value.is_floating_point() else value for name, value in inputs.items()}


def positions(width: int) -> Tensor:
    """(1 + 24, width) one number at a time: nothing for CLS, then rows in the first half and columns in the second."""
    table = [[0.0] * width]
    quarter = width // 4
    for row in range(4):
        for column in range(6):
            angles = [[place / 10000 ** (k / quarter) for k in range(quarter)] for place in (row, column)]
            table.append([f(a) for axis in angles for f in (math.sin, math.cos) for a in axis])
    return torch.tensor(table).double()  # they are kept in float32


def norm(x: Tensor, weights: Mapping[str, Tensor], name: str) -> Tensor:
    centred = x - x.mean(dim=-1, keepdim=True)
    unit = centred / (centred.square().mean(dim=-1, keepdim=True) + 1e-6).sqrt()
    return unit * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def linear(x: Tensor, weights: Mapping[str, Tensor], name: str) -> Tensor:
    return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def block(x: Tensor, weights: Mapping[str, Tensor], name: str, heads: int) -> Tensor:
    """A transformer block, head by head."""
    gathered = []
    size = x.shape[-1] // heads
    q, k, v = linear(norm(x, weights, f"{name}.norm1"), weights, f"{name}.attn.qkv").split(x.shape[-1], dim=-1)
    for head in range(heads):
        own = slice(head * size, (head + 1) * size)
        scores = q[..., own] @ k[..., own].transpose(-1, -2) / math.sqrt(size)
        gathered.append(scores.softmax(dim=-1) @ v[..., own])
    x = x + linear(torch.cat(gathered, dim=-1), weights, f"{name}.attn.proj")
    h = linear(norm(x, weights, f"{name}.norm2"), weights, f"{name}.mlp.fc1")
    return x + linear(0.5 * h * (1 + torch.erf(h / math.sqrt(2))), weights, f"{name}.mlp.fc2")


def official(algorithm: MAE, inputs: dict[str, Tensor]) -> Tensor:
    """The loss as the official code computes it: mask tokens appended, unshuffled, all patches decoded, the loss of the
    visible ones masked out. Of the algorithm only the parameters are used."""
    c, w = algorithm.config, dict(algorithm.named_parameters())
    view, visible, hidden = inputs["view"], inputs["visible"], inputs["hidden"]
    cut = [view[:, :, y : y + 2, x : x + 2] for y in range(0, 8, 2) for x in range(0, 12, 2)]

    kernel = w["backbone.patch_embed.proj.weight"].flatten(1)
    embedded = torch.stack([patch.flatten(1) @ kernel.T for patch in cut], dim=1)
    embedded = embedded + w["backbone.patch_embed.proj.bias"] + positions(8)[1:]
    x = torch.stack([row[kept] for row, kept in zip(embedded, visible, strict=True)])
    first = int(c.backbone.class_token)
    if first:
        x = torch.cat([w["backbone.cls_token"].expand(len(x), -1, -1), x], dim=1)
    for number in range(2):
        x = block(x, w, f"backbone.blocks.{number}", 2)
    x = linear(norm(x, w, "backbone.norm"), w, "decoder.embed")

    tokens = torch.cat([x[:, first:], w["decoder.mask_tokens"].expand(len(x), PATCHES - KEPT, -1)], dim=1)
    restore = torch.cat([visible, hidden], dim=1).argsort(dim=1)
    tokens = torch.stack([row[order] for row, order in zip(tokens, restore, strict=True)])
    y = torch.cat([x[:, :first], tokens], dim=1) + positions(12)[1 - first :]
    if c.backbone.pool == "mean":
        y = y[:, -PATCHES:]
    for number in range(2):
        y = block(y, w, f"decoder.blocks.{number}", 3)
    y = linear(norm(y, w, "decoder.norm"), w, "decoder.head")[:, -PATCHES:]

    target = torch.stack([patch.permute(0, 2, 3, 1).flatten(1) for patch in cut], dim=1)
    if c.normalize_targets:
        target = (target - target.mean(-1, keepdim=True)) / (target.var(-1, keepdim=True) + 1e-6) ** 0.5
    mask = torch.ones(len(view), PATCHES, dtype=torch.float64)
    for row, kept in zip(mask, visible, strict=True):
        row[kept] = 0
    error = ((y - target) ** 2).mean(dim=-1)
    return (error * mask).sum() / mask.sum()


def test_defaults_are_those_of_the_paper() -> None:
    c = MAE.Config()
    assert c.type == "mae"
    assert c.backbone == ViTLarge(patch_size=16, positions="sincos", initialization="xavier", pool="cls")
    assert (c.mask_ratio, c.normalize_targets) == (0.75, True)
    assert c.decoder == Decoder(width=512, depth=8, heads=16)
    view = c.augmentation
    assert (view.size, view.crop_area, view.crop_aspect, view.flip) == (224, (0.2, 1.0), (3 / 4, 4 / 3), 0.5)
    assert (view.jitter.probability, view.greyscale, view.blur.probability, view.solarize) == (0.0, 0.0, 0.0, 0.0)
    with torch.device("meta"):
        algorithm = MAE(c, DataSpec(image_shape=(3, 256, 256), classes=1000))
    assert algorithm.grid == (14, 14)
    blocks = 8 * (12 * 512**2 + 13 * 512)
    decoder = (1024 + 1) * 512 + 512 + blocks + 2 * 512 + (512 + 1) * 768
    assert sum(p.numel() for p in algorithm.decoder.parameters()) == decoder
    assert sum(p.numel() for p in algorithm.backbone.parameters()) == 303_301_632 - 197 * 1024
    assert MAE.separable


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"normalize_targets": False},
        {"backbone": {"pool": "mean"}},
        {"backbone": {"pool": "mean", "class_token": False}},
    ],
    ids=["paper", "pixels", "mean", "no class token"],
)
def test_loss_and_gradients_are_those_of_the_official_formulation(options: dict[str, Any]) -> None:
    algorithm = built(**options).double()
    inputs = prepared(algorithm)
    made = algorithm(inputs, clock())
    expected = official(algorithm, inputs)
    assert made.loss.item() == pytest.approx(expected.item(), rel=1e-10)
    parameters = dict(algorithm.named_parameters())
    found = torch.autograd.grad(made.loss, list(parameters.values()))
    wanted = torch.autograd.grad(expected, list(parameters.values()))
    for name, one, other in zip(parameters, found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-11, msg=name)
        assert one.abs().max() > 1e-8, name
    assert set(made.metrics) == {"feature_std"}


def test_the_spread_is_that_of_the_features_of_visible_patches() -> None:
    algorithm = built().double()
    inputs = prepared(algorithm)
    cls = algorithm.backbone.tokens(inputs["view"], visible=inputs["visible"]).feature.detach()
    unit = cls / cls.norm(dim=1, keepdim=True)
    expected = ((unit - unit.mean(dim=0)) ** 2).mean(dim=0).sqrt().mean() * math.sqrt(8)
    found = algorithm(inputs, clock()).metrics["feature_std"]
    assert found.item() == pytest.approx(expected.item(), rel=1e-10)
    assert not found.requires_grad


def test_the_encoder_computes_visible_tokens_and_the_head_hidden_ones() -> None:
    algorithm = built().double()
    tokens: dict[str, list[int]] = {}
    for name, module in algorithm.named_modules():
        if name.startswith(("backbone.blocks", "decoder.blocks", "decoder.head")) and name.count(".") <= 2:
            module.register_forward_pre_hook(lambda _, x, name=name: tokens.setdefault(name, []).append(x[0].shape[1]))
    algorithm(prepared(algorithm), clock())
    assert tokens == {
        "backbone.blocks.0": [1 + KEPT],
        "backbone.blocks.1": [1 + KEPT],
        "decoder.blocks.0": [1 + PATCHES],
        "decoder.blocks.1": [1 + PATCHES],
        "decoder.head": [PATCHES - KEPT],
    }


def mask_of(places: Tensor) -> Tensor:
    """(B, 1, 8, 12) bool: the pixels of these patches."""
    mask = torch.zeros(len(places), 1, 8, 12, dtype=torch.bool)
    for row, own in zip(mask, places.tolist(), strict=True):
        for place in own:
            y, x = 2 * (place // 6), 2 * (place % 6)
            row[:, y : y + 2, x : x + 2] = True
    return mask


def test_hidden_pixels_reach_the_target_alone() -> None:
    algorithm = built().double()
    inputs = prepared(algorithm)
    hidden = mask_of(inputs["hidden"])
    noise = torch.rand(BATCH, 3, 8, 12, dtype=torch.float64)
    outputs: list[Tensor] = []
    algorithm.decoder.register_forward_hook(lambda _, x, y: outputs.extend([x[0].detach(), y.detach()]))
    losses = []
    for view in (
        inputs["view"],
        torch.where(hidden, noise, inputs["view"]),
        torch.where(hidden, inputs["view"], noise),
    ):
        losses.append(algorithm(inputs | {"view": view}, clock()).loss.item())
    latents, predictions = outputs[0::2], outputs[1::2]
    assert torch.equal(latents[0], latents[1])
    assert torch.equal(predictions[0], predictions[1])
    assert abs(losses[0] - losses[1]) > 1e-3
    assert (latents[0] - latents[2]).abs().amax(dim=(1, 2)).min() > 1e-3  # other visible pixels, in each image
    assert (predictions[0] - predictions[2]).abs().amax(dim=(1, 2)).min() > 1e-3


def test_inputs_are_drawn_from_the_step_and_the_rows() -> None:
    algorithm = built()

    def prepare(rows: range, step: int = 3) -> Any:
        return algorithm.prepare({"image": images()[rows.start : rows.stop]}, clock(step), Random(7, step, rows))

    whole, parts = prepare(range(BATCH)), [prepare(range(a, a + 2)) for a in range(0, BATCH, 2)]
    assert {name: tuple(value.shape) for name, value in whole.items()} == {
        "view": (BATCH, 3, 8, 12),
        "visible": (BATCH, KEPT),
        "hidden": (BATCH, PATCHES - KEPT),
    }
    for name, value in whole.items():
        assert torch.equal(value, torch.cat([part[name] for part in parts])), name
        assert not torch.equal(value, prepare(range(BATCH), step=4)[name]), name
    assert whole["view"].min() >= 0
    assert whole["view"].max() <= 1
    for row in torch.cat([whole["visible"], whole["hidden"]], dim=1).tolist():
        assert sorted(row) == list(range(PATCHES))


def test_the_loss_of_a_batch_is_the_mean_over_its_parts() -> None:
    algorithm = built().double()
    inputs = prepared(algorithm)
    parts = [algorithm({name: x[rows] for name, x in inputs.items()}, clock()).loss for rows in ([0, 1, 2], [3, 4, 5])]
    assert algorithm(inputs, clock()).loss.item() == pytest.approx(torch.stack(parts).mean().item(), rel=1e-12)


def test_weights_begin_as_in_the_official_code() -> None:
    torch.manual_seed(0)
    algorithm = MAE(config(backbone={"width": 256, "heads": 4}, decoder=Decoder(width=256, depth=1, heads=4)), DATA)
    assert algorithm.backbone.cls_token is not None
    assert algorithm.backbone.cls_token.std().item() == pytest.approx(0.02, rel=0.2)
    assert algorithm.decoder.mask_tokens.std().item() == pytest.approx(0.02, rel=0.2)
    for name, module in algorithm.named_modules():
        if isinstance(module, torch.nn.Linear) and "qkv" not in name:
            bound = math.sqrt(6 / (module.in_features + module.out_features))
            assert module.weight.abs().max().item() == pytest.approx(bound, rel=0.02), name
            assert module.bias is not None
            assert not module.bias.any()
    patches = algorithm.backbone.patch_embed.proj.weight
    assert patches.abs().max().item() == pytest.approx(math.sqrt(6 / (256 + 12)), rel=0.02)


def test_features_are_cls_tokens_of_all_patches_at_the_size_of_the_views() -> None:
    algorithm = built(data=DataSpec(image_shape=(3, 10, 10), classes=None), augmentation=MAEView(size=8))
    stored = images(shape=(3, 10, 10))
    whole = algorithm.whole(stored)
    assert whole.shape == (BATCH, 3, 8, 8)
    assert algorithm.encoder() is algorithm.backbone
    tokens = algorithm.backbone.tokens(whole)
    assert tokens.patches.shape == (BATCH, 16, 8)
    torch.testing.assert_close(algorithm.features(stored), tokens.feature)
    assert algorithm.token_features(stored).shape == (BATCH, 17, 8)
    maps = algorithm.attention_maps(stored)
    assert maps is not None
    assert maps.shape == (BATCH, 2, 4, 4)


def test_a_view_pair_holds_features_of_two_views() -> None:
    algorithm = built()
    random = Random(7, 3, range(BATCH))
    first, second = algorithm.view_pair({"image": images()}, random)
    view = algorithm.config.augmentation(images(), random.within("first"))
    torch.testing.assert_close(first, algorithm.backbone(view))
    assert first.shape == second.shape == (BATCH, 8)
    assert (first - second).abs().amax(dim=1).min() > 1e-4


@torch.no_grad()
def test_pictures_show_what_is_seen_and_what_is_made_of_the_rest() -> None:
    algorithm = built().eval()
    pictures = algorithm.pictures({"image": images()}, Random(7, -1, range(BATCH)))
    assert set(pictures) == {"reconstruction"}
    panels = pictures["reconstruction"]
    assert panels.titles == ("image", "masked", "reconstruction", "reconstruction and visible")
    assert panels.images.shape == (BATCH, 4, 3, 8, 12)
    assert panels.images.min() >= 0
    assert panels.images.max() <= 1
    image, masked, reconstruction, both = panels.images.unbind(1)
    assert torch.equal(image, images().float() / 255)
    hidden = (masked == 0.5).all(dim=1, keepdim=True)
    assert (hidden.sum(dim=(1, 2, 3)) == 4 * (PATCHES - KEPT)).all()  # no pixel of the images is 127.5 / 255
    assert torch.equal(torch.where(hidden, image, masked), image)
    assert (torch.where(hidden, 0.5, reconstruction) == 0.5).all()
    assert torch.equal(both, torch.where(hidden, reconstruction, image))
    assert (both - image).abs().amax(dim=(1, 2, 3)).min() > 0.01
    again = algorithm.pictures({"image": images()}, Random(7, -2, range(BATCH)))["reconstruction"].images
    assert torch.equal(again[:, 0], image)
    assert not torch.equal(again[:, 1], masked)


@torch.no_grad()
@pytest.mark.parametrize("normalize", [True, False])
def test_pictures_of_a_perfect_decoder_are_the_images(normalize: bool) -> None:
    algorithm = built(normalize_targets=normalize).eval()
    shown = images().float() / 255

    def perfect(context: Tensor, places: Tensor, targets: Tensor) -> Tensor:
        """What the loss wants, patch by patch."""
        rows = []
        for image, own in zip(shown, (targets - 1).tolist(), strict=True):
            patches = [image[:, 2 * (n // 6) :, 2 * (n % 6) :][:, :2, :2].permute(1, 2, 0).flatten() for n in own]
            rows.append(torch.stack(patches))
        target = torch.stack(rows)
        if not normalize:
            return target
        return (target - target.mean(dim=2, keepdim=True)) / (target.var(dim=2, keepdim=True) + 1e-6).sqrt()

    algorithm.decoder.forward = perfect  # type: ignore[assignment,method-assign]
    panels = algorithm.pictures({"image": images()}, Random(7, -1, range(BATCH)))["reconstruction"]
    torch.testing.assert_close(panels.images[:, 3], shown, rtol=1e-5, atol=1e-6)


def test_tokens_are_regularised_biases_and_norms_are_not() -> None:
    algorithm = built()
    groups = {group.name: group for group in algorithm.parameter_groups()}
    names = {id(parameter): name for name, parameter in algorithm.named_parameters()}
    regularized = {names[id(p)] for p in groups["weights"].parameters}
    free = {names[id(p)] for p in groups["bias_and_norm"].parameters}
    assert groups["weights"].regularized
    assert not groups["bias_and_norm"].regularized
    assert regularized | free == set(names.values())
    assert {"backbone.cls_token", "decoder.mask_tokens", "backbone.patch_embed.proj.weight"} <= regularized
    assert all(name.endswith(".bias") or "norm" in name for name in free)
    assert not any(name.endswith(".bias") or "norm" in name for name in regularized)


def test_training_learns_to_reconstruct() -> None:
    """Stripes: a visible patch says what all the others are."""
    torch.manual_seed(0)
    phases = torch.arange(BATCH).view(-1, 1, 1, 1) * 40
    stripes = (phases + 30 * (torch.arange(12) % 2)).expand(-1, 3, 8, -1).to(torch.uint8)
    whole = MAEView(size=None, crop_area=(1.0, 1.0), crop_aspect=(1.5, 1.5), flip=0.0)
    algorithm = MAE(config(augmentation=whole, normalize_targets=False), DATA)
    optimizer = torch.optim.AdamW(algorithm.parameters(), lr=0.01)
    losses = []
    for step in range(120):
        with torch.no_grad():
            inputs = algorithm.prepare({"image": stripes}, clock(step), Random(7, step, range(BATCH)))
        made = algorithm(inputs, clock(step))
        optimizer.zero_grad()
        made.loss.backward()
        optimizer.step()
        losses.append(made.loss.item())
    variance = (stripes.float() / 255).var().item()
    assert losses[0] > variance
    assert sum(losses[-10:]) / 10 < 0.1 * variance


def test_a_training_begins_from_another_of_its_shape() -> None:
    other, algorithm = built(seed=1), built(seed=0)
    algorithm.begin_from(other)
    for name, value in algorithm.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name
    with pytest.raises(ValueError, match=r"decoder\.embed"):
        algorithm.begin_from(built(decoder=Decoder(width=24, depth=2, heads=3)))
    with pytest.raises(ValueError, match="MAE continues a MAE, not a SimCLR"):
        algorithm.begin_from(SimCLR(SimCLR.Config(backbone=config().backbone), DATA))


@pytest.mark.parametrize("ratio", [0.0, 1.0, -0.5, 1.5, math.nan])
def test_a_mask_ratio_out_of_range_is_refused(ratio: float) -> None:
    with pytest.raises(ValueError, match="mask_ratio is"):
        config(mask_ratio=ratio)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"width": 0}, "width is 0; it must be at least 1"),
        ({"depth": 0}, "depth is 0"),
        ({"heads": 0}, "heads is 0"),
        ({"width": 20, "heads": 3}, "multiple of 4 and of the 3 heads"),
        ({"width": 18, "heads": 3}, "multiple of 4 and of the 3 heads"),
    ],
)
def test_a_decoder_that_cannot_be_is_refused(bad: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Decoder(**bad)


def test_an_encoder_with_a_mask_token_is_refused() -> None:
    with pytest.raises(ValueError, match="mask_token"):
        config(backbone={"mask_token": True})


def test_patches_that_do_not_suit_the_images_are_refused() -> None:
    with pytest.raises(ValueError, match="none of an image's 6 patches is visible"):
        MAE(config(backbone={"patch_size": 4}, mask_ratio=0.9), DATA)
    with pytest.raises(ValueError, match="do not divide images of height 8"):
        MAE(config(backbone={"patch_size": 3}), DATA)
    grey = DataSpec(image_shape=(1, 4, 4), classes=None)
    with pytest.raises(ValueError, match="a patch of one value has no variance"):
        MAE(config(backbone={"patch_size": 1}), grey)
    assert MAE(config(backbone={"patch_size": 1}, normalize_targets=False), grey).grid == (4, 4)
