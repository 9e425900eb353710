"""How likely a generative method finds held-out samples, in nats: bounds and estimates by importance sampling.

All draws are stateless functions of (seed, sample), so that a number is the same on any number of workers, and differs
between two evaluations only by what the network has learned.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from heliostat_algorithms.algorithm import Algorithm, Batch
from heliostat_algorithms.collectives import sum_over_workers
from heliostat_algorithms.evaluation.evaluator import NetworkEvaluator, SampleSet
from heliostat_algorithms.evaluation.extraction import EVALUATION_STEP, device_of, evaluating
from heliostat_algorithms.generative.protocols import ConditionalModel, LatentVariableModel
from heliostat_algorithms.randomness import Random

_PIXELS = 1 << 23
"""Numbers that a decoder may make at a time (32 MiB): decides how many samples are weighed together."""


@dataclass(frozen=True, kw_only=True)
class Likelihood(NetworkEvaluator):
    """Bounds the log-likelihood of held-out samples from below.

    Metrics, in nats for each sample: ``elbo``, the bound that a VAE trains on, and ``iwae_<k>``, the tighter one of k
    importance samples (Burda et al. 2015, arXiv 1509.00519): the expectation of log 1/k sum p(x, z) / q(z|x), which
    rises with k towards log p(x). ``bound_gap`` is the difference, at most KL(q(z|x) || p(z|x)) where k is large.

    Cost: ``draws`` passes of the decoder over the held-out samples, shared by all workers; twice in a run, for the
    untrained network.
    """

    type: Literal["likelihood"] = "likelihood"
    draws: int = 500
    """k, importance samples for each sample."""
    samples: int | None = None
    """Only the first so many held-out samples, for speed; null: all. Their number decides which samples, so compare
    equal numbers only."""

    needs_labels: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        _at_least_one(draws=self.draws, samples=self.samples)

    @property
    def higher_is_better(self) -> Mapping[str, bool]:
        return {"elbo": True, f"iwae_{self.draws}": True}

    def check_network(self, algorithm: Algorithm, sample: Batch, samples: int) -> None:
        if not isinstance(algorithm, LatentVariableModel):
            raise ValueError(f"likelihood bounds log p(x), and {type(algorithm).__name__} says nothing of it")

    def judge(self, algorithm: Algorithm, train: SampleSet, test: SampleSet, seed: int) -> dict[str, float]:
        if not isinstance(algorithm, LatentVariableModel):
            raise ValueError(f"likelihood bounds log p(x), and {type(algorithm).__name__} says nothing of it")
        model: LatentVariableModel = algorithm

        def measured(batch: Batch, random: Random) -> list[Tensor]:
            # The same stream of noise: of what both see, the same picture is drawn, where pictures are drawn.
            return [model.elbo(batch, random), log_mean_exp(model.log_weights(batch, self.draws, random))]

        elbo, iwae = _means(algorithm, test, self.samples, self.draws, seed, measured)
        return {"elbo": elbo, f"iwae_{self.draws}": iwae, "bound_gap": iwae - elbo}


@dataclass(frozen=True, kw_only=True)
class ConditionalLikelihood(NetworkEvaluator):
    """Estimates how likely the hidden part of held-out samples is, given the visible one (Sohn et al. 2015, section
    5.1).

    Metrics, **negative** log-likelihoods in nats for each sample: ``cnll_is_<k>`` by importance sampling from q(z|x, y)
    (equation 7), ``cnll_mc_<k>`` by plain draws from the prior network (equation 6), which needs many more of them, and
    ``cnll_baseline`` of the deterministic baseline. The first two are, in expectation, above the truth.

    Cost: twice ``draws`` passes of the decoder over the held-out samples, shared by all workers; twice in a run, for
    the untrained network.
    """

    type: Literal["conditional-likelihood"] = "conditional-likelihood"
    draws: int = 100
    """k, draws for each sample: 100 in the paper for importance sampling, 10,000 for plain draws."""
    samples: int | None = None
    """Only the first so many held-out samples, for speed; null: all."""

    needs_labels: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        _at_least_one(draws=self.draws, samples=self.samples)

    @property
    def higher_is_better(self) -> Mapping[str, bool]:
        return {f"cnll_is_{self.draws}": False, f"cnll_mc_{self.draws}": False, "cnll_baseline": False}

    def check_network(self, algorithm: Algorithm, sample: Batch, samples: int) -> None:
        if not isinstance(algorithm, ConditionalModel):
            raise ValueError(f"conditional-likelihood judges p(y|x), and {type(algorithm).__name__} says nothing of it")

    def judge(self, algorithm: Algorithm, train: SampleSet, test: SampleSet, seed: int) -> dict[str, float]:
        if not isinstance(algorithm, ConditionalModel):
            raise ValueError(f"conditional-likelihood judges p(y|x), and {type(algorithm).__name__} says nothing of it")
        model: ConditionalModel = algorithm

        def measured(batch: Batch, random: Random) -> list[Tensor]:
            weights = [
                model.conditional_log_weights(batch, self.draws, random, importance=kind) for kind in (True, False)
            ]
            return [*map(log_mean_exp, weights), model.baseline_log_likelihood(batch, random)]

        means = _means(algorithm, test, self.samples, self.draws, seed, measured)
        names = (f"cnll_is_{self.draws}", f"cnll_mc_{self.draws}", "cnll_baseline")
        return {name: -mean for name, mean in zip(names, means, strict=True)}


def log_mean_exp(log_weights: Tensor) -> Tensor:
    """(..., k) -> (...): log of the mean weight."""
    return log_weights.logsumexp(dim=-1) - math.log(log_weights.shape[-1])


def _at_least_one(**counts: int | None) -> None:
    for name, count in counts.items():
        if count is not None and count < 1:
            raise ValueError(f"{name} is {count}; it must be at least 1")


def _means(
    algorithm: Algorithm,
    test: SampleSet,
    limit: int | None,
    draws: int,
    seed: int,
    measured: Callable[[Batch, Random], list[Tensor]],
) -> list[float]:
    """Means over the first samples of a set, or all, of what is measured of each (B,)."""
    device = device_of(algorithm)
    totals, count = None, 0
    with evaluating(algorithm):
        for batch, rows in _chunks(test, limit, draws):
            random = Random(seed, EVALUATION_STEP, rows, device).within("likelihood")
            values = torch.stack([value.double().sum() for value in measured(batch, random)])
            totals, count = values if totals is None else totals + values, count + len(rows)
    # A worker without samples does not know how many measures there are; the others tell it.
    number = int(_largest(torch.tensor(0 if totals is None else len(totals), device=device)))
    mine = torch.zeros(number, dtype=torch.float64, device=device) if totals is None else totals
    total = sum_over_workers(torch.cat([mine, torch.tensor([float(count)], dtype=torch.float64, device=device)]))
    means: list[float] = (total[:-1] / total[-1]).tolist()
    if not all(map(math.isfinite, means)):
        raise ValueError("the log-likelihoods are not finite: the network has diverged")
    return means


def _largest(value: Tensor) -> Tensor:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        value = value.clone()
        torch.distributed.all_reduce(value, torch.distributed.ReduceOp.MAX)
    return value


def _chunks(test: SampleSet, limit: int | None, draws: int) -> Iterator[tuple[Batch, range]]:
    """Few samples at a time, with their places in the whole set."""
    row, end = test.part().start, len(test) if limit is None else min(limit, len(test))
    for batch in test.batches():
        count = len(batch["index"])
        numbers = batch["image"][0].numel() if "image" in batch else 1
        size = max(1, _PIXELS // (draws * numbers))
        for start in range(0, count, size):
            stop = min(start + size, count, end - row)
            if stop > start:
                yield {name: values[start:stop] for name, values in batch.items()}, range(row + start, row + stop)
        row += count
