"""The step of each generative method against one written by hand: the same networks and optimisers, noise from torch's
own generator, no metrics, and batches that could not be made again. Both sides take turns step by step."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from typing import Any

import bench_training as training
import torch
import torch.nn.functional as F
from torch import Tensor

from heliostat.config.job import Job
from heliostat.config.loading import parse
from heliostat.data.images import ImageData
from heliostat.data.points import PointData, ring
from heliostat.data.samples import Samples
from heliostat.training.datasets import Datasets
from heliostat.training.denormals import flushed_denormals
from heliostat.training.loop import TrainingLoop
from heliostat.training.run_folder import RunFolder
from heliostat.training.runtime import SilentRuntime
from heliostat.training.state import build_algorithm

COMMON = """
name: bench
data: {train: {source: mnist, split: train}}
optimization:
  optimizer: {type: adam, learning_rate: 1.0e-3}
  schedule: {type: constant}
  batch_size: 128
  steps: 100000
algorithm: """
SMALL = "{type: mlp, hidden: [128, 128], activation: relu}"
METHODS = {
    "vae": "{type: vae, network: {type: mlp, hidden: [400], activation: relu}}",
    "cvae": "{type: cvae}",
    "gan": "{type: gan}",
    "gan on points": f"{{type: gan, generator: {SMALL}, discriminator: {SMALL}, noise_dim: 16}}",
}
Step = Callable[[int], object]


def pictures(count: int = 4096) -> ImageData:
    """Grey noise in the size of MNIST."""
    pixels = torch.randint(0, 256, (count, 1, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return ImageData(images=pixels.numpy(), labels=None, classes=(), name="noise")


def vae_loss(model: Any, pixels: Tensor) -> Tensor:
    x = torch.bernoulli(pixels)
    mean, log_variance = model.recognition.network(x).chunk(2, dim=1)
    z = mean + (0.5 * log_variance).exp() * torch.randn_like(mean)
    reconstruction = F.binary_cross_entropy_with_logits(model.decoder(z), x, reduction="sum")
    kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum()
    return (reconstruction + kl) / len(x)


def cvae_loss(model: Any, pixels: Tensor) -> Tensor:
    values = torch.bernoulli(pixels).flatten(1)
    x, y, n = values[:, model.seen], values[:, ~model.seen], model.networks
    guess = n.baseline(x)
    m, v = n.recognition(torch.cat([x, y], 1)).chunk(2, dim=1)
    pm, pv = n.prior_network(torch.cat([x, guess.detach().sigmoid()], 1)).chunk(2, dim=1)
    z = m + (0.5 * v).exp() * torch.randn_like(m)
    said = n.generation(torch.cat([x, z], 1))
    kl = 0.5 * ((m - pm).square() * (-pv).exp() + (v - pv).exp() - 1 - (v - pv)).sum()
    entropies = [F.binary_cross_entropy_with_logits(out, y, reduction="sum") for out in (said, guess)]
    return (entropies[0] + entropies[1] + kl) / len(x)


def by_hand(work: Job, data: Samples) -> Step:
    """Steps written by hand, with the optimiser of the job; for a GAN one for each player."""
    size = work.optimization.batch_size
    stored = data.points if isinstance(data, PointData) else pictures().pictures
    samples, generator = torch.from_numpy(stored), torch.Generator().manual_seed(0)
    model: Any = build_algorithm(work, data.spec()).train()

    def adam(of: Any) -> torch.optim.Adam:
        return torch.optim.Adam(of.parameters(), lr=1e-3, fused=True)

    def batch() -> Tensor:
        return samples[torch.randint(len(samples), (size,), generator=generator)]

    if work.algorithm.type != "gan":
        loss, optimizer = vae_loss if work.algorithm.type == "vae" else cvae_loss, adam(model)

        def train(step: int) -> None:
            optimizer.zero_grad()
            loss(model, batch().float() / 255).backward()  # type: ignore[no-untyped-call]
            optimizer.step()

        return train

    g, d = model.generator, model.discriminator
    of_g, of_d, dim = adam(g), adam(d), work.algorithm.noise_dim
    ones, zeros = torch.ones(size, 1), torch.zeros(size, 1)

    def made() -> Tensor:
        out: Tensor = g(2 * torch.rand(size, dim) - 1)
        return out if data.spec().points else out.tanh()

    def play(step: int) -> None:
        real = batch().view(size, 1, 1, -1) if data.spec().points else batch().float() / 127.5 - 1
        with torch.no_grad():
            fake = made()
        of_d.zero_grad()
        entropy = F.binary_cross_entropy_with_logits
        (entropy(d(real), ones) + entropy(d(fake), zeros)).backward()  # type: ignore[no-untyped-call]
        of_d.step()
        of_g.zero_grad()
        entropy(d(made()), ones).backward()  # type: ignore[no-untyped-call]
        of_g.step()

    return play


def rows(quick: bool = False) -> list[dict[str, Any]]:
    """Samples per second of each method over its hand-written step."""
    steps, found = 20 if quick else 300, []
    for method, algorithm in METHODS.items():
        work = parse(COMMON + algorithm, "bench.yaml")
        data: Samples = pictures()
        if method == "gan on points":
            data = ring("train", samples=50_000, modes=8, radius=2.0, deviation=0.02)
        with tempfile.TemporaryDirectory() as folder:
            loop = TrainingLoop(work, Datasets(data, None), SilentRuntime(torch.device("cpu")), RunFolder(folder))
            ours = flushed_denormals()(loop.turn)  # as in a run
            first, second, ratio = training.rates(ours, by_hand(work, data), work.optimization.batch_size, steps)
        found.append(
            {
                "name": f"{method}: step over a hand-written one",
                "ours": first,
                "other": second,
                "ratio": ratio,
                "unit": "samples/s",
                "higher_is_better": True,
            }
        )
    return found
