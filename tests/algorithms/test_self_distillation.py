from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from heliostat_algorithms.objectives.self_distillation import (
    centred_probabilities,
    self_distillation,
    teacher_signals,
)


def logits(views: int, count: int = 3, prototypes: int = 5, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(count, prototypes, generator=generator, dtype=torch.float64) for _ in range(views)]


def distributions(views: int, count: int = 3, prototypes: int = 5) -> list[Tensor]:
    return [torch.softmax(2 * z, dim=1) for z in logits(views, count, prototypes, seed=9)]


def reference(student: list[Tensor], teacher: list[Tensor], temperature: float) -> float:
    """All pairs of different views, image by image, prototype by prototype."""
    terms = []
    for t, targets in enumerate(teacher):
        for s, scores in enumerate(student):
            if s == t:
                continue
            losses = []
            for q, z in zip(targets.tolist(), scores.tolist(), strict=True):
                total = sum(math.exp(value / temperature) for value in z)
                losses.append(-sum(p * math.log(math.exp(v / temperature) / total) for p, v in zip(q, z, strict=True)))
            terms.append(sum(losses) / len(losses))
    return sum(terms) / len(terms)


@pytest.mark.parametrize("temperature", [0.1, 0.5, 2.0])
@pytest.mark.parametrize(("globals_", "locals_"), [(2, 0), (2, 1), (2, 8), (1, 2), (3, 2)])
def test_the_loss_follows_equation_3(globals_: int, locals_: int, temperature: float) -> None:
    student, teacher = logits(globals_ + locals_), distributions(globals_)
    found = self_distillation(student, teacher, temperature)
    assert found.item() == pytest.approx(reference(student, teacher, temperature), rel=1e-12)


def test_a_view_is_not_compared_with_itself() -> None:
    student, teacher = logits(2), distributions(2)
    before = self_distillation(student, teacher, 0.1).item()
    matching = [torch.log(q) * 0.1 for q in teacher]  # the student repeats what the teacher says of the same view
    same = self_distillation(matching, teacher, 0.1).item()
    crossed = self_distillation(matching[::-1], teacher, 0.1).item()
    entropy = sum(torch.special.entr(q).sum(dim=1).mean().item() for q in teacher) / 2
    assert crossed == pytest.approx(entropy, rel=1e-12)  # as small as a cross-entropy can be
    assert same > crossed + 0.1
    assert before > crossed


def test_gradients_reach_every_view_of_the_student_and_not_the_teacher() -> None:
    student = [z.requires_grad_() for z in logits(4, prototypes=3)]
    teacher = distributions(2, prototypes=3)
    assert torch.autograd.gradcheck(lambda *z: self_distillation(z, teacher, 0.3), student)
    self_distillation(student, teacher, 0.3).backward()
    assert all(z.grad is not None and z.grad.abs().max() > 1e-3 for z in student)
    # The gradient of a local view: (2 softmax - q1 - q2) / temperature, over rows and terms (2 x 4 pairs less 2).
    expected = (2 * torch.softmax(student[3] / 0.3, dim=1) - teacher[0] - teacher[1]) / 0.3 / 3 / 6
    torch.testing.assert_close(student[3].grad, expected.detach(), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("views", "targets"), [(1, 1), (2, 0), (0, 2)])
def test_without_a_pair_there_is_no_loss(views: int, targets: int) -> None:
    with pytest.raises(ValueError, match=f"{views} views of the student and {targets} of the teacher"):
        self_distillation(logits(views), distributions(targets), 0.1)


def test_the_loss_is_float32_under_autocast_and_for_half_precision() -> None:
    student, teacher = [z.float() for z in logits(3)], [q.float() for q in distributions(2)]
    outside = self_distillation(student, teacher, 0.1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = self_distillation(student, teacher, 0.1)
        halves = self_distillation([z.bfloat16() for z in student], teacher, 0.1)
    assert inside.dtype == halves.dtype == torch.float32
    assert torch.equal(inside, outside)
    rounded = self_distillation([z.bfloat16().double() for z in student], [q.double() for q in teacher], 0.1)
    assert halves.item() == pytest.approx(rounded.item(), rel=1e-5)  # only the inputs were rounded


@pytest.mark.parametrize("temperature", [0.04, 0.07, 1.0])
def test_the_teacher_is_centred_then_sharpened(temperature: float) -> None:
    (z,), centre = logits(1), torch.tensor([[0.3, -0.2, 0.0, 1.0, -1.0]], dtype=torch.float64)
    found = centred_probabilities(z, centre, temperature)
    for row, expected in zip(found.tolist(), z.tolist(), strict=True):
        powers = [math.exp((v - c) / temperature) for v, c in zip(expected, centre[0].tolist(), strict=True)]
        assert row == pytest.approx([p / sum(powers) for p in powers], rel=1e-10)


def test_the_teachers_distributions_carry_no_gradient_and_are_float32_at_least() -> None:
    z = logits(1)[0].float().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = centred_probabilities(z.bfloat16(), torch.zeros(1, 5), 0.04)
    assert found.dtype == torch.float32
    assert not found.requires_grad
    assert found.sum(dim=1).tolist() == pytest.approx([1.0] * 3)
    assert centred_probabilities(z.double(), torch.zeros(1, 5).double(), 0.04).dtype == torch.float64


def test_signals_of_extreme_teachers() -> None:
    K = 8
    uniform = torch.full((6, K), 1 / K, dtype=torch.float64)
    alone = torch.zeros(6, K, dtype=torch.float64)
    alone[:, 3] = 1
    balanced = torch.eye(K, dtype=torch.float64)
    for teacher, entropy, kl_uniform in (
        (uniform, math.log(K), 0.0),  # sharpening is lost
        (alone, 0.0, math.log(K)),  # centring is lost
        (balanced, 0.0, 0.0),  # what the method wants
    ):
        found = teacher_signals(teacher)
        assert found["teacher_entropy"].item() == pytest.approx(entropy, abs=1e-12)
        assert found["teacher_kl_uniform"].item() == pytest.approx(kl_uniform, abs=1e-12)


def test_signals_follow_their_formulas() -> None:
    (teacher,) = distributions(1, count=4)
    found = teacher_signals(teacher.requires_grad_())
    assert set(found) == {"teacher_entropy", "teacher_kl_uniform"}
    assert not any(value.requires_grad for value in found.values())
    table = teacher.tolist()
    entropies = [-sum(p * math.log(p) for p in row) for row in table]
    mean = [sum(column) / 4 for column in zip(*table, strict=True)]
    assert found["teacher_entropy"].item() == pytest.approx(sum(entropies) / 4, rel=1e-12)
    assert found["teacher_kl_uniform"].item() == pytest.approx(sum(p * math.log(p * 5) for p in mean), rel=1e-12)
