"""What a generative method makes, as files for people: pictures, moving pictures, texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from heliostat.data.loader import sequential
from heliostat.data.samples import Samples
from heliostat.data.sequences import SequenceSamples
from heliostat.errors import InputError, Problem, nearest
from heliostat.tracking.figures import draw_panels, draw_points
from heliostat.training.checkpoint import check_architecture
from heliostat.training.origin import spec_from
from heliostat.training.run_folder import RunFolder
from heliostat.training.state import build_algorithm
from heliostat_algorithms.algorithm import Algorithm, Clips, Panels, Sampled, Scatter, Texts, Wish
from heliostat_algorithms.evaluation.extraction import EVALUATION_STEP, as_trained, evaluating
from heliostat_algorithms.randomness import Random

_GIVEN = 256
"""Stored samples that a method is shown at least, where the data has so many."""


@dataclass(frozen=True)
class Made:
    """What a checkpoint made."""

    step: int
    """The checkpoint's."""
    files: tuple[Path, ...]


@dataclass(frozen=True, kw_only=True)
class TextWish:
    """What can be asked of methods that write; see ``Wish``."""

    prompts: tuple[str, ...] = ()
    length: int = Wish.length
    temperature: float = Wish.temperature
    top_k: int | None = Wish.top_k


def make(
    algorithm: Algorithm,
    data: Samples,
    *,
    count: int,
    seed: int,
    device: torch.device,
    texts: TextWish | None = None,
) -> Mapping[str, Sampled]:
    """All that an algorithm can make, by name; empty for one that is not generative.

    Args:
        data: its first samples are those that are completed or reconstructed.
        count: samples, or rows of pictures.
        seed: decides all that is random: equal seeds make comparable samples in all runs.
        texts: what is asked of methods that write.

    Raises:
        ValueError: the algorithm cannot make them.
    """
    given = as_trained(algorithm, next(sequential(data, batch_size=max(count, _GIVEN), device=device)))
    with evaluating(algorithm):
        random = Random(seed, EVALUATION_STEP, range(count), device).within("sample")
        codec = data.vocabulary if isinstance(data, SequenceSamples) else None
        wish = Wish(count=count, given=given, codec=codec)
        return algorithm.sample(wish if texts is None else replace(wish, **asdict(texts)), random)


def write(name: str, sampled: Sampled, folder: Path) -> list[Path]:
    """Write what was made below ``folder``: a PNG; of clips a strip of frames as PNG and a GIF; a text file."""
    path = folder / f"{name}.png"
    match sampled:
        case Panels():
            draw_panels(sampled.titles, _pixels(sampled.images), path)
        case Scatter():
            draw_points(sampled.points.cpu().numpy(), sampled.truth.cpu().numpy(), path)
        case Clips():
            videos = _pixels(sampled.videos)
            draw_panels([f"frame {number}" for number in range(videos.shape[1])], videos, path)
            moving = folder / f"{name}.gif"
            _write_gif(videos, sampled.frames_per_second, moving)
            return [path, moving]
        case Texts():
            path = folder / f"{name}.txt"
            path.write_text(_written(sampled), encoding="utf-8")
    return [path]


def sample_run(
    folder: RunFolder,
    output: Path,
    *,
    count: int,
    seed: int,
    checkpoint: int | None = None,
    texts: TextWish | None = None,
    only: Sequence[str] = (),
) -> Made:
    """Let a checkpoint of a run make samples, and write them to ``output``.

    Raises:
        InputError: there is no such checkpoint, or what it holds cannot make what is asked for.
    """
    job, store = folder.job(), folder.checkpoints()
    steps = store.steps()
    if not steps:
        raise InputError(Problem("the run has no checkpoint yet", folder.storage.uri))
    step = steps[-1] if checkpoint is None else checkpoint
    saved = store.load(step)
    algorithm = build_algorithm(job, spec_from(store.manifest(step)["data"]))
    check_architecture(algorithm.state_dict(), saved["algorithm"], store.uri(step))
    algorithm.load_state_dict(saved["algorithm"])
    data = (job.data.test or job.data.train).load()
    try:
        made = make(algorithm, data, count=count, seed=seed, device=torch.device("cpu"), texts=texts)
    except ValueError as error:
        raise InputError(Problem(str(error), folder.name)) from None
    if not made:
        raise InputError(Problem(f"{job.algorithm.type} makes no samples: it is not a generative method", folder.name))
    for name in only:
        if name not in made:
            raise InputError(Problem(f"{job.algorithm.type} makes no '{name}'.{nearest(name, made)}", "--only"))
    output.mkdir(parents=True, exist_ok=True)
    files = [path for name in only or made for path in write(name, made[name], output)]
    return Made(step, tuple(files))


def _written(sampled: Texts) -> str:
    """One after the other; what each was made from stands before it."""
    if not sampled.given:
        return "".join(f"{text}\n\n" for text in sampled.texts)
    together = enumerate(zip(sampled.given, sampled.texts, strict=True), start=1)
    return "".join(f"[{n}] given\n{given}\n[{n}] made\n{made}\n\n" for n, (given, made) in together)


def _pixels(images: Tensor) -> npt.NDArray[np.uint8]:
    return (images.float().clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()


def _write_gif(videos: npt.NDArray[np.uint8], frames_per_second: float, path: Path) -> None:
    """All clips (N, T, C, H, W) side by side in one moving picture."""
    from PIL import Image

    frames = []
    for frame in videos.transpose(1, 2, 3, 0, 4):  # (T, C, H, N, W)
        channels, height, count, width = frame.shape
        pixels = frame.reshape(channels, height, count * width).transpose(1, 2, 0)
        frames.append(Image.fromarray(pixels[..., 0] if channels == 1 else pixels))
    duration = round(1000 / frames_per_second)
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=duration, loop=0)
