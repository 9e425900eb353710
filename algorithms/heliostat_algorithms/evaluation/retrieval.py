"""Retrieval: whether the training samples that are most similar to a test sample are of its class.

Recall at k as in Deep Metric Learning via Lifted Structured Feature Embedding, Song et al. 2016 (arXiv 1511.06452);
mean average precision over the whole ranking as in The Pascal Visual Object Classes Challenge, Everingham et
al. 2010, but without interpolation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from heliostat_algorithms.evaluation.evaluator import FeatureEvaluator, Features
from heliostat_algorithms.randomness import permutation

_SIMILARITIES = 1 << 22
"""How many similarities are held, and sorted, at once (about 120 MiB with all that is made of them)."""


@dataclass(frozen=True, kw_only=True)
class Retrieval(FeatureEvaluator):
    """Ranks the training samples by cosine similarity to each test sample; those of the same class are right.

    Metrics, for each k: ``retrieval_recall_<k>``, the share of test samples with at least one right sample among the k
    nearest, and for k above 1 ``retrieval_precision_<k>``, the mean share of right ones among them. ``retrieval_map``:
    mean over test samples of the average precision, which is the mean, over the right samples, of the share of right
    ones down to their place in the ranking of *all* training samples. A test sample whose class has no training sample
    counts as 0.

    Nothing is fitted, but the whole ranking is sorted: N log N for each test sample, a minute for 10,000 test and
    50,000 training samples on one CPU core. Samples of equal similarity come in an order drawn from the seed, so that a
    collapsed encoder is at chance.
    """

    type: Literal["retrieval"] = "retrieval"
    k: tuple[int, ...] = (1, 5, 10)
    """How many of the nearest training samples are looked at."""

    needs_labels: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.k or min(self.k) < 1:
            raise ValueError(f"k must list numbers of at least 1, such as [1, 5, 10], not {list(self.k)}")

    @property
    def higher_is_better(self) -> Mapping[str, bool]:
        recalls = [f"retrieval_recall_{k}" for k in self.k]
        precisions = [f"retrieval_precision_{k}" for k in self.k if k > 1]
        return dict.fromkeys([*recalls, *precisions, "retrieval_map"], True)

    def check(self, samples: int, labels: Tensor | None, classes: int | None) -> None:
        super().check(samples, labels, classes)
        if max(self.k) > samples:
            raise ValueError(
                f"retrieval asks for k = {max(self.k)} neighbours, but there are only {samples} training samples"
            )

    def evaluate(self, train: Features, test: Features, seed: int) -> dict[str, float]:
        self._require(train, test)
        (bank_labels, _), (labels, _) = train.labelled(), test.labelled()
        order = permutation(f"{seed}:evaluation/retrieval", len(train)).to(bank_labels.device)
        bank, bank_labels = F.normalize(train.values[order], dim=-1), bank_labels[order]
        queries = F.normalize(test.values, dim=-1)
        rows = max(1, _SIMILARITIES // len(bank))
        sums = dict.fromkeys(self.higher_is_better, 0.0)
        for chunk, wanted in zip(torch.split(queries, rows), torch.split(labels, rows), strict=True):
            ranking = (chunk @ bank.T).argsort(dim=1, descending=True, stable=True)
            right = (bank_labels[ranking] == wanted.unsqueeze(1)).double()  # (B, N)
            for k in self.k:
                nearest = right[:, :k]
                sums[f"retrieval_recall_{k}"] += float(nearest.amax(dim=1).sum())
                if k > 1:
                    sums[f"retrieval_precision_{k}"] += float(nearest.mean(dim=1).sum())
            sums["retrieval_map"] += float(_average_precision(right).sum())
        return {name: value / len(queries) for name, value in sums.items()}


def _average_precision(right: Tensor) -> Tensor:
    """(B, N), 1 where the sample at this place of the ranking is right -> (B,); 0 where none is."""
    places = torch.arange(1, right.shape[1] + 1, dtype=right.dtype, device=right.device)
    precision = right.cumsum(dim=1).div_(places)
    return (precision * right).sum(dim=1) / right.sum(dim=1).clamp_min(1)


@dataclass(frozen=True)
class Neighbours:
    """What some test samples are most similar to, for a picture."""

    queries: Tensor
    """(Q,) int64: rows of the test set."""
    nearest: Tensor
    """(Q, k) int64: rows of the training set, the most similar first."""
    right: Tensor
    """(Q, k) bool: whether they are of the query's class."""


def neighbours(train: Features, test: Features, seed: int, queries: int = 8, k: int = 5) -> Neighbours:
    """The k nearest training samples of some test samples, drawn from the seed: the same ones for all encoders."""
    (bank_labels, _), (labels, _) = train.labelled(), test.labelled()
    chosen = permutation(f"{seed}:evaluation/neighbours", len(test))[:queries].to(labels.device)
    similarity = F.normalize(test.values[chosen], dim=-1) @ F.normalize(train.values, dim=-1).T
    nearest = similarity.topk(min(k, len(train)), dim=1).indices
    return Neighbours(chosen, nearest, bank_labels[nearest] == labels[chosen].unsqueeze(1))
