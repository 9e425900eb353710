"""Losses that compare the samples of a batch, over networks that see each sample alone: the contract of gradient
caching (Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup, Gao et al. 2021, arXiv 2101.06983).

The loss L is a function of all representations h_i = f(x_i), each of which depends on its own sample. So

    dL / dw  =  sum over i of  (dL / dh_i) (dh_i / dw)

and once the gradients dL / dh_i are known, the sum can be taken part by part. The loop computes all h without gradient,
one part after the other; then L and its gradients, for which the network is not needed; then each part of h once more,
now with gradient. That costs a second forward pass and holds the activations of one part, whatever the batch.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, Literal, TypeAlias, overload

from torch import Tensor

from heliostat_algorithms.algorithm import Algorithm, Clock, Inputs, Step

Rows: TypeAlias = Mapping[str, Tensor]
"""Tensors by name, each with a row for each sample."""


class Comparing(Algorithm):
    """A method in two steps: what is made of each sample alone, and what is made of all samples together.

    The cut is best made below all batch normalisation: heads that have it belong to ``compare``, which sees the whole
    batch, so that their statistics stay those of the whole batch.
    """

    separable = False

    @classmethod
    def represents_alone(cls, config: Any) -> bool:
        """Whether ``represent`` and ``targets`` see each sample alone, so that the batch may be split: not with batch
        normalisation in the backbone."""
        return not config.backbone.mixes_samples

    @abstractmethod
    def represent(self, inputs: Inputs, clock: Clock) -> Rows:
        """Of each sample, with gradient: the expensive part. It may run twice, on the same inputs, in one step: it
        changes no state and draws nothing at random."""

    def targets(self, inputs: Inputs, clock: Clock) -> Rows:
        """Of each sample, without gradient: what representations are compared with, such as keys."""
        return {}

    @abstractmethod
    def compare(self, rows: Rows, targets: Rows, clock: Clock) -> Step:
        """The loss of all of this worker's rows."""

    @overload
    def forward(self, inputs: Inputs, clock: Clock) -> Step: ...

    @overload
    def forward(self, inputs: Inputs, clock: Clock, *, alone: Literal[True]) -> Rows: ...

    def forward(self, inputs: Inputs, clock: Clock, *, alone: bool = False) -> Step | Rows:
        """The loss of this worker's rows; with ``alone`` what ``represent`` gives, in the same data-parallel pass."""
        rows = self.represent(inputs, clock)
        return rows if alone else self.compare(rows, self.targets(inputs, clock), clock)
