"""The supervised Vision Transformer: its loss, its head, its average, and what it can begin from."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from heliostat_algorithms.algorithm import Algorithm, Batch, Clock, DataSpec, Inputs, Step
from heliostat_algorithms.augmentation import ViewAugmentation
from heliostat_algorithms.augmentation.mixing import Mixing
from heliostat_algorithms.augmentation.multi_crop import MultiCrop
from heliostat_algorithms.backbones import ResNet18, ViTBase, ViTTiny
from heliostat_algorithms.encoder import Encoder
from heliostat_algorithms.optimizers import AdamW, Sgd
from heliostat_algorithms.randomness import Random
from heliostat_algorithms.representation.dino import DINO
from heliostat_algorithms.representation.dinov2 import DINOv2
from heliostat_algorithms.representation.dinov2 import Head as PrototypeHead
from heliostat_algorithms.representation.simclr import SimCLR
from heliostat_algorithms.supervised.vit import Head, SupervisedViews, ViTClassifier

B, K, D = 6, 5, 16
DATA = DataSpec(image_shape=(3, 8, 8), classes=K)
CLOCK = Clock(step=0, total_steps=100, steps_per_epoch=10, batch_size=B)
VIT = ViTTiny(width=D, depth=2, heads=2, patch_size=4, mlp_ratio=2.0)
MIXING = Mixing(mixup=0.8, cutmix=1.0)
PROBE = {"frozen": True, "normalize": True}


def shaken(algorithm: Any, seed: int = 1) -> Any:
    """With other weights, as if it had been trained; averages are not the weights."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in algorithm.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return algorithm


def built(data: DataSpec = DATA, seed: int = 0, **options: Any) -> ViTClassifier:
    torch.manual_seed(seed)
    return ViTClassifier(ViTClassifier.Config(**{"backbone": VIT, **options}), data)


def trained(data: DataSpec = DATA, **options: Any) -> ViTClassifier:
    made: ViTClassifier = shaken(built(data, **options))
    return made


def images(count: int = B, height: int = 8, width: int = 8) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(256, (count, 3, height, width), generator=generator, dtype=torch.uint8)


def batch(count: int = B) -> dict[str, Tensor]:
    return {"image": images(count), "label": torch.arange(count) % K}


def prepared(algorithm: Algorithm, step: int = 0) -> dict[str, Tensor]:
    return dict(algorithm.prepare(batch(), CLOCK, Random(5, step, range(B))))


def double(inputs: Inputs) -> dict[str, Tensor]:
    return {name: x.double() if x.is_floating_point() else x for name, x in inputs.items()}


def clocks(batch_size: int) -> Clock:
    return replace(CLOCK, batch_size=batch_size)


# The loss


def cross_entropy(logits: np.ndarray, inputs: dict[str, Tensor], smoothing: float) -> float:
    """Of targets that are written out: shares of two labels, and of all classes evenly."""
    losses = []
    for i, row in enumerate(logits):
        target = np.full(K, smoothing / K)
        share = float(inputs["share"][i]) if "share" in inputs else 1.0
        target[int(inputs["label"][i])] += (1 - smoothing) * share
        if "share" in inputs:
            target[int(inputs["partner_label"][i])] += (1 - smoothing) * (1 - share)
        assert target.sum() == pytest.approx(1)
        total = sum(math.exp(v) for v in row)
        losses.append(-sum(t * math.log(math.exp(v) / total) for t, v in zip(target, row, strict=True)))
    return sum(losses) / len(losses)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("mixing", [Mixing(), MIXING])
def test_the_loss_is_the_cross_entropy_of_the_targets(mixing: Mixing, smoothing: float) -> None:
    algorithm = trained(label_smoothing=smoothing, mixing=mixing).double()
    inputs = double(prepared(algorithm))
    assert ("share" in inputs) == mixing.active
    made = algorithm(inputs, CLOCK)
    h = algorithm.backbone(inputs["view"]).detach()
    logits = (h @ algorithm.head.classifier.weight.T + algorithm.head.classifier.bias).detach()
    assert made.loss.item() == pytest.approx(cross_entropy(logits.numpy(), inputs, smoothing), rel=1e-12)
    right = [int(row.argmax()) == int(label) for row, label in zip(logits, inputs["label"], strict=True)]
    assert made.metrics["top1"].item() == pytest.approx(sum(right) / B)
    unit = (h / h.norm(dim=1, keepdim=True)).numpy()
    assert made.metrics["feature_std"].item() == pytest.approx(unit.std(axis=0).mean() * math.sqrt(D), rel=1e-10)
    assert set(made.metrics) == {"top1", "feature_std"}
    assert not any(metric.requires_grad for metric in made.metrics.values())


def test_training_begins_with_no_opinion() -> None:
    algorithm = built()
    made = algorithm(prepared(algorithm), CLOCK)
    assert made.loss.item() == pytest.approx(math.log(K), rel=1e-6)
    made.loss.backward()
    assert not any(bool(p.grad.any()) for p in algorithm.backbone.parameters() if p.grad is not None)
    weight = algorithm.head.classifier.weight
    assert weight.grad is not None
    assert float(weight.grad.abs().min()) > 0
    std = built(DataSpec(image_shape=(3, 8, 8), classes=400), classifier_std=0.01).head.classifier.weight.std()
    assert std.item() == pytest.approx(0.01, rel=0.05)


@pytest.mark.parametrize("head", ["linear", "attentive"])
def test_the_loss_is_a_mean_over_samples(head: str) -> None:
    algorithm = trained(head=head, drop_path=0.4).double()
    inputs = double(prepared(algorithm))
    losses = [algorithm({name: x[i : i + 1] for name, x in inputs.items()}, CLOCK).loss.item() for i in range(B)]
    assert algorithm(inputs, CLOCK).loss.item() == pytest.approx(sum(losses) / B, rel=1e-12)


def test_every_parameter_has_a_gradient() -> None:
    for options in ({}, {"head": "attentive"}, {"pre_logits": 7, "drop_path": 0.2, "mixing": MIXING}):
        for backbone in (VIT, replace(VIT, class_token=False, pool="mean"), replace(VIT, pool="mean", registers=1)):
            algorithm = trained(backbone=backbone, **options)
            algorithm(prepared(algorithm), CLOCK).loss.backward()
            missing = [name for name, p in algorithm.named_parameters() if p.grad is None]
            assert missing == []


# What the network is shown


def test_a_view_is_a_crop_of_each_image_or_two_of_them_mixed() -> None:
    random = Random(5, 3, range(B))
    plain = built().prepare(batch(), CLOCK, random)
    view = SupervisedViews()(images(), random.within("view"))
    assert set(plain) == {"view", "label"}
    assert torch.equal(plain["view"], view)
    assert torch.equal(plain["label"], batch()["label"])
    mixed = built(mixing=MIXING, drop_path=0.5).prepare(batch(), CLOCK, random)
    expected = MIXING(view, batch()["label"], random.within("mixing"), B)
    assert set(mixed) == {"view", "label", "partner_label", "share", "keep"}
    assert torch.equal(mixed["view"], expected.images)
    assert torch.equal(mixed["partner_label"], expected.partner_label)
    assert torch.equal(mixed["share"], expected.share)
    assert torch.equal(mixed["label"], plain["label"])


def test_drop_path_leaves_out_what_was_drawn() -> None:
    algorithm = trained(backbone=replace(VIT, depth=3), drop_path=0.5)
    assert algorithm.drop_rates == [0.0, 0.0, 0.25, 0.25, 0.5, 0.5]
    inputs = prepared(algorithm)
    assert inputs["keep"].shape == (B, 6)
    assert inputs["keep"].unique().tolist() == pytest.approx([0.0, 1.0, 4 / 3, 2.0])
    dropped = algorithm(inputs, CLOCK).loss
    whole = algorithm({**inputs, "keep": torch.ones(B, 6)}, CLOCK).loss
    assert not torch.allclose(dropped, whole)
    inputs.pop("keep")
    torch.testing.assert_close(algorithm(inputs, CLOCK).loss, whole)


def test_partners_and_statistics_need_the_whole_batch() -> None:
    for options in ({"mixing": MIXING}, PROBE):
        algorithm = built(**options)
        assert not ViTClassifier.is_separable(algorithm.config)
        with pytest.raises(ValueError, match="cannot be split"):
            algorithm.prepare(batch(), clocks(2 * B), Random(0, 0, range(B)))
    assert ViTClassifier.is_separable(built(mixing=Mixing(mixup=0.8, probability=0.0)).config)
    built().prepare(batch(), clocks(2 * B), Random(0, 0, range(B)))


# The head


def test_pre_logits_are_a_hidden_layer_with_tanh() -> None:
    algorithm = trained(pre_logits=7).double().eval()
    inputs = double(prepared(algorithm))
    state = {name: x.detach().numpy() for name, x in algorithm.head.state_dict().items()}
    logits = []
    for h in algorithm.backbone(inputs["view"]).detach().numpy():
        hidden = [math.tanh(v) for v in state["pre_logits.weight"] @ h + state["pre_logits.bias"]]
        logits.append(state["classifier.weight"] @ np.array(hidden) + state["classifier.bias"])
    expected = cross_entropy(np.array(logits), inputs, 0.0)
    assert algorithm(inputs, CLOCK).loss.item() == pytest.approx(expected, rel=1e-12)
    fresh = Head(400, 2, None, False, 300, 0.0).pre_logits
    assert fresh is not None
    assert fresh.weight.std().item() == pytest.approx(1 / 20, rel=0.02)


def test_features_are_standardised_by_the_batch_then_by_what_was_seen() -> None:
    algorithm = trained(**PROBE).double()
    inputs = double(prepared(algorithm))
    weight, bias = (p.detach().numpy() for p in algorithm.head.classifier.parameters())
    h = algorithm.backbone(inputs["view"]).detach().numpy()
    mean, variance = h.mean(axis=0), h.var(axis=0)
    logits = (h - mean) / np.sqrt(variance + 1e-6) @ weight.T + bias
    assert algorithm(inputs, CLOCK).loss.item() == pytest.approx(cross_entropy(logits, inputs, 0.0), rel=1e-10)
    algorithm.eval()
    seen_mean, seen_variance = 0.1 * mean, 0.9 + 0.1 * variance * B / (B - 1)
    views = algorithm.whole(images()).double()
    whole = algorithm.backbone(views).detach().numpy()
    expected = (whole - seen_mean) / np.sqrt(seen_variance + 1e-6) @ weight.T + bias
    algorithm.whole = lambda _: views  # type: ignore[method-assign]
    np.testing.assert_allclose(algorithm.class_scores(images()).detach().numpy(), expected, rtol=1e-10)
    assert not any(name.startswith("head.norm") for name, _ in algorithm.named_parameters())
    with pytest.raises(ValueError, match="batch_size must be at least 2"):
        algorithm.check(1)


def test_an_attentive_head_looks_at_all_tokens() -> None:
    for backbone in (VIT, replace(VIT, class_token=False, pool="mean"), replace(VIT, pool="mean", registers=2)):
        algorithm = trained(backbone=backbone, head="attentive").eval()
        views = algorithm.whole(images())
        tokens = algorithm.backbone.tokens(views)
        seen = tokens.patches
        if backbone.pool == "cls":
            seen = torch.cat([tokens.feature.unsqueeze(1), seen], dim=1)
            torch.testing.assert_close(seen, algorithm.token_features(images()))
        assert algorithm.head.pool is not None
        assert algorithm.head.pool.heads == 2
        expected = algorithm.head.classifier(algorithm.head.pool(seen))
        torch.testing.assert_close(algorithm.class_scores(images()), expected)
        torch.testing.assert_close(algorithm.features(images()), tokens.feature)


def test_whole_images_are_scored_at_the_size_of_the_views() -> None:
    algorithm = trained(augmentation=SupervisedViews(size=12)).eval()
    assert algorithm.backbone.position_grid == (3, 3)
    small = ViewAugmentation(size=12).whole(images())
    expected = algorithm.head.classifier(algorithm.backbone(small))
    torch.testing.assert_close(algorithm.class_scores(images()), expected)
    torch.testing.assert_close(algorithm.features(images()), algorithm.backbone(small))
    assert algorithm.prepare(batch(), CLOCK, Random(0, 0, range(B)))["view"].shape == (B, 3, 12, 12)
    maps = algorithm.attention_maps(images())
    assert maps is not None
    assert maps.shape == (B, 2, 3, 3)


# What trains


def test_learning_rates_fall_towards_the_input_as_in_mae_s_code() -> None:
    algorithm = built(backbone=replace(VIT, depth=3, registers=1), layer_decay=0.65, pre_logits=4, ema=0.9)
    names = {id(p): name for name, p in algorithm.named_parameters()}
    found = {
        names[id(p)]: (group.learning_rate_scale, group.regularized)
        for group in algorithm.parameter_groups()
        for p in group.parameters
    }
    trainable = {name for name, p in algorithm.named_parameters() if not name.startswith("average_")}
    assert set(found) == trainable
    assert len(found) == sum(len(group.parameters) for group in algorithm.parameter_groups())
    layers = 3 + 1  # blocks, and what comes before them
    for name, (scale, regularized) in found.items():
        if name.startswith("backbone.blocks."):
            layer = int(name.split(".")[2]) + 1
        elif name.startswith("backbone.") and not name.startswith("backbone.norm."):
            layer = 0
        else:
            layer = layers
        assert scale == pytest.approx(0.65 ** (layers - layer)), name
        free = name.endswith((".bias", "pos_embed", "cls_token", "register_tokens")) or "norm" in name
        assert regularized != free, name
    assert found["backbone.patch_embed.proj.weight"] == (pytest.approx(0.65**4), True)
    assert {group.name for group in built().parameter_groups()} == {"weights_1", "bias_norm_and_tokens_1"}


@pytest.mark.parametrize("options", [{}, {"head": "attentive"}, {**PROBE, "classifier_std": 0.01}])
def test_a_frozen_encoder_stays_as_it_is(options: dict[str, Any]) -> None:
    algorithm = trained(**{"frozen": True, **options})
    before = copy.deepcopy(algorithm.state_dict())
    algorithm.train()
    assert algorithm.head.training
    assert not any(part.training for part in algorithm.backbone.modules())
    assert {id(p) for p in algorithm.trainable()} == {id(p) for p in algorithm.head.parameters()}
    optimizer = AdamW(learning_rate=0.01, per=None, weight_decay=0.5).build(algorithm.parameter_groups(), B)
    for step in range(3):
        optimizer.zero_grad()
        algorithm(prepared(algorithm, step), CLOCK).loss.backward()
        optimizer.step()
        algorithm.after_step(CLOCK)
    assert all(p.grad is None for p in algorithm.backbone.parameters())
    after = algorithm.state_dict()
    for name, x in before.items():
        assert torch.equal(x, after[name]) == name.startswith("backbone."), name


def test_a_frozen_encoder_cannot_collapse() -> None:
    assert built(frozen=True).diagnose({"feature_std": 1e-5}) is None
    said = built().diagnose({"feature_std": 1e-5})
    assert said is not None
    assert "feature_std" in said


# The average


@pytest.mark.parametrize("options", [{}, PROBE])
def test_the_average_follows_the_weights_after_they_have_moved(options: dict[str, Any]) -> None:
    algorithm = trained(ema=0.9, **options).double()
    optimizer = Sgd(learning_rate=0.5, per=None).build(algorithm.parameter_groups(), B)
    before = copy.deepcopy(algorithm.state_dict())
    algorithm(double(prepared(algorithm)), CLOCK).loss.backward()
    optimizer.step()
    moved = copy.deepcopy(algorithm.state_dict())
    algorithm.after_step(CLOCK)
    after = algorithm.state_dict()
    pairs = {name: name.removeprefix("average_") for name in after if name.startswith("average_")}
    averaged = [name for name in moved if name.startswith("head." if options else ("head.", "backbone."))]
    assert sorted(pairs.values()) == sorted(averaged)
    for average, weight in pairs.items():
        assert torch.equal(after[weight], moved[weight])
        if "norm.running" in weight or "num_batches" in weight:
            assert torch.equal(after[average], moved[weight])
        else:
            expected = 0.9 * before[average] + 0.1 * moved[weight]
            torch.testing.assert_close(after[average], expected, rtol=1e-12, atol=1e-12)
            assert not torch.equal(moved[weight], before[weight]), weight
    assert not any(p.requires_grad for name, p in algorithm.named_parameters() if name.startswith("average_"))


def test_the_average_is_what_is_judged() -> None:
    algorithm = trained(ema=0.99).eval()
    average = algorithm.average_backbone
    assert average is not None
    assert algorithm.average_head is not None
    assert algorithm.encoder() is average
    whole = algorithm.whole(images())
    assert torch.equal(algorithm.features(images()), average(whole))
    assert torch.equal(algorithm.class_scores(images()), algorithm.average_head(average(whole)))
    others = algorithm.other_features()
    assert set(others) == {"raw"}
    assert torch.equal(others["raw"](images()), algorithm.backbone(whole))
    assert not torch.allclose(others["raw"](images()), algorithm.features(images()))
    assert built().other_features() == {}


def test_of_a_frozen_encoder_the_head_alone_is_averaged() -> None:
    algorithm = trained(ema=0.9, frozen=True)
    assert algorithm.average_backbone is None
    assert algorithm.encoder() is algorithm.backbone
    assert algorithm.other_features() == {}
    head = algorithm.average_head
    assert head is not None
    assert torch.equal(algorithm.class_scores(images()), head(algorithm.features(images())))
    before = head.classifier.weight.clone()
    algorithm.after_step(CLOCK)
    assert not torch.equal(before, head.classifier.weight)


# Beginnings


class Pretrained(Algorithm):
    """Stands for any method that is judged by this encoder."""

    def __init__(self, encoder: Encoder | None) -> None:
        super().__init__(None, DATA)
        self.network = encoder

    def prepare(self, batch: Batch, clock: Clock, random: Random) -> Inputs:
        raise AssertionError("an origin is begun from, not trained")

    def forward(self, inputs: Inputs, clock: Clock) -> Step:
        raise AssertionError("an origin is begun from, not trained")

    def encoder(self) -> Encoder | None:
        return self.network

    def whole(self, images: Tensor) -> Tensor:
        return images.float() / 255


def pretrained(size: tuple[int, int] = (8, 8), channels: int = 3, **options: Any) -> Pretrained:
    torch.manual_seed(3)
    made: Pretrained = shaken(Pretrained(replace(VIT, **options).build(channels, size)), 4)
    return made


def crops() -> MultiCrop:
    view = ViewAugmentation(size=8)
    return MultiCrop(first_global=view, second_global=view, local=ViewAugmentation(size=4), local_crops=1)


def dino() -> DINO:
    config = DINO.Config(backbone=VIT, views=crops(), prototypes=8, head_hidden=8, head_bottleneck=4)
    made: DINO = shaken(DINO(config, DATA))
    return made


def dinov2() -> DINOv2:
    head = PrototypeHead(prototypes=8, hidden=8, bottleneck=4)
    made: DINOv2 = shaken(DINOv2(DINOv2.Config(backbone=replace(VIT, mask_token=True), views=crops(), head=head), DATA))
    return made


@pytest.mark.parametrize("other", [dino, dinov2, pretrained, trained, lambda: trained(ema=0.9)])
def test_before_training_it_gives_what_the_other_gave(other: Any) -> None:
    algorithm, origin = built(), other()
    assert not torch.equal(algorithm.features(images()), origin.features(images()))
    algorithm.begin_from(origin)
    assert torch.equal(algorithm.features(images()), origin.features(images()))
    assert torch.equal(algorithm.token_features(images()), origin.token_features(images()))


def test_fixed_positions_begin_learned_ones() -> None:
    """As MAE's encoder is fine-tuned in its code."""
    origin = pretrained(positions="sincos")
    algorithm = built()
    algorithm.begin_from(origin)
    assert torch.equal(algorithm.features(images()), origin.features(images()))
    assert algorithm.backbone.pos_embed.requires_grad
    larger = built(DataSpec(image_shape=(3, 16, 12), classes=K))
    larger.begin_from(origin)
    assert torch.equal(larger.features(images(B, 16, 12)), origin.features(images(B, 16, 12)))
    fixed = built(backbone=replace(VIT, positions="sincos"))
    fixed.begin_from(origin)
    assert torch.equal(fixed.features(images()), origin.features(images()))


def test_positions_are_resampled_for_another_resolution() -> None:
    origin = trained(DataSpec(image_shape=(3, 16, 16), classes=K))
    for height, width in ((24, 24), (8, 8), (8, 32)):  # the last has as many patches, in other rows
        algorithm = built(DataSpec(image_shape=(3, height, width), classes=K))
        algorithm.begin_from(origin)
        shown = images(B, height, width)
        torch.testing.assert_close(algorithm.features(shown), origin.features(shown), rtol=1e-5, atol=1e-5)
        assert algorithm.backbone.pos_embed.shape == (1, 1 + height * width // 16, D)
        assert not torch.equal(algorithm.backbone.pos_embed[:, 1:3], origin.backbone.pos_embed[:, 1:3])
        assert torch.equal(algorithm.backbone.pos_embed[:, :1], origin.backbone.pos_embed[:, :1])
    offset = pretrained((16, 16), interpolation_offset=0.1)  # resampled as the other network does it
    algorithm = built()
    algorithm.begin_from(offset)
    torch.testing.assert_close(algorithm.features(images()), offset.features(images()), rtol=1e-5, atol=1e-5)


def test_an_encoder_without_class_token_begins_one_without() -> None:
    backbone = replace(VIT, class_token=False, pool="mean")
    origin = Pretrained(shaken(backbone.build(3, (8, 8)), 4))
    algorithm = built(backbone=backbone)
    algorithm.begin_from(origin)
    assert torch.equal(algorithm.features(images()), origin.features(images()))
    with pytest.raises(ValueError, match="class_token is True here and False there"):
        built().begin_from(origin)


def test_the_way_features_are_pooled_may_change() -> None:
    origin = pretrained()
    algorithm = built(backbone=replace(VIT, pool="mean"))
    algorithm.begin_from(origin)
    tokens = origin.token_features(images())
    torch.testing.assert_close(algorithm.features(images()), tokens[:, 1:].mean(dim=1))


@pytest.mark.parametrize("options", [{}, {"head": "attentive"}, {"pre_logits": 7}, PROBE])
def test_the_head_is_kept_where_the_classes_are_as_many(options: dict[str, Any]) -> None:
    origin = trained(**options).eval()
    algorithm = built(seed=9, **{"frozen": True, **options}).eval()
    algorithm.begin_from(origin)
    assert torch.equal(algorithm.class_scores(images()), origin.class_scores(images()))
    other = built(DataSpec(image_shape=(3, 8, 8), classes=3), seed=9, **options)
    other.begin_from(origin)
    assert not bool(other.head.classifier.weight.any())
    assert not bool(other.head.classifier.bias.any())
    kept = {name: x for name, x in origin.head.state_dict().items() if not name.startswith("classifier")}
    assert all(torch.equal(other.head.state_dict()[name], x) for name, x in kept.items())
    assert len(kept) == {"head": 15, "pre_logits": 2, "frozen": 3}.get(next(iter(options), ""), 0)


@pytest.mark.parametrize("options", [{"head": "attentive"}, {"pre_logits": D}, PROBE])
def test_a_head_of_another_kind_begins_anew(options: dict[str, Any]) -> None:
    algorithm = built()
    algorithm.begin_from(trained(**options))
    assert not bool(algorithm.class_scores(images()).any())


def test_the_head_of_another_method_begins_at_zero() -> None:
    algorithm = built()
    algorithm.begin_from(dino())
    assert not bool(algorithm.class_scores(images()).any())


def test_averages_are_begun_from_and_begin_where_the_weights_do() -> None:
    origin = trained(ema=0.9).eval()
    algorithm = built(ema=0.99).eval()
    algorithm.begin_from(origin)
    assert torch.equal(algorithm.class_scores(images()), origin.class_scores(images()))
    assert torch.equal(algorithm.other_features()["raw"](images()), origin.features(images()))
    pairs = [(algorithm.average_backbone, algorithm.backbone), (algorithm.average_head, algorithm.head)]
    for average, network in pairs:
        assert isinstance(average, nn.Module)
        for mine, theirs in zip(average.parameters(), network.parameters(), strict=True):
            assert torch.equal(mine, theirs)
            assert mine.data_ptr() != theirs.data_ptr()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 8}, "width is 16 here and 8 there"),
        ({"depth": 3}, "depth is 2 here and 3 there"),
        ({"heads": 4}, "heads is 2 here and 4 there"),
        ({"patch_size": 2}, "patch_size is 4 here and 2 there"),
        ({"registers": 1}, "registers is 0 here and 1 there"),
        ({"channels": 1}, "channels of an image is 3 here and 1 there"),
        ({"layer_scale": 0.1}, "layer_scale"),
        ({"mlp_ratio": 3.0}, "mlp_ratio"),
        ({"width": 8, "depth": 1}, "width is 16 here and 8 there; depth is 2 here and 1 there"),
    ],
)
def test_encoders_of_another_shape_are_refused(options: dict[str, Any], message: str) -> None:
    algorithm = built()
    before = algorithm.features(images())
    with pytest.raises(ValueError, match=message):
        algorithm.begin_from(pretrained(**options))
    if "_" not in message:
        assert torch.equal(algorithm.features(images()), before)


def test_other_beginnings_are_refused() -> None:
    resnet = SimCLR(SimCLR.Config(backbone=ResNet18(stem="cifar", width=4)), DATA)
    with pytest.raises(ValueError, match="begins from a Vision Transformer, and SimCLR has a ResNet"):
        built().begin_from(resnet)
    with pytest.raises(ValueError, match="and Pretrained has no encoder"):
        built().begin_from(Pretrained(None))
    with pytest.raises(ValueError, match="positions are sincos here and learned there"):
        built(backbone=replace(VIT, positions="sincos")).begin_from(pretrained())


# The whole


def test_a_small_network_learns_digits() -> None:
    digits = load_digits()
    shown = torch.tensor(digits.images[:64] * 15, dtype=torch.uint8).unsqueeze(1)
    data = {"image": shown, "label": torch.tensor(digits.target[:64])}
    torch.manual_seed(0)
    backbone = ViTTiny(width=32, depth=2, heads=2, patch_size=4, mlp_ratio=2.0, initialization="xavier")
    views = SupervisedViews(crop_area=(0.9, 1.0), flip=0.0)
    config = ViTClassifier.Config(backbone=backbone, augmentation=views, drop_path=0.1, ema=0.8)
    algorithm = ViTClassifier(config, DataSpec(image_shape=(1, 8, 8), classes=10))
    optimizer = AdamW(learning_rate=0.004, per=None, weight_decay=0.05).build(algorithm.parameter_groups(), 64)
    top1 = []
    for step in range(60):
        made = algorithm(algorithm.prepare(data, clocks(64), Random(0, step, range(64))), clocks(64))
        optimizer.zero_grad()
        made.loss.backward()
        optimizer.step()
        algorithm.after_step(CLOCK)
        top1.append(made.metrics["top1"].item())
    assert sum(top1[:3]) / 3 < 0.4
    assert sum(top1[-3:]) / 3 > 0.9
    right = algorithm.eval().class_scores(shown).argmax(dim=1) == data["label"]
    assert right.double().mean().item() > 0.95


def test_defaults_are_those_of_the_paper() -> None:
    defaults = ViTClassifier.Config()
    assert defaults.type == "vit"
    assert defaults.backbone == ViTBase(patch_size=16, initialization="xavier")
    assert (defaults.head, defaults.pre_logits, defaults.normalize, defaults.frozen) == ("linear", None, False, False)
    assert (defaults.classifier_std, defaults.label_smoothing, defaults.drop_path) == (0.0, 0.0, 0.0)
    assert (defaults.layer_decay, defaults.ema, defaults.mixing) == (1.0, None, Mixing())
    views = defaults.augmentation
    assert (views.size, views.crop_area, views.crop_aspect, views.flip) == (None, (0.05, 1.0), (3 / 4, 4 / 3), 0.5)
    assert (views.jitter.probability, views.greyscale, views.blur.probability, views.solarize) == (0.0, 0.0, 0.0, 0.0)
    with torch.device("meta"):
        algorithm = ViTClassifier(
            replace(defaults, augmentation=SupervisedViews(size=224)),
            DataSpec(image_shape=(3, 256, 256), classes=1000),
        )
    assert sum(p.numel() for p in algorithm.parameters()) == 86_567_656  # as is published for ViT-B/16


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"pre_logits": 0}, "pre_logits is 0"),
        ({"classifier_std": -0.1}, "classifier_std is -0.1"),
        ({"classifier_std": math.inf}, "classifier_std is inf"),
        ({"label_smoothing": 1.0}, "label_smoothing is 1.0"),
        ({"drop_path": -0.1}, "drop_path is -0.1"),
        ({"drop_path": math.nan}, "drop_path is nan"),
        ({"ema": 1.0}, "ema is 1.0"),
        ({"layer_decay": 0.0}, "layer_decay is 0.0"),
        ({"layer_decay": 1.1}, "layer_decay is 1.1"),
        ({"frozen": True, "drop_path": 0.1}, "this one is frozen"),
        ({"frozen": True, "layer_decay": 0.9}, "this one is frozen"),
        ({"normalize": True}, "normalize is for linear probes"),
        ({"normalize": True, "frozen": True, "head": "attentive"}, "normalize is for linear probes"),
        ({"backbone": replace(VIT, mask_token=True)}, "leave the backbone's mask_token out"),
    ],
)
def test_what_cannot_be_is_refused(bad: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ViTClassifier.Config(**{"backbone": VIT, **bad})


def test_data_without_labels_is_refused() -> None:
    with pytest.raises(ValueError, match="the data has none"):
        built(DataSpec(image_shape=(3, 8, 8), classes=None))
