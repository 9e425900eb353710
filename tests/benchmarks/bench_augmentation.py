"""View augmentation against kornia: SimCLR's recipe on the same images, with the same probabilities, per sample.

Both see float32 images in [0, 1]. Rounds alternate in one process, so that a busy machine slows both alike; the ratio
is the median of the ratios of neighbouring rounds. Run as a script to print the rows.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import kornia.augmentation as peer
import torch

from heliostat_algorithms.augmentation import ColorJitter, GaussianBlur, ViewAugmentation
from heliostat_algorithms.randomness import Random


def rows(quick: bool = False) -> list[dict[str, Any]]:
    """Images per second of both, and their ratio, for small and large images, without and with blur."""
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        measured = []
        for batch, size in ((512, 32), (8 if quick else 64, 224)):
            for blur in (0.0, 0.5):
                measured.append(_compare(batch, size, blur, rounds=3 if quick else 9))
    finally:
        torch.set_num_threads(threads)
    return measured


def _compare(batch: int, size: int, blur: float, rounds: int) -> dict[str, Any]:
    images = torch.rand(batch, 3, size, size, generator=torch.Generator().manual_seed(0))
    augment = ViewAugmentation(jitter=ColorJitter(), blur=GaussianBlur(probability=blur))
    kernel = augment.blur.kernel_size(size)
    steps: list[torch.nn.Module] = [
        # Of kornia's two ways to crop, the faster one at each size; only "slice" antialiases.
        peer.RandomResizedCrop(
            (size, size), scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3), cropping_mode="resample" if size < 64 else "slice"
        ),
        peer.RandomHorizontalFlip(p=0.5),
        peer.ColorJitter(0.8, 0.8, 0.8, 0.2, p=0.8),
        peer.RandomGrayscale(p=0.2),
    ]
    if blur:
        steps.append(peer.RandomGaussianBlur((kernel, kernel), (0.1, 2.0), p=blur))
    theirs = torch.nn.Sequential(*steps)

    ours_seconds, theirs_seconds = [], []
    for step in range(-1, rounds):  # the first is a warm-up
        random = Random(0, step, range(batch))
        ours_seconds.append(_seconds(lambda random=random: augment(images, random)))  # type: ignore[misc]
        theirs_seconds.append(_seconds(lambda: theirs(images)))
    pairs = list(zip(ours_seconds[1:], theirs_seconds[1:], strict=True))
    operations = "crop, flip, jitter, grey" + (", blur" if blur else "")
    return {
        "name": f"augmentation {batch} x 3 x {size} x {size}: {operations}; kornia",
        "ours": batch / statistics.median(ours for ours, _ in pairs),
        "other": batch / statistics.median(other for _, other in pairs),
        "ratio": statistics.median(other / ours for ours, other in pairs),
        "unit": "images/s on 2 CPU threads",
        "higher_is_better": True,
    }


def _seconds(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


if __name__ == "__main__":
    for row in rows():
        print(f"{row['name']}: {row['ours']:,.0f} against {row['other']:,.0f} {row['unit']}, {row['ratio']:.1f} x")
