"""Sampling under a condition that the model was, or was not, trained for.

    classifier-free guidance   Ho and Salimans 2022 (arXiv 2207.12598): towards a label, away from none
    replacement                Song et al. 2021 (arXiv 2011.13456): known parts of z are drawn from the forward process
    reconstruction guidance    Video Diffusion Models, Ho et al. 2022 (arXiv 2204.03458), section 3.1: the unknown parts
                               are moved so that what is known is reconstructed, too

Replacement alone draws each unknown part as if it depended on the *noisy* known part only. What is missing is the
gradient of log q(x^a | z_t) with respect to z_t (equation 5), which reconstruction guidance puts back in, with the
covariance sigma^2 / alpha^2 I for that of x^a given z_t (equation 6).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

from heliostat_algorithms.diffusion.process import alpha_sigma, diffuse
from heliostat_algorithms.diffusion.samplers import Denoiser, Fixing, normal
from heliostat_algorithms.randomness import Random

Weight: TypeAlias = float | Callable[[Tensor], Tensor]
"""w_r, or w_r as a function of the log-SNR (): where the covariance of the known part given z is c(lambda) I,
sigma^2 / (alpha^2 c) makes equation 7 exact."""


def classifier_free(conditional: Denoiser, unconditional: Denoiser, weight: float) -> Denoiser:
    """(1 + w) times what the conditional denoiser says, less w times what the other one does.

    The paper writes it for eps. x is an affine function of eps at a given z, and the weights sum to 1, so the same
    combination holds for x. With w = 0 the other one is not asked.
    """
    if weight == 0:
        return conditional

    def guided(z: Tensor, log_snr: Tensor) -> Tensor:
        return (1.0 + weight) * conditional(z, log_snr) - weight * unconditional(z, log_snr)

    return guided


def clipped(denoise: Denoiser, low: float = -1.0, high: float = 1.0) -> Denoiser:
    """What is denoised stays among the values that data has."""
    return lambda z, log_snr: denoise(z, log_snr).clamp(low, high)


def replacement(values: Tensor, known: Tensor) -> Fixing:
    """Draws the known parts of z from q(z_t | x^a), anew at each step.

    Args:
        values: (B, ...) data; what it holds at unknown places does not matter.
        known: bool, broadcast against ``values``.
    """

    def fix(z: Tensor, log_snr: Tensor, random: Random) -> Tensor:
        return torch.where(known, diffuse(values, normal(random, "known", values), log_snr), z)

    return fix


def reconstruction_guided(
    denoise: Denoiser, observe: Callable[[Tensor], Tensor], observed: Tensor, weight: Weight = 1.0
) -> Denoiser:
    """x~ = x^ - (w_r alpha / 2) * gradient with respect to z of |x^a - observe(x^)|^2 (equation 7).

    Extension in time observes the known frames, extension in space (super-resolution) a smaller picture of all. The
    gradient is also added to observed parts; where those are replaced, it has no effect.

    Args:
        denoise: differentiable in z.
        observe: (B, ...) -> what of it is known, differentiable.
        observed: x^a, of the shape that ``observe`` gives.
    """

    def guided(z: Tensor, log_snr: Tensor) -> Tensor:
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            x = denoise(z, log_snr)
            error = (observed - observe(x)).square().sum()
            (gradient,) = torch.autograd.grad(error, z)
        factor = weight(log_snr).to(gradient) if callable(weight) else weight
        return x.detach() - 0.5 * factor * alpha_sigma(log_snr, z)[0] * gradient

    return guided
