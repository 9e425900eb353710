"""Pictures of what a finished run learned, kept in its folder; whoever drives the run hands them to the tracker."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch

from heliostat.data.images import ImageData
from heliostat.tracking.figures import draw_attention
from heliostat.training.run_folder import RunFolder
from heliostat_algorithms.algorithm import Algorithm

_IMAGES = 8


@torch.no_grad()
def keep_pictures(algorithm: Algorithm, data: ImageData, folder: RunFolder, device: torch.device) -> None:
    """Where the last layer looks in the first images of a set, for networks with attention."""
    images = torch.from_numpy(data.images[:_IMAGES].copy())
    training = algorithm.training
    algorithm.eval()
    maps = algorithm.attention_maps(images.to(device))
    algorithm.train(training)
    if maps is None:
        return
    with tempfile.TemporaryDirectory(prefix="heliostat-") as pictures:
        path = Path(pictures) / "attention.png"
        draw_attention(images.numpy(), maps.float().cpu().numpy(), path)
        folder.keep_figure(path.name, path.read_bytes())
