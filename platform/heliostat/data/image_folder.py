"""Image files in folders: one sub-folder per class, or one flat folder without labels."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from heliostat.data.decoding import Encoded, decode
from heliostat.data.images import ImageData, Progress
from heliostat.data.locations import locate
from heliostat.errors import InputError

EXTENSIONS = frozenset({"jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff", "ppm", "pgm"})

_CHUNK = 64
"""Files read and decoded at a time."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FolderListing:
    """The image files of a folder, listed but not read."""

    filesystem: Any
    path: str
    files: tuple[str, ...]
    """Sorted by class, then by name."""
    classes: tuple[str, ...]
    """The sub-folders' names, sorted; empty for a flat folder."""
    labels: tuple[int, ...]
    """Of each file, an index into ``classes``; empty for a flat folder."""
    skipped: tuple[str, ...]
    """Files whose names do not end like an image's. Hidden ones are not mentioned."""

    @classmethod
    def read(cls, path: str) -> FolderListing:
        """List a folder. With sub-folders, each is a class and its files count at any depth.

        Raises:
            InputError: it is missing, not a folder, holds no images, has images beside its class folders, or a class
                folder is without any.
        """
        from pyarrow import fs

        filesystem, info = locate(path)
        if info.type != fs.FileType.Directory:
            raise InputError(f"{path} is not a folder; for a Parquet file: source: parquet")
        try:
            listed = filesystem.get_file_info(fs.FileSelector(info.path, recursive=True))
        except OSError as error:
            raise InputError(f"{path} cannot be listed: {error}") from error
        root = info.path.rstrip("/") + "/"
        entries = [(entry, entry.path.removeprefix(root).split("/")) for entry in listed]
        entries = [(entry, parts) for entry, parts in entries if not any(part.startswith(".") for part in parts)]
        classes = sorted(parts[0] for entry, parts in entries if len(parts) == 1 and not entry.is_file)
        everything = sorted((parts, entry) for entry, parts in entries if entry.type != fs.FileType.Directory)
        images = [(parts, entry.path) for parts, entry in everything if entry.extension.lower() in EXTENSIONS]
        skipped = tuple(entry.path for _, entry in everything if entry.extension.lower() not in EXTENSIONS)
        if not images:
            raise InputError(f"{path} holds no images ({', '.join(sorted(EXTENSIONS))})")
        if classes:
            if loose := [name for parts, name in images if len(parts) == 1]:
                raise InputError(f"{path} has class folders, but {loose[0]} lies beside them; move it into one")
            if bare := sorted(set(classes) - {parts[0] for parts, _ in images}):
                raise InputError(f"the class folder {root}{bare[0]} holds no images; remove it or fill it")
        order = {name: number for number, name in enumerate(classes)}
        return cls(
            filesystem=filesystem,
            path=path,
            files=tuple(name for _, name in images),
            classes=tuple(classes),
            labels=tuple(order[parts[0]] for parts, _ in images) if classes else (),
            skipped=skipped,
        )

    def load(
        self, *, channels: int, image_size: int | None, max_corrupt: float, progress: Progress | None = None
    ) -> ImageData:
        """Decode all files; the arguments are the fields of ``sources.ImageFolder``.

        Raises:
            InputError: a file cannot be read, or too many cannot be decoded.
        """
        if self.skipped:
            shown = ", ".join(self.skipped[:3]) + (", ..." if len(self.skipped) > 3 else "")
            logger.warning("%s: %d files are not images and are left out: %s", self.path, len(self.skipped), shown)
        decoded = decode(
            self._chunks(),
            len(self.files),
            channels=channels,
            image_size=image_size,
            max_corrupt=max_corrupt,
            name=self.path,
            progress=progress,
        )
        return ImageData(
            images=decoded.images,
            labels=np.array(self.labels, np.int64)[decoded.kept] if self.classes else None,
            classes=self.classes,
            name=self.path,
            corrupt=decoded.corrupt,
        )

    def _chunks(self) -> Iterator[Encoded]:
        for first in range(0, len(self.files), _CHUNK):
            yield _Files(self.filesystem, self.files[first : first + _CHUNK])


@dataclass(frozen=True, slots=True)
class _Files:
    filesystem: Any
    paths: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.paths)

    def where(self, position: int) -> str:
        return self.paths[position]

    def read(self, position: int) -> bytes | None:
        try:
            with self.filesystem.open_input_stream(self.paths[position]) as file:
                data: bytes = file.read()
        except OSError as error:
            raise InputError(f"{self.paths[position]} cannot be read: {error}") from error
        return data
