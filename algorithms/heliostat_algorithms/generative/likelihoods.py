"""Densities of pictures and of latent variables, in nats: **summed** over the values of a sample, because a bound on
log p(x) is a statement about whole samples.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Annotated, Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heliostat_algorithms.algorithm import OneOf
from heliostat_algorithms.randomness import Random

_LOG_2PI = math.log(2 * math.pi)


@dataclass(frozen=True)
class Gaussian:
    """Independent Gaussians, one for each latent dimension."""

    mean: Tensor
    """(..., Z)."""
    log_variance: Tensor
    """(..., Z)."""

    def sample(self, noise: Tensor) -> Tensor:
        """mean + deviation * noise: the reparameterisation, through which gradients pass (1312.6114, section 2.4)."""
        return self.mean + (0.5 * self.log_variance).exp() * noise

    def log_density(self, z: Tensor) -> Tensor:
        """(..., Z) -> (...)."""
        scaled = (z - self.mean).square() * (-self.log_variance).exp()
        return -0.5 * (scaled + self.log_variance + _LOG_2PI).sum(dim=-1)

    def unsqueeze(self) -> Gaussian:
        """With a dimension for several draws from each: (..., 1, Z)."""
        return Gaussian(self.mean.unsqueeze(-2), self.log_variance.unsqueeze(-2))


def split(parameters: Tensor) -> Gaussian:
    """(..., 2 Z) of a network -> means and log-variances."""
    mean, log_variance = parameters.chunk(2, dim=-1)
    return Gaussian(mean, log_variance)


def standard(like: Tensor) -> Gaussian:
    """N(0, I), the prior of a VAE."""
    return Gaussian(torch.zeros_like(like), torch.zeros_like(like))


def kl_from_standard(q: Gaussian) -> Tensor:
    """KL(q || N(0, I)), (..., Z) -> (...): 1/2 sum(mu^2 + s^2 - 1 - log s^2) (1312.6114, appendix B)."""
    return 0.5 * (q.mean.square() + q.log_variance.exp() - 1 - q.log_variance).sum(dim=-1)


def kl_between(q: Gaussian, p: Gaussian) -> Tensor:
    """KL(q || p), (..., Z) -> (...); exactly 0 where q is p."""
    ratio = q.log_variance - p.log_variance
    distance = (q.mean - p.mean).square() * (-p.log_variance).exp()
    return 0.5 * (distance + ratio.exp() - 1 - ratio).sum(dim=-1)


class Likelihood(nn.Module, ABC):
    """p(x|z): what a decoder's outputs say of the values x (..., *shape)."""

    outputs: int = 1
    """Numbers that the decoder gives for each value, stacked along its first picture dimension."""

    @abstractmethod
    def log_density(self, outputs: Tensor, x: Tensor, dims: int) -> Tensor:
        """log p(x|z), summed over the last ``dims`` dimensions of x."""

    @abstractmethod
    def mean(self, outputs: Tensor, dims: int) -> Tensor:
        """E[x|z], of x's shape."""

    def observed(self, pixels: Tensor, random: Random) -> Tensor:
        """What of stored values from 0 to 1 (B, ...) counts as x."""
        return pixels


class BernoulliLikelihood(Likelihood):
    """See ``Bernoulli``."""

    def __init__(self, binarize: Literal["draw", "threshold", "none"]) -> None:
        super().__init__()
        self.binarize = binarize

    def log_density(self, outputs: Tensor, x: Tensor, dims: int) -> Tensor:
        x = x.expand_as(outputs)
        return -F.binary_cross_entropy_with_logits(outputs, x, reduction="none").flatten(-dims).sum(dim=-1)

    def mean(self, outputs: Tensor, dims: int) -> Tensor:
        return outputs.sigmoid()

    def observed(self, pixels: Tensor, random: Random) -> Tensor:
        if self.binarize == "none":
            return pixels
        if self.binarize == "threshold":
            return (pixels >= 0.5).to(pixels.dtype)
        return (random.uniform("binarize", *pixels.shape[1:]) < pixels).to(pixels.dtype)


class GaussianLikelihood(Likelihood):
    """See ``Normal``."""

    def __init__(self, deviation: float | None, scale: Literal["fixed", "learned", "per-value"]) -> None:
        super().__init__()
        self.outputs = 2 if scale == "per-value" else 1
        log_variance = torch.tensor(2 * math.log(deviation or 1.0))
        self.log_variance: Tensor
        if scale == "learned":
            self.log_variance = nn.Parameter(log_variance)
        else:
            self.register_buffer("log_variance", log_variance)

    def log_density(self, outputs: Tensor, x: Tensor, dims: int) -> Tensor:
        mean, log_variance = self._moments(outputs, dims)
        scaled = (x - mean).square() * (-log_variance).exp()
        return -0.5 * (scaled + log_variance + _LOG_2PI).flatten(-dims).sum(dim=-1)

    def mean(self, outputs: Tensor, dims: int) -> Tensor:
        return self._moments(outputs, dims)[0]

    def _moments(self, outputs: Tensor, dims: int) -> tuple[Tensor, Tensor]:
        if self.outputs == 1:
            return outputs, self.log_variance
        mean, log_variance = outputs.chunk(2, dim=-dims)
        return mean, log_variance


@dataclass(frozen=True, kw_only=True)
class LikelihoodConfig(ABC):
    """How likely values are, given what the decoder says."""

    type: str
    """Which distribution."""

    @abstractmethod
    def build(self) -> Likelihood:
        """The distribution, with its parameters."""


@dataclass(frozen=True, kw_only=True)
class Bernoulli(LikelihoodConfig):
    """Each value is 0 or 1, with a probability of its own (1312.6114, appendix C.1)."""

    type: Literal["bernoulli"] = "bernoulli"
    binarize: Literal["draw", "threshold", "none"] = "draw"
    """How pixels become 0 or 1: drawn anew in each step with the pixel as probability, the usual MNIST of the
    literature; cut at one half; or not at all: grey pixels as they are, whose "likelihood" is no longer one."""

    def build(self) -> BernoulliLikelihood:
        return BernoulliLikelihood(self.binarize)


@dataclass(frozen=True, kw_only=True)
class Normal(LikelihoodConfig):
    """Each value is Gaussian (1312.6114, appendix C.2)."""

    type: Literal["gaussian"] = "gaussian"
    scale: Literal["per-value", "learned", "fixed"] = "per-value"
    """Who says the deviation: the decoder, for each value, as in the paper; one learned number; or ``deviation``."""
    deviation: float | None = None
    """The fixed deviation, or where the learned one begins (null: 1)."""

    def __post_init__(self) -> None:
        if self.deviation is not None and not 0 < self.deviation < math.inf:
            raise ValueError(f"deviation is {self.deviation}; it must be above 0 and finite")
        if self.scale == "fixed" and self.deviation is None:
            raise ValueError("a fixed scale needs a deviation")
        if self.scale == "per-value" and self.deviation is not None:
            raise ValueError(
                "the decoder says the deviation of each value; leave deviation out, or choose another scale"
            )

    def build(self) -> GaussianLikelihood:
        return GaussianLikelihood(self.deviation, self.scale)


AnyLikelihood: TypeAlias = Annotated[Bernoulli | Normal, OneOf()]
"""Either of them, told apart by ``type``."""
