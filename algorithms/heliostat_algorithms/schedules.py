"""Schedules: pure functions of the clock.

A learning-rate schedule gives the factor on the peak learning rate. All begin with a linear warm-up from 0 at step 0,
as the official SimCLR code does: step / warm-up steps.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Literal, TypeAlias

from heliostat_algorithms.algorithm import Clock, OneOf


def linear_ramp(start: float, end: float, progress: float) -> float:
    """From ``start`` at progress 0 to ``end`` at progress 1, in a straight line."""
    return start + (end - start) * progress


def cosine_ramp(start: float, end: float, progress: float) -> float:
    """From ``start`` at progress 0 to ``end`` at progress 1, along half a cosine."""
    return end + (start - end) * 0.5 * (1.0 + math.cos(math.pi * progress))


@dataclass(frozen=True, kw_only=True)
class Ramp:
    """A number that moves from ``start`` to ``end`` over the whole training, a little in every step."""

    start: float
    """Value at the first step."""
    end: float
    """Value that is reached after the last step."""
    shape: Literal["cosine", "linear"] = "cosine"
    """Along half a cosine (BYOL, MoCo v3, DINO), or in a straight line (I-JEPA)."""

    def at(self, clock: Clock) -> float:
        """The value in a step."""
        ramp = cosine_ramp if self.shape == "cosine" else linear_ramp
        return ramp(self.start, self.end, clock.progress)


@dataclass(frozen=True, kw_only=True)
class Schedule(ABC):
    """What all schedules share: the warm-up."""

    type: str
    """Which schedule this is."""
    warmup_epochs: float = 0.0
    """Epochs over which the learning rate rises linearly from 0."""

    def __post_init__(self) -> None:
        if not 0 <= self.warmup_epochs < math.inf:
            raise ValueError(f"warmup_epochs is {self.warmup_epochs}; it must be finite and cannot be negative")

    def check(self, total_epochs: float) -> str | None:
        """What is wrong with this schedule for a training of so many epochs; None if nothing is."""
        if self.warmup_epochs >= total_epochs:
            return f"the warm-up of {self.warmup_epochs:g} epochs is not shorter than the training of {total_epochs:g}"
        return None

    def multiplier(self, clock: Clock) -> float:
        """The factor on the peak learning rate at a step."""
        warmup_steps = self.warmup_epochs * clock.steps_per_epoch
        if clock.step < warmup_steps:
            return clock.step / warmup_steps
        return self.after_warmup(clock, (clock.step - warmup_steps) / (clock.total_steps - warmup_steps))

    @abstractmethod
    def after_warmup(self, clock: Clock, progress: float) -> float:
        """The factor once the warm-up is over; ``progress`` is the share of the remaining steps that is done."""


@dataclass(frozen=True, kw_only=True)
class Cosine(Schedule):
    """Half a cosine from the peak to ``final``, reached after the last step (SGDR without restarts, 1608.03983)."""

    type: Literal["cosine"] = "cosine"
    warmup_epochs: float = 10.0
    """Epochs over which the learning rate rises linearly from 0; 10 in SimCLR, section 2.2."""
    final: float = 0.0
    """Share of the peak learning rate that is left at the end."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.final <= 1:
            raise ValueError(f"final is {self.final}; it is a share of the peak learning rate, from 0 to 1")

    def after_warmup(self, clock: Clock, progress: float) -> float:
        return cosine_ramp(1.0, self.final, progress)


@dataclass(frozen=True, kw_only=True)
class Constant(Schedule):
    """The peak learning rate throughout."""

    type: Literal["constant"] = "constant"

    def after_warmup(self, clock: Clock, progress: float) -> float:
        return 1.0


@dataclass(frozen=True, kw_only=True)
class MultiStep(Schedule):
    """The learning rate is multiplied by ``factor`` at each milestone."""

    type: Literal["multi-step"] = "multi-step"
    milestones: tuple[float, ...]
    """Epochs, rising; (120, 160) in MoCo v1."""
    factor: float = 0.1
    """What the learning rate is multiplied by at each milestone; 0.1 in He et al. 2015 and MoCo v1."""

    def __post_init__(self) -> None:
        super().__post_init__()
        rising = all(a < b for a, b in pairwise((0.0, *self.milestones, math.inf)))
        if not self.milestones or not rising:
            raise ValueError(f"milestones are {list(self.milestones)}; they must be one or more rising epochs above 0")
        if not 0 < self.factor < math.inf:
            raise ValueError(f"factor is {self.factor}; it must be finite and above 0")

    def check(self, total_epochs: float) -> str | None:
        if self.milestones[-1] >= total_epochs:
            last = self.milestones[-1]
            return f"the milestone at epoch {last:g} is not before the end of the training, {total_epochs:g} epochs"
        return super().check(total_epochs)

    def after_warmup(self, clock: Clock, progress: float) -> float:
        passed = sum(clock.step >= milestone * clock.steps_per_epoch for milestone in self.milestones)
        return float(self.factor**passed)


@dataclass(frozen=True, kw_only=True)
class InverseSqrt(Schedule):
    """Linear to the peak at ``warmup_steps``, then with the inverse square root of the step (Vaswani et al. 2017,
    section 5.3).

    The paper's learning rate is d^-0.5 min(s^-0.5, s w^-1.5) at step s from 1 with w warm-up steps. It peaks at s = w
    with (d w)^-0.5, which is what the optimiser's ``learning_rate`` says: 7.0e-4 for d = 512 and w = 4000.
    """

    type: Literal["inverse-sqrt"] = "inverse-sqrt"
    warmup_steps: int = 4000
    """w, optimiser steps to the peak."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.warmup_steps < 1:
            raise ValueError(f"warmup_steps is {self.warmup_steps}; it must be at least 1")
        if self.warmup_epochs:
            raise ValueError("inverse-sqrt counts its warm-up in steps: set warmup_steps and leave warmup_epochs out")

    def multiplier(self, clock: Clock) -> float:
        step = clock.step + 1
        return min(step / self.warmup_steps, math.sqrt(self.warmup_steps / step))

    def after_warmup(self, clock: Clock, progress: float) -> float:
        return self.multiplier(clock)


ScheduleConfig: TypeAlias = Annotated[Cosine | Constant | MultiStep | InverseSqrt, OneOf()]
"""Any schedule, told apart by ``type``: cosine, constant, multi-step, inverse-sqrt."""
