"""From noise to data: ancestral sampling (DDPM) and DDIM, each with an optional Langevin corrector.

A *denoiser* says of z at a log-SNR what the data x is. Everything else that shapes a sample is a change of the
denoiser (``guidance``) or of z between two steps (``Replacement``), so the loop here knows none of it.

    DDPM       Ho, Jain and Abbeel 2020 (arXiv 2006.11239); in continuous time Video Diffusion Models (2204.03458)
    DDIM       Song, Meng and Ermon 2020 (arXiv 2010.02502)
    corrector  Song et al. 2021 (arXiv 2011.13456); equation 4 of Video Diffusion Models
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Literal, TypeAlias

import torch
from torch import Tensor

from heliostat_algorithms.algorithm import OneOf
from heliostat_algorithms.diffusion.process import CosineSchedule, alpha_sigma, posterior, transition_variance
from heliostat_algorithms.randomness import Random

Denoiser: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""(z (B, ...), log-SNR ()) -> x (B, ...)."""
Fixing: TypeAlias = Callable[[Tensor, Tensor, Random], Tensor]
"""(z (B, ...), log-SNR (), draws for these B rows) -> z, before a denoiser sees it."""


@dataclass(frozen=True, kw_only=True)
class Sampler(ABC):
    """What all samplers share: the times, evenly spaced from 1 to 0, and the corrector."""

    type: str
    """Which sampler this is."""
    steps: int
    """Denoising steps; each asks the network once, or twice with classifier-free guidance."""
    corrections: int = 0
    """Langevin steps after each but the last one; each asks the network once more."""
    correction_size: float = 0.1
    """delta, the size of a Langevin step relative to the variance of the noise; 0.1 in the paper."""

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps is {self.steps}; a sampler needs at least one")
        if self.corrections < 0:
            raise ValueError(f"corrections is {self.corrections}; it cannot be negative")
        if not 0 < self.correction_size < 1:
            raise ValueError(f"correction_size is {self.correction_size}; it must be above 0 and below 1")

    @abstractmethod
    def step(self, z: Tensor, x: Tensor, log_snr: Tensor, to: Tensor, random: Random) -> Tensor:
        """z at the log-SNR ``to``, from z and the denoised x (B, ...) at the smaller ``log_snr``."""


@dataclass(frozen=True, kw_only=True)
class Ancestral(Sampler):
    """DDPM: draws from the posterior, as if the denoised x were the data."""

    type: Literal["ddpm"] = "ddpm"
    steps: int = 256
    """Denoising steps; each asks the network once, or twice with classifier-free guidance."""
    gamma: float = 0.0
    """The variance of a step is lower^(1 - gamma) * upper^gamma, between that of the posterior, which is right where
    the data is one point, and that of the forward step, which is right where the data is standard normal."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.gamma <= 1:
            raise ValueError(f"gamma is {self.gamma}; it lies between 0 and 1")

    def step(self, z: Tensor, x: Tensor, log_snr: Tensor, to: Tensor, random: Random) -> Tensor:
        mean, lower = posterior(z, x, log_snr, to)
        upper = transition_variance(log_snr, to, z)
        std = (lower.log() * (1.0 - self.gamma) + upper.log() * self.gamma).mul(0.5).exp()
        return mean + std * normal(random, "ancestral", z)


@dataclass(frozen=True, kw_only=True)
class DDIM(Sampler):
    """DDIM: keeps the noise that the denoised x implies; with ``eta`` a part of it is drawn anew."""

    type: Literal["ddim"] = "ddim"
    steps: int = 64
    """Denoising steps; each asks the network once, or twice with classifier-free guidance."""
    eta: float = 0.0
    """0: no new noise, a sample is a function of its first z. 1: DDPM with gamma = 0."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.eta <= 1:
            raise ValueError(f"eta is {self.eta}; it lies between 0 and 1")

    def step(self, z: Tensor, x: Tensor, log_snr: Tensor, to: Tensor, random: Random) -> Tensor:
        alpha, sigma = alpha_sigma(log_snr, z)
        alpha_s, sigma_s = alpha_sigma(to, z)
        eps = (z - alpha * x) / sigma
        if self.eta == 0:
            return alpha_s * x + sigma_s * eps
        new = self.eta**2 * posterior(z, x, log_snr, to)[1]
        kept = (sigma_s.square() - new).clamp_min(0).sqrt()
        return alpha_s * x + kept * eps + new.sqrt() * normal(random, "ddim", z)


SamplerConfig: TypeAlias = Annotated[Ancestral | DDIM, OneOf()]
"""Any sampler, told apart by ``type``: ddpm, ddim."""


def normal(random: Random, stream: str, like: Tensor) -> Tensor:
    """Standard normal draws of the shape, dtype and device of ``like`` (B, ...), B the rows of ``random``."""
    return random.normal(stream, *like.shape[1:]).to(like)


def langevin(z: Tensor, x: Tensor, log_snr: Tensor, size: float, random: Random) -> Tensor:
    """One corrector step at a fixed log-SNR: z - 1/2 delta sigma eps + sqrt(delta) sigma eps' (equation 4)."""
    alpha, sigma = alpha_sigma(log_snr, z)
    eps = (z - alpha * x) / sigma
    return z - 0.5 * size * sigma * eps + math.sqrt(size) * sigma * normal(random, "langevin", z)


def generate(
    denoise: Denoiser, z: Tensor, sampler: Sampler, schedule: CosineSchedule, random: Random, fix: Fixing | None = None
) -> Tensor:
    """(B, ...): samples, from noise z of the same shape.

    Args:
        denoise: with all guidance in it.
        z: standard normal.
        random: draws for these B rows, on the device of z.
        fix: applied to z before each denoising.

    Raises:
        ValueError: ``random`` has other rows than z.
    """
    if len(random.rows) != len(z):
        raise ValueError(f"the draws have {len(random.rows)} rows, but there are {len(z)} samples")
    times = torch.linspace(1.0, 0.0, sampler.steps + 1, dtype=torch.float64, device=z.device)
    log_snrs = list(schedule.log_snr(times))
    for n, (log_snr, to) in enumerate(pairwise(log_snrs)):
        draws = random.within(f"step {n}")
        z = z if fix is None else fix(z, log_snr, draws)
        z = sampler.step(z, denoise(z, log_snr), log_snr, to, draws)
        for c in range(sampler.corrections if n < sampler.steps - 1 else 0):
            draws = random.within(f"step {n}, correction {c}")
            z = z if fix is None else fix(z, to, draws)
            z = langevin(z, denoise(z, to), to, sampler.correction_size, draws)
    return z
