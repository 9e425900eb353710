from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from torch import Tensor

from heliostat_algorithms.algorithm import Clock, DataSpec
from heliostat_algorithms.augmentation import ViewAugmentation
from heliostat_algorithms.augmentation.multi_crop import MultiCrop
from heliostat_algorithms.backbones import ResNet18, ViTLarge, ViTTiny
from heliostat_algorithms.masking.blocks import BlockMasking
from heliostat_algorithms.optimizers import AdamW
from heliostat_algorithms.randomness import Random
from heliostat_algorithms.representation.dinov2 import DINOv2, Head
from heliostat_algorithms.representation.simclr import SimCLR
from heliostat_algorithms.schedules import Ramp

BATCH = 6
DATA = DataSpec(image_shape=(3, 12, 12), classes=None)
SMALL = Head(prototypes=7, hidden=8, bottleneck=5)
CENTRING = {"centering": "centring"}
UNTIED = {"patch_head": Head(prototypes=9, hidden=6, bottleneck=4)}


def clock(step: int = 0, steps_per_epoch: int = 4) -> Clock:
    return Clock(step=step, total_steps=40, steps_per_epoch=steps_per_epoch, batch_size=BATCH)


def backbone(**options: Any) -> ViTTiny:
    return ViTTiny(**{"width": 8, "depth": 2, "heads": 2, "patch_size": 2, "mask_token": True, **options})


def views(size: int = 12, local_crops: int = 2) -> MultiCrop:
    large = ViewAugmentation(size=size, crop_area=(0.4, 1.0))
    small = ViewAugmentation(size=6, crop_area=(0.1, 0.4))
    return MultiCrop(first_global=large, second_global=large, local=small, local_crops=local_crops)


def config(**options: Any) -> DINOv2.Config:
    return DINOv2.Config(**{"backbone": backbone(), "views": views(), "head": SMALL, **options})


def built(seed: int = 0, **options: Any) -> DINOv2:
    """In float64, with a teacher that differs from the student and weights under which images differ."""
    torch.manual_seed(seed)
    algorithm = DINOv2(config(**options), DATA).double()
    with torch.no_grad():
        for parameter in algorithm.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4.0).add_(0.1 * torch.randn_like(parameter))
        for name, buffer in algorithm.named_buffers():
            if "centre" in name:
                buffer.normal_(std=0.1)
    return algorithm


def images(count: int = BATCH, side: int = 12) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(256, (count, 3, side, side), generator=generator, dtype=torch.uint8)


def prepared(algorithm: DINOv2, step: int = 0) -> dict[str, Tensor]:
    inputs = algorithm.prepare({"image": images()}, clock(step), Random(7, step, range(BATCH)))
    return {name: value.double() if value.is_floating_point() else value for name, value in inputs.items()}


def numbers(logits: Tensor) -> NDArray[np.float64]:
    return logits.detach().numpy()


def softmax(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    exponentials = np.exp(scores - scores.max(axis=1, keepdims=True))
    result: NDArray[np.float64] = exponentials / exponentials.sum(axis=1, keepdims=True)
    return result


def equalised(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Sinkhorn-Knopp, as in the official code: a matrix scaled by columns and rows in turn."""
    q = np.exp(scores)
    for _ in range(3):
        q = q / q.sum(axis=0, keepdims=True) / q.shape[1]
        q = q / q.sum(axis=1, keepdims=True) / q.shape[0]
    return q * q.shape[0]


def reference(algorithm: DINOv2, inputs: dict[str, Tensor], step: int) -> dict[str, float]:
    """The three losses by the paper's formulas, one pair of crops and one patch at a time. Of the algorithm only the
    networks are used."""
    c, student, teacher = algorithm.config, algorithm.student, algorithm.teacher
    temperature = 0.04 + 0.03 * min(step / (30 * 4 - 1), 1.0)
    masked = inputs["masked"].numpy()
    where = [tuple(place) for place in np.argwhere(masked).tolist()]

    def logits(network: Any, cls: Tensor, patches: Tensor) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        chosen = torch.stack([patches[place] for place in where])
        return numbers(network.head(cls)), numbers((network.patch_head or network.head)(chosen))

    with torch.no_grad():
        seen = teacher.backbone.tokens(inputs["global"])
        t, t_patches = logits(teacher, seen.feature, seen.patches)
        seen = student.backbone.tokens(inputs["global"], masked=inputs["masked"], keep=inputs.get("global_keep"))
        s, s_patches = logits(student, seen.feature, seen.patches)
        local = student.backbone(inputs["local"], inputs.get("local_keep"))
        s_local = numbers(student.head(local))
    if c.centering == "centring":
        centre, patch_centre = numbers(algorithm.centre), numbers(algorithm.patch_centre)
        q, q_patches = softmax((t - centre) / temperature), softmax((t_patches - patch_centre) / temperature)
    else:
        q, q_patches = equalised(t / temperature), equalised(t_patches / temperature)

    def cross_entropy(target: NDArray[np.float64], scores: NDArray[np.float64]) -> float:
        return -float((target * np.log(softmax(scores / 0.1))).sum(axis=1).mean())

    B, L = BATCH, len(s_local) // BATCH
    crops = [s[:B], s[B:], *(s_local[i * B : (i + 1) * B] for i in range(L))]
    terms = 2 + 2 * L
    large = (cross_entropy(q[:B], crops[1]) + cross_entropy(q[B:], crops[0])) / terms
    small = sum(cross_entropy(target, crop) for crop in crops[2:] for target in (q[:B], q[B:])) / terms
    ibot = 0.0
    for crop in range(2 * B):
        own = [i for i, place in enumerate(where) if place[0] == crop]
        if own:
            ibot += sum(cross_entropy(q_patches[[i]], s_patches[[i]]) for i in own) / len(own) / (2 * B)
    apart = 0.0
    for one_crop in numbers(seen.feature).reshape(2, B, -1):
        unit = one_crop / np.linalg.norm(one_crop, axis=1, keepdims=True)
        nearest = [min(np.linalg.norm(a - b) for j, b in enumerate(unit) if j != i) for i, a in enumerate(unit)]
        apart += -float(np.log(np.array(nearest) + 1e-8).mean())
    loss = large + small + c.ibot_weight * ibot + c.koleo_weight * apart
    return {"loss": loss, "dino_global": large, "dino_local": small, "ibot": ibot, "koleo": apart}


def test_defaults_are_the_official_recipe_for_imagenet_with_the_papers_sinkhorn() -> None:
    c = DINOv2.Config()
    assert c.type == "dinov2"
    assert c.backbone == ViTLarge(patch_size=16, layer_scale=1e-5, interpolation_offset=0.1, mask_token=True)
    assert (c.centering, c.patch_head, c.centre_momentum) == ("sinkhorn-knopp", None, 0.9)
    assert c.head == Head(prototypes=65536, hidden=2048, bottleneck=256, layers=3, frozen_gain=False)
    assert c.masking == BlockMasking(probability=0.5, ratio=(0.1, 0.5), aspect=(0.3, 1 / 0.3), smallest_block=4)
    assert (c.student_temperature, c.teacher_temperature_start, c.teacher_temperature_end) == (0.1, 0.04, 0.07)
    assert (c.teacher_temperature_warmup_epochs, c.freeze_last_layer_epochs) == (30.0, 1.0)
    assert c.teacher_momentum == Ramp(start=0.992, end=1.0)
    assert (c.ibot_weight, c.koleo_weight, c.drop_path) == (1.0, 0.1, 0.3)
    assert (c.layer_decay, c.patch_embedding_scale) == (0.9, 0.2)
    crops = (c.views.first_global, c.views.second_global, c.views.local)
    assert c.views.local_crops == 8
    assert [(crop.size, crop.crop_area) for crop in crops] == [(224, (0.32, 1.0))] * 2 + [(96, (0.05, 0.32))]
    assert [crop.blur.probability for crop in crops] == [1.0, 0.1, 0.5]
    assert [crop.blur.kernel_size(crop.size or 0) for crop in crops] == [9, 9, 9]
    assert [crop.solarize for crop in crops] == [0.0, 0.2, 0.0]
    with torch.device("meta"):
        algorithm = DINOv2(c, DataSpec(image_shape=(3, 256, 256), classes=1000))
    assert algorithm.grid == (14, 14)
    assert algorithm.drop_rates == [0.3] * 48
    assert sum(p.numel() for p in algorithm.student.backbone.parameters()) == 303_301_632 + 2 * 24 * 1024 + 1024


@pytest.mark.parametrize("options", [{}, CENTRING, UNTIED, CENTRING | UNTIED, {"drop_path": 0.0}], ids=str)
def test_the_losses_follow_the_papers_formulas(options: dict[str, Any]) -> None:
    algorithm = built(**options)
    step = 60  # half of the temperature's warm-up
    inputs = prepared(algorithm, step)
    assert ("global_keep" in inputs) == (algorithm.config.drop_path > 0)
    made = algorithm(inputs, clock(step))
    expected = reference(algorithm, inputs, step)
    assert made.loss.item() == pytest.approx(expected.pop("loss"), rel=1e-9)
    for name, value in expected.items():
        assert made.metrics[name].item() == pytest.approx(value, rel=1e-9), name
        assert not made.metrics[name].requires_grad
    assert set(made.metrics) == {
        *expected,
        "feature_std",
        "teacher_entropy",
        "teacher_kl_uniform",
        "kl_teacher_student",
    }
    made.loss.backward()
    assert all(p.grad is not None for p in algorithm.student.parameters())
    assert all(p.grad is None for p in algorithm.teacher.parameters())


def test_weights_scale_the_losses_and_zero_leaves_them_out() -> None:
    algorithm = built(ibot_weight=0.5, koleo_weight=2.0)
    inputs = prepared(algorithm)
    expected = reference(algorithm, inputs, 0)
    assert algorithm(inputs, clock()).loss.item() == pytest.approx(expected["loss"], rel=1e-9)

    alone = built(ibot_weight=0.0, koleo_weight=0.0, backbone=backbone(mask_token=False), views=views(local_crops=0))
    inputs = prepared(alone)
    assert not {"masked", "places", "local", "local_keep"} & set(inputs)
    made = alone(inputs, clock())
    assert made.loss.item() == pytest.approx(made.metrics["dino_global"].item(), rel=1e-12)
    assert {"ibot", "koleo"}.isdisjoint(made.metrics)


def rows_of_heads(algorithm: DINOv2) -> dict[str, list[int]]:
    """How many rows pass each head, in each of its passes to come."""
    rows: dict[str, list[int]] = {}
    for name, head in algorithm.named_modules():
        if name.endswith("head"):
            head.register_forward_pre_hook(lambda _, x, name=name: rows.setdefault(name, []).append(len(x[0])))
    return rows


def test_heads_compute_only_what_the_losses_use() -> None:
    for options in ({}, UNTIED):
        algorithm = built(**options)
        inputs = prepared(algorithm)
        hidden = int(inputs["masked"].sum())
        assert 0 < hidden < 0.5 * inputs["masked"].numel()
        rows = rows_of_heads(algorithm)
        algorithm(inputs, clock())
        if options:
            assert rows == {
                "teacher.head": [12],
                "teacher.patch_head": [hidden],
                "student.head": [24],
                "student.patch_head": [hidden],
            }
        else:
            assert rows == {"teacher.head": [12 + hidden], "student.head": [24 + hidden]}


def test_only_the_student_misses_patches_and_branches() -> None:
    algorithm = built()
    inputs = prepared(algorithm)
    seen: dict[str, Any] = {}
    for name in ("student", "teacher"):
        encoder = getattr(algorithm, name).backbone
        real = encoder.tokens

        def tokens(x: Tensor, name: str = name, real: Any = real, **options: Any) -> Any:
            seen[name] = (x, options)
            return real(x, **options)

        encoder.tokens = tokens
    algorithm(inputs, clock())
    assert torch.equal(seen["student"][0], seen["teacher"][0])
    assert seen["teacher"][1] == {}
    assert seen["student"][1]["masked"] is inputs["masked"]
    assert seen["student"][1]["keep"] is inputs["global_keep"]


def test_inputs_are_drawn_from_the_step_and_the_rows() -> None:
    algorithm = built()

    def prepare(rows: range, step: int = 3) -> Any:
        return algorithm.prepare({"image": images()[rows.start : rows.stop]}, clock(step), Random(7, step, rows))

    whole, parts = prepare(range(BATCH)), [prepare(range(a, a + 2)) for a in range(0, BATCH, 2)]
    crops = {"global": 2, "local": 2, "masked": 2, "global_keep": 2, "local_keep": 2}
    assert set(whole) == {*crops, "places"}
    for name, count in crops.items():
        pieces = [part[name].view(count, 2, *part[name].shape[1:]) for part in parts]
        assert torch.equal(whole[name], torch.cat(pieces, dim=1).flatten(0, 1)), name
        assert not torch.equal(whole[name], prepare(range(BATCH), step=4)[name]), name
    assert torch.equal(whole["places"], whole["masked"].flatten().nonzero().squeeze(1))
    assert int(whole["masked"].any(dim=1).sum()) == BATCH  # half of the 2 * BATCH crops
    keep = whole["global_keep"].view(2, BATCH, 4)
    assert ((keep > 0).sum(dim=1) == round(0.7 * BATCH)).all()
    assert keep.device.type == "cpu"
    assert not torch.equal(keep[0], keep[1])


def test_the_teachers_temperature_rises_in_a_straight_line() -> None:
    c = config(teacher_temperature_warmup_epochs=3.0)
    found = [c.teacher_temperature(clock(step)) for step in range(20)]
    np.testing.assert_allclose(found[:12], np.linspace(0.04, 0.07, 12), rtol=1e-12)
    np.testing.assert_allclose(found[12:], 0.07, rtol=1e-12)
    assert config(teacher_temperature_warmup_epochs=0.0).teacher_temperature(clock()) == 0.07


def test_the_teacher_follows_the_student_that_has_just_moved() -> None:
    algorithm = built()
    algorithm(prepared(algorithm), clock(10))
    before = copy.deepcopy(algorithm.teacher.state_dict())
    with torch.no_grad():
        for parameter in algorithm.student.parameters():
            parameter.add_(1.0)
    algorithm.after_step(clock(10))
    momentum = 1.0 - 0.008 * (math.cos(math.pi * 10 / 40) + 1) / 2
    for name, value in algorithm.teacher.state_dict().items():
        expected = momentum * before[name] + (1 - momentum) * algorithm.student.state_dict()[name]
        torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-12)


def test_centres_take_in_the_teachers_outputs_after_their_use() -> None:
    algorithm = built(**CENTRING, **UNTIED)
    inputs = prepared(algorithm)
    before = {name: getattr(algorithm, name).clone() for name in ("centre", "patch_centre")}
    with torch.no_grad():
        seen = algorithm.teacher.backbone.tokens(inputs["global"])
        outputs = {
            "centre": algorithm.teacher.head(seen.feature),
            "patch_centre": algorithm.teacher.patch_head(seen.patches[inputs["masked"]]),  # type: ignore[misc]
        }
    algorithm(inputs, clock())
    assert all(torch.equal(getattr(algorithm, name), value) for name, value in before.items())
    algorithm.after_step(clock())
    for name, old in before.items():
        expected = 0.9 * old + 0.1 * outputs[name].mean(dim=0, keepdim=True)
        torch.testing.assert_close(getattr(algorithm, name), expected, rtol=1e-12, atol=1e-12)
        assert name in algorithm.state_dict()
    moved = algorithm.centre.clone()
    algorithm.after_step(clock(1))  # no forward pass since: nothing to take in
    assert torch.equal(algorithm.centre, moved)
    assert not any("centre" in name for name in built().state_dict())


def test_without_a_hidden_patch_the_patches_centre_stays() -> None:
    algorithm = built(**CENTRING)
    inputs = prepared(algorithm)
    inputs |= {"masked": torch.zeros_like(inputs["masked"]), "places": inputs["places"][:0]}
    before = algorithm.patch_centre.clone()
    made = algorithm(inputs, clock())
    algorithm.after_step(clock())
    assert made.metrics["ibot"].item() == 0.0
    assert torch.equal(algorithm.patch_centre, before)


@pytest.mark.parametrize("options", [{}, UNTIED], ids=str)
def test_prototypes_stay_in_the_first_epoch(options: dict[str, Any]) -> None:
    algorithm = built(**options)
    optimizer = AdamW(learning_rate=0.1, per=None, weight_decay=0.4).build(algorithm.parameter_groups(), BATCH)
    start = copy.deepcopy(algorithm.student.state_dict())
    for step in range(5):
        optimizer.zero_grad()
        algorithm(prepared(algorithm, step), clock(step)).loss.backward()
        algorithm.after_backward(clock(step))
        optimizer.step()
        moved = {name for name, value in algorithm.student.state_dict().items() if not torch.equal(value, start[name])}
        still = {name for name in start if "last_layer" in name}
        assert len(still) == 2 * (1 + len(options))
        assert moved == (set(start) - still if step < 4 else set(start))


def test_learning_rates_fall_towards_the_input() -> None:
    """The factors that the official code gives a network of two blocks, layer by layer."""
    algorithm = built(backbone=backbone(layer_scale=1e-5, registers=2), layer_decay=0.9, patch_embedding_scale=0.2)
    names = {id(parameter): name for name, parameter in algorithm.named_parameters()}
    found = {}
    for group in algorithm.parameter_groups():
        for parameter in group.parameters:
            assert id(parameter) in names
            assert names[id(parameter)] not in found
            found[names[id(parameter)]] = (group.learning_rate_scale, group.regularized)
    assert set(found) == {f"student.{name}" for name, _ in algorithm.student.named_parameters()}
    for name, (scale, regularized) in found.items():
        if "patch_embed" in name:
            expected = 0.9**3 * 0.2
        elif ".blocks." in name:
            expected = 0.9**2 if ".blocks.0." in name else 0.9
        elif "backbone.norm" in name or "head" in name:
            expected = 1.0
        else:
            assert name.rsplit(".", 1)[1] in ("cls_token", "pos_embed", "register_tokens", "mask_token")
            expected = 0.9**3
        assert scale == pytest.approx(expected), name
        assert regularized == (not (name.endswith("bias") or "norm" in name or "gamma" in name)), name
    assert len({group.name for group in algorithm.parameter_groups()}) == len(algorithm.parameter_groups())


def test_a_training_continues_with_everything() -> None:
    for options in ({}, CENTRING | UNTIED):
        first, second = built(0, **options), built(1, **options)
        second.begin_from(first)
        for name, value in second.state_dict().items():
            assert torch.equal(value, first.state_dict()[name])
        assert second.student.head.mlp[0].weight is not first.student.head.mlp[0].weight


def test_a_phase_at_a_higher_resolution_resamples_the_positions() -> None:
    """The new networks give, for images of the new size, what the old ones interpolate to."""
    vit = {"backbone": backbone(interpolation_offset=0.1, registers=1)}
    first, second = built(0, **vit), built(1, **vit, views=views(size=20))
    assert first.student.backbone.pos_embed.shape == (1, 37, 8)
    assert second.student.backbone.pos_embed.shape == (1, 101, 8)
    second.begin_from(first)
    x = torch.rand(2, 3, 20, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for name in ("student", "teacher"):
            old, new = getattr(first, name).backbone, getattr(second, name).backbone
            assert new.position_grid == (10, 10)
            torch.testing.assert_close(new(x), old(x), rtol=1e-12, atol=1e-12)
            assert torch.equal(new.pos_embed[:, 0], old.pos_embed[:, 0])
    assert not torch.equal(second.student.backbone.pos_embed, second.teacher.backbone.pos_embed)


def test_a_fixed_position_grid_is_taken_over_as_it_is() -> None:
    vit = {"backbone": backbone(position_grid=5)}
    first, second = built(0, **vit), built(1, **vit, views=views(size=20))
    second.begin_from(first)
    assert torch.equal(second.teacher.backbone.pos_embed, first.teacher.backbone.pos_embed)


def test_only_a_dinov2_of_the_same_shape_is_continued() -> None:
    simclr = SimCLR(SimCLR.Config(backbone=ResNet18(stem="cifar", width=4), projection_dim=4), DATA)
    with pytest.raises(ValueError, match="DINOv2 continues a DINOv2, not a SimCLR"):
        built().begin_from(simclr)
    with pytest.raises(ValueError, match="patch_head"):
        built().begin_from(built(**UNTIED))
    with pytest.raises(ValueError, match="size mismatch"):
        built().begin_from(built(head=Head(prototypes=8, hidden=8, bottleneck=5)))


def test_probes_see_the_teacher_and_beside_it_the_student() -> None:
    algorithm = built().eval()
    x = images(3)
    whole = x.float() / 255
    algorithm.float()
    with torch.no_grad():
        assert torch.equal(algorithm.features(x), algorithm.teacher.backbone(whole))
        other = algorithm.other_features()
        assert set(other) == {"student"}
        assert torch.equal(other["student"](x), algorithm.student.backbone(whole))
        assert not torch.equal(other["student"](x), algorithm.features(x))
        assert torch.equal(algorithm.attention_maps(x), algorithm.teacher.backbone.attention(whole))
        assert algorithm.attention_maps(x).shape == (3, 2, 6, 6)
        batch, random = {"image": images()}, Random(7, 3, range(BATCH))
        first, second = algorithm.view_pair(batch, random)
        crops = algorithm.prepare(batch, clock(3), random)["global"]
        torch.testing.assert_close(torch.cat([first, second]), algorithm.teacher.backbone(crops))


def test_a_collapse_is_named() -> None:
    algorithm = built()
    most = math.log(7)
    healthy = {"feature_std": 0.5, "teacher_entropy": 0.7 * most, "teacher_kl_uniform": 0.0, "kl_teacher_student": 0.3}
    assert algorithm.diagnose(healthy) is None
    assert "nearly alike" in str(algorithm.diagnose(healthy | {"feature_std": 0.01}))
    for name, sentence in (
        ("teacher_entropy", "says the same of all images"),
        ("teacher_kl_uniform", "all images one prototype"),
    ):
        extreme = healthy | {name: most - 1e-4}
        assert algorithm.diagnose(extreme) is None  # the student does not agree: it may be a beginning
        assert sentence in str(algorithm.diagnose(extreme | {"kl_teacher_student": 1e-4}))


@pytest.mark.parametrize("options", [{}, CENTRING], ids=str)
def test_networks_to_which_all_images_are_alike_are_noticed(options: dict[str, Any]) -> None:
    algorithm = built(**options)
    with torch.no_grad():
        for network in (algorithm.teacher, algorithm.student):
            network.backbone.norm.weight.zero_()  # every feature is the bias
        algorithm.student.head.last_layer.weight_g.zero_()
        if options:
            algorithm.centre.copy_(algorithm.teacher.head(algorithm.teacher.backbone.norm.bias[None]))
        metrics = algorithm(prepared(algorithm), clock()).metrics
    found = {name: float(value) for name, value in metrics.items()}
    assert "nearly alike" in str(algorithm.diagnose(found))
    assert "says the same of all images" in str(algorithm.diagnose(found | {"feature_std": 0.5}))


def test_layer_scales_beginning_is_no_collapse() -> None:
    """With factors of 1e-5 an untrained network is nearly the identity; once they have grown it is judged."""
    algorithm = DINOv2(config(backbone=backbone(layer_scale=1e-5)), DATA)
    metrics = algorithm(algorithm.prepare({"image": images()}, clock(), Random(7, 0, range(BATCH))), clock()).metrics
    assert metrics["feature_std"] < 0.001
    assert algorithm.diagnose({name: float(value) for name, value in metrics.items()}) is None
    with torch.no_grad():
        for name, parameter in algorithm.student.named_parameters():
            if name.endswith("gamma"):
                parameter.fill_(0.1)
    assert "nearly alike" in str(algorithm.diagnose({name: float(value) for name, value in metrics.items()}))


def test_training_lowers_the_losses() -> None:
    torch.manual_seed(0)
    digits = torch.tensor(load_digits().images[:32] * 15.9, dtype=torch.uint8).unsqueeze(1)
    large = ViewAugmentation(crop_area=(0.6, 1.0), flip=0.0)
    small = ViewAugmentation(size=4, crop_area=(0.2, 0.5), flip=0.0)
    c = config(
        backbone=backbone(width=16),
        views=MultiCrop(first_global=large, second_global=large, local=small, local_crops=2),
        head=Head(prototypes=32, hidden=16, bottleneck=8),
        drop_path=0.1,
        freeze_last_layer_epochs=0.0,
        teacher_momentum=Ramp(start=0.9, end=1.0),
    )
    algorithm = DINOv2(c, DataSpec(image_shape=(1, 8, 8), classes=None))
    optimizer = AdamW(learning_rate=0.003, per=None).build(algorithm.parameter_groups(), 32)
    losses = []
    for step in range(40):
        now = Clock(step=step, total_steps=40, steps_per_epoch=1, batch_size=32)
        made = algorithm(algorithm.prepare({"image": digits}, now, Random(0, step, range(32))), now)
        optimizer.zero_grad()
        made.loss.backward()
        algorithm.after_backward(now)
        optimizer.step()
        with torch.no_grad():
            algorithm.after_step(now)
        losses.append([made.loss.item(), made.metrics["ibot"].item(), made.metrics["koleo"].item()])
    first, last = np.mean(losses[:5], axis=0), np.mean(losses[-5:], axis=0)
    assert (last < first).all()


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"student_temperature": 0.0}, "student_temperature is 0"),
        ({"teacher_temperature_start": -1.0}, "teacher_temperature_start is -1"),
        ({"teacher_temperature_end": math.inf}, "teacher_temperature_end is inf"),
        ({"teacher_temperature_warmup_epochs": -1.0}, "teacher_temperature_warmup_epochs is -1"),
        ({"freeze_last_layer_epochs": -1.0}, "freeze_last_layer_epochs is -1"),
        ({"ibot_weight": -0.5}, "ibot_weight is -0"),
        ({"koleo_weight": math.nan}, "koleo_weight is nan"),
        ({"layer_decay": math.inf}, "layer_decay is inf"),
        ({"centre_momentum": 1.1}, "centre_momentum is 1"),
        ({"teacher_momentum": Ramp(start=1.2, end=1.0)}, "teacher_momentum"),
        ({"drop_path": 1.0}, "drop_path is 1"),
        ({"backbone": backbone(mask_token=False)}, "set its mask_token to true"),
        ({"ibot_weight": 0.0}, "without iBOT nothing is masked"),
        ({"ibot_weight": 0.0, "backbone": backbone(mask_token=False), **UNTIED}, "without iBOT nothing is masked"),
    ],
)
def test_numbers_out_of_range_are_refused(bad: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config(**bad)


@pytest.mark.parametrize("name", ["prototypes", "hidden", "bottleneck", "layers"])
def test_a_head_has_a_size(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} is 0"):
        Head(**{name: 0})


def test_patches_must_divide_all_crops() -> None:
    with pytest.raises(ValueError, match="do not divide"):
        DINOv2(config(backbone=backbone(patch_size=4)), DATA)  # 12 pixels yes, 6 no
    with pytest.raises(ValueError, match="do not divide"):
        DINOv2(config(backbone=backbone(patch_size=5)), DATA)
