"""What masking saves and what it costs: MAE's encoder with a quarter of the patches over one with all of them, and the
share of a training step that goes into drawing masks."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import bench_training as training
import numpy as np
import torch
from torch import Tensor

from heliostat.config.job import Job
from heliostat.config.loading import parse
from heliostat.data.images import ImageData
from heliostat.data.samples import Samples
from heliostat.data.videos import VideoData
from heliostat.training.state import TrainingState
from heliostat_algorithms.algorithm import Clock
from heliostat_algorithms.backbones import ViTTiny
from heliostat_algorithms.masking.random_patches import random_patches
from heliostat_algorithms.randomness import Random

COMMON = """
name: bench
data: {train: {source: digits, split: train}}
optimization: {optimizer: {type: adamw, learning_rate: 0.001}, schedule: {type: constant}, batch_size: 32, steps: 1000}
algorithm: """
SIZE = 32
VIT = "type: vit-tiny, depth: 4, patch_size: 4, positions: sincos"
MEANS = f"{{{VIT}, class_token: false, pool: mean}}"
METHODS = {
    "mae": f"{{type: mae, backbone: {{{VIT}}}, decoder: {{width: 96, depth: 2, heads: 3}}, "
    "augmentation: {size: 32}}",
    "ijepa": f"{{type: ijepa, backbone: {MEANS}, predictor_width: 96, predictor_depth: 3, masking: {{min_keep: 6}}, "
    "augmentation: {size: 32}}",
    "vjepa": f"{{type: vjepa, backbone: {MEANS}, predictor_width: 96, predictor_depth: 3, augmentation: {{size: 32}}}}",
}


def masks(algorithm: Any, random: Random) -> None:
    """Draw a batch's masks, and nothing else."""
    if algorithm.config.type == "mae":
        random_patches(random, algorithm.patches, algorithm.config.mask_ratio)
    elif algorithm.config.type == "ijepa":
        algorithm.config.masking(random, SIZE, algorithm.grid)
    else:
        for masking in algorithm.masking.values():
            masking(random, SIZE, algorithm.grid)


def samples(method: str) -> Samples:
    """Noise: images of 32 x 32 pixels, for V-JEPA clips of four such frames."""
    if method != "vjepa":
        return training.images(SIZE)
    pixels = training.images(4 * SIZE).images
    return VideoData(
        frames=pixels,
        starts=np.arange(SIZE + 1, dtype=np.int64) * 4,
        labels=None,
        classes=(),
        name="noise",
        clip_frames=4,
        clip_stride=1,
    )


def step_of(work: Job, data: Samples) -> tuple[Any, Callable[[int], object]]:
    """The algorithm and its whole training step."""
    state = TrainingState(work, data.spec(), torch.device("cpu"), 1)
    model = state.algorithm.train()
    pixels = torch.from_numpy(data.images if isinstance(data, ImageData) else data.pictures)  # type: ignore[attr-defined]
    batch: dict[str, Tensor] = (
        {"image": pixels} if not model.video else {"video": pixels.unflatten(0, (SIZE, 4))}  # type: ignore[no-untyped-call]
    )

    def step(number: int) -> None:
        clock = Clock(step=number, total_steps=1000, steps_per_epoch=100, batch_size=SIZE)
        with torch.no_grad():
            inputs = model.prepare(batch, clock, Random(0, number, range(SIZE)))
        state.optimizer.zero_grad()
        model(inputs, clock).loss.backward()
        state.optimizer.step()
        with torch.no_grad():
            model.after_step(clock)

    return model, step


def share_of_masks(method: str, steps: int) -> dict[str, Any]:
    """Milliseconds of a batch's masks over those of the whole step, in turn."""
    model, step = step_of(parse(COMMON + METHODS[method], "bench.yaml"), samples(method))
    seconds = [0.0, 0.0]
    for number in range(steps + 3):
        for which, work in enumerate((lambda n: masks(model, Random(0, n, range(SIZE))), step)):
            start = time.perf_counter()
            work(number)
            if number >= 3:
                seconds[which] += time.perf_counter() - start
    drawn, whole = (1000 * each / steps for each in seconds)
    return {
        "name": f"{method}: drawing masks over the whole step",
        "ours": drawn,
        "other": whole,
        "ratio": drawn / whole,
        "unit": "ms a batch",
        "higher_is_better": False,
    }


def masked_encoder(steps: int) -> dict[str, Any]:
    """MAE's encoder, forward and backward, with 16 of 64 patches and CLS over all 64 and CLS: 17 tokens in place of
    65."""
    encoder = ViTTiny(depth=4, patch_size=4, positions="sincos").build(3, (32, 32))
    pixels = torch.from_numpy(training.images(SIZE).images).float() / 255

    def masked(step: int) -> None:
        visible, _ = random_patches(Random(0, step, range(SIZE)), 64, 0.75)
        encoder.tokens(pixels, visible=visible).patches.sum().backward()  # type: ignore[no-untyped-call]

    def whole(step: int) -> None:
        encoder.tokens(pixels).patches.sum().backward()  # type: ignore[no-untyped-call]

    first, second, ratio = training.rates(masked, whole, SIZE, steps)
    return {
        "name": "mae: encoder at 75 % masking over all patches (65 tokens over 17: 3.82)",
        "ours": first,
        "other": second,
        "ratio": ratio,
        "unit": "images/s",
        "higher_is_better": True,
    }


def rows(quick: bool = False) -> list[dict[str, Any]]:
    """The saving, then the costs."""
    steps = 2 if quick else 12
    return [masked_encoder(steps), *(share_of_masks(method, steps) for method in METHODS)]
