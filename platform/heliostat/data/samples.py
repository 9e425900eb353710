"""What all data sets in memory have in common: arrays stored once, and which of their rows make up a sample."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from heliostat.errors import InputError

if TYPE_CHECKING:
    from heliostat.data.order import Order
    from heliostat_algorithms.algorithm import DataSpec
    from heliostat_algorithms.randomness import Random

Progress: TypeAlias = Callable[[str, int, int | None], None]
"""Told how far long work is: (what, done, total), counting bytes or samples; total is None where it is unknown."""


@dataclass(frozen=True)
class CorruptItem:
    """A sample that could not be decoded and was left out."""

    where: str
    """``file:row``, rows from 0, or the sample's own file."""
    why: str
    """The decoder's reason."""


@dataclass(frozen=True)
class Selection:
    """Stored pictures or tokens that together are one entry of a batch."""

    name: str
    """What a batch calls it: ``image``, ``video`` for clips, ``point``, ``tokens``, ``targets``, ``source``,
    ``target``."""
    values: npt.NDArray[np.generic]
    """(P, ...): all that is stored of the kind, contiguous; may be read-only."""
    rows: npt.NDArray[np.int64]
    """(B,), or (B, T) for clips and sequences: positions in ``values``."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Samples(ABC):
    """A data set of images, of videos, of points or of sequences of tokens, decoded.

    Raises:
        InputError: there is no sample, or a label is outside the classes.
        ValueError: an array has the wrong type or shape, which is a mistake of the code that read it.
    """

    labels: npt.NDArray[np.int64] | None
    """(N,), each an index into ``classes``; None where the data has no labels."""
    classes: tuple[str, ...]
    """Class names in the order of the labels; empty without labels."""
    name: str
    """For people: ``cifar10/train``, or where the files are."""
    fingerprint: str = ""
    """SHA-256 (hexadecimal) of shapes, values and labels, computed unless given: the data set's digest in tracking."""
    corrupt: tuple[CorruptItem, ...] = ()
    """What was left out because it could not be decoded."""

    def __post_init__(self) -> None:
        labels = self.labels
        if labels is not None:
            if labels.dtype != np.int64 or labels.shape != (len(self),):
                raise ValueError(f"labels must be int64 {(len(self),)}, not {labels.dtype} {labels.shape}")
            low, high = int(labels.min()), int(labels.max())
            if low < 0 or high >= len(self.classes):
                raise InputError(
                    f"{self.name} has {len(self.classes)} classes, so labels must lie in 0 .. {len(self.classes) - 1}, "
                    f"but they reach from {low} to {high}"
                )
        if not self.fingerprint:
            object.__setattr__(self, "fingerprint", self._digest())

    @abstractmethod
    def __len__(self) -> int:
        """N, the number of samples."""

    @abstractmethod
    def spec(self) -> DataSpec:
        """What an algorithm may know of the data before it sees a batch."""

    @property
    def ahead(self) -> int:
        """Batches that are worth preparing while the step before them runs; 0 for data in memory."""
        return 0

    def order(self, *, batch_size: int, minibatches: int, seed: int, workers: int) -> Order:
        """Which samples each step of training takes.

        Args:
            workers: that share a batch; the order does not depend on them.
        """
        from heliostat.data.order import ShuffledOrder

        return ShuffledOrder(len(self), batch_size=batch_size, minibatches=minibatches, seed=seed)

    @abstractmethod
    def select(
        self,
        indices: npt.NDArray[np.int64],
        *,
        clips: bool = True,
        random: Random | None = None,
        together: npt.NDArray[np.int64] | None = None,
    ) -> tuple[Selection, ...]:
        """Which of the stored values are these samples.

        Args:
            indices: (B,) samples.
            clips: of videos, whole clips rather than one frame of each. Images are images either way.
            random: decides where in its video a clip or a frame lies, or in its stretch of text a window, and has B
                rows; None takes the middle of a video and the beginning of a stretch.
            together: the samples of the global batch, by whose longest one sequences are filled up; None: these alone.
        """

    @abstractmethod
    def part(self, indices: npt.NDArray[np.int64], name: str) -> Self:
        """Some of the samples as a data set of their own."""

    @abstractmethod
    def _digest(self) -> str:
        """The fingerprint of what is stored."""

    def _further_arrays(self) -> list[npt.NDArray[np.int64]]:
        """What the fingerprint covers beside pictures or tokens."""
        return [] if self.labels is None else [self.labels]


@dataclass(frozen=True, kw_only=True, eq=False)
class PictureSamples(Samples):
    """A data set of images or of videos."""

    @property
    @abstractmethod
    def pictures(self) -> npt.NDArray[np.uint8]:
        """(P, C, H, W): all that is stored, contiguous; may be read-only."""

    @property
    def numbers_per_sample(self) -> int:
        """How many numbers one sample is: C x H x W, times the frames of a clip."""
        spec = self.spec()
        return int(np.prod(spec.image_shape)) * (spec.frames or 1)

    def _digest(self) -> str:
        digest = hashlib.sha256(np.array(self.pictures.shape, "<i8").tobytes())
        digest.update(self.pictures.data)
        for array in self._further_arrays():
            digest.update(array.astype("<i8", copy=False).tobytes())
        return digest.hexdigest()


AnySamples = TypeVar("AnySamples", bound=Samples)


def fraction_of(data: AnySamples, fraction: float, seed: int) -> AnySamples:
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
    return data.part(np.sort(np.concatenate(chosen)), f"{data.name} ({fraction:.4g} of it)")
