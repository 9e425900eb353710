"""Pictures of what a finished run learned, kept in its folder; whoever drives the run hands them to the tracker."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from heliostat.data.loader import sequential
from heliostat.data.samples import Samples
from heliostat.tracking.figures import draw_attention, draw_neighbours, draw_panels
from heliostat.training.evaluation import Retrieved
from heliostat.training.run_folder import RunFolder
from heliostat.training.sampling import make, write
from heliostat_algorithms.algorithm import Algorithm
from heliostat_algorithms.evaluation.extraction import EVALUATION_STEP, as_trained, evaluating
from heliostat_algorithms.randomness import Random

_SAMPLES, _MADE = 8, 16
_SEED = 0
"""Of masks and the like: the same in all runs, so that their pictures can be compared."""


def keep_pictures(
    algorithm: Algorithm,
    data: Samples,
    folder: RunFolder,
    device: torch.device,
    retrieved: Retrieved | None = None,
) -> None:
    """What the method makes of the first samples of a set, where its last layer looks, for networks with attention, and
    what the last evaluation retrieved, where one did.

    Raises:
        OSError: a picture could not be written.
    """
    batch = as_trained(algorithm, next(sequential(data, batch_size=_SAMPLES, device=device)))
    random = Random(_SEED, EVALUATION_STEP, range(len(batch["index"])), device)
    with evaluating(algorithm):
        drawn = algorithm.pictures(batch, random)
        maps = algorithm.attention_maps(batch["image"]) if "image" in batch else None
    for name, panels in drawn.items():
        images = (panels.images.float().clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()
        _keep(folder, name, partial(draw_panels, panels.titles, images))
    keep_samples(algorithm, data, folder, device, count=_MADE)
    if maps is not None:
        _keep(folder, "attention", partial(draw_attention, batch["image"].cpu().numpy(), maps.float().cpu().numpy()))
    if retrieved is not None:
        _keep(folder, "neighbours", partial(draw_neighbours, retrieved.queries, retrieved.nearest, retrieved.right))


def keep_samples(
    algorithm: Algorithm, data: Samples, folder: RunFolder, device: torch.device, *, count: int, step: int | None = None
) -> None:
    """What a generative method can make, with equal draws at all steps and in all runs; ``step`` begins the names.

    Raises:
        OSError: a file could not be written.
    """
    before = "" if step is None else f"step-{step:08d}-"
    with tempfile.TemporaryDirectory(prefix="heliostat-") as place:
        for name, made in make(algorithm, data, count=count, seed=_SEED, device=device).items():
            for path in write(f"{before}{name}", made, Path(place)):
                folder.keep_figure(path.name, path.read_bytes())


def _keep(folder: RunFolder, name: str, draw: Callable[[Path], None]) -> None:
    with tempfile.TemporaryDirectory(prefix="heliostat-") as pictures:
        path = Path(pictures) / f"{name}.png"
        draw(path)
        folder.keep_figure(path.name, path.read_bytes())
