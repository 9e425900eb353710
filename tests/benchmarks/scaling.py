"""What thousands of workers would cost, by formula and by simulation: no cluster of that size was at hand.

``python tests/benchmarks/scaling.py`` prints the tables of docs/scaling.md. What one worker does itself is not modelled
but measured, by ``bench_scaling``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Network:
    """How long a message takes between two neighbours."""

    latency_s: float
    bytes_per_second: float
    """Of one worker, each way."""


CLOUD = Network(25e-6, 25e9 / 8)
"""25 Gb/s for each worker, over TCP."""
FABRIC = Network(5e-6, 400e9 / 8)
"""400 Gb/s for each worker, over InfiniBand."""


def all_reduce_seconds(size: float, workers: int, network: Network) -> float:
    """A ring: 2 (W - 1) rounds, each of which sends size / W to the neighbour.

    Args:
        size: bytes of what is summed, such as all gradients.
    """
    return 2 * (workers - 1) * (network.latency_s + size / workers / network.bytes_per_second)


def all_gather_seconds(size: float, workers: int, network: Network) -> float:
    """A ring: W - 1 rounds, each of which hands on one worker's part.

    Args:
        size: bytes of one worker's part, such as its projections.
    """
    return (workers - 1) * (network.latency_s + size / network.bytes_per_second)


def slowest(workers: int, spread: float, rounds: int = 200, seed: int = 0) -> float:
    """How much longer a synchronous step takes than a median worker's: the mean over steps of the slowest of W.

    Args:
        spread: standard deviation of the logarithm of a worker's time for a step.
    """
    times = np.random.default_rng(seed).lognormal(0.0, spread, (rounds, workers))
    return float(times.max(axis=1).mean())


@dataclass(frozen=True)
class Faults:
    """What breaks, and what it costs; seconds."""

    between: float
    """Mean time from one loss to the next, over all nodes."""
    checkpoint: float
    """Time for which training stands while a checkpoint is written."""
    restart: float
    """From a loss to the first step of the group that replaces the lost one."""


def goodput(faults: Faults, every: float) -> float:
    """The share of the time in which steps are made that last, for losses at random times (exponential).

    A stretch of ``every`` seconds and its checkpoint have to end without a loss; whatever was begun is made again after
    a restart, which can itself be interrupted.

    Args:
        every: seconds of training from one checkpoint to the next.
    """
    rate = 1 / faults.between
    return every / (math.exp(rate * faults.restart) * math.expm1(rate * (every + faults.checkpoint)) / rate)


def best_interval(faults: Faults) -> float:
    """Seconds between checkpoints that lose least, nearly: Young's sqrt(2 C M) (CACM 17(9), 1974)."""
    return math.sqrt(2 * faults.checkpoint * faults.between)


def simulated_goodput(faults: Faults, every: float, stretches: int = 2000, seed: int = 0) -> float:
    """As :func:`goodput`, by letting it happen."""
    rng = np.random.default_rng(seed)
    clock, next_loss = 0.0, rng.exponential(faults.between)
    for _ in range(stretches):
        end = clock + every + faults.checkpoint
        while next_loss < end:
            back = next_loss + faults.restart
            next_loss += rng.exponential(faults.between)
            while next_loss < back:
                back = next_loss + faults.restart
                next_loss += rng.exponential(faults.between)
            end = back + every + faults.checkpoint
        clock = end
    return stretches * every / clock


def main() -> None:
    """Print the tables."""
    print("gradients: all-reduce of 102 MB (ResNet-50, float32), milliseconds: 25 Gb/s, 400 Gb/s")
    for workers in (8, 64, 512, 4096):
        times = [1e3 * all_reduce_seconds(102e6, workers, network) for network in (CLOUD, FABRIC)]
        print(f"  {workers:5d}  {times[0]:8.1f}  {times[1]:8.1f}")
    print("negatives: both views of 64 images a worker, 128 float32 each: gather in ms (25, 400 Gb/s); logits in MB")
    for workers in (8, 64, 512, 4096):
        times = [1e3 * 2 * all_gather_seconds(64 * 128 * 4, workers, network) for network in (CLOUD, FABRIC)]
        print(f"  {workers:5d}  {times[0]:8.2f}  {times[1]:8.2f}  {128 * 128 * workers * 4 / 1e6:8.1f}")
    print("slowest of W workers over the median one, spread 2 % and 10 %")
    for workers in (8, 64, 512, 4096):
        print(f"  {workers:5d}  {slowest(workers, 0.02):6.3f}  {slowest(workers, 0.10):6.3f}")
    print("losses: nodes, hours between losses, best interval in minutes, goodput by formula and simulated, every hour")
    for nodes in (8, 64, 512, 2048):
        faults = Faults(6335 * 3600 / nodes, checkpoint=5, restart=60)
        every = best_interval(faults)
        shares = goodput(faults, every), simulated_goodput(faults, every), goodput(faults, 3600)
        said = "  ".join(f"{share:.4f}" for share in shares)
        print(f"  {nodes:5d}  {faults.between / 3600:8.1f}  {every / 60:6.1f}  {said}")


if __name__ == "__main__":
    main()
