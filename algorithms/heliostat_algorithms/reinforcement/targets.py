"""The target network: what the online network's own estimates are replaced by in its targets, and how it follows."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Annotated, Literal, TypeAlias

import torch
from torch import Tensor, nn

from heliostat_algorithms.algorithm import OneOf
from heliostat_algorithms.teachers import follow


class TargetUpdate(ABC):
    """What all of them give."""

    @abstractmethod
    def move(self, target: nn.Module, online: nn.Module, updates: int) -> None:
        """Move ``target`` after the update of this number, from 1; most do nothing in most updates."""


@dataclass(frozen=True, kw_only=True)
class NoTarget:
    """Targets from the online network itself, as in the 2013 paper."""

    type: Literal["none"] = "none"


@dataclass(frozen=True, kw_only=True)
class Periodic(TargetUpdate):
    """A copy of the online network that is renewed now and then (2015 paper, algorithm 1)."""

    type: Literal["periodic"] = "periodic"
    every: int = 10_000
    """Updates from one copy to the next. 10,000 in the 2015 paper's table of hyperparameters; 2,500 in its code, which
    counts 10,000 steps with an update in every fourth."""

    def __post_init__(self) -> None:
        if self.every < 1:
            raise ValueError(f"every is {self.every}; it must be at least 1 update")

    def move(self, target: nn.Module, online: nn.Module, updates: int) -> None:
        if updates % self.every == 0:
            followers: list[Tensor] = list(target.parameters())
            with torch.no_grad():
                torch._foreach_copy_(followers, [parameter.detach() for parameter in online.parameters()])


@dataclass(frozen=True, kw_only=True)
class Polyak(TargetUpdate):
    """target <- (1 - rate) * target + rate * online in every update: Continuous control with deep reinforcement
    learning, Lillicrap et al. 2015 (arXiv 1509.02971), algorithm 1."""

    type: Literal["polyak"] = "polyak"
    rate: float = 0.001
    """tau of the paper; 1 / rate is about the number of updates that the target lags behind."""

    def __post_init__(self) -> None:
        if not 0 < self.rate <= 1:
            raise ValueError(f"rate is {self.rate}; it is a share, above 0 and up to 1")

    def move(self, target: nn.Module, online: nn.Module, updates: int) -> None:
        follow(target, online, 1.0 - self.rate)


TargetConfig: TypeAlias = Annotated[NoTarget | Periodic | Polyak, OneOf()]
"""Any of them, told apart by ``type``: none, periodic, polyak."""
