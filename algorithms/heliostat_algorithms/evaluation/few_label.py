"""Few-label probe: what a representation is worth when only a handful of labels is known.

The classifier must suit one label per class and any kind of features: a trained encoder's, an untrained one's, raw
pixels. So there is no validation set and no strength to choose, and features are brought to one scale without labels:
rows are L2-normalised, centred on the training features' mean and L2-normalised again. Centring removes what all
samples share (the brightness of raw pixels, the common direction of untrained networks), which cosines would
otherwise be made of.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from heliostat_algorithms.evaluation import logistic
from heliostat_algorithms.evaluation.evaluator import FeatureEvaluator, Features, ranks
from heliostat_algorithms.evaluation.interval import half_width
from heliostat_algorithms.randomness import permutation

_MEMORY = 1 << 27
"""Float64 numbers that the fits of several trials may hold together (1 GiB)."""


@dataclass(frozen=True, kw_only=True)
class FewLabelProbe(FeatureEvaluator):
    """Accuracy of a classifier that sees n labelled samples of each class, over many random draws of those samples.

    Draws depend on the labels, the seed and the trial, not on the features: all representations are given the same
    samples. The samples of a smaller n are among those of a larger one, so that the step from 1 to 10 labels is not
    blurred by luck.

    Metrics, for each n: ``few_label_<n>_top1``, the mean over trials, and ``few_label_<n>_interval``, half the width
    of the 95 % interval of that mean (Student's t). It covers the luck of the draw, not that of the training run or
    the test set.
    """

    type: Literal["few-label"] = "few-label"
    labels_per_class: tuple[int, ...] = (1, 5, 10)
    """How many labelled samples of each class; one probe for each number."""
    trials: int = 20
    """Random draws of labelled samples."""
    classifier: Literal["logistic", "class-mean"] = "logistic"
    """``logistic``: logistic regression. ``class-mean``: the class whose mean has the highest cosine. With one label
    they differ little; with ten, logistic regression is several points ahead for untrained features and raw pixels
    alike."""
    l2: float = 1e-3
    """Strength of l2 / 2 * |W|^2 beside the mean cross-entropy, for ``logistic``. Features have length 1, so that one
    value fits all; accuracies change little between 1e-2 and 1e-4."""

    needs_labels: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.labels_per_class or min(self.labels_per_class) < 1:
            raise ValueError(f"labels_per_class must list numbers of at least 1, not {list(self.labels_per_class)}")
        if self.trials < 2:
            raise ValueError(f"trials must be at least 2, the fewest that have a spread, not {self.trials}")
        if not self.l2 > 0:
            raise ValueError(f"l2 must be above 0, not {self.l2}")

    @property
    def higher_is_better(self) -> Mapping[str, bool]:
        return {f"few_label_{n}_top1": True for n in self.labels_per_class}

    def check(self, samples: int, labels: Tensor | None, classes: int | None) -> None:
        super().check(samples, labels, classes)
        if labels is None or classes is None:
            return
        counts = labels.bincount(minlength=classes)
        rarest, wanted = int(counts.argmin()), max(self.labels_per_class)
        if counts[rarest] < wanted:
            raise ValueError(
                f"few-label asks for {wanted} labels per class, but class {rarest} has only {int(counts[rarest])} "
                "training samples"
            )

    def evaluate(self, train: Features, test: Features, seed: int) -> dict[str, float]:
        self._require(train, test)
        (labels, classes), (test_labels, _) = train.labelled(), test.labelled()
        values, test_values = center_and_normalize(train.values, test.values)
        most = max(self.labels_per_class)
        draws = torch.stack([draw(labels, classes, most, seed, trial) for trial in range(self.trials)])  # (T, C, most)
        metrics = {}
        for n in self.labels_per_class:
            rows = draws[:, :, :n].flatten(start_dim=1)
            # The classes' samples, and about 30 copies of the weights inside L-BFGS.
            size = values.shape[1] * (rows.shape[1] + 30 * classes)
            tops: list[float] = []
            for trials in torch.split(rows, max(1, _MEMORY // size)):
                linear = self._fit(values[trials], labels[trials], classes)
                for weight, bias in zip(linear.weight, linear.bias, strict=True):
                    found = ranks(test_values @ weight + bias, test_labels)
                    tops.append(float((found == 0).double().mean()))
            metrics[f"few_label_{n}_top1"] = sum(tops) / len(tops)
            metrics[f"few_label_{n}_interval"] = half_width(tops)
        return metrics

    def _fit(self, values: Tensor, labels: Tensor, classes: int) -> logistic.Linear:
        """One classifier for each trial: values (T, C * n, D), grouped by class; labels (T, C * n)."""
        if self.classifier == "logistic":
            return logistic.fit(values, labels, classes, self.l2, tolerance=1e-5)
        means = values.view(len(values), classes, -1, values.shape[-1]).mean(dim=2)
        return logistic.Linear(F.normalize(means, dim=-1).mT, values.new_zeros(len(values), 1, classes))


def draw(labels: Tensor, classes: int, per_class: int, seed: int, trial: int) -> Tensor:
    """Rows (classes, per_class) of a random draw of so many samples of each class, without repetition.

    The first n columns are what the same trial draws for n labels per class; trials are drawn independently.
    """
    order = permutation(f"{seed}:evaluation/few_label/{trial}", len(labels)).to(labels.device)
    grouped = order[torch.argsort(labels[order], stable=True)]
    counts = labels.bincount(minlength=classes)
    first = counts.cumsum(0) - counts
    return grouped[first.unsqueeze(1) + torch.arange(per_class, device=labels.device)]


def center_and_normalize(train: Tensor, test: Tensor) -> tuple[Tensor, Tensor]:
    """Rows (N, D) and (M, D) L2-normalised, centred on the training mean, L2-normalised again, float64. A row that
    differs from the mean by rounding only becomes 0: its direction would be noise."""
    train, test = (F.normalize(values.double(), dim=-1) for values in (train, test))
    mean = train.mean(dim=0)
    centred = (values - mean for values in (train, test))
    first, second = (
        torch.where(rows.norm(dim=-1, keepdim=True) > 1e-6, F.normalize(rows, dim=-1), 0.0) for rows in centred
    )
    return first, second
