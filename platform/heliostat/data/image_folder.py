"""Image files in folders: one sub-folder per class, or one flat folder without labels."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from heliostat.data.decoding import Encoded, decode
from heliostat.data.folders import Listing, list_folder
from heliostat.data.images import ImageData
from heliostat.data.samples import Progress
from heliostat.errors import InputError

EXTENSIONS = frozenset({"jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff", "ppm", "pgm"})

_CHUNK = 64
"""Files read and decoded at a time."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FolderListing:
    """The image files of a folder, listed but not read."""

    listing: Listing

    @classmethod
    def read(cls, path: str) -> FolderListing:
        """List a folder.

        Raises:
            InputError: as ``list_folder``.
        """
        return cls(list_folder(path, EXTENSIONS, "images"))

    def load(
        self, *, channels: int, image_size: int | None, max_corrupt: float, progress: Progress | None = None
    ) -> ImageData:
        """Decode all files; the arguments are the fields of ``sources.ImageFolder``.

        Raises:
            InputError: a file cannot be read, or too many cannot be decoded.
        """
        listing = self.listing
        if skipped := listing.skipped:
            shown = ", ".join(skipped[:3]) + (", ..." if len(skipped) > 3 else "")
            logger.warning("%s: %d files are not images and are left out: %s", listing.path, len(skipped), shown)
        decoded = decode(
            self._chunks(),
            len(listing.files),
            channels=channels,
            image_size=image_size,
            max_corrupt=max_corrupt,
            name=listing.path,
            progress=progress,
        )
        return ImageData(
            images=decoded.images,
            labels=np.array(listing.labels, np.int64)[decoded.kept] if listing.classes else None,
            classes=listing.classes,
            name=listing.path,
            corrupt=decoded.corrupt,
        )

    def _chunks(self) -> Iterator[Encoded]:
        files = self.listing.files
        for first in range(0, len(files), _CHUNK):
            yield _Files(self.listing.filesystem, files[first : first + _CHUNK])


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
