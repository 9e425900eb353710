"""Multinomial logistic regression: many small problems at once, in float64, by L-BFGS.

Minimises, for each problem, mean cross-entropy + l2 / 2 * |W|^2; the bias is free. With l2 > 0 the objective is
strictly convex in W, so the answer depends on the data alone: no seed, no start, no learning rate. In scikit-learn's
terms C = 1 / (l2 * N).

L-BFGS: Liu and Nocedal 1989, with backtracking to Armijo's condition; convexity makes every curvature pair valid.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

_HISTORY = 10
_ARMIJO = 1e-4
_HALVINGS = 40


class Linear(NamedTuple):
    """Fitted linear classifiers, one for each of T problems."""

    weight: Tensor
    """(T, D, C)."""
    bias: Tensor
    """(T, 1, C)."""

    def scores(self, features: Tensor) -> Tensor:
        """(N, D) or (T, N, D) -> logits (T, N, C)."""
        return features.to(self.weight.dtype) @ self.weight + self.bias


def fit(
    features: Tensor,
    labels: Tensor,
    classes: int,
    l2: float,
    *,
    tolerance: float = 1e-6,
    max_iterations: int = 5000,
    start: Linear | None = None,
) -> Linear:
    """Fit T independent problems to their optimum.

    Args:
        features: (T, N, D); float64 inside.
        labels: (T, N) int64 in [0, classes).
        classes: C.
        l2: strength of the penalty, above 0.
        tolerance: largest absolute entry of the gradient at which a problem is solved.
        max_iterations: L-BFGS iterations before giving up.
        start: where to begin; only speed depends on it.

    Raises:
        ValueError: l2 is not above 0.
        ArithmeticError: a problem was not solved within ``max_iterations``.
    """
    if not l2 > 0:
        raise ValueError(f"l2 must be above 0, not {l2}: without it separable data has no optimum")
    problem = _Problem(features, labels, l2)
    shape = (len(features), features.shape[-1] + 1, classes)
    if start is None:
        point = torch.zeros(shape, dtype=torch.float64, device=features.device)
    else:
        point = torch.cat([start.weight, start.bias], dim=1).double()
    value, gradient = problem(point)
    memory: list[tuple[Tensor, Tensor, Tensor]] = []
    scale = 1 / _norm(gradient).clamp_min(1.0)
    for _ in range(max_iterations):
        open_ = ~(gradient.abs().amax(dim=(1, 2), keepdim=True) <= tolerance)  # a NaN is no solution
        if not open_.any():
            return Linear(point[:, :-1], point[:, -1:])
        direction = torch.where(open_, -_inverse_hessian(gradient, memory, scale), 0.0)
        moved, value, moved_gradient = _search(problem, point, value, gradient, direction)
        step, change = moved - point, moved_gradient - gradient
        curvature = _dot(step, change)
        valid = curvature > 0
        scale = torch.where(valid, curvature / _dot(change, change).clamp_min(1e-300), scale)
        memory = [*memory, (step, change, torch.where(valid, 1 / curvature, 0.0))][-_HISTORY:]
        if not valid.any():  # no step was possible
            break
        point, gradient = moved, moved_gradient
    worst = float(gradient.abs().max())
    raise ArithmeticError(
        f"logistic regression with l2 = {l2:g} stopped at a gradient of {worst:.1e}, above the tolerance of "
        f"{tolerance:.0e}; choose a larger l2"
    )


class _Problem:
    """The objective of T problems and its gradient."""

    def __init__(self, features: Tensor, labels: Tensor, l2: float) -> None:
        ones = features.new_ones(*features.shape[:-1], 1, dtype=torch.float64)
        self.design = torch.cat([features.double(), ones], dim=-1)  # the last column carries the bias
        self.labels = labels.unsqueeze(-1)
        self.penalty = torch.full((self.design.shape[-1], 1), l2, dtype=torch.float64, device=features.device)
        self.penalty[-1] = 0.0

    def __call__(self, point: Tensor) -> tuple[Tensor, Tensor]:
        """point (T, D + 1, C) -> values (T, 1, 1) and gradients (T, D + 1, C)."""
        samples = self.design.shape[1]
        logp = (self.design @ point).log_softmax(dim=-1)
        loss = -logp.gather(-1, self.labels).mean(dim=1, keepdim=True)
        pull = self.penalty * point
        value = loss + 0.5 * _dot(pull, point)
        error = logp.exp_().scatter_add_(-1, self.labels, logp.new_full(self.labels.shape, -1.0))
        return value, torch.baddbmm(pull, self.design.mT, error, alpha=1 / samples)


def _search(
    problem: _Problem, point: Tensor, value: Tensor, gradient: Tensor, direction: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Halve each problem's step until it descends enough; a problem that cannot descend stays where it is."""
    slope = _dot(gradient, direction)
    slack = value.abs() * torch.finfo(torch.float64).eps  # near the optimum the descent drowns in rounding
    length = torch.ones_like(value)
    for _ in range(_HALVINGS):
        moved = point + length * direction
        moved_value, moved_gradient = problem(moved)
        enough = moved_value <= value + _ARMIJO * length * slope + slack
        if enough.all():
            return moved, moved_value, moved_gradient
        length = torch.where(enough, length, length / 2)
    moved = point + torch.where(enough, length, 0.0) * direction
    return moved, *problem(moved)


def _inverse_hessian(gradient: Tensor, memory: list[tuple[Tensor, Tensor, Tensor]], scale: Tensor) -> Tensor:
    """The two-loop recursion. A pair of weight 0 (of a problem that did not move) leaves its problem as it is."""
    result = gradient
    weights = []
    for step, change, inverse in reversed(memory):
        weight = inverse * _dot(step, result)
        result = result - weight * change
        weights.append(weight)
    result = result * scale
    for (step, change, inverse), weight in zip(memory, reversed(weights), strict=True):
        result = result + step * (weight - inverse * _dot(change, result))
    return result


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(dim=(1, 2), keepdim=True)


def _norm(a: Tensor) -> Tensor:
    return _dot(a, a).sqrt()
