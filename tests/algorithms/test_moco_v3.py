from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heliostat_algorithms.algorithm import Clock, DataSpec
from heliostat_algorithms.augmentation import ColorJitter
from heliostat_algorithms.backbones import ResNet18, ViTBase, ViTTiny
from heliostat_algorithms.heads.mlp import MLP
from heliostat_algorithms.optimizers import AdamW
from heliostat_algorithms.randomness import Random
from heliostat_algorithms.representation.moco_v3 import FirstView, MoCoV3, SecondView
from heliostat_algorithms.schedules import Ramp

SIDE, BATCH, STEPS = 8, 6, 10
DATA = DataSpec(image_shape=(3, SIDE, SIDE), classes=None)
RESNET = ResNet18(stem="cifar", width=4, zero_init_residual=False)
VIT = ViTTiny(
    width=8, depth=2, heads=2, patch_size=4, positions="sincos", frozen_patch_embedding=True, initialization="xavier"
)


def clock(step: int = 0) -> Clock:
    return Clock(step=step, total_steps=STEPS, steps_per_epoch=5, batch_size=BATCH)


def config(**options: Any) -> MoCoV3.Config:
    return MoCoV3.Config(**{"backbone": VIT, "projection_hidden": 7, "projection_dim": 5, **options})


def built(**options: Any) -> MoCoV3:
    torch.manual_seed(0)
    return MoCoV3(config(**options), DATA).double()


def images(side: int = SIDE) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(256, (BATCH, 3, side, side), generator=generator, dtype=torch.uint8)


def prepared(algorithm: MoCoV3, step: int = 0, rows: range = range(BATCH)) -> dict[str, Tensor]:
    batch = {"image": images()[rows.start : rows.stop]}
    return {n: x.double() for n, x in algorithm.prepare(batch, clock(step), Random(7, step, rows)).items()}


def norms(network: nn.Module) -> list[bool | None]:
    """For each linear layer, whether a normalisation with (True) or without (False) gain and shift follows, or none."""
    found: list[bool | None] = []
    for module in network:
        if isinstance(module, nn.Linear):
            assert module.bias is None
            found.append(None)
        elif isinstance(module, nn.BatchNorm1d):
            found[-1] = module.affine
    return found


def test_defaults_are_those_of_the_paper_for_vit_b() -> None:
    defaults = MoCoV3.Config()
    assert defaults.type == "moco-v3"
    assert defaults.backbone == ViTBase(positions="sincos", frozen_patch_embedding=True, initialization="xavier")
    assert (defaults.projection_hidden, defaults.projection_dim, defaults.temperature) == (4096, 256, 0.2)
    momenta = [defaults.momentum.at(clock(step)) for step in range(STEPS)]
    expected = [1 - 0.5 * (1 + math.cos(math.pi * step / STEPS)) * (1 - 0.99) for step in range(STEPS)]
    assert momenta == pytest.approx(expected, rel=1e-12)
    jitter = ColorJitter(probability=0.8, brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1)
    for view, blur, solarize in ((defaults.first_view, 1.0, 0.0), (defaults.second_view, 0.1, 0.2)):
        assert (view.crop_area, view.flip, view.greyscale, view.jitter) == ((0.08, 1.0), 0.5, 0.2, jitter)
        assert (view.blur.probability, view.blur.sigma, view.solarize) == (blur, (0.1, 2.0), solarize)


@pytest.mark.parametrize(("backbone", "layers", "last"), [(VIT, 3, False), (RESNET, 2, None)])
def test_projector_and_predictor_depend_on_the_backbone(backbone: Any, layers: int, last: bool | None) -> None:
    algorithm = built(backbone=backbone)
    assert norms(algorithm.projector) == [True] * (layers - 1) + [False]
    assert norms(algorithm.predictor) == [True, last]
    shapes = [tuple(p.shape) for p in algorithm.projector.parameters() if p.ndim == 2]
    dim = algorithm.backbone.feature_dim
    assert shapes == [(7, dim), *[(7, 7)] * (layers - 2), (5, 7)]
    assert [tuple(p.shape) for p in algorithm.predictor.parameters() if p.ndim == 2] == [(7, 5), (5, 7)]
    assert norms(built(backbone=backbone, projection_layers=4).projector) == [True] * 3 + [False]


def test_an_mlp_is_linear_layers_normalisations_and_relus() -> None:
    torch.manual_seed(1)
    mlp = MLP(6, 5, 4, 3).double()
    with torch.no_grad():
        for parameter in mlp.parameters():
            parameter.normal_()
    x = torch.randn(9, 6, dtype=torch.float64)
    expected = x.numpy()
    state = {name: tensor.numpy() for name, tensor in mlp.state_dict().items()}
    for linear, norm in (("0", "1"), ("3", "4"), ("6", None)):
        expected = expected @ state[f"{linear}.weight"].T
        expected = (expected - expected.mean(0)) / (expected.var(0) + 1e-5) ** 0.5
        if norm is not None:
            expected = (expected * state[f"{norm}.weight"] + state[f"{norm}.bias"]).clip(0)
    torch.testing.assert_close(mlp(x).detach().numpy(), expected, rtol=1e-9, atol=1e-12)
    with pytest.raises(ValueError, match="at least 1"):
        MLP(6, 5, 4, 0)
    bound = 1 / math.sqrt(100)  # torch's own start, uniform
    weight = MLP(100, 200, 4, 2)[0].weight
    assert weight.abs().max() <= bound
    assert weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.03)


def cross_entropy(q: Tensor, k: Tensor, temperature: float) -> Tensor:
    losses = []
    for row in range(len(q)):
        scores = F.cosine_similarity(q[row].unsqueeze(0), k) / temperature
        losses.append(scores.exp().sum().log() - scores[row])
    return torch.stack(losses).mean()


@pytest.mark.parametrize("backbone", [VIT, RESNET])
def test_the_loss_is_that_of_algorithm_1_in_both_directions_times_2_t(backbone: Any) -> None:
    algorithm = built(backbone=backbone, temperature=0.3)
    with torch.no_grad():  # a key encoder of its own, so that no network can be taken for the other
        for parameter in [*algorithm.key_backbone.parameters(), *algorithm.key_projector.parameters()]:
            parameter.mul_(1 + 0.3 * torch.rand_like(parameter))
    query = copy.deepcopy(nn.Sequential(algorithm.backbone, algorithm.projector, algorithm.predictor))
    key = copy.deepcopy(nn.Sequential(algorithm.key_backbone, algorithm.key_projector))
    inputs = prepared(algorithm)
    made = algorithm(inputs, clock())

    q1, q2 = query(inputs["first"]), query(inputs["second"])  # passes of their own, with their own statistics
    with torch.no_grad():
        k1, k2 = key(inputs["first"]), key(inputs["second"])
    expected = 2 * 0.3 * (cross_entropy(q1, k2, 0.3) + cross_entropy(q2, k1, 0.3))
    assert made.loss.item() == pytest.approx(expected.item(), rel=1e-10)

    made.loss.backward()
    expected.backward()
    modules = nn.Sequential(algorithm.backbone, algorithm.projector, algorithm.predictor)
    for name, parameter in query.named_parameters():
        found = dict(modules.named_parameters())[name].grad
        if parameter.requires_grad:
            torch.testing.assert_close(found, parameter.grad, rtol=1e-7, atol=1e-10)
        else:
            assert found is None
    assert all(p.grad is None for p in [*algorithm.key_backbone.parameters(), *algorithm.key_projector.parameters()])
    # Running statistics were moved once by each view, also those of the keys, which are the key encoder's own.
    for network in (algorithm.projector, algorithm.key_projector):
        assert int(network[1].num_batches_tracked) == 2

    assert set(made.metrics) == {"contrastive_top1", "feature_std"}
    hits = [
        bool((F.cosine_similarity(q[row].unsqueeze(0), k)).argmax() == row)
        for q, k in ((q1, k2), (q2, k1))
        for row in range(BATCH)
    ]
    assert made.metrics["contrastive_top1"].item() == pytest.approx(sum(hits) / len(hits))
    with torch.no_grad():
        unit = F.normalize(copy.deepcopy(query[0])(inputs["first"]), dim=1)
    spread = unit.std(dim=0, correction=0).mean().item() * math.sqrt(unit.shape[1])
    assert made.metrics["feature_std"].item() == pytest.approx(spread)
    assert not any(metric.requires_grad for metric in made.metrics.values())


def test_the_key_encoder_follows_before_the_forward_pass_by_a_rising_momentum() -> None:
    algorithm = built(momentum=Ramp(start=0.6, end=1.0))
    pairs = [(algorithm.backbone, algorithm.key_backbone), (algorithm.projector, algorithm.key_projector)]
    for leader, follower in pairs:
        assert all(torch.equal(a, b) for a, b in zip(leader.parameters(), follower.parameters(), strict=True))
    with torch.no_grad():
        for parameter in algorithm.trainable():
            parameter.add_(1.0)
    before = [[p.clone() for p in follower.parameters()] for _, follower in pairs]
    algorithm.before_step(clock(5))
    momentum = 1 - (1 - 0.6) * (math.cos(math.pi * 5 / STEPS) + 1) / 2
    assert momentum == pytest.approx(0.8)
    now = []
    for (leader, follower), old in zip(pairs, before, strict=True):
        for a, b, c in zip(leader.parameters(), follower.parameters(), old, strict=True):
            torch.testing.assert_close(b, momentum * c + (1 - momentum) * a.detach())
        now.append([p.clone() for p in follower.parameters()])
    algorithm(prepared(algorithm), clock(5)).loss.backward()
    algorithm.after_backward(clock(5))
    algorithm.after_step(clock(5))
    for (_, follower), old in zip(pairs, now, strict=True):
        assert all(torch.equal(b, c) for b, c in zip(follower.parameters(), old, strict=True))


def test_two_different_views_are_drawn_from_the_step_and_the_rows() -> None:
    algorithm = built(first_view=FirstView(size=SIDE, solarize=1.0), second_view=SecondView(size=SIDE))
    whole = prepared(algorithm, 3)
    assert set(whole) == {"first", "second"}
    for name in whole:
        parts = [prepared(algorithm, 3, range(a, a + 2))[name] for a in range(0, BATCH, 2)]
        assert torch.equal(whole[name], torch.cat(parts))
        assert not torch.equal(whole[name], prepared(algorithm, 4)[name])
    random = Random(7, 3, range(BATCH))
    first, second = algorithm.config.first_view, algorithm.config.second_view
    assert torch.equal(whole["first"], first(images(), random.within("first")).double())
    assert torch.equal(whole["second"], second(images(), random.within("second")).double())


def test_a_size_alone_leaves_the_other_numbers_of_the_views() -> None:
    view = SecondView(size=24)
    assert (view.blur.probability, view.solarize, view.jitter.saturation) == (0.1, 0.2, 0.2)


def test_the_frozen_patch_embedding_never_moves() -> None:
    algorithm = built().float()
    frozen = [p for n, p in algorithm.named_parameters() if n.startswith("backbone.patch_embed")]
    assert len(frozen) == 2
    start = [p.clone() for p in frozen]
    optimizer = AdamW(learning_rate=0.1, per=None, weight_decay=0.1).build(algorithm.parameter_groups(), BATCH)
    others = [p.clone() for p in algorithm.trainable()]
    for step in range(2):
        optimizer.zero_grad()
        algorithm.before_step(clock(step))
        inputs = {name: x.float() for name, x in prepared(algorithm, step).items()}
        algorithm(inputs, clock(step)).loss.backward()
        optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(frozen, start, strict=True))
    assert all(not torch.equal(a, b) for a, b in zip(algorithm.trainable(), others, strict=True))


@pytest.mark.parametrize("backbone", [VIT, RESNET])
def test_what_is_decayed_depends_on_the_backbone(backbone: Any) -> None:
    algorithm = built(backbone=backbone)
    regularized = {id(p): g.regularized for g in algorithm.parameter_groups() for p in g.parameters}
    trainable = [*algorithm.trainable()]
    assert set(regularized) == {id(p) for p in trainable}
    for parameter in trainable:
        assert regularized[id(parameter)] == (backbone is VIT or parameter.ndim > 1)


def test_features_are_those_of_the_query_encoder_beside_the_key_encoder() -> None:
    algorithm = built(first_view=FirstView(size=SIDE), second_view=SecondView(size=SIDE)).float().eval()
    with torch.no_grad():
        algorithm.key_backbone.norm.bias.add_(1.0)
        x = F.interpolate(images(side=12).float() / 255, (SIDE, SIDE), mode="bilinear", antialias=True)
        found = algorithm.features(images(side=12))
        assert found.shape == (BATCH, 8)
        torch.testing.assert_close(found, algorithm.backbone(x))
        others = algorithm.other_features()
        assert set(others) == {"key_encoder"}
        torch.testing.assert_close(others["key_encoder"](images(side=12)), algorithm.key_backbone(x))
        assert not torch.allclose(others["key_encoder"](images(side=12)), found)
        maps = algorithm.attention_maps(images(side=12))
        assert maps is not None
        torch.testing.assert_close(maps, algorithm.backbone.attention(x))
    assert built(backbone=RESNET).attention_maps(images()) is None


def test_a_view_pair_holds_features_of_both_kinds_of_view() -> None:
    algorithm = built().float().eval()
    batch, random = {"image": images()}, Random(7, -1, range(BATCH))
    with torch.no_grad():
        first, second = algorithm.view_pair(batch, random)
        inputs = algorithm.prepare(batch, clock(), random)
        assert torch.equal(first, algorithm.backbone(inputs["first"]))
        assert torch.equal(second, algorithm.backbone(inputs["second"]))
    assert not torch.equal(first, second)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"projection_dim": 0}, "projection_dim is 0"),
        ({"projection_hidden": -1}, "projection_hidden is -1"),
        ({"projection_layers": 0}, "projection_layers is 0"),
        ({"momentum": Ramp(start=-0.1, end=1.0)}, "momentum.start is -0.1"),
        ({"momentum": Ramp(start=0.99, end=1.01)}, "momentum.end is 1.01"),
        ({"first_view": FirstView(size=224)}, "sizes 224 and None"),
    ],
)
def test_numbers_out_of_range_are_refused(bad: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config(**bad)
