"""Whether a representation has collapsed, without labels.

RankMe: Assessing the Downstream Performance of Pretrained Self-Supervised Representations by Their Rank, Garrido et
al. 2023 (arXiv 2210.02885), equation 1. Alignment and uniformity: Understanding Contrastive Representation Learning
through Alignment and Uniformity on the Hypersphere, Wang and Isola 2020 (arXiv 2005.10242), section 4.1. Standard
deviation of normalised features: Exploring Simple Siamese Representation Learning, Chen and He 2021 (arXiv
2011.10566), section 4.1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from heliostat_algorithms.algorithm import COLLAPSED_SPREAD
from heliostat_algorithms.evaluation.evaluator import FeatureEvaluator, Features
from heliostat_algorithms.randomness import permutation

RANK_EPSILON = 1e-7
"""RankMe's epsilon for float32 features."""
DIMENSIONAL = 0.03
"""``rank_share`` below which most dimensions carry nothing."""


@dataclass(frozen=True, kw_only=True)
class Collapse(FeatureEvaluator):
    """Signs of collapse in the features themselves.

    Metrics: ``rankme`` (effective rank, 1 to min(N, D)), ``rank_share`` (rankme / min(N, D)) and ``feature_std`` (0:
    all samples alike, 1: isotropic) on training features, as in the papers; ``uniformity`` (0: all alike, lower: more
    spread out) and, where the features come with view pairs, ``alignment`` (mean squared distance of two views, 0 to
    4) on test features.
    """

    type: Literal["collapse"] = "collapse"
    samples: int = 2048
    """At most so many rows of each set, drawn from the seed. RankMe is bounded by it: compare runs with the same
    number. The paper uses 25,600; 2048 rows suffice for feature dimensions up to about 1000."""

    needs_labels: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.samples < 2:
            raise ValueError(f"samples must be at least 2, not {self.samples}")

    @property
    def higher_is_better(self) -> Mapping[str, bool]:
        # Alignment is absent: a collapsed encoder has the best there is.
        return {"rankme": True, "rank_share": True, "feature_std": True, "uniformity": False}

    def evaluate(self, train: Features, test: Features, seed: int) -> dict[str, float]:
        self._require(train, test)
        if min(len(train), len(test)) < 2:
            raise ValueError("collapse compares samples: it needs at least 2 training and 2 test samples")
        bank, held_out = (self._sample(values, seed) for values in (train.values, test.values))
        rank = rankme(bank)
        metrics = {
            "rankme": rank,
            "rank_share": rank / min(bank.shape),
            "feature_std": feature_std(bank),
            "uniformity": uniformity(held_out),
        }
        if test.pairs is not None:
            metrics["alignment"] = alignment(*test.pairs)
        return metrics

    def _sample(self, values: Tensor, seed: int) -> Tensor:
        order = permutation(f"{seed}:evaluation/collapse", len(values))[: self.samples]
        return values[order.to(values.device)].double()


def rankme(features: Tensor) -> float:
    """Effective rank of features (N, D): exp of the entropy of the singular values' shares (equation 1). 1 for features
    that are all multiples of one vector, zero included."""
    singular = torch.linalg.svdvals(features.double())
    shares = singular / singular.sum().clamp_min(torch.finfo(singular.dtype).tiny) + RANK_EPSILON
    return float(torch.exp(-(shares * shares.log()).sum()))


def feature_std(features: Tensor) -> float:
    """Standard deviation of each dimension of L2-normalised features (N, D), averaged, times the square root of D."""
    unit = F.normalize(features.double(), dim=-1)
    return float(unit.std(dim=0, correction=0).mean()) * math.sqrt(features.shape[1])


def alignment(first: Tensor, second: Tensor) -> float:
    """Mean squared distance of L2-normalised features (M, D) of two views of the same samples (alpha = 2)."""
    difference = F.normalize(first.double(), dim=-1) - F.normalize(second.double(), dim=-1)
    return float(difference.square().sum(dim=-1).mean())


def uniformity(features: Tensor) -> float:
    """Log of the mean of exp(-2 d^2) over all pairs of distinct rows of L2-normalised features (N, D) (t = 2)."""
    squared = F.pdist(F.normalize(features.double(), dim=-1)).square()
    return float(torch.logsumexp(-2 * squared, dim=0)) - math.log(len(squared))


def diagnose(metrics: Mapping[str, float]) -> str | None:
    """A sentence on the collapse that ``Collapse`` metrics show and its likely causes; None where they show none.

    The thresholds are deliberately low: a healthy encoder, and even an untrained one, stays above them.
    """
    spread, rank, share = (metrics[name] for name in ("feature_std", "rankme", "rank_share"))
    if spread < COLLAPSED_SPREAD:
        return (
            f"The representation has collapsed: all samples have nearly the same features (feature_std {spread:.3g}, "
            f"healthy above {COLLAPSED_SPREAD}). Likely causes: a learning rate that is too high, a teacher without "
            "stop-gradient or with too low a momentum, centring or sharpening switched off, or too few negatives."
        )
    if share < DIMENSIONAL:
        return (
            f"The representation uses few of its dimensions (effective rank {rank:.1f}, {share:.1%} of the largest "
            f"possible, healthy above {DIMENSIONAL:.0%}). Likely causes: augmentation that is too strong, weight decay "
            "or a temperature that is too high, or a projection head that is too small or missing."
        )
    return None
