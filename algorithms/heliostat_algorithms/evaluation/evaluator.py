"""The contract of an evaluator: what it is given, what it gives back, and how accuracy is counted.

There are two kinds. A ``FeatureEvaluator`` sees features and labels only: where the features came from, how many
workers computed them and where the numbers go is the caller's business. It costs one pass of the encoder over the data
for all of them together, and what its own docstring says. A ``NetworkEvaluator`` needs the network itself and the
samples, because it trains on more than one feature of each sample: several times the cost, on all workers.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

import torch
from torch import Tensor

from heliostat_algorithms.algorithm import Algorithm, Batch, DataSpec


@dataclass(frozen=True, eq=False)
class Features:
    """What an encoder made of a set of samples.

    Rows stand in the order of the data set, whatever computed them: row i is the same sample for every
    representation, so that evaluators that draw samples draw the same ones.

    Raises:
        ValueError: shapes or labels that do not fit together, or a value that is not finite.
    """

    values: Tensor
    """(N, D) float32."""
    labels: Tensor | None = None
    """(N,) int64 in [0, classes); None where the data has no labels."""
    classes: int | None = None
    """How many classes the data has; also those that no row here belongs to."""
    pairs: tuple[Tensor, Tensor] | None = None
    """Features (M, D) of two random views of the same M samples, for alignment."""
    scores: Tensor | None = None
    """(N, classes) float32 class scores, where the method itself classifies."""

    def __post_init__(self) -> None:
        if self.values.ndim != 2 or self.values.numel() == 0:
            raise ValueError(f"features must be a non-empty (N, D) matrix, not {tuple(self.values.shape)}")
        for name, values in (("features", self.values), *(("view features", view) for view in self.pairs or ())):
            broken = int((~torch.isfinite(values)).any(dim=-1).sum())
            if broken:
                raise ValueError(f"{name} are not finite in {broken} of {len(values)} rows: the encoder has diverged")
        if self.pairs is not None and self.pairs[0].shape != self.pairs[1].shape:
            first, second = (tuple(view.shape) for view in self.pairs)
            raise ValueError(f"the two views' features must have one shape, not {first} and {second}")
        if self.scores is not None and self.scores.shape != (len(self.values), self.classes):
            raise ValueError(
                f"class scores must be ({len(self.values)}, {self.classes}), not {tuple(self.scores.shape)}"
            )
        if self.labels is None:
            return
        if self.classes is None or self.classes < 2:
            raise ValueError(f"labelled features need classes of at least 2, not {self.classes}")
        if self.labels.shape != self.values.shape[:1] or self.labels.dtype != torch.int64:
            raise ValueError(
                f"labels must be ({len(self.values)},) int64, not {tuple(self.labels.shape)} {self.labels.dtype}"
            )
        if int(self.labels.min()) < 0 or int(self.labels.max()) >= self.classes:
            raise ValueError(
                f"labels must lie in [0, {self.classes}), but span {int(self.labels.min())} to {int(self.labels.max())}"
            )

    def __len__(self) -> int:
        return len(self.values)

    def labelled(self) -> tuple[Tensor, int]:
        """Labels (N,) and the number of classes; ValueError where there are none."""
        if self.labels is None or self.classes is None:
            raise ValueError("these features have no labels; choose an evaluator that needs none")
        return self.labels, self.classes

    def to(self, device: torch.device | str) -> Features:
        """The same features on another device; evaluators compute where the features are."""
        labels = None if self.labels is None else self.labels.to(device)
        pairs = None if self.pairs is None else (self.pairs[0].to(device), self.pairs[1].to(device))
        scores = None if self.scores is None else self.scores.to(device)
        return Features(self.values.to(device), labels, self.classes, pairs, scores)


def concatenate(parts: Sequence[Features]) -> Features:
    """Join the rows of several parts, in their order. All parts have labels, or none; likewise pairs.

    Raises:
        ValueError: no part, or parts that do not fit together.
    """
    if not parts:
        raise ValueError("there are no features to join: the data gave no batch")
    labels = [part.labels for part in parts if part.labels is not None]
    pairs = [part.pairs for part in parts if part.pairs is not None]
    scores = [part.scores for part in parts if part.scores is not None]
    if any(len(found) not in (0, len(parts)) for found in (labels, pairs, scores)):
        raise ValueError("either all parts have labels (or view pairs, or class scores) or none has")
    if len({(part.values.shape[-1], part.classes) for part in parts}) > 1:
        raise ValueError("all parts must have the same feature dimension and the same classes")
    return Features(
        torch.cat([part.values for part in parts]),
        torch.cat(labels) if labels else None,
        parts[0].classes,
        (torch.cat([a for a, _ in pairs]), torch.cat([b for _, b in pairs])) if pairs else None,
        torch.cat(scores) if scores else None,
    )


class Batches(Protocol):
    """Random batches of a set for training, the same whatever the number of workers."""

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches in the set."""

    def rows(self) -> range:
        """The rows of each global batch that this worker holds: contiguous, and equally many on all workers."""

    def batch(self, step: int) -> Batch:
        """Those rows in a step, from 0 over all epochs, on this worker's device."""


class SampleSet(Protocol):
    """A data set as one of the workers that share it sees it."""

    @property
    def classes(self) -> int | None:
        """How many classes the data has; None without labels."""

    @property
    def spec(self) -> DataSpec:
        """What its samples are."""

    def __len__(self) -> int:
        """Samples of the whole set."""

    def part(self) -> range:
        """The samples that this worker holds: contiguous, all workers' parts together are the set, in rank order."""

    def batches(self) -> Iterable[Batch]:
        """Those samples in their order, in batches for one forward pass each, on this worker's device."""

    def shuffled(self, batch_size: int, key: str) -> Batches:
        """Random global batches of this size, in an order that ``key`` decides."""

    def some(self, fraction: float, seed: int) -> SampleSet:
        """A random share of the samples of each class; the set itself for a share of 1."""


@dataclass(frozen=True, kw_only=True)
class Evaluator(ABC):
    """A way to judge a representation; the config and the method in one. Runs at the end of training, always."""

    type: str
    """Which evaluator this is."""
    every_epochs: int | None = None
    """Also run during training, after every so many epochs; None: only at the end."""
    at: Literal["end"] = "end"
    """Says that it runs at the end, which it always does; for job files that spell it out."""

    needs_labels: ClassVar[bool]
    """Whether train and test samples must be labelled."""

    def __post_init__(self) -> None:
        if self.every_epochs is not None and self.every_epochs < 1:
            raise ValueError(f"every_epochs must be at least 1, or null for the end only, not {self.every_epochs}")

    @property
    @abstractmethod
    def higher_is_better(self) -> Mapping[str, bool]:
        """For each metric that ranks representations, which direction is better. A metric that only describes (a chosen
        strength, an interval) is absent."""

    def check(self, samples: int, labels: Tensor | None, classes: int | None) -> None:
        """Whether this evaluator can run on a training set of so many ``samples``; ``labels`` are theirs.

        Call it before training: a probe should not fail after the last epoch.

        Raises:
            ValueError: says what is missing.
        """
        if self.needs_labels and (labels is None or classes is None):
            raise ValueError(f"{self.type} needs labels, and the data has none")


@dataclass(frozen=True, kw_only=True)
class FeatureEvaluator(Evaluator):
    """Judges features (N, D) that were computed before."""

    needs_scores: ClassVar[bool] = False
    """Whether the method itself must classify."""

    @abstractmethod
    def evaluate(self, train: Features, test: Features, seed: int) -> dict[str, float]:
        """Metrics by name, without prefix; accuracies are shares in [0, 1]. The same arguments give the same numbers.

        Raises:
            ValueError: the features do not fit each other or the config.
        """

    def _require(self, train: Features, test: Features) -> None:
        """What every ``evaluate`` checks first."""
        self.check(len(train), train.labels, train.classes)
        if train.values.shape[1] != test.values.shape[1]:
            raise ValueError(
                f"train and test features differ in dimension: {train.values.shape[1]} and {test.values.shape[1]}"
            )
        if self.needs_labels and test.classes != train.classes:
            raise ValueError(f"train and test differ in classes: {train.classes} and {test.classes}")


@dataclass(frozen=True, kw_only=True)
class NetworkEvaluator(Evaluator):
    """Judges the network itself, by training with it on the samples, or by what it says to them."""

    judges_untrained: ClassVar[bool] = True
    """Whether the network as initialised is judged too, as the baseline."""

    def check_network(self, algorithm: Algorithm, sample: Batch, samples: int) -> None:
        """Whether it can judge this algorithm.

        ``judge`` calls it. Call it before training, too.

        Args:
            algorithm: as it will be judged, with whatever weights, on the device of ``sample``.
            sample: one sample of the training set, or some.
            samples: of the training set.

        Raises:
            ValueError: it cannot; says what would be right.
        """

    def check_workers(self, workers: int) -> None:
        """Whether so many workers can run it together.

        Raises:
            ValueError: they cannot; says what would be right.
        """

    @abstractmethod
    def judge(self, algorithm: Algorithm, train: SampleSet, test: SampleSet, seed: int) -> dict[str, float]:
        """Metrics as those of ``FeatureEvaluator.evaluate``. All workers call it together and get the same numbers,
        which are those of one worker up to rounding. The algorithm and torch's random generators are left as they were.

        Raises:
            ValueError: the samples do not fit each other, the algorithm or the config; on all workers alike.
            ArithmeticError: training diverged; on all workers alike.
        """

    def _classes(self, train: SampleSet, test: SampleSet) -> int:
        """What every ``judge`` asks first: how many classes there are."""
        if train.classes is None or test.classes is None:
            raise ValueError(f"{self.type} needs labels, and the data has none")
        if train.classes != test.classes:
            raise ValueError(f"train and test differ in classes: {train.classes} and {test.classes}")
        return train.classes


def ranks(scores: Tensor, labels: Tensor) -> Tensor:
    """How many classes are ranked above the true one: scores (..., N, C), labels (N,) -> (..., N) int64.

    Equal scores are ranked by class number, so that a constant score is no better than guessing. A NaN never counts as
    below the true class: broken scores can only lose.
    """
    own = scores.gather(-1, labels.expand(scores.shape[:-1]).unsqueeze(-1))
    later = torch.arange(scores.shape[-1], device=scores.device) >= labels.unsqueeze(-1)
    below = (scores < own) | ((scores == own) & later)
    return (~below).sum(dim=-1)


def accuracies(ranks: Tensor, classes: int, prefix: str) -> dict[str, float]:
    """``<prefix>_top1`` and, for more than five classes, ``<prefix>_top5`` from ranks (N,)."""
    tops = (1, 5) if classes > 5 else (1,)
    return {f"{prefix}_top{top}": float((ranks < top).double().mean()) for top in tops}
