from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from torch import Tensor

from heliostat_algorithms.algorithm import Clock, DataSpec
from heliostat_algorithms.augmentation import ViewAugmentation
from heliostat_algorithms.augmentation.color import ColorJitter
from heliostat_algorithms.augmentation.filters import GaussianBlur
from heliostat_algorithms.backbones import ViTHuge, ViTTiny
from heliostat_algorithms.masking.multi_block import MultiBlockMasking
from heliostat_algorithms.optimizers import AdamW
from heliostat_algorithms.randomness import Random
from heliostat_algorithms.representation.ijepa import IJEPA
from heliostat_algorithms.schedules import Ramp

BATCH, SIDE, PATCH = 6, 16, 2
DATA = DataSpec(image_shape=(3, SIDE, SIDE), classes=None)
CROP = ViewAugmentation(
    size=SIDE,
    crop_area=(0.3, 1.0),
    flip=0.0,
    jitter=ColorJitter(probability=0.0),
    greyscale=0.0,
    blur=GaussianBlur(probability=0.0),
)
BOTH_LOSSES = pytest.mark.parametrize("loss", ["l2", "smooth-l1"])


def clock(step: int = 0) -> Clock:
    return Clock(step=step, total_steps=40, steps_per_epoch=4, batch_size=BATCH)


def backbone(**options: Any) -> ViTTiny:
    vit = {"width": 8, "depth": 2, "heads": 2, "patch_size": PATCH, "class_token": False, "pool": "mean"}
    return ViTTiny(**{**vit, "positions": "sincos", **options})


def config(**options: Any) -> IJEPA.Config:
    small = {"backbone": backbone(), "predictor_width": 12, "predictor_depth": 2, "augmentation": CROP}
    return IJEPA.Config(**{**small, "masking": MultiBlockMasking(min_keep=4), **options})


def built(**options: Any) -> IJEPA:
    """In float64, with a target encoder that differs from the context encoder and weights under which images differ."""
    torch.manual_seed(0)
    algorithm = IJEPA(config(**options), DATA).double()
    with torch.no_grad():
        for parameter in algorithm.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4.0).add_(0.1 * torch.randn_like(parameter))
    return algorithm


def images(count: int = BATCH) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(256, (count, 3, SIDE, SIDE), generator=generator, dtype=torch.uint8)


def prepared(algorithm: IJEPA, step: int = 0) -> dict[str, Tensor]:
    inputs = algorithm.prepare({"image": images()}, clock(step), Random(7, step, range(BATCH)))
    return {name: value.double() if value.is_floating_point() else value for name, value in inputs.items()}


def patches_of(places: Tensor) -> NDArray[np.bool_]:
    """(B, K) places -> (B, SIDE, SIDE), true for the pixels of these patches."""
    across = SIDE // PATCH
    found = np.zeros((len(places), SIDE, SIDE), dtype=bool)
    for row, listed in enumerate(places.tolist()):
        for place in listed:
            top, left = PATCH * (place // across), PATCH * (place % across)
            found[row, top : top + PATCH, left : left + PATCH] = True
    return found


def reference(algorithm: IJEPA, inputs: dict[str, Tensor]) -> float:
    """The loss of section 3, one image and one target block at a time; of the algorithm only the networks are used."""
    blocks, distances = len(inputs["targets"]), []
    for image in range(BATCH):
        one, context = inputs["image"][image : image + 1], inputs["context"][image : image + 1]
        with torch.no_grad():
            whole = algorithm.target_encoder.tokens(one).patches[0].numpy()
            seen = algorithm.context_encoder.tokens(one, visible=context).patches
            for block in range(blocks):
                asked = inputs["targets"][block, image : image + 1]
                predicted = algorithm.predictor(seen, context, asked)[0].numpy()
                for said, place in zip(predicted, asked[0].tolist(), strict=True):
                    token = whole[place]
                    target = (token - token.mean()) / np.sqrt(token.var() + 1e-5)
                    distances += [abs(float(x)) for x in said - target]
    if algorithm.config.loss == "l2":
        return sum(x * x for x in distances) / len(distances)
    return sum(x * x / 2 if x < 1 else x - 0.5 for x in distances) / len(distances)


def test_defaults_are_the_papers_for_the_huge_network() -> None:
    c = IJEPA.Config()
    vit = c.backbone
    assert isinstance(vit, ViTHuge)
    assert (vit.patch_size, vit.class_token, vit.pool, vit.positions) == (14, False, "mean", "sincos")
    assert (vit.qkv_bias, vit.layer_scale, vit.registers, vit.initialization) == (True, None, 0, "trunc-normal")
    assert (c.predictor_width, c.predictor_depth, c.heads_of_predictor, c.loss) == (384, 12, 16, "l2")
    assert c.teacher_momentum == Ramp(start=0.996, end=1.0, shape="linear")
    m = c.masking
    assert (m.target_blocks, m.target_scale, m.target_aspect) == (4, (0.15, 0.2), (0.75, 1.5))
    assert (m.context_scale, m.min_keep, m.sampler) == ((0.85, 1.0), 10, "faithful")
    a = c.augmentation
    assert (a.size, a.crop_area, a.crop_aspect) == (224, (0.3, 1.0), (3 / 4, 4 / 3))
    assert (a.flip, a.greyscale, a.solarize, a.jitter.probability, a.blur.probability) == (0, 0, 0, 0, 0)
    m.check((16, 16))


@BOTH_LOSSES
@pytest.mark.parametrize("sampler", ["faithful", "corrected"])
def test_the_loss_is_the_papers(loss: str, sampler: str) -> None:
    algorithm = built(loss=loss, masking=MultiBlockMasking(min_keep=4, sampler=sampler))  # type: ignore[arg-type]
    for step in (0, 1):
        inputs = prepared(algorithm, step)
        assert float(algorithm(inputs, clock(step)).loss.detach()) == pytest.approx(
            reference(algorithm, inputs), rel=1e-11
        )


def test_both_branches_of_smooth_l1_are_met() -> None:
    algorithm = built(loss="smooth-l1")
    inputs = prepared(algorithm)
    small = float(algorithm(inputs, clock()).loss.detach())
    with torch.no_grad():
        algorithm.predictor.head.bias.add_(100.0)
    far = float(algorithm(inputs, clock()).loss.detach())
    assert 0 < small < 5
    assert far == pytest.approx(99.5, abs=0.5)  # 100 less a half, by the targets' own mean of 0


@BOTH_LOSSES
def test_gradients_are_those_of_single_images(loss: str) -> None:
    """The mean of the losses of images alone, each with its own masks."""
    algorithm = built(loss=loss)
    inputs = prepared(algorithm)
    algorithm(inputs, clock()).loss.backward()
    together = {name: p.grad.clone() for name, p in algorithm.named_parameters() if p.grad is not None}
    algorithm.zero_grad()
    for image in range(BATCH):
        row = slice(image, image + 1)
        one = {name: value[:, row] if name == "targets" else value[row] for name, value in inputs.items()}
        (algorithm(one, clock()).loss / BATCH).backward()
    for name, parameter in algorithm.named_parameters():
        if parameter.requires_grad:
            assert together[name].abs().max() > 0 or "qkv.bias" in name, name
            torch.testing.assert_close(together[name], parameter.grad, rtol=1e-9, atol=1e-12)


def test_no_gradient_reaches_the_target_encoder() -> None:
    algorithm = built()
    algorithm(prepared(algorithm), clock()).loss.backward()
    assert all(p.grad is None and not p.requires_grad for p in algorithm.target_encoder.parameters())
    moved = [p for part in (algorithm.context_encoder, algorithm.predictor) for p in part.parameters()]
    assert {id(p) for p in algorithm.trainable()} == {id(p) for p in moved}
    assert all(p.grad is not None for p in moved)


def test_the_context_encoder_sees_no_patch_but_the_contexts() -> None:
    """By the derivatives with respect to pixels: those of the context alone have one, though the targets depend on
    all, since no gradient passes the target encoder."""
    algorithm = built()
    inputs = prepared(algorithm)
    inputs["image"].requires_grad_()
    algorithm(inputs, clock()).loss.backward()
    gradient = inputs["image"].grad
    assert gradient is not None
    touched = (gradient.abs().amax(dim=1) > 0).numpy()
    np.testing.assert_array_equal(touched, patches_of(inputs["context"]))
    assert not (touched & patches_of(inputs["targets"].permute(1, 0, 2).flatten(1))).any()


def test_predictions_do_not_depend_on_hidden_pixels_but_targets_do() -> None:
    algorithm = built()
    inputs = prepared(algorithm)
    said: list[Tensor] = []
    algorithm.predictor.register_forward_hook(lambda module, given, made: said.append(made.detach()))
    hidden = torch.from_numpy(~patches_of(inputs["context"])).unsqueeze(1)
    changed = inputs | {"image": torch.where(hidden, 1 - inputs["image"], inputs["image"])}
    first, second = (algorithm(each, clock()).loss.detach() for each in (inputs, changed))
    assert torch.equal(said[0], said[1])
    assert abs(float(first - second)) > 1e-3


def test_targets_depend_on_the_whole_image() -> None:
    """With predictions that are constant, a change of the context alone changes the loss: through the target encoder,
    which sees it; the context encoder's weights do not matter then."""
    algorithm = built()
    inputs = prepared(algorithm)
    with torch.no_grad():
        algorithm.predictor.head.weight.zero_()
        algorithm.predictor.head.bias.copy_(torch.linspace(-1, 1, 8))
        seen = torch.from_numpy(patches_of(inputs["context"])).unsqueeze(1)
        changed = inputs | {"image": torch.where(seen, 1 - inputs["image"], inputs["image"])}
        before, after = algorithm(inputs, clock()).loss, algorithm(changed, clock()).loss
        assert abs(float(before - after)) > 1e-4
        for parameter in algorithm.context_encoder.parameters():
            parameter.add_(0.1)
        assert algorithm(inputs, clock()).loss == before


def test_the_target_encoder_begins_as_the_context_encoder() -> None:
    algorithm = IJEPA(config(), DATA)
    for name, value in algorithm.context_encoder.state_dict().items():
        assert torch.equal(value, algorithm.target_encoder.state_dict()[name])
        assert value.data_ptr() != algorithm.target_encoder.state_dict()[name].data_ptr()
    assert {name.split(".")[0] for name in algorithm.state_dict()} == {"context_encoder", "target_encoder", "predictor"}


@pytest.mark.parametrize("step", [0, 10, 39])
def test_the_target_encoder_follows_the_context_encoder_that_has_just_moved(step: int) -> None:
    algorithm = built()
    algorithm(prepared(algorithm), clock(step))
    before = copy.deepcopy(algorithm.target_encoder.state_dict())
    with torch.no_grad():
        for parameter in algorithm.context_encoder.parameters():
            parameter.add_(1.0)
    algorithm.before_step(clock(step))
    assert all(torch.equal(v, before[name]) for name, v in algorithm.target_encoder.state_dict().items())
    algorithm.after_step(clock(step))
    momentum = 0.996 + 0.004 * step / 40  # a straight line that would reach 1 at step 40, after the last
    for name, value in algorithm.target_encoder.state_dict().items():
        expected = momentum * before[name] + (1 - momentum) * algorithm.context_encoder.state_dict()[name]
        torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-12)


def test_workers_prepare_their_rows_of_the_same_batch() -> None:
    algorithm = built()

    def prepare(rows: range, step: int = 3) -> Any:
        return algorithm.prepare({"image": images()[rows.start : rows.stop]}, clock(step), Random(7, step, rows))

    whole, parts = prepare(range(BATCH)), [prepare(range(a, a + 2)) for a in range(0, BATCH, 2)]
    assert set(whole) == {"image", "context", "targets", "overlapping"}
    for name, value in whole.items():
        axis = 1 if name == "targets" else 0
        assert torch.equal(value, torch.cat([part[name] for part in parts], dim=axis)), name
    for name in ("image", "targets"):
        other = prepare(range(BATCH), step=4)[name]
        assert other.shape != whole[name].shape or not torch.equal(other, whole[name]), name


def test_the_view_is_a_crop_and_nothing_else() -> None:
    """Images of one colour stay it, and a picture that rises from left to right does so in every view."""
    algorithm = built(augmentation=replace(IJEPA.Config().augmentation, size=SIDE))
    colours = torch.arange(BATCH * 3, dtype=torch.uint8).mul(10).view(BATCH, 3, 1, 1).expand(-1, -1, SIDE, SIDE)
    random = Random(7, 0, range(BATCH))
    view = algorithm.prepare({"image": colours.contiguous()}, clock(), random)["image"]
    torch.testing.assert_close(view, colours / 255, rtol=0, atol=1e-6)
    ramp = torch.arange(0, 16 * SIDE, 16, dtype=torch.uint8).expand(BATCH, 3, SIDE, SIDE).contiguous()
    view = algorithm.prepare({"image": ramp}, clock(), random)["image"]
    assert (view.diff(dim=3) >= -1e-6).all()
    assert (view[..., -1] - view[..., 0]).min() > 0.3
    assert len({float(row[0, 0, 0]) for row in view}) > 3  # crops begin at different places


def test_weights_and_the_mask_token_decay() -> None:
    algorithm = built()
    groups = {group.name: group for group in algorithm.parameter_groups()}
    names = {id(p): name for name, p in algorithm.named_parameters()}
    decayed = {names[id(p)] for p in groups["weights"].parameters}
    free = {names[id(p)] for p in groups["bias_and_norm"].parameters}
    assert groups["weights"].regularized
    assert not groups["bias_and_norm"].regularized
    assert "predictor.mask_tokens" in decayed
    assert all(name.endswith("bias") or "norm" in name for name in free)
    assert not any(name.endswith("bias") or "norm" in name for name in decayed)
    assert not any("target_encoder" in name or "pos" in name for name in decayed | free)
    assert len(decayed | free) == len(list(algorithm.trainable()))


@pytest.mark.parametrize("how", ["trunc-normal", "trunc-normal-by-depth"])
def test_both_networks_begin_in_the_same_way(how: str) -> None:
    torch.manual_seed(0)
    wide = config(backbone=backbone(width=64, heads=4, initialization=how), predictor_width=96)
    algorithm = IJEPA(wide, DATA)
    for network in (algorithm.context_encoder, algorithm.predictor):
        for number, block in enumerate(network.blocks):
            last = 0.02 / math.sqrt(2 * (number + 1)) if how == "trunc-normal-by-depth" else 0.02
            within, ends = (block.attn.qkv, block.mlp.fc1), (block.attn.proj, block.mlp.fc2)
            for layer, std in [(layer, 0.02) for layer in within] + [(layer, last) for layer in ends]:
                assert float(layer.weight.detach().std()) == pytest.approx(std, rel=0.05)
                assert not layer.bias.any()
    assert float(algorithm.predictor.mask_tokens.detach().std()) == pytest.approx(0.02, rel=0.3)
    assert len(algorithm.predictor.blocks) == 2
    assert algorithm.predictor.blocks[0].attn.heads == 4
    assert IJEPA(config(predictor_heads=3), DATA).predictor.blocks[0].attn.heads == 3


def test_the_predictor_knows_places_by_sines_and_cosines() -> None:
    """Row r and column c of its grid of 8 x 8, with 3 frequencies 10000^(-k / 3) in 12 dimensions."""
    positions = built().predictor.positions
    assert positions.shape == (64, 12)
    for place in (0, 7, 8, 63):
        row, column = divmod(place, 8)
        angles = [[where / 10000 ** (k / 3) for k in range(3)] for where in (row, column)]
        expected = [f(x) for axis in angles for f in (math.sin, math.cos) for x in axis]
        np.testing.assert_allclose(positions[place].numpy(), expected, atol=1e-6)


def test_metrics() -> None:
    algorithm = built()
    inputs = prepared(algorithm)
    metrics = algorithm(inputs, clock()).metrics
    with torch.no_grad():
        seen = algorithm.context_encoder.tokens(inputs["image"], visible=inputs["context"]).patches.mean(dim=1).numpy()
        whole = algorithm.target_encoder.tokens(inputs["image"]).patches.numpy()
    normal = (whole - whole.mean(axis=2, keepdims=True)) / np.sqrt(whole.var(axis=2, keepdims=True) + 1e-5)
    unit = seen / np.linalg.norm(seen, axis=1, keepdims=True)
    assert float(metrics["feature_std"]) == pytest.approx(unit.std(axis=0).mean() * math.sqrt(8), rel=1e-9)
    from_places = normal.mean(axis=0)  # the best prediction that does not look at the image
    assert float(metrics["target_std"]) ** 2 == pytest.approx(((normal - from_places) ** 2).mean(), rel=1e-9)
    assert 0.1 < float(metrics["target_std"]) < 1
    assert int(metrics["context_patches"]) == inputs["context"].shape[1]
    assert float(metrics["context_overlap"]) == 0.0
    inputs["overlapping"] = torch.tensor([1.0, 0.0, 0.0, 1.0, 1.0, 0.0], dtype=torch.float64)
    assert float(algorithm(inputs, clock()).metrics["context_overlap"]) == 0.5
    assert not any(value.requires_grad for value in metrics.values())


def test_contexts_that_overlap_targets_are_counted() -> None:
    """4 x 4 patches leave the faithful sampler little choice."""
    algorithm = built(backbone=backbone(patch_size=4), masking=MultiBlockMasking(min_keep=3))
    shares = [float(algorithm(prepared(algorithm, step), clock(step)).metrics["context_overlap"]) for step in range(8)]
    assert max(shares) > 0
    assert all(share * BATCH == pytest.approx(round(share * BATCH)) for share in shares)


def test_the_loss_is_computed_in_float32_under_autocast() -> None:
    algorithm = IJEPA(config(), DATA)
    inputs = algorithm.prepare({"image": images()}, clock(), Random(7, 0, range(BATCH)))
    exact = algorithm(inputs, clock()).loss
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = algorithm(inputs, clock()).loss
    assert (exact.dtype, rough.dtype) == (torch.float32, torch.float32)
    assert float(rough.detach()) == pytest.approx(float(exact.detach()), rel=0.02)


def test_probes_see_the_target_encoder_and_beside_it_the_context_encoder() -> None:
    algorithm = built().float().eval()
    x = images(3)
    whole = x.float() / 255
    with torch.no_grad():
        tokens = algorithm.target_encoder.sequence(whole)
        assert tokens.shape == (3, 64, 8)
        torch.testing.assert_close(algorithm.features(x), tokens.mean(dim=1))
        assert torch.equal(algorithm.token_features(x), tokens)
        other = algorithm.other_features()
        assert set(other) == {"context_encoder"}
        torch.testing.assert_close(other["context_encoder"](x), algorithm.context_encoder.sequence(whole).mean(dim=1))
        assert not torch.allclose(other["context_encoder"](x), algorithm.features(x))
        maps = algorithm.attention_maps(x)
        assert maps is not None
        assert maps.shape == (3, 2, 8, 8)
        random = Random(7, 3, range(3))
        first, second = algorithm.view_pair({"image": x}, random)
        for found, scope in ((first, "first"), (second, "second")):
            expected = algorithm.target_encoder.sequence(CROP(x, random.within(scope))).mean(dim=1)
            torch.testing.assert_close(found, expected)
        assert not torch.allclose(first, second)


def test_pictures_show_what_each_network_is_given() -> None:
    algorithm = built().float()
    x = images(4)
    panels = algorithm.pictures({"image": x}, Random(7, -1, range(4)))["masks"]
    assert panels.titles == ("image", "context", "target 1", "target 2", "target 3", "target 4")
    assert panels.images.shape == (4, 6, 3, SIDE, SIDE)
    whole = x.float() / 255
    assert torch.equal(panels.images[:, 0], whole)
    shown = (panels.images[:, 1:] == whole.unsqueeze(1)).all(dim=2)
    grey = (panels.images[:, 1:] == 0.5).all(dim=2)
    assert (shown ^ grey).all()
    blocks = shown.view(4, 5, 8, PATCH, 8, PATCH).permute(0, 1, 2, 4, 3, 5).flatten(4)
    assert (blocks.all(dim=4) == blocks.any(dim=4)).all()  # whole patches
    counts = blocks.all(dim=4).flatten(2).sum(dim=2)
    assert (counts[:, 0] == counts[0, 0]).all()
    assert (counts[:, 1:] == counts[0, 1]).all()
    assert not (shown[:, 0] & shown[:, 1:].any(dim=1)).any()


def test_a_collapse_is_named() -> None:
    algorithm = built()
    healthy = {"feature_std": 0.5, "target_std": 0.4}
    assert algorithm.diagnose(healthy) is None
    assert algorithm.diagnose({}) is None
    assert "the features of all samples are nearly alike" in str(algorithm.diagnose(healthy | {"feature_std": 0.01}))
    assert "the targets of all images are nearly alike" in str(algorithm.diagnose(healthy | {"target_std": 0.01}))


def test_targets_that_say_the_place_alone_are_noticed() -> None:
    """A target encoder that does not look at the image: what it says differs from place to place only."""
    algorithm = built()
    with torch.no_grad():
        algorithm.target_encoder.patch_embed.proj.weight.zero_()
    metrics = {name: float(value) for name, value in algorithm(prepared(algorithm), clock()).metrics.items()}
    assert metrics["target_std"] < 1e-6
    assert "the targets of all images are nearly alike" in str(algorithm.diagnose(metrics))


def test_training_lowers_the_loss() -> None:
    torch.manual_seed(0)
    digits = torch.tensor(load_digits().images[:32] * 15.9, dtype=torch.uint8).unsqueeze(1)
    c = config(
        backbone=backbone(width=16),
        masking=MultiBlockMasking(min_keep=2, sampler="corrected"),
        augmentation=replace(CROP, size=8, crop_area=(0.6, 1.0)),
        teacher_momentum=Ramp(start=0.95, end=1.0, shape="linear"),
    )
    algorithm = IJEPA(c, DataSpec(image_shape=(1, 8, 8), classes=None))
    optimizer = AdamW(learning_rate=0.004, per=None).build(algorithm.parameter_groups(), 32)
    losses = []
    for step in range(40):
        now = Clock(step=step, total_steps=40, steps_per_epoch=1, batch_size=32)
        made = algorithm(algorithm.prepare({"image": digits}, now, Random(0, step, range(32))), now)
        optimizer.zero_grad()
        made.loss.backward()
        optimizer.step()
        algorithm.after_step(now)
        losses.append(float(made.loss.detach()))
    assert np.mean(losses[-5:]) < 0.7 * np.mean(losses[:3])


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"backbone": backbone(class_token=True)}, "I-JEPA has no class token"),
        ({"backbone": backbone(class_token=True, pool="cls")}, "I-JEPA has no class token"),
        ({"backbone": backbone(mask_token=True)}, "never see a mask token"),
        ({"predictor_width": 0}, "predictor_width is 0"),
        ({"predictor_depth": 0}, "predictor_depth is 0"),
        ({"predictor_heads": -1}, "predictor_heads is -1"),
        ({"predictor_width": 14}, "a multiple of 4, for its positions, and of its 2 attention heads"),
        ({"predictor_heads": 5}, "of its 5 attention heads"),
        ({"teacher_momentum": Ramp(start=1.2, end=1.0)}, r"teacher_momentum\.start is 1\.2"),
        ({"teacher_momentum": Ramp(start=0.9, end=math.nan)}, r"teacher_momentum\.end is nan"),
    ],
)
def test_numbers_out_of_range_are_refused(bad: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config(**bad)


def test_what_does_not_fit_the_images_is_refused_before_training() -> None:
    with pytest.raises(ValueError, match="do not divide"):
        IJEPA(config(backbone=backbone(patch_size=3)), DATA)
    with pytest.raises(ValueError, match="on a grid of 4 x 4 patches a context may have no more than"):
        IJEPA(config(backbone=backbone(patch_size=4), masking=MultiBlockMasking()), DATA)
