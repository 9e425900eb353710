"""Gaussian diffusion in continuous time: the process, samplers, and sampling under a condition."""

from __future__ import annotations

from heliostat_algorithms.diffusion.process import CosineSchedule
from heliostat_algorithms.diffusion.samplers import DDIM, Ancestral, SamplerConfig

__all__ = ["DDIM", "Ancestral", "CosineSchedule", "SamplerConfig"]
