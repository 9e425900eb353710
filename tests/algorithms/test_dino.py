from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from heliostat_algorithms.algorithm import Clock, DataSpec, Inputs
from heliostat_algorithms.augmentation import ViewAugmentation
from heliostat_algorithms.augmentation.multi_crop import MultiCrop
from heliostat_algorithms.backbones import ResNet18, ViTSmall, ViTTiny
from heliostat_algorithms.optimizers import AdamW
from heliostat_algorithms.randomness import Random
from heliostat_algorithms.representation.dino import DINO
from heliostat_algorithms.schedules import Ramp

DATA = DataSpec(image_shape=(3, 8, 8), classes=None)
B, L, K = 4, 3, 10
VIT = ViTTiny(width=16, depth=2, heads=2, patch_size=4, interpolation_offset=0.1)
RESNET = ResNet18(stem="cifar", width=4, zero_init_residual=False)


def clock(step: int = 0, total: int = 100, steps_per_epoch: int = 10) -> Clock:
    return Clock(step=step, total_steps=total, steps_per_epoch=steps_per_epoch, batch_size=B)


def crops(large: int = 8, small: int = 4, local_crops: int = L) -> MultiCrop:
    return MultiCrop(
        first_global=ViewAugmentation(size=large),
        second_global=ViewAugmentation(size=large),
        local=ViewAugmentation(size=small),
        local_crops=local_crops,
    )


def config(**options: Any) -> DINO.Config:
    small = {"backbone": VIT, "views": crops(), "prototypes": K, "head_hidden": 12, "head_bottleneck": 6}
    return DINO.Config(**{**small, **options})


def built(**options: Any) -> DINO:
    """In float64, with a teacher that is not the student and a centre that is not 0."""
    torch.manual_seed(0)
    algorithm = DINO(config(**options), DATA).double()
    with torch.no_grad():
        for network in (algorithm.backbone, algorithm.head, algorithm.teacher_backbone, algorithm.teacher_head):
            for name, parameter in network.named_parameters():
                if not name.endswith("weight_g"):
                    parameter.add_(0.1 * torch.randn_like(parameter))
        algorithm.centre.add_(0.2 * torch.randn_like(algorithm.centre))
    return algorithm


def images(count: int = B) -> Tensor:
    return torch.randint(256, (count, 3, 8, 8), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)


def prepared(algorithm: DINO, step: int = 0) -> dict[str, Tensor]:
    inputs = algorithm.prepare({"image": images()}, clock(step), Random(5, step, range(B)))
    return {name: value.double() for name, value in inputs.items()}


def softmax(z: Tensor) -> Tensor:
    powers = torch.exp(z - z.max())
    return powers / powers.sum()


def naive(algorithm: DINO, inputs: Inputs, teacher_temperature: float) -> dict[str, float]:
    """Algorithm 1 with multi-crop, as slowly as it reads: one crop of one image at a time."""
    rates = algorithm.drop_rates

    def student(kind: str, row: int) -> Tensor:
        image, one = inputs[kind][row : row + 1], slice(row, row + 1)
        h = algorithm.backbone(image, inputs[f"{kind}_keep"][one]) if rates else algorithm.backbone(image)
        return algorithm.head(h)[0] / 0.1

    cross_entropies, divergences, entropies, teachers = [], [], [], []
    for image in range(B):
        q = []
        for view in range(2):
            row = view * B + image
            z = algorithm.teacher_head(algorithm.teacher_backbone(inputs["global"][row : row + 1]))[0]
            q.append(softmax((z - algorithm.centre[0]) / teacher_temperature))
        p = [softmax(student("global", view * B + image)) for view in range(2)]
        p += [softmax(student("local", view * B + image)) for view in range(L)]
        for t in range(2):
            entropies.append(-(q[t] * q[t].log()).sum().item())
            for s in range(2 + L):
                if s != t:
                    cross_entropies.append(-(q[t] * p[s].log()).sum().item())
                    divergences.append((q[t] * (q[t] / p[s]).log()).sum().item())
        teachers += q
    mean = torch.stack(teachers).mean(dim=0)
    return {
        "loss": sum(cross_entropies) / len(cross_entropies),
        "kl_teacher_student": sum(divergences) / len(divergences),
        "teacher_entropy": sum(entropies) / len(entropies),
        "teacher_kl_uniform": (mean * (mean * K).log()).sum().item(),
    }


@pytest.mark.parametrize("drop_path", [0.0, 0.5])
def test_two_passes_give_the_loss_of_one_forward_per_crop(drop_path: float) -> None:
    algorithm = built(drop_path=drop_path)
    inputs = prepared(algorithm)
    assert (drop_path == 0) == all(rate == 0 for rate in algorithm.drop_rates)
    step = algorithm(inputs, clock())
    with torch.no_grad():
        expected = naive(algorithm, inputs, 0.04)
    assert step.loss.item() == pytest.approx(expected.pop("loss"), rel=1e-10)
    for name, value in expected.items():
        assert step.metrics[name].item() == pytest.approx(value, rel=1e-9), name


def test_gradients_of_two_passes_are_those_of_one_forward_per_crop() -> None:
    algorithm = built(drop_path=0.0)
    inputs = prepared(algorithm)
    algorithm(inputs, clock()).loss.backward()
    found = {name: p.grad.clone() for name, p in algorithm.named_parameters() if p.requires_grad}
    algorithm.zero_grad()
    with torch.no_grad():
        z = algorithm.teacher_head(algorithm.teacher_backbone(inputs["global"]))
        q = torch.softmax((z - algorithm.centre) / 0.04, dim=1).view(2, B, K)
    scores = [algorithm.head(algorithm.backbone(x)) / 0.1 for x in inputs["global"].chunk(2)]
    scores += [algorithm.head(algorithm.backbone(x)) / 0.1 for x in inputs["local"].chunk(L)]
    terms = [-(q[t] * torch.log_softmax(scores[s], 1)).sum(1).mean() for t in range(2) for s in range(2 + L) if s != t]
    assert len(terms) == 2 * L + 2
    (sum(terms) / len(terms)).backward()  # type: ignore[union-attr]
    assert found
    for name, gradient in found.items():
        torch.testing.assert_close(
            gradient, algorithm.get_parameter(name).grad, rtol=1e-8, atol=1e-12, msg=lambda m, n=name: f"{n}: {m}"
        )
        assert gradient.abs().max() > 1e-9, name


def calls_of(network: nn.Module) -> list[tuple[Any, ...]]:
    found: list[tuple[Any, ...]] = []
    network.register_forward_pre_hook(lambda module, inputs: found.append(inputs))
    return found


def test_the_teacher_sees_large_crops_only_whole_and_without_gradient() -> None:
    algorithm = built(drop_path=0.5)
    student, teacher, head, teacher_head = (
        calls_of(part)
        for part in (algorithm.backbone, algorithm.teacher_backbone, algorithm.head, algorithm.teacher_head)
    )
    inputs = prepared(algorithm)
    algorithm(inputs, clock()).loss.backward()
    assert len(teacher) == 1
    assert len(teacher[0]) == 1  # no drop path
    assert torch.equal(teacher[0][0], inputs["global"])
    assert [tuple(call[0].shape) for call in student] == [(2 * B, 3, 8, 8), (L * B, 3, 4, 4)]
    assert [tuple(call[1].shape) for call in student] == [(2 * B, 4), (L * B, 4)]
    assert [len(call[0]) for call in head] == [(2 + L) * B]
    assert [len(call[0]) for call in teacher_head] == [2 * B]
    for network in (algorithm.teacher_backbone, algorithm.teacher_head):
        assert all(p.grad is None and not p.requires_grad for p in network.parameters())


def test_crops_of_one_size_share_a_pass() -> None:
    algorithm = built(views=crops(8, 8), drop_path=0.5)
    student = calls_of(algorithm.backbone)
    inputs = prepared(algorithm)
    algorithm(inputs, clock())
    assert len(student) == 1
    assert torch.equal(student[0][0], torch.cat([inputs["global"], inputs["local"]]))
    assert torch.equal(student[0][1], torch.cat([inputs["global_keep"], inputs["local_keep"]]))


def test_without_local_crops_each_view_predicts_the_other() -> None:
    algorithm = built(views=crops(local_crops=0), drop_path=0.0)
    inputs = prepared(algorithm)
    assert set(inputs) == {"global"}
    with torch.no_grad():
        q = torch.softmax(
            (algorithm.teacher_head(algorithm.teacher_backbone(inputs["global"])) - algorithm.centre) / 0.04, 1
        )
        log_p = torch.log_softmax(algorithm.head(algorithm.backbone(inputs["global"])) / 0.1, 1)
        expected = -(q[:B] * log_p[B:] + q[B:] * log_p[:B]).sum(1).mean() / 2
    assert algorithm(inputs, clock()).loss.item() == pytest.approx(expected.item(), rel=1e-12)


def test_batch_statistics_are_those_of_one_pass_per_resolution() -> None:
    algorithm = built(backbone=RESNET, head_batch_norm=True).train()
    inputs = prepared(algorithm)
    assert set(inputs) == {"global", "local"}  # a ResNet has no branches to drop
    seen = calls_of(algorithm.backbone.bn1)
    seen_by_teacher = calls_of(algorithm.teacher_backbone.bn1)
    algorithm(inputs, clock())
    student, teacher = algorithm.backbone.bn1, algorithm.teacher_backbone.bn1
    assert int(student.num_batches_tracked) == 2
    assert int(teacher.num_batches_tracked) == 1  # it is in training mode and keeps statistics of its own
    running = torch.zeros(4, dtype=torch.float64)
    for (x,) in seen:
        running = 0.9 * running + 0.1 * x.mean((0, 2, 3))
    torch.testing.assert_close(student.running_mean, running, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(
        teacher.running_mean, 0.1 * seen_by_teacher[0][0].mean((0, 2, 3)), rtol=1e-10, atol=1e-12
    )
    assert int(algorithm.head.mlp[1].num_batches_tracked) == 1  # the head sees all crops at once
    algorithm.after_step(clock())
    assert int(teacher.num_batches_tracked) == 1  # the average is of parameters, not of statistics


def test_crops_and_drop_path_are_drawn_from_the_step_and_the_rows() -> None:
    algorithm = DINO(config(drop_path=0.5), DATA)
    branches = 2 * VIT.depth

    def prepare(rows: range, step: int = 3) -> Inputs:
        return algorithm.prepare({"image": images(8)[rows.start : rows.stop]}, clock(), Random(7, step, rows))

    whole = prepare(range(8))
    expected = {"global": (16, 3, 8, 8), "local": (24, 3, 4, 4), "global_keep": (16, branches)}
    assert {name: tuple(x.shape) for name, x in whole.items()} == {**expected, "local_keep": (24, branches)}
    for name, x in whole.items():
        assert x.dtype == torch.float32
        count = len(x) // 8
        for rows in (range(4), range(4, 8)):
            mine = x.view(count, 8, *x.shape[1:])[:, rows.start : rows.stop].flatten(0, 1)
            torch.testing.assert_close(prepare(rows)[name], mine, rtol=0, atol=1e-6)
        assert not torch.equal(x, prepare(range(8), step=4)[name])
    keep = torch.cat([whole["global_keep"], whole["local_keep"]])
    assert keep.device.type == "cpu"
    assert (keep[:, :2] == 1).all()  # linear rates: the first block always stays
    assert set(keep[:, 2:].unique().tolist()) == {0.0, 2.0}  # dropped, or scaled by 1 / (1 - 0.5)
    tables = whole["local_keep"].view(L, 8, branches)[:, :, 2:]
    assert not torch.equal(tables[0], tables[1])
    views = torch.cat([whole["global"].flatten(1), torch.ones(16, 1)], dim=1).unique(dim=0)
    assert len(views) == 16


def test_drop_rates_rise_linearly_to_the_last_block() -> None:
    deep = ViTTiny(width=16, depth=5, heads=2, patch_size=4)
    algorithm = DINO(config(backbone=deep, drop_path=0.2), DATA)
    assert algorithm.drop_rates == pytest.approx([0, 0, 0.05, 0.05, 0.1, 0.1, 0.15, 0.15, 0.2, 0.2])
    assert set(DINO(config(drop_path=0.0), DATA).prepare({"image": images()}, clock(), Random(0, 0, range(B)))) == {
        "global",
        "local",
    }


def test_the_centre_moves_after_it_was_used() -> None:
    algorithm = built(drop_path=0.0)
    old = algorithm.centre.clone()
    inputs = prepared(algorithm)
    with torch.no_grad():
        mean = algorithm.teacher_head(algorithm.teacher_backbone(inputs["global"])).mean(dim=0, keepdim=True)
    step = algorithm(inputs, clock())
    assert torch.equal(algorithm.centre, old)
    with torch.no_grad():
        assert step.loss.item() == pytest.approx(naive(algorithm, inputs, 0.04)["loss"], rel=1e-10)
    algorithm.after_step(clock())  # the teacher's outputs of the step, from before the teacher moved
    torch.testing.assert_close(algorithm.centre, 0.9 * old + 0.1 * mean, rtol=1e-10, atol=1e-12)
    assert algorithm.centre.shape == (1, K)


@pytest.mark.parametrize(("step", "momentum"), [(0, 0.996), (50, 0.998), (99, None)])
def test_the_teacher_follows_the_student_that_has_just_moved(step: int, momentum: float | None) -> None:
    algorithm = built()
    if momentum is None:
        momentum = 1 - 0.004 * (1 + math.cos(math.pi * 99 / 100)) / 2
    before = {name: p.clone() for name, p in algorithm.named_parameters()}
    with torch.no_grad():
        for parameter in algorithm.trainable():
            parameter.add_(0.5)  # the optimiser's step
    algorithm.after_step(clock(step))
    pairs = [("teacher_backbone.", "backbone."), ("teacher_head.", "head.")]
    checked = 0
    for teacher, student in pairs:
        for name, parameter in algorithm.named_parameters():
            if name.startswith(teacher):
                leader = algorithm.get_parameter(student + name.removeprefix(teacher))
                expected = momentum * before[name] + (1 - momentum) * leader
                torch.testing.assert_close(parameter, expected, rtol=1e-12, atol=1e-12)
                checked += 1
    assert 2 * checked == len(before)


def test_teacher_and_centre_are_part_of_the_state_and_begin_as_the_method_says() -> None:
    torch.manual_seed(0)
    algorithm = DINO(config(), DATA)
    state = algorithm.state_dict()
    assert not state["centre"].any()
    for name, value in state.items():
        if name.startswith("teacher_"):
            assert torch.equal(value, state[name.removeprefix("teacher_")])
    algorithm(algorithm.prepare({"image": images()}, clock(), Random(0, 0, range(B))), clock())
    assert set(algorithm.state_dict()) == set(state)


def test_the_last_layer_stays_in_the_first_epoch_though_weights_decay() -> None:
    algorithm = built(frozen_gain=False)
    optimizer = AdamW(learning_rate=0.01, per=None, weight_decay=0.5).build(algorithm.parameter_groups(), B)
    last = algorithm.head.last_layer_parameters()
    moved = []
    for step in range(12):  # epochs have 10 steps
        before = [parameter.clone() for parameter in last]
        others = algorithm.head.mlp[0].weight.clone()
        optimizer.zero_grad()
        algorithm(prepared(algorithm, step), clock(step)).loss.backward()
        assert all(parameter.grad is not None for parameter in last)
        algorithm.after_backward(clock(step))
        optimizer.step()
        algorithm.after_step(clock(step))
        moved.append([not torch.equal(parameter, old) for parameter, old in zip(last, before, strict=True)])
        assert not torch.equal(algorithm.head.mlp[0].weight, others)
    assert moved == [[False, False]] * 10 + [[True, True]] * 2


@pytest.mark.parametrize(("warmup", "epochs"), [(30, 100), (4, 10), (1, 5), (0, 5)])
def test_the_teachers_temperature_rises_from_epoch_to_epoch(warmup: int, epochs: int) -> None:
    made = config(teacher_temperature_warmup_epochs=warmup)
    schedule = np.concatenate([np.linspace(0.04, 0.07, warmup), np.full(epochs - warmup, 0.07)])
    for step in range(3 * epochs):
        found = made.teacher_temperature(clock(step, 3 * epochs, 3))
        assert found == pytest.approx(schedule[step // 3], rel=1e-12)


def test_the_loss_uses_the_temperature_of_the_epoch() -> None:
    algorithm = built(drop_path=0.0, teacher_temperature_warmup_epochs=4)
    inputs = prepared(algorithm)
    with torch.no_grad():
        for step, temperature in ((9, 0.04), (10, 0.05), (25, 0.06), (39, 0.07), (70, 0.07)):
            expected = naive(algorithm, inputs, temperature)["loss"]
            assert algorithm(inputs, clock(step)).loss.item() == pytest.approx(expected, rel=1e-10)


def test_feature_std_is_the_students_before_its_head() -> None:
    algorithm = built(drop_path=0.5)
    inputs = prepared(algorithm)
    found = algorithm(inputs, clock()).metrics["feature_std"].item()
    h = algorithm.backbone(inputs["global"], inputs["global_keep"]).detach()
    unit = (h / h.norm(dim=1, keepdim=True)).numpy()
    assert found == pytest.approx(unit.std(axis=0).mean() * math.sqrt(16), rel=1e-10)


def test_parameters_are_grouped_as_in_the_official_code() -> None:
    algorithm = built(frozen_gain=False)
    names = {id(p): name for name, p in algorithm.named_parameters()}
    found = {names[id(p)]: group.regularized for group in algorithm.parameter_groups() for p in group.parameters}
    expected = {
        name: not (name.endswith(".bias") or parameter.ndim == 1)
        for name, parameter in algorithm.named_parameters()
        if not name.startswith("teacher_")
    }
    assert found == expected
    assert found["backbone.pos_embed"]
    assert found["backbone.cls_token"]
    assert found["head.last_layer.weight_g"]
    frozen = built()
    trained = {id(p) for group in frozen.parameter_groups() for p in group.parameters}
    assert id(frozen.head.last_layer.weight_g) not in trained
    assert id(frozen.head.last_layer.weight_v) in trained


def test_probes_see_the_teacher_and_beside_it_the_student() -> None:
    algorithm = built().eval()
    x = images().double() / 255
    with torch.no_grad():
        algorithm.float()
        teacher, student = algorithm.teacher_backbone(x.float()), algorithm.backbone(x.float())
        assert torch.equal(algorithm.features(images()), teacher)
        others = algorithm.other_features()
        assert set(others) == {"student"}
        assert torch.equal(others["student"](images()), student)
        assert not torch.allclose(teacher, student)
        maps = algorithm.attention_maps(images())
        assert maps is not None
        assert maps.shape == (B, 2, 2, 2)
        assert torch.equal(maps, algorithm.teacher_backbone.attention(x.float()))
        first, second = algorithm.view_pair({"image": images()}, Random(5, -1, range(B)))
        large = algorithm.prepare({"image": images()}, clock(), Random(5, -1, range(B)))["global"]
        torch.testing.assert_close(torch.cat([first, second]), algorithm.teacher_backbone(large))
    assert DINO(config(backbone=RESNET), DATA).attention_maps(images()) is None


def test_features_are_taken_at_the_size_of_the_large_crops() -> None:
    algorithm = DINO(config(views=crops(12, 4)), DATA).eval()
    seen = calls_of(algorithm.teacher_backbone)
    algorithm.features(images())
    assert seen[0][0].shape == (B, 3, 12, 12)


def test_the_student_learns_what_a_teacher_at_rest_says() -> None:
    algorithm = built(teacher_momentum=Ramp(start=1.0, end=1.0), centre_momentum=1.0, drop_path=0.0).float()
    optimizer = AdamW(learning_rate=0.01, per=None).build(algorithm.parameter_groups(), B)
    batches = [algorithm.prepare({"image": images()}, clock(), Random(0, step, range(B))) for step in range(4)]
    divergences = []
    for step in range(40):
        made = algorithm(batches[step % 4], clock(step))
        optimizer.zero_grad()
        made.loss.backward()
        optimizer.step()
        algorithm.after_step(clock(step))
        divergences.append(made.metrics["kl_teacher_student"].item())
    assert sum(divergences[-5:]) < 0.5 * sum(divergences[:5])


HEALTHY = {"feature_std": 0.4, "teacher_entropy": 3.0, "teacher_kl_uniform": 0.5, "kl_teacher_student": 0.4}


def test_a_healthy_or_an_untrained_run_is_no_collapse() -> None:
    algorithm = DINO(config(prototypes=65536), DATA)
    highest = math.log(65536)
    assert algorithm.diagnose(HEALTHY) is None
    assert algorithm.diagnose({}) is None
    # At the start the centred teacher may be uniform, or choose one prototype, but the student does not agree yet.
    assert algorithm.diagnose({**HEALTHY, "teacher_entropy": highest, "kl_teacher_student": 0.2}) is None
    assert algorithm.diagnose({**HEALTHY, "teacher_kl_uniform": highest, "kl_teacher_student": 0.5}) is None
    # A batch of 4 images on one prototype each leaves all others unused: as far from uniform as 4 of 65536 are.
    small = {"teacher_entropy": 0.0, "teacher_kl_uniform": highest - math.log(4), "kl_teacher_student": 0.01}
    assert algorithm.diagnose({**HEALTHY, **small}) is None
    assert algorithm.diagnose(dict.fromkeys(HEALTHY, math.nan)) is None


def test_a_collapse_is_named_with_its_likely_cause() -> None:
    algorithm = DINO(config(prototypes=65536), DATA)
    highest = math.log(65536)
    uniform = {"teacher_entropy": highest - 1e-5, "teacher_kl_uniform": 1e-6, "kl_teacher_student": 1e-5}
    said = algorithm.diagnose({**HEALTHY, **uniform})
    assert said is not None
    assert "uniform distribution" in said
    assert "teacher temperature that is too high (here 0.04 to 0.07, against the student's 0.1)" in said
    alone = {"teacher_entropy": 1e-4, "teacher_kl_uniform": highest - 1e-3, "kl_teacher_student": 1e-3}
    said = algorithm.diagnose({**HEALTHY, **alone})
    assert said is not None
    assert "one prototype" in said
    assert "centre_momentum 0.9" in said
    said = algorithm.diagnose({**HEALTHY, "feature_std": 0.001})
    assert said is not None
    assert "feature_std" in said


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"centre_momentum": 1.0}, "one prototype"),
        ({"teacher_temperature_start": 0.4, "teacher_temperature_end": 0.4}, "uniform distribution"),
    ],
)
def test_a_training_without_one_of_its_two_forces_is_told(options: dict[str, Any], word: str) -> None:
    """By the teacher's distributions, whatever the features do: batch normalisation, for one, keeps them apart."""
    torch.manual_seed(0)
    teacher = Ramp(start=0.9, end=0.9)
    made = config(views=crops(local_crops=0), drop_path=0.0, teacher_momentum=teacher, head_bottleneck=8, **options)
    algorithm = DINO(made, DATA)
    optimizer = AdamW(learning_rate=0.003, per=None).build(algorithm.parameter_groups(), B)
    batches = [algorithm.prepare({"image": images()}, clock(), Random(0, step, range(B))) for step in range(8)]
    sentences = []
    for step in range(200):
        done = algorithm(batches[step % 8], clock(step))
        optimizer.zero_grad()
        done.loss.backward()
        optimizer.step()
        algorithm.after_step(clock(step))
        signals = {name: value.item() for name, value in done.metrics.items() if name != "feature_std"}
        sentences.append(algorithm.diagnose(signals))
    assert sentences[:5] == [None] * 5
    assert sentences[-1] is not None
    assert word in sentences[-1]


def test_defaults_are_those_of_the_paper() -> None:
    defaults = DINO.Config()
    assert defaults.type == "dino"
    assert defaults.backbone == ViTSmall(patch_size=16, interpolation_offset=0.1)
    assert defaults.views == MultiCrop()
    assert (defaults.prototypes, defaults.head_hidden, defaults.head_bottleneck, defaults.head_layers) == (
        *(65536, 2048, 256),
        3,
    )
    assert not defaults.head_batch_norm
    assert defaults.frozen_gain
    assert (defaults.student_temperature, defaults.centre_momentum, defaults.drop_path) == (0.1, 0.9, 0.1)
    assert (defaults.teacher_temperature_start, defaults.teacher_temperature_end) == (0.04, 0.07)
    assert defaults.teacher_temperature_warmup_epochs == 30
    assert defaults.teacher_momentum == Ramp(start=0.996, end=1.0, shape="cosine")
    assert defaults.freeze_last_layer_epochs == 1
    with torch.device("meta"):
        algorithm = DINO(defaults, DataSpec(image_shape=(3, 256, 256), classes=1000))
    assert algorithm.backbone.position_grid == (14, 14)
    assert algorithm.drop_rates[-1] == 0.1
    trained = sum(p.numel() for p in algorithm.trainable())
    backbone = 21_665_664  # of ViT-S/16
    head = 384 * 2048 + 2048 + 2048 * 2048 + 2048 + 2048 * 256 + 256 + 256 * 65536
    assert trained == backbone + head


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"prototypes": 1}, "prototypes is 1"),
        ({"head_hidden": 0}, "head_hidden is 0"),
        ({"head_bottleneck": 0}, "head_bottleneck is 0"),
        ({"head_layers": 0}, "head_layers is 0"),
        ({"student_temperature": 0.0}, "student_temperature is 0.0"),
        ({"teacher_temperature_start": -0.1}, "teacher_temperature_start is -0.1"),
        ({"teacher_temperature_end": math.inf}, "teacher_temperature_end is inf"),
        ({"teacher_temperature_warmup_epochs": -1}, "teacher_temperature_warmup_epochs is -1"),
        ({"freeze_last_layer_epochs": -0.5}, "freeze_last_layer_epochs is -0.5"),
        ({"centre_momentum": 1.1}, "centre_momentum is 1.1"),
        ({"teacher_momentum": Ramp(start=-0.1, end=1.0)}, "teacher_momentum.start is -0.1"),
        ({"teacher_momentum": Ramp(start=0.9, end=1.5)}, "teacher_momentum.end is 1.5"),
        ({"drop_path": 1.0}, "drop_path is 1.0"),
    ],
)
def test_numbers_out_of_range_are_refused(bad: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config(**bad)


def test_small_crops_that_the_patches_do_not_divide_are_refused_at_once() -> None:
    with pytest.raises(ValueError, match="patches of 4 pixels"):
        DINO(config(views=crops(8, 6)), DATA)
    DINO(config(views=crops(8, 6, local_crops=0)), DATA)
