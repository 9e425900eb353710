"""How well a method says tokens: perplexity, and how often it is right.

The method is told the truth up to each position. Where it then says every token of an answer rightly, it also does so
by itself, so that the share of exact answers is that of greedy decoding.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from heliostat_algorithms.algorithm import IGNORED, Algorithm, Batch
from heliostat_algorithms.collectives import sum_over_workers
from heliostat_algorithms.evaluation.evaluator import NetworkEvaluator, SampleSet
from heliostat_algorithms.evaluation.extraction import device_of, evaluating
from heliostat_algorithms.sequence.prediction import Predictor, asked


def _tallies(algorithm: Algorithm, test: SampleSet) -> Tensor:
    """(longest + 1, 5) float64, over all workers: for samples whose last asked position is the n-th, in row n, how many
    positions are asked, the sum of their losses in nats, how many are right, how many samples there are, and how many
    of them are right throughout.

    Raises:
        ValueError: the method says no tokens, or the samples ask for none.
    """
    if not isinstance(algorithm, Predictor) or test.spec.tokens is None:
        raise ValueError(f"{type(algorithm).__name__} says no tokens that could be judged")
    device = device_of(algorithm)
    table = torch.zeros(test.spec.tokens.length + 1, 5, dtype=torch.float64, device=device)
    with evaluating(algorithm):
        for stored in test.batches():
            logits, targets = algorithm.predictions({name: values.to(device) for name, values in stored.items()})
            inside = asked(targets)
            exact = logits.to(torch.promote_types(logits.dtype, torch.float32))
            losses = F.cross_entropy(exact.transpose(1, 2), targets, ignore_index=IGNORED, reduction="none")
            right = (logits.argmax(dim=2) == targets) & inside
            places = torch.arange(1, targets.shape[1] + 1, device=device)
            last = (inside * places).amax(dim=1)
            whole = right.sum(dim=1) == inside.sum(dim=1)
            columns = [inside.sum(dim=1), losses.double().sum(dim=1), right.sum(dim=1), torch.ones_like(last), whole]
            table.index_add_(0, last, torch.stack([column.double() for column in columns], dim=1))
    table = sum_over_workers(table)
    if not table[:, 0].any():
        raise ValueError("the test samples ask for no token, so that there is nothing to judge")
    return table


@dataclass(frozen=True, kw_only=True)
class _SequenceEvaluator(NetworkEvaluator):
    """What both have in common."""

    needs_labels: ClassVar[bool] = False

    def check_network(self, algorithm: Algorithm, sample: Batch, samples: int) -> None:
        if not isinstance(algorithm, Predictor):
            raise ValueError(f"{self.type} judges what a method says, and {type(algorithm).__name__} says no tokens")


@dataclass(frozen=True, kw_only=True)
class Perplexity(_SequenceEvaluator):
    """How surprised the method is by each token of the test set, told those before it in the sample.

    Metrics: ``nll`` in nats per token, ``perplexity`` = exp(nll) and, of texts, ``bits_per_character``. Of a text the
    windows do not overlap, so that the first tokens of each have little before them: the figure is an upper bound.
    """

    type: Literal["perplexity"] = "perplexity"

    @property
    def higher_is_better(self) -> Mapping[str, bool]:
        return {"nll": False, "perplexity": False, "bits_per_character": False}

    def judge(self, algorithm: Algorithm, train: SampleSet, test: SampleSet, seed: int) -> dict[str, float]:
        count, loss, *_ = _tallies(algorithm, test).sum(dim=0).tolist()
        nll = loss / count
        found = {"nll": nll, "perplexity": math.exp(min(nll, 700.0))}
        characters = None if test.spec.tokens is None else test.spec.tokens.characters_per_token
        return found if characters is None else found | {"bits_per_character": nll / math.log(2) / characters}


@dataclass(frozen=True, kw_only=True)
class TokenAccuracy(_SequenceEvaluator):
    """How often the most likely token is the right one, and how often all asked tokens of a sample are.

    Metrics: ``token_accuracy``, ``exact_match`` and, where samples have up to twelve different lengths, each also by
    length: ``exact_match_length_64``.
    """

    type: Literal["token-accuracy"] = "token-accuracy"

    @property
    def higher_is_better(self) -> Mapping[str, bool]:
        return {"token_accuracy": True, "exact_match": True}

    def judge(self, algorithm: Algorithm, train: SampleSet, test: SampleSet, seed: int) -> dict[str, float]:
        table = _tallies(algorithm, test)
        lengths = table[:, 3].nonzero().flatten().tolist()
        found = self._accuracies(table.sum(dim=0), "")
        if 1 < len(lengths) <= 12:
            for length in lengths:
                found |= self._accuracies(table[length], f"_length_{length}")
        return found

    @staticmethod
    def _accuracies(sums: Tensor, suffix: str) -> dict[str, float]:
        count, _, right, samples, whole = sums.tolist()
        return {f"token_accuracy{suffix}": right / count, f"exact_match{suffix}": whole / samples}
