"""Video diffusion: its step against one written by hand, and how many times DDIM and DDPM ask the network for samples
of the same quality.

Quality is measured where the best denoiser is known: for a mixture of Gaussians in the plane, E[x | z] is a formula, so
that nothing but the sampler is at fault. Few steps blur or sharpen what is fine: a sampler is good enough where samples
spread around the modes as the truth does, within ``_TOLERANCE``. Each step asks the network once, so the ratio of steps
is that of times.
"""

from __future__ import annotations

import math
import tempfile
from typing import Any

import bench_training as training
import torch
from torch import Tensor

from heliostat.config.loading import parse
from heliostat.training.datasets import Datasets
from heliostat.training.loop import TrainingLoop
from heliostat.training.run_folder import RunFolder
from heliostat.training.runtime import SilentRuntime
from heliostat.training.state import build_algorithm
from heliostat_algorithms.diffusion import DDIM, Ancestral
from heliostat_algorithms.diffusion.process import CosineSchedule, alpha_sigma
from heliostat_algorithms.diffusion.samplers import generate
from heliostat_algorithms.randomness import Random

JOB = """
name: bench
data: {train: {source: bouncing-shapes, split: train, videos: 256}}
optimization:
  optimizer: {type: adam, learning_rate: 1.0e-3}
  schedule: {type: constant}
  batch_size: 16
  steps: 100000
algorithm:
  type: video-diffusion
  network: {width: 16, multipliers: [1, 2, 4], blocks: 1, attention: [1, 2], head_width: 16, norm_groups: 8}
  images: 2
  ema: 0.99
"""
_MODES, _DEVIATION, _SAMPLES = 8, 0.1, 16384
_TOLERANCE = 0.03
_STEPS = tuple(round(2 ** (power / 2)) for power in range(4, 21))
"""From 4 to 1,024, by factors of the root of 2."""


def by_hand(job: Any, data: Any) -> Any:
    """The same network, loss and average, with torch's own generator and no metrics."""
    model: Any = build_algorithm(job, data.spec()).train()
    network, average = model.network, list(model.average.parameters())
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3, fused=True)
    batch = data.select(torch.arange(len(data)).numpy())[0]
    stored = torch.from_numpy(batch.values)[torch.from_numpy(batch.rows)]
    labels = torch.from_numpy(data.labels)
    size, frames, images = job.optimization.batch_size, 8, 2

    def train(step: int) -> None:
        rows = torch.randint(len(stored), (size,))
        givers = rows[torch.randint(size, (size, images))]
        x = torch.cat([stored[rows], stored[givers, torch.randint(frames, (size, images))]], dim=1).float() / 127.5 - 1
        label = torch.cat([labels[rows, None], labels[givers]], dim=1)
        label = torch.where(torch.rand(size, 1 + images) < 0.1, 3, label)
        log_snr = model.config.schedule.log_snr(torch.rand(size, 1 + images))
        label, log_snr = (torch.cat([v[:, :1].expand(-1, frames), v[:, 1:]], dim=1) for v in (label, log_snr))
        alpha, sigma = (level.sigmoid().sqrt()[..., None, None, None] for level in (log_snr, -log_snr))
        eps = torch.randn_like(x)
        optimizer.zero_grad()
        made = network(alpha * x + sigma * eps, log_snr, label, frames)
        (made - (alpha * eps - sigma * x)).square().mean().backward()
        optimizer.step()
        torch._foreach_lerp_(average, list(network.parameters()), 0.01)

    return train


def centres() -> Tensor:
    """(K, 2) float64, on the unit circle."""
    angles = torch.arange(_MODES, dtype=torch.float64) * (2 * math.pi / _MODES)
    return torch.stack([angles.cos(), angles.sin()], dim=1)


def denoise(z: Tensor, log_snr: Tensor) -> Tensor:
    """E[x | z], exactly."""
    alpha, sigma = alpha_sigma(log_snr, z)
    variance = alpha.square() * _DEVIATION**2 + sigma.square()
    off = z[:, None] - alpha * centres()
    weights = (-off.square().sum(dim=2) / (2 * variance)).softmax(dim=1)
    return (weights[..., None] * (centres() + alpha * _DEVIATION**2 / variance * off)).sum(dim=1)


def spread(samples: Tensor) -> float:
    """Root of the mean squared distance from the nearest mode, in one direction; the truth has ``_DEVIATION``."""
    return float((torch.cdist(samples, centres()).amin(dim=1).square().mean() / 2).sqrt())


def fewest(kind: type[DDIM] | type[Ancestral]) -> int:
    """The fewest steps of ``_STEPS`` from which on samples are good enough: that many and all more are."""
    found = _STEPS[-1]
    for steps in reversed(_STEPS):
        random = Random(1, 0, range(_SAMPLES))
        made = generate(denoise, random.normal("z", 2).double(), kind(steps=steps), CosineSchedule(), random)
        if abs(spread(made) / _DEVIATION - 1) > _TOLERANCE:
            break
        found = steps
    return found


def rows(quick: bool = False) -> list[dict[str, Any]]:
    """The step, and the samplers."""
    job = parse(JOB, "bench.yaml")
    data = job.data.train.load()
    with tempfile.TemporaryDirectory() as folder:
        loop = TrainingLoop(job, Datasets(data, None), SilentRuntime(torch.device("cpu")), RunFolder(folder))
        steps = 3 if quick else 30
        first, second, ratio = training.rates(loop.turn, by_hand(job, data), job.optimization.batch_size, steps)
    asked = {kind: fewest(kind) for kind in (DDIM, Ancestral)}
    return [
        {
            "name": "video diffusion: step over a hand-written one",
            "ours": first,
            "other": second,
            "ratio": ratio,
            "unit": "videos/s",
            "higher_is_better": True,
        },
        {
            "name": f"DDIM over DDPM: network calls until modes are as wide as they should be, within {_TOLERANCE:.0%}",
            "ours": asked[DDIM],
            "other": asked[Ancestral],
            "ratio": asked[Ancestral] / asked[DDIM],
            "unit": "calls",
            "higher_is_better": True,
        },
    ]
