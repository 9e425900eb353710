"""Images in memory: what every source gives and every loader takes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import numpy.typing as npt

from heliostat.errors import InputError

if TYPE_CHECKING:
    from heliostat_algorithms.algorithm import DataSpec

Progress: TypeAlias = Callable[[str, int, int | None], None]
"""Told how far long work is: (what, done, total), counting bytes or images; total is None where it is unknown."""


@dataclass(frozen=True)
class CorruptItem:
    """An image that could not be decoded and was left out."""

    where: str
    """``file:row``, rows from 0, or the image's own file."""
    why: str
    """The decoder's reason."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ImageData:
    """A data set of images of one size, decoded.

    Raises:
        InputError: there is no image, or a label is outside the classes.
        ValueError: an array has the wrong type or shape, which is a mistake of the code that read it.
    """

    images: npt.NDArray[np.uint8]
    """(N, C, H, W), contiguous; may be read-only."""
    labels: npt.NDArray[np.int64] | None
    """(N,), each an index into ``classes``; None where the data has no labels."""
    classes: tuple[str, ...]
    """Class names in the order of the labels; empty without labels."""
    name: str
    """For people: ``cifar10/train``, or where the files are."""
    fingerprint: str = ""
    """SHA-256 (hexadecimal) of shape, pixels and labels, computed unless given: the data set's digest in tracking."""
    corrupt: tuple[CorruptItem, ...] = ()
    """What was left out because it could not be decoded."""

    def __post_init__(self) -> None:
        images, labels = self.images, self.labels
        if images.dtype != np.uint8 or images.ndim != 4 or not images.flags.c_contiguous:
            raise ValueError(f"images must be contiguous uint8 (N, C, H, W), not {images.dtype} {images.shape}")
        if not len(images):
            raise InputError(f"{self.name} holds no images")
        if labels is not None:
            if labels.dtype != np.int64 or labels.shape != images.shape[:1]:
                raise ValueError(f"labels must be int64 {images.shape[:1]}, not {labels.dtype} {labels.shape}")
            low, high = int(labels.min()), int(labels.max())
            if low < 0 or high >= len(self.classes):
                raise InputError(
                    f"{self.name} has {len(self.classes)} classes, so labels must lie in 0 .. {len(self.classes) - 1}, "
                    f"but they reach from {low} to {high}"
                )
        if not self.fingerprint:
            object.__setattr__(self, "fingerprint", _fingerprint(images, labels))

    def __len__(self) -> int:
        return len(self.images)

    def spec(self) -> DataSpec:
        """What an algorithm may know of the data before it sees a batch."""
        from heliostat_algorithms.algorithm import DataSpec

        _, channels, height, width = self.images.shape
        return DataSpec(
            image_shape=(channels, height, width), classes=None if self.labels is None else len(self.classes)
        )


def fraction_of(data: ImageData, fraction: float, seed: int) -> ImageData:
    """This share of the samples of each class (of all samples where there are no labels), at least one, in their order.

    Which ones is decided by the seed; those of a smaller share are among those of a larger one.
    """
    if fraction == 1.0:
        return data
    from heliostat_algorithms.randomness import permutation

    labels = np.zeros(len(data), np.int64) if data.labels is None else data.labels
    chosen = []
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        order = permutation(f"{seed}:train_fraction:{label}", len(members)).numpy()
        chosen.append(members[order[: max(1, round(fraction * len(members)))]])
    rows = np.sort(np.concatenate(chosen))
    return ImageData(
        images=data.images[rows],
        labels=None if data.labels is None else data.labels[rows],
        classes=data.classes,
        name=f"{data.name} ({fraction:.4g} of it)",
        corrupt=data.corrupt,
    )


def _fingerprint(images: npt.NDArray[np.uint8], labels: npt.NDArray[np.int64] | None) -> str:
    digest = hashlib.sha256(np.array(images.shape, "<i8").tobytes())
    digest.update(images.data)
    if labels is not None:
        digest.update(labels.astype("<i8", copy=False).tobytes())
    return digest.hexdigest()
