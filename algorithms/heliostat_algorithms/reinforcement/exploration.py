"""How often a random action is taken: epsilon, as a function of the steps that were taken and of the lane.

A lane is the stream of one environment. Lanes are numbered over all rollouts, so that epsilon does not depend on which
rollout plays them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Annotated, Literal, TypeAlias

import torch
from torch import Tensor

from heliostat_algorithms.algorithm import OneOf
from heliostat_algorithms.schedules import linear_ramp


class Epsilon(ABC):
    """What all schedules give."""

    @abstractmethod
    def at(self, step: int, lanes: range, count: int) -> Tensor:
        """(len(lanes),) float32: the share of random actions in each lane.

        Args:
            step: environment steps that were taken before, over all lanes.
            lanes: which lanes, of 0 .. count - 1.
            count: how many lanes there are in all.
        """


@dataclass(frozen=True, kw_only=True)
class Constant(Epsilon):
    """The same share throughout; 0 where noisy layers explore."""

    type: Literal["constant"] = "constant"
    value: float = 0.0
    """From 0 to 1; 0.05 in evaluations of 2013 and 2015, 0.001 in later ones."""

    def __post_init__(self) -> None:
        _check_share("value", self.value)

    def at(self, step: int, lanes: range, count: int) -> Tensor:
        return torch.full((len(lanes),), self.value)


@dataclass(frozen=True, kw_only=True)
class Linear(Epsilon):
    """``start`` at first, then down to ``end`` in a straight line, and ``end`` from then on."""

    type: Literal["linear"] = "linear"
    start: float = 1.0
    """Share at the beginning."""
    end: float = 0.1
    """Share at the end; 0.1 in 2013 and 2015, 0.01 in later work."""
    begin: int = 50_000
    """Environment steps before epsilon begins to fall: in the reference code of 2015 those before the first update."""
    steps: int = 1_000_000
    """Environment steps over which it falls. The papers' million frames are a million steps in the reference code, of 4
    frames each."""

    def __post_init__(self) -> None:
        _check_share("start", self.start)
        _check_share("end", self.end)
        if self.begin < 0:
            raise ValueError(f"begin is {self.begin}; it is a number of steps and cannot be negative")
        if self.steps < 1:
            raise ValueError(f"steps is {self.steps}; it must be at least 1 (for no change: type constant)")

    def at(self, step: int, lanes: range, count: int) -> Tensor:
        progress = min(max(step - self.begin, 0) / self.steps, 1.0)
        return torch.full((len(lanes),), linear_ramp(self.start, self.end, progress))


@dataclass(frozen=True, kw_only=True)
class ApeX(Epsilon):
    """One share for each lane, from ``base`` down, and constant: Distributed Prioritized Experience Replay, Horgan et
    al. 2018 (arXiv 1803.00933), section 4.1. Lane i of N has base^(1 + exponent * i / (N - 1))."""

    type: Literal["ape-x"] = "ape-x"
    base: float = 0.4
    """The share of the first lane."""
    exponent: float = 7.0
    """The last lane has base^(1 + exponent): 0.00066."""

    def __post_init__(self) -> None:
        if not 0 < self.base <= 1:
            raise ValueError(f"base is {self.base}; it is a share, above 0 and up to 1")
        if not 0 <= self.exponent < float("inf"):
            raise ValueError(f"exponent is {self.exponent}; it must be finite and cannot be negative")

    def at(self, step: int, lanes: range, count: int) -> Tensor:
        last = max(count - 1, 1)  # a single lane has the share of a first one
        return torch.tensor([self.base ** (1 + self.exponent * lane / last) for lane in lanes])


def _check_share(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"{name} is {value}; it is a share of actions, from 0 to 1")


EpsilonConfig: TypeAlias = Annotated[Constant | Linear | ApeX, OneOf()]
"""Any schedule, told apart by ``type``: constant, linear, ape-x."""
