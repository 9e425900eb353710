"""What evaluators ask of generative methods: a method has these functions or has not."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from torch import Tensor

from heliostat_algorithms.algorithm import Batch
from heliostat_algorithms.randomness import Random


@runtime_checkable
class Generator(Protocol):
    """Makes samples."""

    def generate(self, random: Random) -> Tensor:
        """One sample for each row of ``random``: (rows, C, H, W) in [0, 1], or points (rows, D)."""


@runtime_checkable
class LatentVariableModel(Protocol):
    """Bounds the log-likelihood of samples, in nats."""

    def elbo(self, batch: Batch, random: Random) -> Tensor:
        """(B,)."""

    def log_weights(self, batch: Batch, draws: int, random: Random) -> Tensor:
        """(B, draws): log-weights of importance sampling, whose log-mean-exp bounds log p(x)."""


@runtime_checkable
class ConditionalModel(Protocol):
    """Estimates the log-likelihood of a part of a sample given the rest, in nats."""

    def conditional_log_weights(self, batch: Batch, draws: int, random: Random, *, importance: bool) -> Tensor:
        """(B, draws): their log-mean-exp estimates log p(y|x), with z from the prior network or from q."""

    def baseline_log_likelihood(self, batch: Batch, random: Random) -> Tensor:
        """(B,): log p(y|x) of the deterministic baseline."""
