"""Whether a generator covers the modes of its data, for data whose modes are known: a ring of Gaussians."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from heliostat_algorithms.algorithm import Algorithm, Batch
from heliostat_algorithms.collectives import sum_over_workers
from heliostat_algorithms.evaluation.evaluator import NetworkEvaluator, SampleSet
from heliostat_algorithms.evaluation.extraction import EVALUATION_STEP, device_of, evaluating
from heliostat_algorithms.generative.protocols import Generator
from heliostat_algorithms.randomness import Random


@dataclass(frozen=True, kw_only=True)
class ModeCoverage(NetworkEvaluator):
    """Counts the modes that a generator of points finds, as is usual since Srivastava et al. 2017 (VEEGAN, arXiv
    1705.07761, section 4.1).

    The modes are the classes of the training set, with their mean and their deviation (that of all directions
    together). A sample is of high quality where it lies within ``radius`` deviations of the nearest mean. A mode is
    covered where ``min_share`` of all samples are of high quality and nearest to it.

    Metrics: ``modes``, how many are covered, ``high_quality``, the share of such samples, and ``mode_kl``,
    KL(samples over modes || equal shares), from 0 to log(modes) nats, of the high-quality samples alone.

    Cost: nothing much.
    """

    type: Literal["mode-coverage"] = "mode-coverage"
    samples: int = 10_000
    """Samples that are made, over all workers."""
    radius: float = 3.0
    """In deviations of a mode. Of a Gaussian in the plane, 98.9 % lies within 3."""
    min_share: float = 0.01
    """Of a mode, so that it counts as covered; VEEGAN is content with a single sample."""

    needs_labels: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.samples < 1:
            raise ValueError(f"samples is {self.samples}; it must be at least 1")
        if not 0 < self.radius < float("inf"):
            raise ValueError(f"radius is {self.radius}; it must be above 0 and finite")
        if not 0 <= self.min_share <= 1:
            raise ValueError(f"min_share is {self.min_share}; it must be a share from 0 to 1")

    @property
    def higher_is_better(self) -> Mapping[str, bool]:
        return {"modes": True, "high_quality": True, "mode_kl": False}

    def check_network(self, algorithm: Algorithm, sample: Batch, samples: int) -> None:
        if not isinstance(algorithm, Generator):
            raise ValueError(f"mode-coverage judges samples, and {type(algorithm).__name__} makes none")
        if "point" not in sample:
            raise ValueError("mode-coverage knows the modes of points, and the data are pictures; choose frechet")

    def judge(self, algorithm: Algorithm, train: SampleSet, test: SampleSet, seed: int) -> dict[str, float]:
        classes = self._classes(train, test)
        if not isinstance(algorithm, Generator):
            raise ValueError(f"mode-coverage judges samples, and {type(algorithm).__name__} makes none")
        device = device_of(algorithm)
        means, deviations = _modes(train, classes, device)
        part = test.part()
        rows = range(part.start * self.samples // len(test), part.stop * self.samples // len(test))
        with evaluating(algorithm):
            made = algorithm.generate(Random(seed, EVALUATION_STEP, rows, device).within("coverage")).double()
        counts = torch.zeros(classes, dtype=torch.float64, device=device)
        if len(rows):
            distance, nearest = torch.cdist(made, means).min(dim=1)
            good = distance <= self.radius * deviations[nearest]
            counts += nearest[good].bincount(minlength=classes)
        counts = sum_over_workers(counts)
        shares = counts / counts.sum().clamp(min=1)
        divergence = torch.special.xlogy(shares, shares * classes).sum()
        return {
            "modes": float((counts / self.samples >= max(self.min_share, 1 / self.samples)).sum()),
            "high_quality": float(counts.sum() / self.samples),
            **({"mode_kl": float(divergence)} if counts.sum() > 0 else {}),
        }


def _modes(train: SampleSet, classes: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Means (classes, D) of the classes, and their deviations (classes,), over all workers."""
    batches = [(batch["point"].double(), batch["label"]) for batch in train.batches()]
    dim = int(batches[0][0].shape[1]) if batches else 0
    if sum_over_workers(torch.tensor(float(dim == 0), device=device)) > 0:
        raise ValueError("mode-coverage needs a training sample for each worker")
    sums = torch.zeros(classes, dim + 2, dtype=torch.float64, device=device)
    for points, labels in batches:
        row = torch.cat([points, points.square().sum(1, keepdim=True), torch.ones_like(points[:, :1])], dim=1)
        sums.index_add_(0, labels, row)
    sums = sum_over_workers(sums)
    count = sums[:, -1].clamp(min=1)
    means = sums[:, :dim] / count.unsqueeze(1)
    variance = (sums[:, dim] / count - means.square().sum(1)) / dim
    return means, variance.clamp(min=0).sqrt()
