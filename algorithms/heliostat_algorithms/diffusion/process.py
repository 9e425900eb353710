"""The Gaussian process that turns data into noise, in continuous time and variance-preserving.

    q(z_t | x) = N(alpha_t x, sigma_t^2 I),   alpha_t^2 + sigma_t^2 = 1,   lambda_t = log(alpha_t^2 / sigma_t^2)

t runs from 0 (data) to 1 (noise). Everything but the schedule is a function of lambda, the log-SNR, alone. The formulas
are those of Video Diffusion Models (Ho et al. 2022, arXiv 2204.03458, section 2) and, for v, of Progressive
Distillation (Salimans and Ho 2022, arXiv 2202.00512, appendix D).

A log-SNR has the shape of the leading dimensions of what it belongs to: () for all, (B,) for each sample, (B, T) for
each frame.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor

Space: TypeAlias = Literal["v", "eps", "x"]
"""What a network predicts, or in which space its error is measured: the velocity v = alpha eps - sigma x, the noise
eps, or the data x."""


@dataclass(frozen=True, kw_only=True)
class CosineSchedule:
    """alpha_t = cos(pi t / 2) (Nichol and Dhariwal 2021, arXiv 2102.09672), cut off where data or noise are all but
    gone: lambda_t = -2 log tan(a t + b), with a and b such that it falls from ``max_log_snr`` to ``min_log_snr``."""

    min_log_snr: float = -20.0
    """At t = 1; sigma is 1 up to 1e-9."""
    max_log_snr: float = 20.0
    """At t = 0; the noise that is left has a standard deviation of 4.5e-5."""

    def __post_init__(self) -> None:
        if not -math.inf < self.min_log_snr < self.max_log_snr < math.inf:
            raise ValueError(
                f"min_log_snr is {self.min_log_snr} and max_log_snr {self.max_log_snr}; the first must be below the "
                "second, and both finite"
            )

    def _line(self) -> tuple[float, float]:
        """a and b."""
        b = math.atan(math.exp(-0.5 * self.max_log_snr))
        return math.atan(math.exp(-0.5 * self.min_log_snr)) - b, b

    def log_snr(self, t: Tensor) -> Tensor:
        """lambda at times in [0, 1], of the same shape. Computed in float64: near t = 1 the tangent magnifies
        rounding."""
        a, b = self._line()
        return (-2.0 * torch.log(torch.tan(a * t.double() + b))).to(t.dtype)

    def time(self, log_snr: Tensor) -> Tensor:
        """t at which the log-SNR is this."""
        a, b = self._line()
        return ((torch.atan(torch.exp(-0.5 * log_snr.double())) - b) / a).to(log_snr.dtype)


def _along(values: Tensor, like: Tensor) -> Tensor:
    """With dimensions of 1 behind its own, so that it multiplies ``like``, in that dtype."""
    return values.to(like.dtype).view((*values.shape, *[1] * (like.ndim - values.ndim)))


def alpha_sigma(log_snr: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    """What multiplies data and noise, shaped to multiply ``like``."""
    return _along(log_snr.sigmoid().sqrt(), like), _along((-log_snr).sigmoid().sqrt(), like)


def diffuse(x: Tensor, eps: Tensor, log_snr: Tensor) -> Tensor:
    """z = alpha x + sigma eps."""
    alpha, sigma = alpha_sigma(log_snr, x)
    return alpha * x + sigma * eps


def velocity(x: Tensor, eps: Tensor, log_snr: Tensor) -> Tensor:
    """v = alpha eps - sigma x."""
    alpha, sigma = alpha_sigma(log_snr, x)
    return alpha * eps - sigma * x


def to_x(space: Space, prediction: Tensor, z: Tensor, log_snr: Tensor) -> Tensor:
    """The data x that a prediction in ``space`` says of z."""
    alpha, sigma = alpha_sigma(log_snr, z)
    if space == "v":
        return alpha * z - sigma * prediction
    return (z - sigma * prediction) / alpha if space == "eps" else prediction


def to_eps(space: Space, prediction: Tensor, z: Tensor, log_snr: Tensor) -> Tensor:
    """The noise eps that a prediction in ``space`` says of z."""
    alpha, sigma = alpha_sigma(log_snr, z)
    if space == "v":
        return sigma * z + alpha * prediction
    return (z - alpha * prediction) / sigma if space == "x" else prediction


def target(space: Space, x: Tensor, eps: Tensor, log_snr: Tensor) -> Tensor:
    """What a network should predict in ``space``."""
    return {"v": velocity(x, eps, log_snr), "eps": eps, "x": x}[space]


def loss_weight(space: Space, log_snr: Tensor) -> Tensor:
    """w(lambda): the squared error in ``space`` is w times that of x. 1 for x, the SNR for eps, SNR + 1 for v."""
    return {"x": torch.ones_like(log_snr), "eps": log_snr.exp(), "v": 1.0 + log_snr.exp()}[space]


def squared_error(prediction: Tensor, x: Tensor, eps: Tensor, log_snr: Tensor, space: Space, loss: Space) -> Tensor:
    """The error of a prediction in ``space``, measured in the space ``loss``: of the shape of ``log_snr``, a mean over
    the other dimensions.

    The error is taken in the space of the prediction and weighted, so that no conversion divides by a small number.
    """
    difference = prediction - target(space, x, eps, log_snr)
    error = difference.square().flatten(log_snr.ndim).mean(dim=log_snr.ndim)
    return error if loss == space else error * loss_weight(loss, log_snr) / loss_weight(space, log_snr)


def posterior(z: Tensor, x: Tensor, log_snr: Tensor, to: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of q(z_s | z_t, x) for s < t: equation 3 of the paper, written with lambda.

    Args:
        z, x: z_t and the data, of one shape.
        log_snr: lambda_t.
        to: lambda_s, the larger one.
    """
    alpha, _ = alpha_sigma(log_snr, z)
    alpha_s, sigma_s = alpha_sigma(to, z)
    kept = _along((log_snr - to).exp(), z)
    lost = _along(-torch.expm1(log_snr - to), z)
    return kept * (alpha_s / alpha) * z + lost * alpha_s * x, lost * sigma_s.square()


def transition_variance(log_snr: Tensor, to: Tensor, like: Tensor) -> Tensor:
    """Variance of q(z_t | z_s): the upper bound on that of the reverse step, as the posterior's is the lower one."""
    _, sigma = alpha_sigma(log_snr, like)
    return _along(-torch.expm1(log_snr - to), like) * sigma.square()
