"""Optimisers as a job file names them: a learning rate for a reference batch size, scaled to the actual one."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from heliostat_algorithms.algorithm import Clock, ParameterGroup
from heliostat_algorithms.optimizers.lars import LARS
from heliostat_algorithms.optimizers.rmsprop import RMSProp
from heliostat_algorithms.schedules import cosine_ramp


@dataclass(frozen=True, kw_only=True)
class OptimizerBase(ABC):
    """What all optimisers share: the learning rate and how it grows with the batch."""

    type: str
    """Which optimiser this is."""
    learning_rate: float
    """Peak learning rate at a batch of ``per`` samples."""
    per: int | None = 256
    """The batch size for which ``learning_rate`` is meant; null: it is used as it is, whatever the batch."""
    scaling: Literal["linear", "sqrt"] = "linear"
    """How the learning rate grows with batch_size / per. SimCLR's other rule, 0.075 * sqrt(B), is learning_rate 0.075,
    per 1, scaling sqrt."""
    weight_decay: float = 0.0
    """For the parameters that the algorithm regularises; mostly weights, and not biases and normalisation layers."""
    final_weight_decay: float | None = None
    """Where set, weight decay moves along half a cosine from ``weight_decay`` to this over the training: DINO and
    I-JEPA, 0.04 to 0.4."""

    def __post_init__(self) -> None:
        if not self.learning_rate > 0 or math.isinf(self.learning_rate):
            raise ValueError(f"learning_rate is {self.learning_rate}; it must be above 0 and finite")
        if self.per is not None and self.per < 1:
            raise ValueError(f"per is {self.per}; it must be a batch size of at least 1, or null for no scaling")
        if not self.weight_decay >= 0:
            raise ValueError(f"weight_decay is {self.weight_decay}; it cannot be negative")
        if self.final_weight_decay is not None and not self.final_weight_decay >= 0:
            raise ValueError(f"final_weight_decay is {self.final_weight_decay}; it cannot be negative")
        momentum = getattr(self, "momentum", 0.0)
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum is {momentum}; it must be at least 0 and below 1")

    def peak_learning_rate(self, batch_size: int) -> float:
        """The learning rate for a global batch of this size, before the schedule."""
        if self.per is None:
            return self.learning_rate
        ratio = batch_size / self.per
        return self.learning_rate * (ratio if self.scaling == "linear" else math.sqrt(ratio))

    def adjust(self, optimizer: Optimizer, clock: Clock, learning_rate: float) -> None:
        """Set what changes from step to step in an optimiser that ``build`` made: learning rates, weight decay.

        Args:
            learning_rate: the peak learning rate times the schedule's factor at this step.
        """
        decay = self.weight_decay
        if self.final_weight_decay is not None:
            decay = cosine_ramp(decay, self.final_weight_decay, clock.progress)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * group["learning_rate_scale"]
            group["weight_decay"] = decay if group["regularized"] else 0.0

    @abstractmethod
    def build(self, groups: list[ParameterGroup], batch_size: int) -> Optimizer:
        """The optimiser of an algorithm's parameters, at the peak learning rate."""

    def _groups(self, groups: list[ParameterGroup], batch_size: int, **free: Any) -> list[dict[str, Any]]:
        """Groups as torch takes them; those that are not regularised have no decay and the options ``free``."""
        peak = self.peak_learning_rate(batch_size)
        return [
            {
                "name": group.name,
                "params": group.parameters,
                "learning_rate_scale": group.learning_rate_scale
                * (1.0 if group.learning_rate is None else group.learning_rate / peak),
                "regularized": group.regularized,
                "weight_decay": self.weight_decay if group.regularized else 0.0,
                **({} if group.regularized else free),
            }
            for group in groups
        ]


@dataclass(frozen=True, kw_only=True)
class Lars(OptimizerBase):
    """LARS (You et al. 2017): each tensor's step is a share of its norm; for batches of thousands."""

    type: Literal["lars"] = "lars"
    momentum: float = 0.9
    trust_coefficient: float = 0.001
    """eta: the step's norm relative to the weight's, at learning rate 1."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.trust_coefficient > 0:
            raise ValueError(f"trust_coefficient is {self.trust_coefficient}; it must be above 0")

    def build(self, groups: list[ParameterGroup], batch_size: int) -> Optimizer:
        return LARS(
            self._groups(groups, batch_size, adapt=False),
            lr=self.peak_learning_rate(batch_size),
            momentum=self.momentum,
            trust_coefficient=self.trust_coefficient,
        )


@dataclass(frozen=True, kw_only=True)
class Sgd(OptimizerBase):
    """SGD with momentum; decay is part of the gradient."""

    type: Literal["sgd"] = "sgd"
    momentum: float = 0.9
    nesterov: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov needs a momentum above 0")

    def build(self, groups: list[ParameterGroup], batch_size: int) -> Optimizer:
        # Fused: all tensors in one kernel; a third of the time of foreach on CPUs. It knows no sharded tensors yet.
        sharded = any(isinstance(parameter, DTensor) for group in groups for parameter in group.parameters)
        return torch.optim.SGD(
            self._groups(groups, batch_size),
            lr=self.peak_learning_rate(batch_size),
            momentum=self.momentum,
            nesterov=self.nesterov,
            fused=not sharded,
            foreach=sharded,
        )


@dataclass(frozen=True, kw_only=True)
class AdamW(OptimizerBase):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019, arXiv 1711.05101)."""

    type: Literal["adamw"] = "adamw"
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8

    def __post_init__(self) -> None:
        super().__post_init__()
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas are {list(self.betas)}; both must be at least 0 and below 1")
        if not self.eps > 0:
            raise ValueError(f"eps is {self.eps}; it must be above 0")

    def build(self, groups: list[ParameterGroup], batch_size: int) -> Optimizer:
        return torch.optim.AdamW(  # fused: a quarter of the time of foreach on CPUs
            self._groups(groups, batch_size),
            lr=self.peak_learning_rate(batch_size),
            betas=self.betas,
            eps=self.eps,
            fused=True,
        )


@dataclass(frozen=True, kw_only=True)
class Adam(OptimizerBase):
    """Adam (Kingma and Ba 2014, arXiv 1412.6980); decay is part of the gradient."""

    type: Literal["adam"] = "adam"
    per: int | None = None
    """The batch size for which ``learning_rate`` is meant; null: it is used as it is, whatever the batch."""
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    """Added to the root of the second moment. 1.5e-4 in Rainbow, 0.01 / 32 in C51 and QR-DQN."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas are {list(self.betas)}; both must be at least 0 and below 1")
        if not self.eps > 0:
            raise ValueError(f"eps is {self.eps}; it must be above 0")

    def build(self, groups: list[ParameterGroup], batch_size: int) -> Optimizer:
        return torch.optim.Adam(  # fused: a third of the time of foreach, on CPUs too
            self._groups(groups, batch_size),
            lr=self.peak_learning_rate(batch_size),
            betas=self.betas,
            eps=self.eps,
            fused=True,
        )


@dataclass(frozen=True, kw_only=True)
class RmsProp(OptimizerBase):
    """RMSProp with epsilon inside the root, as in DQN's reference code; decay is part of the gradient."""

    type: Literal["rmsprop"] = "rmsprop"
    learning_rate: float = 2.5e-4
    """0.00025 in the DQN of 2015."""
    per: int | None = None
    """The batch size for which ``learning_rate`` is meant; null: it is used as it is, whatever the batch."""
    decay: float = 0.95
    """Share of the old averages that stays in each step."""
    eps: float = 0.01 / 32**2
    """Added to the variance of gradients. 0.01 in the 2015 paper, whose code *adds* the gradients of 32 samples; for
    their mean, as here, that is 0.01 / 32^2."""
    centered: bool = True
    """Divide by the standard deviation of gradients (2015), in place of the root of their mean square (2013)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.decay < 1:
            raise ValueError(f"decay is {self.decay}; it must be at least 0 and below 1")
        if not self.eps > 0:
            raise ValueError(f"eps is {self.eps}; it must be above 0")

    def build(self, groups: list[ParameterGroup], batch_size: int) -> Optimizer:
        return RMSProp(
            self._groups(groups, batch_size),
            lr=self.peak_learning_rate(batch_size),
            decay=self.decay,
            eps=self.eps,
            centered=self.centered,
        )
