from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from heliostat_algorithms.algorithm import Clock, DataSpec, Inputs
from heliostat_algorithms.augmentation.clips import ClipAugmentation
from heliostat_algorithms.backbones import ViTLarge, ViTTiny
from heliostat_algorithms.masking.tubes import TubeMasking
from heliostat_algorithms.randomness import Random
from heliostat_algorithms.representation.vjepa import VJEPA
from heliostat_algorithms.schedules import Ramp

B, T, SIZE, D = 4, 4, 16, 12
CLIPS = DataSpec(image_shape=(3, 20, 20), classes=None, frames=T)
IMAGES = DataSpec(image_shape=(3, 20, 20), classes=None)
VIT = ViTTiny(
    width=D,
    depth=2,
    heads=2,
    patch_size=4,
    class_token=False,
    pool="mean",
    positions="sincos",
    initialization="trunc-normal-by-depth",
)
GRID, N = (2, 4, 4), 32
KINDS = ("short_range", "long_range")


def clock(step: int = 0, total: int = 100, batch: int = B) -> Clock:
    return Clock(step=step, total_steps=total, steps_per_epoch=10, batch_size=batch)


def config(**options: Any) -> VJEPA.Config:
    small = {"backbone": VIT, "augmentation": ClipAugmentation(size=SIZE), "predictor_width": 12, "predictor_depth": 2}
    return VJEPA.Config(**{**small, **options})


def built(data: DataSpec = CLIPS, **options: Any) -> VJEPA:
    """In float64, with a target encoder that is not the context encoder, and mask tokens that are not 0."""
    torch.manual_seed(0)
    algorithm = VJEPA(config(**options), data).double()
    with torch.no_grad():
        for parameter in algorithm.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return algorithm


def batch(count: int = B) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    videos = torch.randint(256, (count, T, 3, 20, 20), generator=generator, dtype=torch.uint8)
    return {"video": videos, "image": videos[:, 1]}


def prepared(algorithm: VJEPA, step: int = 0) -> dict[str, Tensor]:
    inputs = algorithm.prepare(batch(), clock(step), Random(5, step, range(B)))
    return {name: value.double() if value.is_floating_point() else value for name, value in inputs.items()}


def naive(algorithm: VJEPA, inputs: Inputs) -> dict[str, float]:
    """One token of one clip at a time, in plain floats from what the networks say."""
    found = {}
    for mask_token, kind in enumerate(KINDS):
        differences = []
        for row in range(B):
            clip = inputs["clips"][row : row + 1]
            seen = inputs[f"{kind}_context"][row : row + 1]
            asked = inputs[f"{kind}_targets"][row : row + 1]
            whole = algorithm.target_encoder.tokens(clip)[0].tolist()
            predictions = algorithm.predictor(
                algorithm.context_encoder.tokens(clip, visible=seen), seen, asked, mask_token
            )[0].tolist()
            for prediction, place in zip(predictions, asked[0].tolist(), strict=True):
                token = whole[place]
                mean = sum(token) / D
                deviation = math.sqrt(sum((value - mean) ** 2 for value in token) / D + 1e-5)
                target = [(value - mean) / deviation for value in token]
                differences += [abs(p - t) for p, t in zip(prediction, target, strict=True)]
        found[kind] = sum(differences) / len(differences)
    return {"loss": (found[KINDS[0]] + found[KINDS[1]]) / 2, **found}


@pytest.mark.parametrize("sampler", ["faithful", "corrected"])
def test_the_loss_is_the_mean_distance_to_normalised_targets(sampler: Any) -> None:
    algorithm = built(
        short_range=TubeMasking(blocks=8, scale=0.15, sampler=sampler),
        long_range=TubeMasking(blocks=2, scale=0.7, sampler=sampler),
    )
    inputs = prepared(algorithm)
    step = algorithm(inputs, clock())
    with torch.no_grad():
        expected = naive(algorithm, inputs)
    assert step.loss.item() == pytest.approx(expected.pop("loss"), rel=1e-10)
    for name, value in expected.items():
        assert step.metrics[name].item() == pytest.approx(value, rel=1e-10), name
    assert expected["short_range"] != pytest.approx(expected["long_range"], rel=1e-3)


def test_metrics_describe_the_target_encoder_and_the_masks() -> None:
    algorithm = built()
    inputs = prepared(algorithm)
    metrics = algorithm(inputs, clock()).metrics
    with torch.no_grad():
        tokens = algorithm.target_encoder.tokens(inputs["clips"]).numpy()
    pooled = tokens.mean(axis=1)
    pooled = pooled / np.linalg.norm(pooled, axis=1, keepdims=True)
    assert metrics["feature_std"].item() == pytest.approx(pooled.std(axis=0).mean() * math.sqrt(D), rel=1e-10)
    unit = tokens / np.linalg.norm(tokens, axis=2, keepdims=True)
    spreads = [clip.std(axis=0).mean() * math.sqrt(D) for clip in unit]
    assert metrics["token_std"].item() == pytest.approx(sum(spreads) / B, rel=1e-10)
    for kind in KINDS:
        assert metrics[f"{kind}_visible"].item() == inputs[f"{kind}_context"].shape[1] / N
    assert not any(metric.requires_grad for metric in metrics.values())


def test_all_but_the_target_encoder_is_trained() -> None:
    algorithm = built()
    algorithm(prepared(algorithm), clock()).loss.backward()
    for name, parameter in algorithm.named_parameters():
        if name.startswith("target_encoder."):
            assert parameter.grad is None, name
            assert not parameter.requires_grad, name
        else:
            assert parameter.grad is not None, name
            assert parameter.grad.abs().max() > 1e-9, name
    assert {id(p) for p in algorithm.trainable()} == {
        id(p) for net in (algorithm.context_encoder, algorithm.predictor) for p in net.parameters()
    }


def calls_of(network: nn.Module) -> list[tuple[Any, ...]]:
    found: list[tuple[Any, ...]] = []
    network.register_forward_pre_hook(lambda module, inputs: found.append(inputs))
    return found


def test_each_kind_of_mask_has_a_mask_token_of_its_own() -> None:
    algorithm = built()
    inputs = prepared(algorithm)
    calls = calls_of(algorithm.predictor)
    step = algorithm(inputs, clock())
    assert [call[3] for call in calls] == [0, 1]
    for call, kind in zip(calls, KINDS, strict=True):
        assert torch.equal(call[1], inputs[f"{kind}_context"])
        assert torch.equal(call[2], inputs[f"{kind}_targets"])
    step.loss.backward()
    found = algorithm.predictor.mask_tokens.grad.clone()
    for number, kind in enumerate(KINDS):
        algorithm.zero_grad()
        with torch.no_grad():
            tokens = algorithm.target_encoder.tokens(inputs["clips"])
        targets = (tokens - tokens.mean(2, keepdim=True)) / (tokens.var(2, correction=0, keepdim=True) + 1e-5).sqrt()
        seen = algorithm.context_encoder.tokens(inputs["clips"], visible=inputs[f"{kind}_context"])
        places = inputs[f"{kind}_targets"]
        predictions = algorithm.predictor(seen, inputs[f"{kind}_context"], places, number)
        wanted = torch.stack([clip[where] for clip, where in zip(targets, places, strict=True)])
        ((predictions - wanted).abs().mean() / 2).backward()
        alone = algorithm.predictor.mask_tokens.grad
        assert not alone[1 - number].any()
        torch.testing.assert_close(alone[number], found[number], rtol=1e-9, atol=1e-12)
        assert found[number].abs().max() > 1e-6


@pytest.mark.parametrize("kind", KINDS)
def test_hidden_pixels_reach_the_targets_and_nothing_else(kind: str) -> None:
    algorithm = built()
    inputs = prepared(algorithm)
    predictions: list[Tensor] = []
    algorithm.predictor.register_forward_hook(lambda module, args, out: predictions.append(out))
    before = algorithm(inputs, clock())
    hidden = torch.ones(B, N, dtype=torch.bool).scatter_(1, inputs[f"{kind}_context"], False)
    pixels = hidden.view(B, 1, *GRID).repeat_interleave(2, 2).repeat_interleave(4, 3).repeat_interleave(4, 4)
    inputs["clips"] = torch.where(pixels, 1 - inputs["clips"], inputs["clips"])
    after = algorithm(inputs, clock())
    number = KINDS.index(kind)
    assert torch.equal(predictions[number], predictions[2 + number])
    assert not torch.equal(predictions[1 - number], predictions[3 - number])
    assert after.metrics[kind] != before.metrics[kind]


def test_masks_cover_the_clip_and_are_as_large_for_all() -> None:
    inputs = prepared(built())
    assert inputs["clips"].shape == (B, 3, T, SIZE, SIZE)
    for kind in KINDS:
        context, targets = inputs[f"{kind}_context"], inputs[f"{kind}_targets"]
        assert len(context) == len(targets) == B
        for seen, asked in zip(context.tolist(), targets.tolist(), strict=True):
            assert seen
            assert asked
            assert not set(seen) & set(asked)
            assert set(seen) | set(asked) <= set(range(N))
    assert inputs["short_range_targets"].tolist() != inputs["long_range_targets"].tolist()


def test_views_and_masks_are_drawn_from_the_step_and_the_rows() -> None:
    algorithm = VJEPA(config(), CLIPS)

    def prepare(rows: range, step: int = 3) -> Inputs:
        mine = {name: value[rows.start : rows.stop] for name, value in batch(8).items()}
        return algorithm.prepare(mine, clock(batch=8), Random(7, step, rows))

    whole = prepare(range(8))
    assert whole["clips"].dtype == torch.float32
    for rows in (range(4), range(4, 8), range(2, 4)):
        part = prepare(rows)
        assert part.keys() == whole.keys()
        for name, value in part.items():
            torch.testing.assert_close(value, whole[name][rows.start : rows.stop], rtol=0, atol=1e-6)
    other = prepare(range(8), step=4)
    assert not torch.equal(other["clips"], whole["clips"])
    assert whole["short_range_context"].tolist() != other["short_range_context"].tolist()


def test_an_image_is_a_clip_that_stands_still_for_a_tubelet() -> None:
    of_images, of_clips = built(IMAGES), built(replace(CLIPS, frames=2))
    of_clips.load_state_dict(of_images.state_dict())
    images = batch()["image"]
    still = images.unsqueeze(1).expand(-1, 2, -1, -1, -1)
    inputs = of_images.prepare({"image": images}, clock(), Random(5, 0, range(B)))
    same = of_clips.prepare({"video": still}, clock(), Random(5, 0, range(B)))
    assert inputs["clips"].shape == (B, 3, 2, SIZE, SIZE)
    for name, value in inputs.items():
        torch.testing.assert_close(value, same[name], rtol=0, atol=1e-6)
    doubled = {name: value.double() if value.is_floating_point() else value for name, value in inputs.items()}
    assert of_images(doubled, clock()).loss.item() == pytest.approx(of_clips(doubled, clock()).loss.item(), rel=1e-12)
    assert of_images.grid == (1, 4, 4)
    with torch.no_grad():
        torch.testing.assert_close(of_images.float().features(images), of_clips.float().features(still))


def test_features_are_the_mean_of_the_target_encoders_tokens_of_whole_clips() -> None:
    algorithm = built().float().eval()
    videos, images = batch()["video"], batch()["image"]
    with torch.no_grad():
        whole = nn.functional.interpolate(videos.flatten(0, 1) / 255, (SIZE, SIZE), mode="bilinear", antialias=True)
        clips = whole.view(B, T, 3, SIZE, SIZE).transpose(1, 2)
        tokens = algorithm.target_encoder.tokens(clips)
        torch.testing.assert_close(algorithm.token_features(videos), tokens)
        torch.testing.assert_close(algorithm.features(videos), tokens.mean(dim=1))
        student = algorithm.other_features()["context_encoder"](videos)
        torch.testing.assert_close(student, algorithm.context_encoder.tokens(clips).mean(dim=1))
        assert not torch.allclose(student, algorithm.features(videos), atol=1e-3)
        # An image stands still for as many frames as the clips of the training have.
        still = images.unsqueeze(1).expand(-1, T, -1, -1, -1)
        torch.testing.assert_close(algorithm.features(images), algorithm.features(still))
    assert algorithm.encoder() is algorithm.target_encoder
    assert algorithm.video
    assert algorithm.attention_maps(images) is None


def test_view_pairs_are_two_views_of_the_target_encoder() -> None:
    algorithm = built().float()
    random = Random(5, 0, range(B))
    with torch.no_grad():
        first, second = algorithm.view_pair(batch(), random)
        augment = algorithm.config.augmentation
        expected = algorithm.target_encoder(augment(batch()["video"], random.within("second")))
    torch.testing.assert_close(second, expected)
    assert first.shape == (B, D)
    assert not torch.allclose(first, second)


@pytest.mark.parametrize("shape", ["linear", "cosine"])
@pytest.mark.parametrize("stretch", [1.0, 1.25])
def test_the_momentum_is_that_of_a_longer_training(stretch: float, shape: Any) -> None:
    made = config(stretch=stretch, teacher_momentum=Ramp(start=0.998, end=1.0, shape=shape))
    for step in (0, 1, 50, 99):
        share = step / (100 * stretch)
        if shape == "cosine":
            share = (1 - math.cos(math.pi * share)) / 2
        assert made.momentum(clock(step)) == pytest.approx(0.998 + 0.002 * share, abs=1e-12)


def test_the_official_schedule_of_the_momentum() -> None:
    """90,000 steps of a schedule for 112,500: the last value is 0.9996."""
    official = [0.998 + i * (1.0 - 0.998) / (300 * 300 * 1.25) for i in range(int(300 * 300 * 1.25) + 1)]
    made = VJEPA.Config()
    for step in (0, 1, 12_000, 45_000, 89_999):
        assert made.momentum(clock(step, 90_000)) == pytest.approx(official[step], abs=1e-12)
    assert official[90_000] == pytest.approx(0.9996)


def test_the_target_encoder_follows_the_context_encoder_that_has_just_moved() -> None:
    algorithm = built()
    before = {name: p.clone() for name, p in algorithm.named_parameters()}
    with torch.no_grad():
        for parameter in algorithm.trainable():
            parameter.add_(0.5)  # the optimiser's step
    algorithm.after_step(clock(50))
    momentum = 0.998 + 0.002 * 0.4
    checked = 0
    for name, parameter in algorithm.named_parameters():
        if name.startswith("target_encoder."):
            leader = algorithm.get_parameter(name.replace("target_", "context_"))
            expected = momentum * before[name] + (1 - momentum) * leader
            torch.testing.assert_close(parameter, expected, rtol=1e-12, atol=1e-12)
            checked += 1
        else:
            torch.testing.assert_close(parameter, before[name] + 0.5, rtol=1e-12, atol=1e-12)
    assert checked == len(list(algorithm.context_encoder.parameters()))


def test_both_encoders_begin_alike_and_mask_tokens_at_zero() -> None:
    torch.manual_seed(0)
    algorithm = VJEPA(config(), CLIPS)
    state = algorithm.state_dict()
    for name, value in state.items():
        if name.startswith("target_encoder."):
            assert torch.equal(value, state[name.replace("target_", "context_")])
    assert state["predictor.mask_tokens"].shape == (2, 12)
    assert not state["predictor.mask_tokens"].any()
    algorithm(algorithm.prepare(batch(), clock(), Random(0, 0, range(B))), clock())
    assert set(algorithm.state_dict()) == set(state)


def test_the_predictor_begins_as_the_encoder_does() -> None:
    torch.manual_seed(0)
    by_depth = VJEPA(config(predictor_width=96, predictor_depth=4), CLIPS)
    plain = VJEPA(config(predictor_width=96, backbone=replace(VIT, initialization="trunc-normal")), CLIPS)
    for number, block in enumerate(by_depth.predictor.blocks, start=1):
        found = block.mlp.fc2.weight.std().item()  # type: ignore[union-attr]
        assert found == pytest.approx(0.02 / math.sqrt(2 * number), rel=0.05)
    assert plain.predictor.blocks[1].mlp.fc2.weight.std().item() == pytest.approx(0.02, rel=0.05)  # type: ignore[union-attr]


def test_a_training_at_another_size_begins_from_the_same_weights() -> None:
    small, large = built(), built(replace(CLIPS, frames=8), augmentation=ClipAugmentation(size=24))
    large.begin_from(small)
    assert large.grid == (4, 6, 6)
    clip = torch.rand(1, 3, 8, 24, 24, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(large.target_encoder(clip), small.target_encoder(clip))


def test_weights_and_mask_tokens_decay_and_biases_do_not() -> None:
    algorithm = built()
    weights, free = algorithm.parameter_groups()
    assert weights.regularized
    assert not free.regularized
    assert any(p is algorithm.predictor.mask_tokens for p in weights.parameters)
    assert any(p is algorithm.context_encoder.patch_embed.proj.weight for p in weights.parameters)
    names = {id(p): name for name, p in algorithm.named_parameters()}
    assert all("norm" in names[id(p)] or names[id(p)].endswith("bias") for p in free.parameters)


@pytest.mark.parametrize(("data", "frames"), [(CLIPS, (0, 2)), (IMAGES, (0,))])
def test_pictures_show_what_is_seen_and_what_is_predicted(data: DataSpec, frames: tuple[int, ...]) -> None:
    algorithm = built(data).float().eval()
    random = Random(5, -1, range(B))
    panels = algorithm.pictures(batch(), random)["masks"]
    assert panels.titles == tuple(
        title
        for frame in frames
        for title in (f"frame {frame + 1}", f"short range, frame {frame + 1}", f"long range, frame {frame + 1}")
    )
    assert panels.images.shape == (B, len(panels.titles), 3, SIZE, SIZE)
    stored = batch()["video" if data.frames else "image"]
    clips = algorithm.whole(stored)
    tokens = math.prod(algorithm.grid)
    masks = {kind: algorithm.masking[kind](random.within(kind), B, algorithm.grid) for kind in KINDS}
    shades = set()
    for column, title in enumerate(panels.titles):
        number = int(title.rpartition(" ")[2]) - 1
        for row in range(B):
            frame, shown = clips[row, :, number], panels.images[row, column]
            if not title.startswith(("short", "long")):
                assert torch.equal(shown, frame)
                continue
            context, targets = masks[KINDS[title.startswith("long")]]
            for place in range(tokens // algorithm.grid[0]):
                token = place + number // 2 * 16
                down, across = place // 4 * 4, place % 4 * 4
                patch = shown[:, down : down + 4, across : across + 4]
                if token in context[row]:
                    assert torch.equal(patch, frame[:, down : down + 4, across : across + 4])
                else:
                    shade = 0.5 if token in targets[row] else 1.0
                    assert (patch == shade).all()
                    shades.add(shade)
    assert shades == {0.5, 1.0}


def test_collapse_is_told() -> None:
    algorithm = built()
    healthy = {"feature_std": 0.5, "token_std": 0.5}
    assert algorithm.diagnose(healthy) is None
    assert algorithm.diagnose({}) is None
    assert "features of all samples are nearly alike" in str(algorithm.diagnose({**healthy, "feature_std": 0.001}))
    assert "all tokens of a clip are nearly alike (token_std 0.001" in str(
        algorithm.diagnose({**healthy, "token_std": 0.001})
    )


def test_the_signals_of_collapse_see_it() -> None:
    """Features that are the same for all clips, and tokens that are the same within each."""
    algorithm = built()
    inputs = prepared(algorithm)
    fresh = algorithm(inputs, clock()).metrics
    assert fresh["feature_std"] > 0.02
    assert fresh["token_std"] > 0.02
    with torch.no_grad():
        algorithm.target_encoder.norm.weight.zero_()
    dead = algorithm(inputs, clock()).metrics
    assert dead["feature_std"].item() == pytest.approx(0, abs=1e-9)
    assert dead["token_std"].item() == pytest.approx(0, abs=1e-9)


def test_the_defaults_are_the_papers() -> None:
    made = VJEPA.Config()
    assert made.backbone == ViTLarge(class_token=False, pool="mean", positions="sincos")
    assert (made.short_range.blocks, made.short_range.scale) == (8, 0.15)
    assert (made.long_range.blocks, made.long_range.scale) == (2, 0.7)
    assert made.short_range.aspect == made.long_range.aspect == (0.75, 1.5)
    assert (made.tubelet, made.predictor_width, made.predictor_depth) == (2, 384, 12)
    assert made.teacher_momentum == Ramp(start=0.998, end=1.0, shape="linear")
    assert (made.stretch, made.augmentation) == (1.25, ClipAugmentation())
    with torch.device("meta"):
        algorithm = VJEPA(made, DataSpec(image_shape=(3, 256, 256), classes=None, frames=16))
    assert algorithm.grid == (8, 14, 14)
    assert algorithm.predictor.blocks[0].attn.heads == 16  # type: ignore[union-attr]
    millions = [
        sum(p.numel() for p in net.parameters()) / 1e6 for net in (algorithm.context_encoder, algorithm.predictor)
    ]
    assert millions == pytest.approx([303.9, 22.1], abs=0.2)


def bad_configs() -> Iterator[tuple[dict[str, Any], str]]:
    yield {"backbone": ViTTiny(width=12, heads=2)}, "set the backbone's class_token: false, pool: mean"
    yield {"tubelet": 0}, "tubelet is 0"
    yield {"predictor_width": 0}, "predictor_width is 0"
    yield {"predictor_depth": 0}, "predictor_depth is 0"
    yield {"predictor_heads": 0}, "predictor_heads is 0"
    yield {"predictor_heads": 5}, "5 heads do not divide a predictor_width of 12"
    yield {"teacher_momentum": Ramp(start=-0.1, end=1.0)}, r"teacher_momentum\.start is -0\.1"
    yield {"teacher_momentum": Ramp(start=0.9, end=1.1)}, r"teacher_momentum\.end is 1\.1"
    yield {"stretch": 0.9}, r"stretch is 0\.9"


@pytest.mark.parametrize(("bad", "message"), list(bad_configs()))
def test_impossible_settings_are_refused(bad: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config(**bad)


@pytest.mark.parametrize(
    ("options", "data", "message"),
    [
        ({}, replace(CLIPS, frames=5), "frames 5 by 2"),
        ({"augmentation": ClipAugmentation(size=18)}, CLIPS, "height 18 by 4, width 18 by 4"),
        ({"augmentation": ClipAugmentation(size=8)}, CLIPS, r"a block of 0\.15 of 2 x 2 patches may be smaller"),
        ({"long_range": TubeMasking(blocks=1, scale=0.9)}, CLIPS, "may hide a whole frame"),
        ({"predictor_width": 8}, CLIPS, "width of 9 or more, not 8"),
    ],
)
def test_data_that_do_not_fit_are_refused(options: dict[str, Any], data: DataSpec, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VJEPA(config(**options), data)
