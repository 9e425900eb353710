from __future__ import annotations

import copy
import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

from heliostat_algorithms.algorithm import Clock, DataSpec
from heliostat_algorithms.augmentation import ColorJitter, GaussianBlur, ViewAugmentation
from heliostat_algorithms.backbones import ResNet18, ResNet50, ViTTiny
from heliostat_algorithms.backbones.batch_norm import GroupBatchNorm
from heliostat_algorithms.optimizers import Sgd
from heliostat_algorithms.randomness import Random
from heliostat_algorithms.representation.moco import MoCo, MoCoViews
from heliostat_algorithms.schedules import Ramp

SIDE, BATCH, GROUPS, DIM, QUEUE = 8, 12, 3, 5, 28
DATA = DataSpec(image_shape=(3, SIDE, SIDE), classes=None)
BACKBONE = ResNet18(stem="cifar", width=4, zero_init_residual=False)


def clock(step: int = 0, batch_size: int = BATCH) -> Clock:
    return Clock(step=step, total_steps=10, steps_per_epoch=5, batch_size=batch_size)


def config(**options: Any) -> MoCo.Config:
    defaults = {"backbone": BACKBONE, "projection_dim": DIM, "queue_size": QUEUE, "batch_norm_groups": GROUPS}
    return MoCo.Config(**{**defaults, **options})


def built(**options: Any) -> MoCo:
    torch.manual_seed(0)
    return MoCo(config(**options), DATA).double()


def images(count: int = BATCH, side: int = SIDE) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(256, (count, 3, side, side), generator=generator, dtype=torch.uint8)


def prepared(algorithm: MoCo, step: int = 0, rows: range = range(BATCH), batch_size: int = BATCH) -> dict[str, Tensor]:
    batch = {"image": images(batch_size)[rows.start : rows.stop]}
    inputs = algorithm.prepare(batch, clock(step, batch_size), Random(7, step, rows))
    return {name: x.double() if x.is_floating_point() else x for name, x in inputs.items()}


def state(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


class Official:
    """Algorithm 1 as the official code runs it: each group is a GPU with batch normalisation of its own, and images are
    sent around. With networks of plain torch layers, a queue in numpy and keys one at a time."""

    def __init__(self, algorithm: MoCo, momentum: float, temperature: float) -> None:
        self.momentum, self.temperature = momentum, temperature
        self.query, self.key = self.network(algorithm), self.network(algorithm)
        backbone, head = self.query
        backbone.load_state_dict(algorithm.backbone.state_dict())
        head.load_state_dict(algorithm.head.state_dict())
        backbone, head = self.key
        backbone.load_state_dict(algorithm.key_backbone.state_dict())
        head.load_state_dict(algorithm.key_head.state_dict())
        self.key.requires_grad_(False)
        self.queue, self.next = algorithm.memory.negatives().numpy(), 0
        self.optimizer = torch.optim.SGD(self.query.parameters(), lr=0.05, momentum=0.9, weight_decay=0.01)

    def network(self, algorithm: MoCo) -> nn.Sequential:
        backbone = algorithm.config.backbone.build(3, (SIDE, SIDE)).double()
        assert not any(isinstance(module, GroupBatchNorm) for module in backbone.modules())
        return nn.Sequential(backbone, copy.deepcopy(algorithm.head))

    def on_gpus(self, network: nn.Module, x: Tensor) -> Tensor:
        return torch.cat([network(part) for part in x.chunk(GROUPS)])

    def keys(self, x: Tensor, groups: Tensor) -> Tensor:
        order = torch.argsort(groups, stable=True)
        keys = torch.zeros(len(x), DIM, dtype=x.dtype)
        keys[order] = F.normalize(self.on_gpus(self.key, x[order]), dim=1)
        return keys

    def loss(self, q: Tensor, k: Tensor, queue: np.ndarray) -> Tensor:
        losses = []
        for query, key in zip(F.normalize(q, dim=1), k, strict=True):
            scores = torch.cat([key.unsqueeze(0), torch.from_numpy(queue)]) @ query / self.temperature
            losses.append(torch.logsumexp(scores, dim=0) - scores[0])
        return torch.stack(losses).mean()

    def step(self, inputs: dict[str, Tensor], symmetric: bool) -> float:
        with torch.no_grad():
            for leader, follower in zip(self.query.parameters(), self.key.parameters(), strict=True):
                follower.copy_(self.momentum * follower + (1 - self.momentum) * leader)
        old = self.queue.copy()
        pairs = [("first", "second"), ("second", "first")] if symmetric else [("first", "second")]
        total: Any = 0
        for query, key in pairs:
            q = self.on_gpus(self.query, inputs[query])
            with torch.no_grad():
                k = self.keys(inputs[key], inputs[f"{key}_groups"])
            total = total + self.loss(q, k, old) / len(pairs)
            for row in k.numpy():
                self.queue[self.next] = row
                self.next = (self.next + 1) % len(self.queue)
        self.optimizer.zero_grad()
        total.backward()
        self.optimizer.step()
        return float(total.detach())


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("head", ["linear", "mlp"])
def test_training_follows_algorithm_1_with_a_gpu_for_each_group(head: Any, symmetric: bool) -> None:
    algorithm = built(head=head, symmetric=symmetric, temperature=0.3, momentum=Ramp(start=0.7, end=0.7))
    with torch.no_grad():  # a key encoder of its own, so that no network can be taken for the other
        for parameter in [*algorithm.key_backbone.parameters(), *algorithm.key_head.parameters()]:
            parameter.mul_(1 + 0.3 * torch.rand_like(parameter))
    official = Official(algorithm, momentum=0.7, temperature=0.3)
    sgd = Sgd(learning_rate=0.05, per=None, momentum=0.9, weight_decay=0.01)
    optimizer = sgd.build(algorithm.parameter_groups(), BATCH)
    for number in range(5):  # the queue is not a multiple of the batch: the ring closes inside a batch
        optimizer.zero_grad()
        algorithm.before_step(clock(number))
        inputs = prepared(algorithm, number)
        made = algorithm(inputs, clock(number))
        made.loss.backward()
        optimizer.step()
        algorithm.after_step(clock(number))
        assert made.loss.item() == pytest.approx(official.step(inputs, symmetric), rel=1e-10)
    for mine, theirs in (
        (nn.Sequential(algorithm.backbone, algorithm.head), official.query),
        (nn.Sequential(algorithm.key_backbone, algorithm.key_head), official.key),
    ):
        expected = dict(theirs.named_parameters())
        for name, parameter in mine.named_parameters():
            torch.testing.assert_close(parameter, expected[name], rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(algorithm.memory.negatives().numpy(), official.queue, rtol=1e-8, atol=1e-10)


def test_defaults_are_those_of_the_first_paper_and_the_second_is_described() -> None:
    defaults = MoCo.Config()
    assert defaults.type == "moco"
    assert defaults.backbone == ResNet50(zero_init_residual=False)
    assert (defaults.head, defaults.projection_dim, defaults.temperature) == ("linear", 128, 0.07)
    assert (defaults.queue_size, defaults.batch_norm_groups, defaults.symmetric) == (65536, 8, False)
    assert [defaults.momentum.at(clock(step)) for step in range(10)] == pytest.approx([0.999] * 10)
    views = defaults.augmentation
    assert isinstance(views, ViewAugmentation)
    assert views.crop_area == (0.2, 1.0)
    assert (views.flip, views.greyscale, views.solarize, views.blur.probability) == (0.5, 0.2, 0.0, 0.0)
    jitter = views.jitter
    assert (jitter.probability, jitter.strength) == (1.0, 1.0)
    assert (jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue) == (0.4, 0.4, 0.4, 0.4)
    with torch.device("meta"):
        first = MoCo(MoCo.Config(queue_size=8), DataSpec(image_shape=(3, 224, 224), classes=1000))
        second = MoCo(MoCo.Config(queue_size=8, head="mlp"), DataSpec(image_shape=(3, 224, 224), classes=1000))
    shapes = [{n: tuple(p.shape) for n, p in moco.head.named_parameters()} for moco in (first, second)]
    assert shapes[0] == {"weight": (128, 2048), "bias": (128,)}
    assert shapes[1] == {
        "0.weight": (2048, 2048),
        "0.bias": (2048,),
        "2.weight": (128, 2048),
        "2.bias": (128,),
    }
    assert isinstance(second.head[1], nn.ReLU)


def test_a_size_alone_leaves_the_other_numbers_of_the_views() -> None:
    assert MoCoViews(size=24) == MoCoViews(
        size=24,
        crop_area=(0.2, 1.0),
        jitter=ColorJitter(probability=1.0, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.4),
        blur=GaussianBlur(probability=0.0),
    )


def test_the_key_encoder_begins_as_the_query_encoder_and_follows_before_the_forward_pass() -> None:
    algorithm = built(momentum=Ramp(start=0.9, end=0.5, shape="linear"))
    pairs = [(algorithm.backbone, algorithm.key_backbone), (algorithm.head, algorithm.key_head)]
    for leader, follower in pairs:
        assert all(torch.equal(a, b) for a, b in zip(leader.parameters(), follower.parameters(), strict=True))
    algorithm.before_step(clock(0))
    for leader, follower in pairs:
        for a, b in zip(leader.parameters(), follower.parameters(), strict=True):
            torch.testing.assert_close(a.detach(), b)  # the first move changes nothing
    with torch.no_grad():
        for parameter in algorithm.trainable():
            parameter.add_(1.0)
        for name, buffer in algorithm.backbone.named_buffers():
            if "running" in name:
                buffer.add_(5.0)
    before = [state(follower) for _, follower in pairs]
    algorithm.before_step(clock(5))  # halfway from 0.9 to 0.5
    for (leader, follower), old in zip(pairs, before, strict=True):
        parameters = dict(leader.named_parameters())
        for name, tensor in follower.state_dict().items():
            expected = 0.7 * old[name] + 0.3 * parameters[name] if name in parameters else old[name]
            torch.testing.assert_close(tensor, expected)  # buffers stay
    # The forward pass moves no parameter, and uses the keys' encoder as it is.
    now = [state(follower) for _, follower in pairs]
    algorithm(prepared(algorithm), clock(5))
    algorithm.after_step(clock(5))
    for (_, follower), old in zip(pairs, now, strict=True):
        assert all(torch.equal(p, old[name]) for name, p in follower.named_parameters())


def test_logits_are_against_the_old_queue_and_keys_enter_it_after_the_step() -> None:
    algorithm = built()
    inputs, before = prepared(algorithm), algorithm.memory.negatives()
    first = algorithm(inputs, clock())
    again = algorithm(inputs, clock())  # as nothing was enqueued, the same
    assert first.loss.item() == pytest.approx(again.loss.item(), rel=1e-12)
    assert torch.equal(algorithm.memory.negatives(), before)
    algorithm.after_step(clock())
    after = algorithm.memory.negatives()
    assert torch.equal(after[BATCH:], before[BATCH:])
    torch.testing.assert_close(after[:BATCH].norm(dim=1), torch.ones(BATCH, dtype=torch.float64))
    assert not torch.isclose(after[:BATCH], before[:BATCH]).any()
    # Row by row the images' own keys: with them as negatives each query meets its own key twice.
    k = after[:BATCH]
    assert len({tuple(row) for row in k.round(decimals=9).tolist()}) == BATCH
    assert algorithm(inputs, clock()).loss.item() > first.loss.item()
    algorithm.after_step(clock(1))
    algorithm.after_step(clock(2))  # without a forward pass in between nothing is left to enter
    assert int(algorithm.memory.next) == 2 * BATCH


def test_gradients_reach_the_query_encoder_alone() -> None:
    algorithm = built()
    trainable = {id(p) for p in algorithm.trainable()}
    assert trainable == {id(p) for p in [*algorithm.backbone.parameters(), *algorithm.head.parameters()]}
    made = algorithm(prepared(algorithm), clock())
    made.loss.backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in algorithm.trainable())
    assert all(p.grad is None for p in [*algorithm.key_backbone.parameters(), *algorithm.key_head.parameters()])
    assert not any(metric.requires_grad for metric in made.metrics.values())


def test_all_parameters_are_decayed_alike_as_in_the_official_code() -> None:
    algorithm = built()
    (group,) = algorithm.parameter_groups()
    assert group.regularized
    assert [id(p) for p in group.parameters] == [id(p) for p in algorithm.trainable()]


def test_metrics() -> None:
    algorithm = built(temperature=0.3)
    inputs = prepared(algorithm)
    made = algorithm(inputs, clock())
    assert set(made.metrics) == {"contrastive_top1", "feature_std"}
    official = Official(algorithm, 1.0, 0.3)
    with torch.no_grad():
        h = official.on_gpus(official.query[0], inputs["first"])
        q, k = official.query[1](h), official.keys(inputs["second"], inputs["second_groups"])
    scores = F.normalize(q, dim=1) @ torch.cat([k, algorithm.memory.negatives()]).T
    own = scores.diagonal()
    hits = [bool(own[i] > scores[i, BATCH:].max()) for i in range(BATCH)]
    assert made.metrics["contrastive_top1"].item() == pytest.approx(sum(hits) / BATCH)
    unit = F.normalize(h, dim=1).numpy()
    assert made.metrics["feature_std"].item() == pytest.approx(unit.std(axis=0).mean() * math.sqrt(h.shape[1]))


def test_groups_of_keys_are_drawn_for_the_global_batch_and_anew_in_each_step() -> None:
    algorithm = built()
    whole = prepared(algorithm, 3)
    assert set(whole) == {"first", "second", "second_groups"}
    assert set(prepared(built(symmetric=True))) == {"first", "second", "first_groups", "second_groups"}
    for name in whole:
        parts = [prepared(algorithm, 3, range(a, a + 2))[name] for a in range(0, BATCH, 2)]
        assert torch.equal(whole[name], torch.cat(parts))
    symmetric = prepared(built(symmetric=True), 3)
    assert not torch.equal(symmetric["first_groups"], symmetric["second_groups"])
    drawn = [prepared(algorithm, step)["second_groups"] for step in range(60)]
    assert all(Counter(groups.tolist()) == dict.fromkeys(range(GROUPS), BATCH // GROUPS) for groups in drawn)
    # Two rows share one of 3 groups of 4 with probability 3 / 11; 60 draws give it +- 0.06.
    together = torch.stack([groups.unsqueeze(0) == groups.unsqueeze(1) for groups in drawn]).double().mean(dim=0)
    off_diagonal = together[~torch.eye(BATCH, dtype=torch.bool)]
    assert (off_diagonal - 3 / 11).abs().max() < 0.22


def test_one_group_is_plain_batch_normalisation() -> None:
    algorithm = built(batch_norm_groups=1)
    made = algorithm(prepared(algorithm), clock())
    inputs = prepared(algorithm)
    plain, head = BACKBONE.build(3, (SIDE, SIDE)).double(), algorithm.head
    plain.load_state_dict(built().backbone.state_dict())
    with torch.no_grad():
        q, k = head(plain(inputs["first"])), algorithm.key_head(plain(inputs["second"]))
    scores = F.normalize(q, dim=1) @ torch.cat([F.normalize(k, dim=1), algorithm.memory.negatives()]).T / 0.07
    scores = torch.cat([scores.diagonal().unsqueeze(1), scores[:, BATCH:]], dim=1)
    assert made.loss.item() == pytest.approx((scores.logsumexp(dim=1) - scores[:, 0]).mean().item(), rel=1e-10)


@pytest.mark.parametrize(
    ("batch_size", "groups", "fitting"),
    [(12, 8, "such as 8 or 16"), (6, 8, "such as 8$"), (10, 3, "such as 9 or 12")],
)
def test_a_batch_that_groups_do_not_divide_is_refused(batch_size: int, groups: int, fitting: str) -> None:
    with pytest.raises(ValueError, match=f"multiple of {groups}, {fitting}"):
        prepared(built(batch_norm_groups=groups), rows=range(batch_size), batch_size=batch_size)


def test_networks_without_batch_normalisation_have_no_groups() -> None:
    backbone = ViTTiny(width=8, depth=2, heads=2, patch_size=4)
    algorithm = built(backbone=backbone, batch_norm_groups=5)
    inputs = prepared(algorithm)
    assert set(inputs) == {"first", "second"}
    algorithm.before_step(clock())
    made = algorithm(inputs, clock())
    made.loss.backward()
    algorithm.after_step(clock())
    assert int(algorithm.memory.next) == BATCH
    with torch.no_grad():
        maps = algorithm.float().attention_maps(images())
    assert maps is not None
    assert maps.shape == (BATCH, 2, 2, 2)
    assert built().attention_maps(images()) is None


def test_features_are_those_of_the_query_encoder_beside_the_key_encoder() -> None:
    algorithm = built(augmentation=MoCoViews(size=SIDE)).float().eval()
    algorithm.key_backbone.bn1.running_mean.fill_(0.2)
    with torch.no_grad():
        x = F.interpolate(images(side=12).float() / 255, (SIDE, SIDE), mode="bilinear", antialias=True)
        found = algorithm.features(images(side=12))
        assert found.shape == (BATCH, 32)
        torch.testing.assert_close(found, algorithm.backbone(x))
        others = algorithm.other_features()
        assert set(others) == {"key_encoder"}
        torch.testing.assert_close(others["key_encoder"](images(side=12)), algorithm.key_backbone(x))
        assert not torch.allclose(others["key_encoder"](images(side=12)), found)


def test_a_view_pair_holds_features_of_two_views() -> None:
    algorithm = built().float().eval()
    batch, random = {"image": images()}, Random(7, -1, range(BATCH))
    with torch.no_grad():
        first, second = algorithm.view_pair(batch, random)
        inputs = algorithm.prepare(batch, clock(), random)
        assert torch.equal(first, algorithm.backbone(inputs["first"]))
        assert torch.equal(second, algorithm.backbone(inputs["second"]))
    assert not torch.equal(first, second)


def test_the_whole_state_is_saved() -> None:
    one, other = built(), built()
    for step in range(2):
        one.before_step(clock(step))
        one(prepared(one, step), clock(step)).loss.backward()
        with torch.no_grad():
            for parameter in one.trainable():
                parameter.sub_(0.1 * parameter.grad)
        one.after_step(clock(step))
    other.load_state_dict(one.state_dict())
    results = []
    for algorithm in (one, other):
        algorithm.before_step(clock(2))
        results.append(algorithm(prepared(algorithm, 2), clock(2)).loss.item())
        algorithm.after_step(clock(2))
    assert results[0] == results[1]
    assert all(torch.equal(tensor, other.state_dict()[name]) for name, tensor in one.state_dict().items())
    assert {"memory.keys", "memory.next", "key_backbone.conv1.weight", "key_head.bias"} <= set(one.state_dict())


def test_training_teaches_queries_to_find_their_keys() -> None:
    torch.manual_seed(0)
    digits = torch.tensor(load_digits().images[:64] * 15.9, dtype=torch.uint8).unsqueeze(1)
    views = MoCoViews(crop_area=(0.8, 1.0), flip=0.0, jitter=ColorJitter(probability=0.0))
    options = config(
        head="mlp",
        projection_dim=16,
        temperature=0.2,
        queue_size=128,
        momentum=Ramp(start=0.9, end=0.9),
        batch_norm_groups=2,
        augmentation=views,
    )
    algorithm = MoCo(options, DataSpec(image_shape=(1, 8, 8), classes=None))
    optimizer = Sgd(learning_rate=0.05, per=None, weight_decay=1e-4).build(algorithm.parameter_groups(), 64)
    losses, top1 = [], []
    for step in range(40):
        optimizer.zero_grad()
        algorithm.before_step(clock(step, 64))
        inputs = algorithm.prepare({"image": digits}, clock(step, 64), Random(0, step, range(64)))
        made = algorithm(inputs, clock(step, 64))
        made.loss.backward()
        optimizer.step()
        algorithm.after_step(clock(step, 64))
        losses.append(made.loss.item())
        top1.append(made.metrics["contrastive_top1"].item())
    assert sum(losses[-5:]) / 5 < 0.9 * sum(losses[4:9]) / 5  # from when the queue holds real keys
    assert sum(top1[-5:]) / 5 > 0.2  # by chance 1 / 129


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"temperature": math.inf}, "temperature is inf"),
        ({"projection_dim": 0}, "projection_dim is 0"),
        ({"queue_size": 0}, "queue_size is 0"),
        ({"batch_norm_groups": 0}, "batch_norm_groups is 0"),
        ({"momentum": Ramp(start=1.1, end=1.0)}, "momentum.start is 1.1"),
        ({"momentum": Ramp(start=0.9, end=-0.1)}, "momentum.end is -0.1"),
    ],
)
def test_numbers_out_of_range_are_refused(bad: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config(**bad)
