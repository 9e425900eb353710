"""What the numbers that a head gives for an action mean: a value, probabilities of returns, or quantiles of them."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Annotated, Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from heliostat_algorithms.algorithm import OneOf
from heliostat_algorithms.reinforcement.losses import categorical_divergence, projected, quantile_huber


class Distribution(ABC):
    """What all of them give."""

    @property
    @abstractmethod
    def outputs(self) -> int:
        """N: how many numbers a head gives for each action."""

    @abstractmethod
    def expectation(self, output: Tensor) -> Tensor:
        """(..., N) -> (...): the value."""

    @abstractmethod
    def losses(self, output: Tensor, following: Tensor, reward: Tensor, bootstrap: Tensor) -> tuple[Tensor, Tensor]:
        """The loss (B,) and the priority (B,), without gradient, of each row.

        Args:
            output: (B, N) of the action that was taken.
            following: (B, N) of the next observation's chosen action, without gradient.
            reward: (B,), n-step returns.
            bootstrap: (B,).
        """


@dataclass(frozen=True, kw_only=True)
class Scalar(Distribution):
    """The value alone, as in DQN (2013, 2015). The priority is the TD error's size."""

    type: Literal["scalar"] = "scalar"
    loss: Literal["huber", "mse"] = "huber"
    """``huber``: the TD error is clipped in the gradient (2015). ``mse``: half its square (2013)."""
    delta: float = 1.0
    """Where the Huber loss goes over from square to linear; without effect on mse. 1 in the 2015 paper, for rewards
    clipped to +-1; larger where returns are larger."""

    def __post_init__(self) -> None:
        if not 0 < self.delta < math.inf:
            raise ValueError(f"delta is {self.delta}; it must be above 0 and finite (for half the square: loss mse)")

    @property
    def outputs(self) -> int:
        return 1

    def expectation(self, output: Tensor) -> Tensor:
        return output.squeeze(-1)

    def losses(self, output: Tensor, following: Tensor, reward: Tensor, bootstrap: Tensor) -> tuple[Tensor, Tensor]:
        q, target = output.squeeze(-1), torch.addcmul(reward, bootstrap, following.squeeze(-1))
        priority = (target - q.detach()).abs_()
        if self.loss == "mse":
            return 0.5 * (target - q).square(), priority
        return F.huber_loss(q, target, reduction="none", delta=self.delta), priority


@dataclass(frozen=True, kw_only=True)
class C51(Distribution):
    """Probabilities of returns on fixed atoms: A Distributional Perspective on Reinforcement Learning, Bellemare et al.
    2017 (arXiv 1707.06887). The loss is the KL divergence from the projected target, and so is the priority."""

    type: Literal["c51"] = "c51"
    atoms: int = 51
    """How many returns are told apart."""
    low: float = -10.0
    """The lowest return; lower ones count as this. Set both ends to what a discounted return can be."""
    high: float = 10.0
    """The highest return."""

    def __post_init__(self) -> None:
        if self.atoms < 2:
            raise ValueError(f"atoms is {self.atoms}; it must be at least 2")
        if not -math.inf < self.low < self.high < math.inf:
            raise ValueError(f"low is {self.low} and high {self.high}; both must be finite, and low below high")

    @property
    def outputs(self) -> int:
        return self.atoms

    def support(self, like: Tensor) -> Tensor:
        """(N,): the atoms, with the type and on the device of ``like``."""
        return torch.linspace(self.low, self.high, self.atoms, dtype=like.dtype, device=like.device)

    def expectation(self, output: Tensor) -> Tensor:
        return output.softmax(dim=-1) @ self.support(output)

    def losses(self, output: Tensor, following: Tensor, reward: Tensor, bootstrap: Tensor) -> tuple[Tensor, Tensor]:
        target = projected(following.softmax(dim=1), reward, bootstrap, self.support(following))
        divergence = categorical_divergence(target, output)
        return divergence, divergence.detach().clamp(min=0)  # rounding may go below 0


@dataclass(frozen=True, kw_only=True)
class Quantile(Distribution):
    """Quantiles of the return: Distributional Reinforcement Learning with Quantile Regression, Dabney et al. 2017
    (arXiv 1710.10044). It needs no range of returns. The priority is the loss."""

    type: Literal["quantile"] = "quantile"
    quantiles: int = 200
    """How many, at the midpoints of equal shares."""
    kappa: float = 1.0
    """Where the loss goes over from square to linear; 1 is the paper's QR-DQN-1, 0 its QR-DQN-0."""

    def __post_init__(self) -> None:
        if self.quantiles < 1:
            raise ValueError(f"quantiles is {self.quantiles}; it must be at least 1")
        if not 0 <= self.kappa < math.inf:
            raise ValueError(f"kappa is {self.kappa}; it must be finite and cannot be negative")

    @property
    def outputs(self) -> int:
        return self.quantiles

    def expectation(self, output: Tensor) -> Tensor:
        return output.mean(dim=-1)

    def losses(self, output: Tensor, following: Tensor, reward: Tensor, bootstrap: Tensor) -> tuple[Tensor, Tensor]:
        target = torch.addcmul(reward.unsqueeze(1), bootstrap.unsqueeze(1), following)
        loss = quantile_huber(target, output, self.kappa)
        return loss, loss.detach()


DistributionConfig: TypeAlias = Annotated[Scalar | C51 | Quantile, OneOf()]
"""Any of them, told apart by ``type``: scalar, c51, quantile."""
