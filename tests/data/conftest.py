from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from heliostat.data.images import ImageData
from heliostat.data.videos import VideoData

Encode = Callable[..., bytes]


@pytest.fixture
def encode() -> Encode:
    """Pixels to the bytes of an image file."""

    def encode_pixels(pixels: np.ndarray, form: str = "PNG", mode: str | None = None, **options: Any) -> bytes:
        image = Image.fromarray(pixels)
        if mode is not None:
            image = image.convert(mode)
        file = io.BytesIO()
        image.save(file, form, **options)
        return file.getvalue()

    return encode_pixels


@pytest.fixture
def pictures() -> np.ndarray:
    """(12, 6, 5, 3) uint8: twelve different RGB pictures, 6 high and 5 wide."""
    return np.random.default_rng(0).integers(0, 256, (12, 6, 5, 3), dtype=np.uint8)


@pytest.fixture
def write_parquet(tmp_path: Path) -> Callable[..., Path]:
    """Writes encoded images (None: null) as the Hugging Face hub does, with further columns."""

    def write(
        images: list[bytes | None],
        columns: dict[str, Any] | None = None,
        name: str = "train.parquet",
        metadata: dict[str, str] | None = None,
        plain: bool = False,
    ) -> Path:
        structs = [{"bytes": data, "path": None} for data in images]
        kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        column = pa.array(images, pa.binary()) if plain else pa.array(structs, kind)
        table = pa.table({"image": column, **(columns or {})}).replace_schema_metadata(metadata)
        pq.write_table(table, tmp_path / name, row_group_size=5)
        return tmp_path / name

    return write


@pytest.fixture
def toy() -> Callable[..., ImageData]:
    """A small data set whose pixels and labels tell each sample's number; read-only, as from the object store."""

    def make(count: int, labels: bool = True) -> ImageData:
        images = np.empty((count, 3, 2, 4), np.uint8)
        images[:] = (np.arange(count) % 256).astype(np.uint8)[:, None, None, None]
        numbers = np.arange(count, dtype=np.int64) % 7
        images.flags.writeable = numbers.flags.writeable = False
        return ImageData(
            images=images,
            labels=numbers if labels else None,
            classes=tuple("abcdefg") if labels else (),
            name="toy",
        )

    return make


@pytest.fixture
def toy_videos() -> Callable[..., VideoData]:
    """Videos whose frames tell the video's number (first channel) and the frame's within it (second); read-only."""

    def make(lengths: Sequence[int], frames: int = 4, stride: int = 2, labels: bool = True) -> VideoData:
        starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        pixels = np.zeros((starts[-1], 3, 2, 4), np.uint8)
        pixels[:, 0] = np.repeat(np.arange(len(lengths)), lengths)[:, None, None]
        pixels[:, 1] = np.concatenate([np.arange(0), *map(np.arange, lengths)])[:, None, None]
        numbers = np.arange(len(lengths), dtype=np.int64) % 3
        for array in (pixels, starts, numbers):
            array.flags.writeable = False
        return VideoData(
            frames=pixels,
            starts=starts,
            labels=numbers if labels else None,
            classes=tuple("abc") if labels else (),
            name="toy",
            clip_frames=frames,
            clip_stride=stride,
        )

    return make


@pytest.fixture
def unreadable() -> Callable[[Path], AbstractContextManager[None]]:
    """Takes away the right to read a file, also from root."""

    @contextmanager
    def forbid(path: Path) -> Iterator[None]:
        path.chmod(0)
        root = os.geteuid() == 0
        if root:
            os.seteuid(65534)  # nobody
        try:
            yield
        finally:
            if root:
                os.seteuid(0)
            path.chmod(0o600)

    return forbid


@pytest.fixture
def write_folder(tmp_path: Path) -> Callable[..., Path]:
    """Writes different noisy pictures as PNG, in a folder for each class; sides are drawn from ``sizes``."""

    def write(count: int = 60, sizes: tuple[int, int] = (12, 12), classes: str = "abc", name: str = "pictures") -> Path:
        random = np.random.default_rng(7)
        for number in range(count):
            folder = tmp_path / name / classes[number % len(classes)]
            folder.mkdir(parents=True, exist_ok=True)
            width, height = random.integers(sizes[0], sizes[1] + 1, 2)
            pixels = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{number:04d}.png")
        return tmp_path / name

    return write
