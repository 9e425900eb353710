"""One part of a prepared set: its images are read, checked, resized where they are too large, and written as a file.

A part is a pure function of its images and of the settings, so it makes no difference which worker
writes it, or whether another one began it before.
"""

from __future__ import annotations

import hashlib
import io
import json
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pydantic import TypeAdapter

from heliostat.data.decoding import CorruptImage, open_image
from heliostat.data.prepared.index import IMAGE, LABEL, PreparedFile, Settings
from heliostat.data.prepared.inputs import Inputs
from heliostat.training.storage import Storage


@dataclass(frozen=True, kw_only=True)
class Part:
    """What is known of a part that was written; sums are whole numbers, so they add up alike in any order."""

    file: PreparedFile | None
    """None where all its images are corrupt."""
    corrupt: tuple[tuple[str, str], ...]
    """(name, reason) of images that cannot be decoded."""
    labels: tuple[int, ...]
    """How many images of each class, up to the last that occurs."""
    group_classes: int
    """Different classes in each row group, added up."""
    width: tuple[int, int]
    height: tuple[int, int]
    pixels: int
    sums: tuple[int, ...]
    """Of each channel's values, 0 to 255."""
    squares: tuple[int, ...]


PART: TypeAdapter[Part] = TypeAdapter(Part)


def write_part(inputs: Inputs, number: int, settings: Settings, storage: Storage, facts: str) -> Part:
    """Write ``part-NUMBER.parquet``, and then what is known of it, by which a restart sees that it is whole.

    Args:
        inputs: its images, in their order.
        facts: the folder for the second file.

    Raises:
        InputError: the input cannot be read.
        OSError: the part cannot be written.
    """
    stored: list[bytes | None] = [None] * len(inputs)
    reasons: dict[int, str] = {}
    tally = _Tally(settings.channels)
    for place, data in inputs.read():
        try:
            image = open_image(data, channels=settings.channels)
        except CorruptImage as error:
            reasons[place] = str(error)
            continue
        smaller = _reduced(image, settings.image_size)
        if smaller is image:
            stored[place] = data
        else:
            stored[place] = _encoded(smaller, settings)
            # What training will see: JPEG loses something.
            smaller = open_image(stored[place], channels=settings.channels)
        tally.add(smaller)
    good = [place for place in range(len(inputs)) if stored[place] is not None]
    labels = None if inputs.labels is None else inputs.labels[good]
    names = [inputs.name(place) for place in good]
    file, group_classes = None, 0
    if good:
        bounds = _bounds(len(good), settings.rows_per_group)
        table = _table([stored[place] for place in good], names, labels, inputs.classes)
        name = f"part-{number:06d}.parquet"
        size, digest = _write(table, bounds, storage, name)
        encoded = [len(stored[place] or b"") for place in good]
        pairs = list(pairwise(bounds))
        file = PreparedFile(
            name=name,
            bytes=size,
            sha256=digest,
            group_rows=tuple(stop - start for start, stop in pairs),
            group_bytes=tuple(sum(encoded[start:stop]) for start, stop in pairs),
        )
        if labels is not None:
            group_classes = sum(len(np.unique(labels[start:stop])) for start, stop in pairs)
    part = Part(
        file=file,
        corrupt=tuple((inputs.name(place), reason) for place, reason in sorted(reasons.items())),
        labels=() if labels is None else tuple(np.bincount(labels).tolist()),
        group_classes=group_classes,
        width=tally.width,
        height=tally.height,
        pixels=tally.pixels,
        sums=tuple(tally.sums),
        squares=tuple(tally.squares),
    )
    storage.replace(f"{facts}/{number:06d}.json", PART.dump_json(part))
    return part


class _Tally:
    def __init__(self, channels: int) -> None:
        self.width = self.height = (2**31, 0)
        self.pixels, self.sums, self.squares = 0, [0] * channels, [0] * channels

    def add(self, image: Image.Image) -> None:
        self.width = min(self.width[0], image.width), max(self.width[1], image.width)
        self.height = min(self.height[0], image.height), max(self.height[1], image.height)
        self.pixels += image.width * image.height
        histogram = np.array(image.histogram(), np.int64).reshape(-1, 256)
        values = np.arange(256)
        for channel, counts in enumerate(histogram):
            self.sums[channel] += int(counts @ values)
            self.squares[channel] += int(counts @ values**2)


def _reduced(image: Image.Image, size: int | None) -> Image.Image:
    """With its shorter side at most ``size``; the same object where it is. The reader cuts the square."""
    shorter = min(image.size)
    if size is None or shorter <= size:
        return image
    width, height = (max(size, round(side * size / shorter)) for side in image.size)
    return image.resize((width, height), Image.Resampling.BICUBIC)


def _encoded(image: Image.Image, settings: Settings) -> bytes:
    file = io.BytesIO()
    if settings.format == "jpeg":
        image.save(file, "JPEG", quality=settings.quality)
    else:
        image.save(file, "PNG")
    return file.getvalue()


def _bounds(count: int, most: int) -> list[int]:
    """Where row groups begin, and the end: as few as possible, of sizes that differ by one at most."""
    groups = -(-count // most)
    return [group * count // groups for group in range(groups + 1)]


def _table(images: Sequence[bytes | None], names: Sequence[str], labels: Any, classes: Sequence[str]) -> Any:
    import pyarrow as pa

    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    structs = [{"bytes": data, "path": name} for data, name in zip(images, names, strict=True)]
    columns = {IMAGE: pa.array(structs, kind)} | ({} if labels is None else {LABEL: pa.array(labels, pa.int64())})
    table = pa.table(columns)
    return table if labels is None else table.replace_schema_metadata({"classes": json.dumps(list(classes))})


def _write(table: Any, bounds: Sequence[int], storage: Storage, name: str) -> tuple[int, str]:
    """Write a file so that it is there as a whole or not at all. Returns its bytes and SHA-256."""
    import pyarrow.parquet as pq

    buffer = io.BytesIO()
    # Images are compressed already, and their least and greatest bytes tell nothing. Checksums find damage on disk.
    with pq.ParquetWriter(
        buffer, table.schema, compression="none", use_dictionary=False, write_statistics=False, write_page_checksum=True
    ) as writer:
        for start, stop in pairwise(bounds):
            writer.write_table(table.slice(start, stop - start), row_group_size=stop - start)
    content = buffer.getbuffer()
    if storage.local:
        # Under a name of its own: a worker that was taken for dead may still be writing the same part.
        partial = f".{name}.{uuid.uuid4().hex}.partial"
        with storage.writing(partial) as file:
            file.write(content)
        Path(storage.path(partial)).replace(storage.path(name))
    else:
        with storage.writing(name) as file:
            file.write(content)
    return len(content), hashlib.sha256(content).hexdigest()
