"""Streaming from a prepared set: decoding against other decoders, the loader against memory, and how long a step waits.

Images are crops of the two photographs that ship with scikit-learn, 320 x 256 pixels as JPEG of quality 90: about what
``data prepare --image-size 256`` makes of ImageNet. Other decoders are measured where they are installed; none is
needed. All on one thread, but for the last rows, where batches are made beside the step as in training.
"""

from __future__ import annotations

import importlib.util
import io
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from heliostat.data.decoding import decode_image
from heliostat.data.images import ImageData
from heliostat.data.loader import Loader
from heliostat.data.prepared.index import Settings
from heliostat.data.prepared.inputs import find_inputs
from heliostat.data.prepared.preparation import prepare
from heliostat.data.prepared.source import PreparedImages
from heliostat_algorithms.backbones import ResNet18

WIDTH, HEIGHT, SIZE = 320, 256, 224


def rows(quick: bool = False) -> list[dict[str, Any]]:
    """Images per second, and the share of a step that waits for data."""
    torch.set_num_threads(1)
    images = photographs(64)
    rounds = 2 if quick else 5
    found = decoders(images, rounds)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "images"
        folder.mkdir()
        for number, data in enumerate(images * (2 if quick else 8)):
            (folder / f"{number:05d}.jpg").write_bytes(data)
        prepare(find_inputs(str(folder)), f"{place}/set", Settings(rows_per_group=32))
        found += loaders(f"{place}/set", rounds)
        found += waiting(f"{place}/set", 2 if quick else 6)
    return found


def photographs(count: int) -> list[bytes]:
    """JPEG crops of real photographs."""
    from sklearn.datasets import load_sample_images

    random, found = np.random.default_rng(0), []
    for number in range(count):
        photograph = load_sample_images().images[number % 2]
        top = int(random.integers(0, photograph.shape[0] - HEIGHT))
        left = int(random.integers(0, photograph.shape[1] - WIDTH))
        file = io.BytesIO()
        Image.fromarray(photograph[top : top + HEIGHT, left : left + WIDTH]).save(file, "JPEG", quality=90)
        found.append(file.getvalue())
    return found


def decoders(images: list[bytes], rounds: int) -> list[dict[str, Any]]:
    """Ours decodes, checks, resizes the shorter side to 224 and cuts the square; so does the plain Pillow code."""

    def ours(data: bytes) -> None:
        decode_image(data, channels=3, image_size=SIZE)

    def pillow(data: bytes) -> None:
        image = Image.open(io.BytesIO(data)).convert("RGB")
        side = SIZE * image.width // image.height
        image = image.resize((side, SIZE), Image.Resampling.BICUBIC)
        left = (side - SIZE) // 2
        np.asarray(image.crop((left, 0, left + SIZE, SIZE)))

    def decode_only(data: bytes) -> None:
        decode_image(data, channels=3, image_size=None)

    found = [_compared("decode, resize and crop, over plain Pillow", "images/s", ours, pillow, images, rounds)]
    for name, peer in _peers().items():
        what = f"decode alone, over {name}"
        found.append(_compared(what, "images/s", decode_only, peer, images, rounds))
    return found


def _peers() -> dict[str, Callable[[bytes], object]]:
    """Other decoders to RGB that are installed here."""
    found: dict[str, Callable[[bytes], object]] = {
        "plain Pillow": lambda data: np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    }
    if importlib.util.find_spec("cv2"):
        import cv2

        cv2.setNumThreads(1)
        found["OpenCV"] = lambda data: cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
    if importlib.util.find_spec("simplejpeg"):
        import simplejpeg

        found["simplejpeg"] = simplejpeg.decode_jpeg
    if importlib.util.find_spec("imagecodecs"):
        import imagecodecs

        found["imagecodecs"] = imagecodecs.jpeg8_decode
    return found


def loaders(path: str, rounds: int) -> list[dict[str, Any]]:
    """Batches of 64, decoded each time, against copies out of memory."""
    streamed = PreparedImages(source="prepared", path=path, image_size=SIZE, ahead=0).load()
    images = np.random.default_rng(0).integers(0, 256, (len(streamed), 3, SIZE, SIZE), dtype=np.uint8)
    memory = ImageData(images=images, labels=None, classes=(), name="memory")
    one, other = (Loader(data, batch_size=64, seed=0) for data in (streamed, memory))
    steps = one.steps_per_epoch
    ours, theirs = [], []
    for turn in range(rounds):
        ours.append(64 / _seconds(lambda turn=turn: one.batch(turn % steps)))
        theirs.append(64 / _seconds(lambda turn=turn: other.batch(turn % steps)))
    return [_row("loader from a prepared set, over memory", ours, theirs, "images/s")]


def waiting(path: str, steps: int) -> list[dict[str, Any]]:
    """What part of a step is spent waiting for its batch: a ResNet-18 of half the width, at 224 pixels."""
    torch.manual_seed(0)
    network = ResNet18(width=32).build(3, (SIZE, SIZE))
    found = []
    for ahead in (2, 0):
        data = PreparedImages(source="prepared", path=path, image_size=SIZE, ahead=ahead).load()
        loader = Loader(data, batch_size=32, seed=0)
        loader.batch(0)
        waited, whole = 0.0, time.perf_counter()
        for step in range(1, steps + 1):
            began = time.perf_counter()
            batch = loader.batch(step)
            waited += time.perf_counter() - began
            network(batch["image"].float() / 255).square().mean().backward()
        found.append(waited / (time.perf_counter() - whole))
    name = "share of a small ResNet-18's step spent waiting for data, two batches ahead over none"
    return [
        {
            "name": name,
            "ours": found[0],
            "other": found[1],
            "ratio": found[0] / found[1],
            "unit": "of the step",
            "higher_is_better": False,
        }
    ]


def _compared(
    name: str,
    unit: str,
    ours: Callable[[bytes], object],
    other: Callable[[bytes], object],
    images: list[bytes],
    rounds: int,
) -> dict[str, Any]:
    def over(work: Callable[[bytes], object]) -> None:
        for data in images:
            work(data)

    first, second = [], []
    for _ in range(rounds):
        first.append(len(images) / _seconds(lambda: over(ours)))
        second.append(len(images) / _seconds(lambda: over(other)))
    return _row(name, first, second, unit)


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _row(name: str, ours: list[float], other: list[float], unit: str) -> dict[str, Any]:
    ratio = statistics.median(a / b for a, b in zip(ours, other, strict=True))
    return {
        "name": name,
        "ours": statistics.median(ours),
        "other": statistics.median(other),
        "ratio": ratio,
        "unit": unit,
        "higher_is_better": True,
    }
