"""Weighted nearest neighbours on frozen features.

Unsupervised Feature Learning via Non-Parametric Instance Discrimination, Wu et al. 2018 (arXiv 1805.01978), section
3.4; with the settings of DINO, Caron et al. 2021 (arXiv 2104.14294), section 3.2.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from heliostat_algorithms.evaluation.evaluator import FeatureEvaluator, Features, accuracies, ranks

_SIMILARITIES = 1 << 24
"""How many similarities are held at once (64 MiB)."""


@dataclass(frozen=True, kw_only=True)
class KNN(FeatureEvaluator):
    """Each test sample takes the class for which its k most similar training samples vote, with weight
    exp(cosine similarity / temperature). No parameter is fitted, so it is cheap enough to run during training.

    Metrics: ``knn_top1`` and, for more than five classes, ``knn_top5``.
    """

    type: Literal["knn"] = "knn"
    k: int = 20
    """Neighbours that vote; DINO reports 20, the instance-discrimination paper 200."""
    temperature: float = 0.07
    """Lower gives near neighbours more weight; both papers use 0.07."""

    needs_labels: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.k < 1:
            raise ValueError(f"k must be at least 1, not {self.k}")
        if not self.temperature > 0:
            raise ValueError(f"temperature must be above 0, not {self.temperature}")

    @property
    def higher_is_better(self) -> Mapping[str, bool]:
        return {"knn_top1": True, "knn_top5": True}

    def check(self, samples: int, labels: Tensor | None, classes: int | None) -> None:
        super().check(samples, labels, classes)
        if self.k > samples:
            raise ValueError(f"knn asks for k = {self.k} neighbours, but there are only {samples} training samples")

    def evaluate(self, train: Features, test: Features, seed: int) -> dict[str, float]:
        self._require(train, test)
        (bank_labels, classes), (labels, _) = train.labelled(), test.labelled()
        bank = F.normalize(train.values, dim=-1)
        queries = F.normalize(test.values, dim=-1)
        rows = max(1, _SIMILARITIES // len(bank))
        found = [
            _ranks(chunk, true, bank, bank_labels, classes, self.k, self.temperature)
            for chunk, true in zip(torch.split(queries, rows), torch.split(labels, rows), strict=True)
        ]
        return accuracies(torch.cat(found), classes, "knn")


def _ranks(
    queries: Tensor, labels: Tensor, bank: Tensor, bank_labels: Tensor, classes: int, k: int, temperature: float
) -> Tensor:
    """Ranks (B,) of the true classes of queries (B, D)."""
    similarity, neighbours = (queries @ bank.T).topk(k, dim=-1)
    # The papers' weight, divided by that of the nearest neighbour: the same ranking, without overflow at low
    # temperature.
    weights = ((similarity - similarity[:, :1]) / temperature).exp()
    # A class that got no vote is not predicted at any rank; the papers' code ranks such classes by their number.
    votes = torch.full((len(queries), classes), -torch.inf, device=queries.device)
    votes.scatter_reduce_(1, bank_labels[neighbours], torch.zeros_like(weights), "amax", include_self=True)
    votes.scatter_add_(1, bank_labels[neighbours], weights)
    found = ranks(votes, labels)
    voted = votes.gather(1, labels.unsqueeze(1)).squeeze(1).isfinite()
    return torch.where(voted, found, classes)
