"""Linear probe: a linear classifier on frozen features.

The protocol of self-supervised learning since Colorful Image Colorization, Zhang et al. 2016 (arXiv 1603.08511).
Features are standardised with the statistics of the training set, which is what the batch normalisation without
affine parameters before the classifier does in MAE, He et al. 2022 (arXiv 2111.06377), appendix A.1: the scale that a
method gives to its features should not decide how well it does.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor

from heliostat_algorithms.algorithm import OneOf
from heliostat_algorithms.evaluation import logistic
from heliostat_algorithms.evaluation.evaluator import FeatureEvaluator, Features, accuracies, ranks
from heliostat_algorithms.randomness import permutation

_SCORES = 1 << 24
"""How many logits are held at once (64 MiB in float32)."""


@dataclass(frozen=True, kw_only=True)
class LBFGS:
    """Multinomial logistic regression, solved to its optimum on the full batch in float64: exact and without a seed.
    Holds 8 (D + 1) N bytes of features; for millions of samples choose ``sgd``."""

    type: Literal["lbfgs"] = "lbfgs"
    l2: tuple[float, ...] = (1.0, 1e-1, 1e-2, 1e-3, 1e-4)
    """Strengths to choose from, of l2 / 2 * |W|^2 beside the mean cross-entropy."""

    strength: ClassVar[str] = "l2"

    def __post_init__(self) -> None:
        if not self.l2 or min(self.l2) <= 0:
            raise ValueError(f"l2 must list strengths above 0, such as [1.0, 0.01, 0.0001], not {list(self.l2)}")

    def candidates(self) -> list[float]:
        """Strengths, the most cautious first."""
        return sorted(self.l2, reverse=True)

    def fit(
        self, features: Tensor, labels: Tensor, classes: int, strengths: Sequence[float], key: str
    ) -> logistic.Linear:
        """One classifier for each strength, each starting from its predecessor's optimum; features (N, D)."""
        solved: list[logistic.Linear] = []
        for l2 in strengths:
            start = solved[-1] if solved else None
            solved.append(logistic.fit(features[None], labels[None], classes, l2, tolerance=1e-5, start=start))
        return logistic.Linear(torch.cat([one.weight for one in solved]), torch.cat([one.bias for one in solved]))


@dataclass(frozen=True, kw_only=True)
class SGD:
    """The papers' protocol: SGD with momentum 0.9, cosine schedule and no weight decay, as DINO's code runs it. All
    learning rates are trained side by side on the same batches. Weights start at zero rather than at N(0, 0.01^2)."""

    type: Literal["sgd"] = "sgd"
    learning_rates: tuple[float, ...] = (0.3, 0.1, 0.03, 0.01, 0.003, 0.001)
    """Learning rates to choose from, for a batch of 256; scaled linearly with the batch size. The papers sweep them
    too."""
    batch_size: int = 1024
    """Samples in a step (DINO: 1024); smaller training sets are one batch."""
    epochs: int = 100
    """Passes over the training set (DINO and MoCo: 100; MAE: 90)."""

    strength: ClassVar[str] = "lr"

    def __post_init__(self) -> None:
        if not self.learning_rates or min(self.learning_rates) <= 0:
            raise ValueError(f"learning_rates must list values above 0, not {list(self.learning_rates)}")
        if self.batch_size < 1 or self.epochs < 1:
            raise ValueError(f"batch_size and epochs must be at least 1, not {self.batch_size} and {self.epochs}")

    def candidates(self) -> list[float]:
        """Learning rates, the most cautious first."""
        return sorted(self.learning_rates)

    def fit(
        self, features: Tensor, labels: Tensor, classes: int, strengths: Sequence[float], key: str
    ) -> logistic.Linear:
        """One classifier for each learning rate; features (N, D). ``key`` names the sample order.

        Raises:
            ArithmeticError: all learning rates have diverged.
        """
        batch = min(self.batch_size, len(features))
        rates = torch.tensor(strengths, device=features.device).view(-1, 1, 1) * (batch / 256)
        weight = features.new_zeros(len(strengths), features.shape[1], classes)
        bias = features.new_zeros(len(strengths), 1, classes)
        speeds = torch.zeros_like(weight), torch.zeros_like(bias)
        steps = self.epochs * math.ceil(len(features) / batch)
        step = 0
        for epoch in range(self.epochs):
            order = permutation(f"{key}/epoch{epoch}", len(features)).to(features.device)
            for rows in torch.split(order, batch):
                x, y = features[rows], labels[rows]
                error = (x @ weight + bias).softmax(dim=-1)  # (T, B, C)
                error[:, torch.arange(len(rows), device=y.device), y] -= 1
                error /= len(rows)
                rate = rates * (0.5 * (1 + math.cos(math.pi * step / steps)))
                gradients = x.T @ error, error.sum(dim=1, keepdim=True)
                for parameter, speed, gradient in zip((weight, bias), speeds, gradients, strict=True):
                    parameter -= rate * speed.mul_(0.9).add_(gradient)
                step += 1
        if not weight.isfinite().all(dim=2).all(dim=1).any():
            raise ArithmeticError(f"the linear probe diverged at every learning rate of {strengths}; add smaller ones")
        return logistic.Linear(weight, bias)


@dataclass(frozen=True, kw_only=True)
class LinearProbe(FeatureEvaluator):
    """Trains a linear classifier on the training features and counts how often it is right on the test features.

    The strength (of L2, or the learning rate) is the one with the best accuracy on a part held out from the
    *training* set, the more cautious one where several are equal; then all training samples are used. The test set is
    looked at once.

    Metrics: ``linear_top1``, for more than five classes ``linear_top5``, and the chosen ``linear_l2`` or
    ``linear_lr``. A choice at the end of the list says that the list should be longer.
    """

    type: Literal["linear"] = "linear"
    solver: Annotated[LBFGS | SGD, OneOf()] = LBFGS()
    """How the classifier is fitted: ``lbfgs`` to the optimum, ``sgd`` as in the papers."""
    validation: float = 0.1
    """Share of the training samples on which the strength is chosen."""

    needs_labels: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.validation < 1:
            raise ValueError(f"validation must be a share between 0 and 1, not {self.validation}")

    @property
    def higher_is_better(self) -> Mapping[str, bool]:
        return {"linear_top1": True, "linear_top5": True}

    def check(self, samples: int, labels: Tensor | None, classes: int | None) -> None:
        super().check(samples, labels, classes)
        if not 0 < self._held_out(samples) < samples:
            raise ValueError(
                f"validation = {self.validation} of {samples} training samples leaves nothing for one part"
            )

    def evaluate(self, train: Features, test: Features, seed: int) -> dict[str, float]:
        self._require(train, test)
        (labels, classes), (test_labels, _) = train.labelled(), test.labelled()
        values, test_values = standardize(train.values, test.values)
        key = f"{seed}:evaluation/linear"
        strengths = self.solver.candidates()
        if len(strengths) > 1:
            order = permutation(f"{key}/validation", len(values)).to(values.device)
            held_out, rest = order.tensor_split([self._held_out(len(values))])
            fits = self.solver.fit(values[rest], labels[rest], classes, strengths, f"{key}/choice")
            right = (_ranks(fits, values[held_out], labels[held_out]) == 0).sum(dim=1).tolist()
            strengths = [strengths[right.index(max(right))]]
        final = self.solver.fit(values, labels, classes, strengths, f"{key}/final")
        metrics = accuracies(_ranks(final, test_values, test_labels)[0], classes, "linear")
        return {**metrics, f"linear_{self.solver.strength}": strengths[0]}

    def _held_out(self, samples: int) -> int:
        return round(self.validation * samples)


def standardize(train: Tensor, test: Tensor) -> tuple[Tensor, Tensor]:
    """Both sets (N, D) and (M, D) with the training set's mean 0 and variance 1 in each dimension, float32. A
    dimension that is constant up to rounding becomes 0: there is nothing in it to learn from."""
    columns = train.double()
    mean, std = columns.mean(dim=0), columns.std(dim=0, correction=0)
    constant = std <= 1e-6 * columns.square().mean(dim=0).sqrt()
    inverse = torch.where(constant, 0.0, 1 / std)
    return ((columns - mean) * inverse).float(), ((test.double() - mean) * inverse).float()


def _ranks(linear: logistic.Linear, features: Tensor, labels: Tensor) -> Tensor:
    """Ranks (T, N) of the true classes under T classifiers."""
    rows = max(1, _SCORES // (linear.weight.shape[0] * linear.weight.shape[2]))
    parts = zip(torch.split(features, rows), torch.split(labels, rows), strict=True)
    return torch.cat([ranks(linear.scores(x), y) for x, y in parts], dim=1)
