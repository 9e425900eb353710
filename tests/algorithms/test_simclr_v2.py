"""SimCLRv2: pretraining with and without memory, fine-tuning and distillation."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from heliostat_algorithms.algorithm import Clock, DataSpec
from heliostat_algorithms.augmentation import CropAndFlip, ViewAugmentation
from heliostat_algorithms.backbones import ResNet18, ResNet50
from heliostat_algorithms.optimizers import Sgd
from heliostat_algorithms.randomness import Random
from heliostat_algorithms.representation.simclr import SimCLR
from heliostat_algorithms.representation.simclr_v2 import SimCLRv2
from heliostat_algorithms.representation.simclr_v2_transfer import SimCLRv2Distill, SimCLRv2FineTune

SIDE = 8
DATA = DataSpec(image_shape=(3, SIDE, SIDE), classes=5)
CLOCK = Clock(step=0, total_steps=10, steps_per_epoch=5, batch_size=6)
SMALL = ResNet18(stem="cifar", width=4, zero_init_residual=False)
SMALLER = replace(SMALL, width=2)


def pretraining(seed: int = 0, **options: Any) -> SimCLRv2:
    torch.manual_seed(seed)
    config = SimCLRv2.Config(**{"backbone": SMALL, "projection_hidden": 7, "projection_dim": 6, **options})
    return SimCLRv2(config, DATA).double()


def fine_tuning(seed: int = 1, data: DataSpec = DATA, **options: Any) -> SimCLRv2FineTune:
    torch.manual_seed(seed)
    config = SimCLRv2FineTune.Config(**{"backbone": SMALL, "projection_hidden": 7, **options})
    return SimCLRv2FineTune(config, data).double()


def distillation(seed: int = 2, data: DataSpec = DATA, **options: Any) -> SimCLRv2Distill:
    torch.manual_seed(seed)
    teacher = SimCLRv2FineTune.Config(backbone=SMALL, projection_hidden=7)
    config = SimCLRv2Distill.Config(**{"teacher": teacher, "backbone": SMALLER, **options})
    return SimCLRv2Distill(config, data).double()


def shaken(module: Any, seed: int = 5) -> Any:
    """The same module with other weights and statistics: as if it had been trained."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
        for name, buffer in module.named_buffers():
            if name.endswith("running_mean"):
                buffer.add_(0.1 * torch.randn_like(buffer))
            elif name.endswith("running_var"):
                buffer.mul_(0.8 + torch.rand_like(buffer))
    return module


def images(count: int = 6) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(256, (count, 3, SIDE, SIDE), generator=generator, dtype=torch.uint8)


def views(count: int, seed: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, 3, SIDE, SIDE, generator=generator, dtype=torch.float64)


def unit(rows: Tensor) -> np.ndarray:
    found = rows.detach().double().numpy()
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def contrastive(anchors: np.ndarray, keys: np.ndarray, memory: np.ndarray, t: float) -> float:
    """Equation 1, one anchor at a time: view i of 2 N, its other view, all other views, the memory."""
    count = len(keys)
    losses = []
    for i in range(count):
        other = (i + count // 2) % count
        positive = math.exp(anchors[i] @ keys[other] / t)
        rest = sum(math.exp(anchors[i] @ keys[n] / t) for n in range(count) if n != i)
        rest += sum(math.exp(anchors[i] @ old / t) for old in memory)
        losses.append(-math.log(positive / rest))
    return sum(losses) / count


# Pretraining


def test_defaults_of_pretraining_are_those_of_the_paper() -> None:
    defaults = SimCLRv2.Config()
    assert (defaults.type, defaults.backbone, defaults.augmentation) == ("simclr-v2", ResNet50(), ViewAugmentation())
    assert (defaults.temperature, defaults.memory_size, defaults.memory_momentum) == (0.1, 0, 0.999)
    algorithm = SimCLRv2(defaults, DataSpec(image_shape=(3, 224, 224), classes=None))
    shapes = [tuple(linear.weight.shape) for linear in algorithm.projection.linears]
    assert shapes == [(2048, 2048), (2048, 2048), (128, 2048)]
    assert [norm.bias is None for norm in algorithm.projection.norms] == [False, False, True]
    assert not any(name.startswith(("key_", "memory")) for name in algorithm.state_dict())
    assert not algorithm.other_features()


def test_the_loss_without_memory_is_that_of_simclr() -> None:
    algorithm, both = pretraining(temperature=0.3), views(12)
    step = algorithm({"first": both[:6], "second": both[6:]}, CLOCK)
    again = pretraining(temperature=0.3)
    z = unit(again.projection(again.backbone(both)))
    assert step.loss.item() == pytest.approx(contrastive(z, z, np.zeros((0, 6)), 0.3), rel=1e-12)
    assert set(step.metrics) == {"contrastive_top1", "contrastive_entropy", "feature_std"}
    assert 0.02 < step.metrics["feature_std"].item() < 1.2
    step.loss.backward()
    assert all(parameter.grad is not None for parameter in algorithm.parameters())


def test_with_memory_views_are_compared_with_keys_of_this_batch_and_of_earlier_ones() -> None:
    algorithm, both = pretraining(temperature=0.3, memory_size=20), views(12)
    shaken(algorithm.key_backbone)
    shaken(algorithm.key_projection)
    old = algorithm.memory.keys.clone()
    inputs = {"first": both[:6], "second": both[6:]}
    step = algorithm(inputs, CLOCK)

    again = pretraining(temperature=0.3, memory_size=20)
    shaken(again.key_backbone)
    shaken(again.key_projection)
    z = again.projection(again.backbone(both))
    keys = again.key_projection(again.key_backbone(both))
    expected = contrastive(unit(z), unit(keys), old.numpy(), 0.3)
    assert step.loss.item() == pytest.approx(expected, rel=1e-12)
    # The share of anchors to whom no key, of this batch or in the memory, is nearer than that of the other view.
    similarity = unit(z) @ np.concatenate([unit(keys), old.numpy()]).T
    similarity[np.arange(12), np.arange(12)] = -np.inf
    right = similarity.argmax(axis=1) == (np.arange(12) + 6) % 12
    assert step.metrics["contrastive_top1"].item() == pytest.approx(right.mean())

    # Keys enter the memory after the step, all first views and then all second ones, in place of the oldest.
    assert torch.equal(algorithm.memory.keys, old)
    algorithm.after_step(CLOCK)
    np.testing.assert_allclose(algorithm.memory.keys[:12].numpy(), unit(keys), rtol=0, atol=1e-12)
    assert torch.equal(algorithm.memory.keys[12:], old[12:])
    algorithm.after_step(CLOCK)
    assert int(algorithm.memory.next) == 12


def test_keys_have_no_gradient_and_the_gradient_is_that_of_a_cross_entropy() -> None:
    algorithm, both = pretraining(temperature=0.3, memory_size=20), views(12)
    shaken(algorithm.key_projection)
    old = algorithm.memory.keys.clone()
    projections: list[Tensor] = []
    algorithm.projection.register_forward_hook(lambda module, inputs, z: projections.append(z))
    algorithm({"first": both[:6], "second": both[6:]}, CLOCK).loss.backward(retain_graph=True)
    for name, parameter in algorithm.named_parameters():
        assert (parameter.grad is None) == name.startswith("key_"), name

    # d loss / d z = (sum_k p_k k - positive) / (12 t), less its part along z, over |z|.
    z = projections[0].detach()
    keys = unit(algorithm.key_projection(algorithm.key_backbone(both)))
    others = np.concatenate([keys, old.numpy()])
    found = torch.autograd.grad(
        algorithm({"first": both[:6], "second": both[6:]}, CLOCK).loss, projections[1], retain_graph=True
    )[0]
    for i in range(12):
        direction, length = unit(z)[i], float(z[i].norm())
        logits = others @ direction / 0.3
        logits[i] = -np.inf
        p = np.exp(logits - logits.max())
        slope = (p @ others / p.sum() - keys[(i + 6) % 12]) / (12 * 0.3)
        slope = (slope - direction * (slope @ direction)) / length
        np.testing.assert_allclose(found[i].numpy(), slope, rtol=1e-8, atol=1e-13)


def test_the_key_network_moves_before_it_is_used() -> None:
    algorithm = pretraining(memory_size=20, memory_momentum=0.75)
    before = {name: p.clone() for name, p in algorithm.named_parameters() if name.startswith("key_")}
    statistics = algorithm.key_backbone.bn1.running_mean.clone()
    shaken(algorithm.backbone)
    shaken(algorithm.projection)
    algorithm.before_step(CLOCK)
    names = dict(algorithm.named_parameters())
    for name, old in before.items():
        expected = 0.75 * old + 0.25 * names[name.removeprefix("key_")].detach()
        torch.testing.assert_close(names[name].detach(), expected, rtol=1e-12, atol=0)
    assert torch.equal(algorithm.key_backbone.bn1.running_mean, statistics)
    # Nothing else moves it: neither the forward pass nor what follows the step.
    moved = {name: names[name].clone() for name in before}
    both = views(12)
    algorithm({"first": both[:6], "second": both[6:]}, CLOCK)
    algorithm.after_step(CLOCK)
    assert all(torch.equal(names[name], value) for name, value in moved.items())


def test_the_key_network_and_the_memory_are_state_but_are_not_trained() -> None:
    algorithm = pretraining(memory_size=20)
    trained = {id(p) for group in algorithm.parameter_groups() for p in group.parameters}
    for name, parameter in algorithm.named_parameters():
        assert (id(parameter) in trained) != name.startswith("key_"), name
    state = algorithm.state_dict()
    assert {"memory.keys", "memory.next", "key_backbone.conv1.weight", "key_projection.norms.2.weight"} <= set(state)
    other = pretraining(seed=9, memory_size=20)
    other.begin_from(algorithm)
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in state.items())
    with pytest.raises(ValueError, match="memory"):
        pretraining().begin_from(algorithm)


def test_features_are_of_the_trained_encoder_and_the_key_encoder_stands_beside_it() -> None:
    algorithm = pretraining(memory_size=20).eval()
    shaken(algorithm.key_backbone)
    x = images()
    with torch.no_grad():
        algorithm.float()
        assert torch.equal(algorithm.features(x), algorithm.backbone(x.float() / 255))
        (name, network), *rest = algorithm.other_features().items()
        assert (name, rest) == ("key_encoder", [])
        assert torch.equal(network(x), algorithm.key_backbone(x.float() / 255))
        inputs = algorithm.prepare({"image": x}, CLOCK, Random(7, 3, range(6)))
        first, second = algorithm.view_pair({"image": x}, Random(7, 3, range(6)))
        assert torch.equal(first, algorithm.backbone(inputs["first"]))
        assert torch.equal(second, algorithm.backbone(inputs["second"]))
        part = algorithm.prepare({"image": x[2:5]}, CLOCK, Random(7, 3, range(2, 5)))
    assert torch.equal(part["second"], inputs["second"][2:5])
    assert not torch.equal(inputs["first"], inputs["second"])


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"projection_layers": 0}, "projection_layers is 0"),
        ({"projection_hidden": 0}, "projection_hidden is 0"),
        ({"memory_size": -1}, "memory_size is -1"),
        ({"memory_momentum": 1.0}, "memory_momentum is 1.0"),
    ],
)
def test_pretraining_refuses_numbers_out_of_range(bad: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SimCLRv2.Config(**bad)


# Fine-tuning


def test_defaults_of_fine_tuning_are_those_of_the_paper() -> None:
    defaults = SimCLRv2FineTune.Config()
    assert (defaults.type, defaults.backbone, defaults.projection_layers_kept) == ("simclr-v2-fine-tune", ResNet50(), 1)
    assert defaults.augmentation.crop_area == (0.08, 1.0)
    algorithm = SimCLRv2FineTune(defaults, DataSpec(image_shape=(3, 224, 224), classes=1000))
    assert algorithm.projection[0][0].weight.shape == (2048, 2048)
    assert algorithm.classifier.weight.shape == (1000, 2048)


def test_images_are_cropped_and_flipped_and_keep_their_colours() -> None:
    plain = torch.tensor([[10, 200, 90], [255, 3, 77]], dtype=torch.uint8).view(2, 3, 1, 1).expand(2, 3, SIDE, SIDE)
    ramp = torch.arange(SIDE, dtype=torch.uint8).mul(30).expand(3, SIDE, SIDE)
    batch = {"image": torch.cat([plain, ramp.repeat(6, 1, 1, 1)]), "label": torch.arange(8) % 5}
    for algorithm in (fine_tuning(), distillation()):
        view = algorithm.prepare(batch, CLOCK, Random(0, 0, range(8)))["view"]
        torch.testing.assert_close(view[:2], plain / 255, rtol=0, atol=1e-6)
        slopes = (view[2:, 0, 0, -1] - view[2:, 0, 0, 0]).tolist()
        assert min(slopes) < 0 < max(slopes)  # some flipped, some not
        assert len({round(slope, 4) for slope in slopes}) > 3  # each cropped in its own way
        part = algorithm.prepare({k: v[3:5] for k, v in batch.items()}, CLOCK, Random(0, 0, range(3, 5)))["view"]
        assert torch.equal(part, view[3:5])
    labels = fine_tuning().prepare(batch, CLOCK, Random(0, 0, range(8)))["label"]
    assert torch.equal(labels, batch["label"])
    assert CropAndFlip(size=96).jitter.probability == 0


def test_fine_tuning_begins_with_the_first_layers_of_the_head() -> None:
    finished = shaken(pretraining(memory_size=20))
    x = views(6)
    finished.eval()
    for kept in (0, 1, 2):
        algorithm = fine_tuning(projection_layers_kept=kept)
        algorithm.begin_from(finished)
        algorithm.eval()
        with torch.no_grad():
            h = finished.backbone(x)
            torch.testing.assert_close(algorithm.backbone(x), h, rtol=0, atol=0)
            y = h
            for number in range(kept):  # linear, normalisation, ReLU, from the pretrained tensors
                norm = finished.projection.norms[number]
                y = y @ finished.projection.linears[number].weight.T
                y = (y - norm.running_mean) / (norm.running_var + 1e-5).sqrt() * norm.weight + norm.bias
                y = y.clamp(min=0)
            torch.testing.assert_close(algorithm.projection(h), y, rtol=1e-12, atol=1e-12)
            assert not algorithm.logits(x).any()
            algorithm.classifier.weight.normal_()
            algorithm.classifier.bias.normal_()
            expected = y @ algorithm.classifier.weight.T + algorithm.classifier.bias
            torch.testing.assert_close(algorithm.logits(x), expected, rtol=1e-12, atol=1e-12)


def test_fine_tuning_begins_from_simclr_too() -> None:
    torch.manual_seed(4)
    finished = SimCLR(SimCLR.Config(backbone=SMALL, projection_hidden=7), DATA).double()
    algorithm = fine_tuning()
    algorithm.begin_from(finished)
    assert torch.equal(algorithm.projection[0][0].weight, finished.projection.linears[0].weight)
    assert torch.equal(algorithm.backbone.conv1.weight, finished.backbone.conv1.weight)
    with pytest.raises(ValueError, match="the head has 2 layers; at most 1"):
        fine_tuning(projection_layers_kept=2).begin_from(finished)


def test_fine_tuning_goes_on_from_fine_tuning_with_its_classifier() -> None:
    finished, algorithm = shaken(fine_tuning()), fine_tuning(seed=8)
    algorithm.begin_from(finished)
    assert all(torch.equal(v, algorithm.state_dict()[name]) for name, v in finished.state_dict().items())
    assert algorithm.classifier.weight.any()


def test_fine_tuning_refuses_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match=r"the backbone is ResNet18.*width=2"):
        fine_tuning().begin_from(pretraining(backbone=SMALLER))
    with pytest.raises(ValueError, match="size mismatch"):
        fine_tuning().begin_from(pretraining(projection_hidden=9))
    with pytest.raises(ValueError, match="the head has 3 layers; at most 2"):
        fine_tuning(projection_layers_kept=3).begin_from(pretraining())
    with pytest.raises(ValueError, match="not from SimCLRv2Distill"):
        fine_tuning().begin_from(distillation())
    with pytest.raises(ValueError, match="learns from labels"):
        fine_tuning(data=replace(DATA, classes=None))
    with pytest.raises(ValueError, match="projection_layers_kept is -1"):
        SimCLRv2FineTune.Config(projection_layers_kept=-1)
    with pytest.raises(ValueError, match="projection_hidden is 0"):
        SimCLRv2FineTune.Config(projection_hidden=0)


def test_the_loss_of_fine_tuning_is_cross_entropy_under_batch_statistics() -> None:
    algorithm, x = fine_tuning(), views(6)
    label = torch.tensor([0, 3, 1, 1, 4, 2])
    first = algorithm({"view": x, "label": label}, CLOCK)
    assert first.loss.item() == pytest.approx(math.log(5), rel=1e-12)  # the classifier is zero
    first.loss.backward()
    # From zero, only the classifier moves in the first step: bias gradient = mean(1/5 - onehot).
    expected = np.full(5, 0.2) - np.bincount(label.numpy(), minlength=5) / 6
    np.testing.assert_allclose(algorithm.classifier.bias.grad.numpy(), expected, rtol=0, atol=1e-12)
    assert not algorithm.backbone.conv1.weight.grad.any()

    with torch.no_grad():
        algorithm.classifier.weight.normal_()
    before = int(algorithm.backbone.bn1.num_batches_tracked)
    step = algorithm({"view": x, "label": label}, CLOCK)
    assert int(algorithm.backbone.bn1.num_batches_tracked) == before + 1
    logits = algorithm.logits(x).detach().numpy()
    losses = [math.log(np.exp(row).sum()) - row[k] for row, k in zip(logits, label.tolist(), strict=True)]
    assert step.loss.item() == pytest.approx(sum(losses) / 6, rel=1e-12)
    assert step.metrics["top1"].item() == pytest.approx((logits.argmax(1) == label.numpy()).mean())
    assert set(step.metrics) == {"top1", "feature_std"}
    step.loss.backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in algorithm.parameters())


@pytest.mark.parametrize("build", [fine_tuning, distillation])
def test_lars_neither_decays_nor_adapts_the_classifier(build: Any) -> None:
    algorithm = build()
    names = {id(parameter): name for name, parameter in algorithm.named_parameters()}
    found = {names[id(p)]: group.regularized for group in algorithm.parameter_groups() for p in group.parameters}
    assert set(found) == {name for name in names.values() if not name.startswith("teacher.")}
    for name, regularized in found.items():
        weight = dict(algorithm.named_parameters())[name]
        assert regularized == (weight.ndim > 1 and name != "classifier.weight"), name


def test_features_and_scores_of_fine_tuning_are_of_whole_images() -> None:
    algorithm = shaken(fine_tuning()).float().eval()
    with torch.no_grad():
        x = images().float() / 255
        assert torch.equal(algorithm.features(images()), algorithm.backbone(x))
        scores = algorithm.class_scores(images())
        assert scores.shape == (6, 5)
        assert torch.equal(scores, algorithm.classifier(algorithm.projection(algorithm.backbone(x))))


# Distillation


def taught(seed: int = 2, **options: Any) -> SimCLRv2Distill:
    """A distillation that has its teacher."""
    algorithm = distillation(seed, **options)
    algorithm.begin_from(shaken(fine_tuning()))
    return algorithm


def test_defaults_of_distillation_are_those_of_the_paper() -> None:
    defaults = SimCLRv2Distill.Config()
    assert (defaults.type, defaults.temperature) == ("simclr-v2-distill", 1.0)
    assert defaults.teacher == SimCLRv2FineTune.Config()
    assert defaults.student == ResNet50()
    assert replace(defaults, backbone=ResNet18()).student == ResNet18()


def test_a_random_teacher_teaches_nothing() -> None:
    algorithm, inputs = distillation(), {"view": views(6)}
    with pytest.raises(RuntimeError, match="the teacher has random weights"):
        algorithm(inputs, CLOCK)
    algorithm.begin_from(fine_tuning())
    algorithm(inputs, CLOCK)
    resumed = distillation(seed=7)
    resumed.load_state_dict(algorithm.state_dict())
    resumed(inputs, CLOCK)


@pytest.mark.parametrize("temperature", [1.0, 0.4])
def test_the_loss_is_the_cross_entropy_with_the_teacher_at_the_temperature(temperature: float) -> None:
    algorithm, x = taught(temperature=temperature), views(6)
    with torch.no_grad():
        algorithm.classifier.weight.mul_(100)
    step = algorithm({"view": x}, CLOCK)
    with torch.no_grad():
        teaching = shaken(fine_tuning()).eval().logits(x).numpy()
        student = algorithm.classifier(algorithm.backbone(x)).numpy()

    def softmax(logits: np.ndarray) -> np.ndarray:
        powers = np.exp(logits / temperature)
        return powers / powers.sum(axis=1, keepdims=True)

    p, q = softmax(teaching), softmax(student)
    expected = -(p * np.log(q)).sum(axis=1).mean() * temperature**2
    assert step.loss.item() == pytest.approx(expected, rel=1e-12)
    assert step.metrics["agreement"].item() == pytest.approx((p.argmax(1) == q.argmax(1)).mean())
    assert step.metrics["teacher_entropy"].item() == pytest.approx(-(p * np.log(p)).sum(axis=1).mean(), rel=1e-10)
    assert set(step.metrics) == {"agreement", "teacher_entropy", "feature_std"}
    step.loss.backward()
    # t^2 keeps the size of the gradient: t * mean(q - p) at the classifier's bias.
    gradient = algorithm.classifier.bias.grad.numpy()
    np.testing.assert_allclose(gradient, temperature * (q - p).mean(axis=0), rtol=0, atol=1e-12)
    assert all(parameter.grad is None for parameter in algorithm.teacher.parameters())


def test_the_teacher_is_frozen_and_always_in_evaluation_mode() -> None:
    algorithm = taught()
    algorithm.train()
    assert algorithm.training
    assert algorithm.backbone.bn1.training
    assert not any(module.training for module in algorithm.teacher.modules())
    before = {name: value.clone() for name, value in algorithm.teacher.state_dict().items()}
    optimizer = Sgd(learning_rate=0.5, per=None).build(algorithm.parameter_groups(), 6)
    algorithm({"view": views(6)}, CLOCK).loss.backward()
    optimizer.step()
    assert all(torch.equal(value, algorithm.teacher.state_dict()[name]) for name, value in before.items())
    assert any(name.startswith("teacher.classifier") for name in algorithm.state_dict())
    assert not algorithm.eval().backbone.bn1.training


def test_a_student_comes_to_agree_with_its_teacher() -> None:
    algorithm = taught(backbone=SMALL)
    x = views(24)
    optimizer = Sgd(learning_rate=0.1, per=None).build(algorithm.parameter_groups(), 24)
    gaps = []
    for _ in range(25):
        step = algorithm({"view": x}, CLOCK)
        optimizer.zero_grad()
        step.loss.backward()
        optimizer.step()
        gaps.append(step.loss.item() - step.metrics["teacher_entropy"].item())  # the divergence, at temperature 1
    assert all(gap > 0 for gap in gaps)
    assert gaps[-1] < 0.3 * gaps[0]


def test_a_distillation_names_what_its_teacher_lacks() -> None:
    for options, name in (
        ({"projection_layers_kept": 2}, "projection_layers_kept is 1 here and 2 there"),
        ({"backbone": SMALLER}, "backbone is ResNet18"),
        ({"augmentation": CropAndFlip(size=12)}, "augmentation is"),
    ):
        with pytest.raises(ValueError, match=f"the teacher is not what 'teacher' says: {name}"):
            distillation().begin_from(fine_tuning(**options))
    with pytest.raises(ValueError, match=r"not from SimCLRv2$"):
        distillation().begin_from(pretraining())
    with pytest.raises(ValueError, match="size mismatch for classifier"):
        distillation().begin_from(fine_tuning(data=replace(DATA, classes=4)))
    for bad in ({"temperature": 0.0}, {"classes": 0}):
        with pytest.raises(ValueError, match="is 0"):
            SimCLRv2Distill.Config(**bad)


def test_a_distillation_is_continued_and_its_student_can_teach() -> None:
    finished = shaken(taught(backbone=None))
    continued = distillation(seed=9, backbone=None, temperature=0.1)
    continued.begin_from(finished)
    assert all(torch.equal(v, continued.state_dict()[name]) for name, v in finished.state_dict().items())

    teacher = SimCLRv2FineTune.Config(backbone=SMALL, projection_layers_kept=0)
    small = distillation(teacher=teacher)
    own = small.classifier.weight.clone()
    small.begin_from(finished)
    x = views(6)
    finished.eval()
    with torch.no_grad():
        expected = finished.classifier(finished.backbone(x))
        torch.testing.assert_close(small.teacher.logits(x), expected, rtol=0, atol=0)
    assert torch.equal(small.classifier.weight, own)
    small({"view": x}, CLOCK)
    with pytest.raises(ValueError, match="the other's student cannot be this one's teacher"):
        distillation().begin_from(taught(backbone=None))


def test_data_without_labels_can_be_distilled_on() -> None:
    unlabelled = replace(DATA, classes=None)
    with pytest.raises(ValueError, match="say how many classes"):
        distillation(data=unlabelled)
    with pytest.raises(ValueError, match="classes is 4, but the data has 5"):
        distillation(classes=4)
    algorithm = distillation(data=unlabelled, classes=5)
    algorithm.begin_from(fine_tuning())
    inputs = algorithm.prepare({"image": images()}, CLOCK, Random(0, 0, range(6)))
    assert set(inputs) == {"view"}
    assert algorithm({"view": inputs["view"].double()}, CLOCK).loss.isfinite()


def test_features_and_scores_of_distillation_are_the_student_s() -> None:
    algorithm = taught().float().eval()
    x = images().float() / 255
    with torch.no_grad():
        h = algorithm.backbone(x)
        assert h.shape == (6, 16)
        assert torch.equal(algorithm.features(images()), h)
        assert torch.equal(algorithm.class_scores(images()), algorithm.classifier(h))
