"""Images in memory: one picture for each sample."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import numpy as np
import numpy.typing as npt

from heliostat.data.samples import CorruptItem, PictureSamples, Progress, Selection, fraction_of
from heliostat.errors import InputError

if TYPE_CHECKING:
    from heliostat_algorithms.algorithm import DataSpec
    from heliostat_algorithms.randomness import Random

__all__ = ["CorruptItem", "ImageData", "Progress", "fraction_of"]


@dataclass(frozen=True, kw_only=True, eq=False)
class ImageData(PictureSamples):
    """A data set of images of one size, decoded.

    Raises:
        InputError: there is no image, or a label is outside the classes.
        ValueError: an array has the wrong type or shape, which is a mistake of the code that read it.
    """

    images: npt.NDArray[np.uint8]
    """(N, C, H, W), contiguous; may be read-only."""

    def __post_init__(self) -> None:
        images = self.images
        if images.dtype != np.uint8 or images.ndim != 4 or not images.flags.c_contiguous:
            raise ValueError(f"images must be contiguous uint8 (N, C, H, W), not {images.dtype} {images.shape}")
        if not len(images):
            raise InputError(f"{self.name} holds no images")
        super().__post_init__()

    @property
    def pictures(self) -> npt.NDArray[np.uint8]:
        return self.images

    def __len__(self) -> int:
        return len(self.images)

    def spec(self) -> DataSpec:
        """What an algorithm may know of the data before it sees a batch."""
        from heliostat_algorithms.algorithm import DataSpec

        _, channels, height, width = self.images.shape
        return DataSpec(
            image_shape=(channels, height, width), classes=None if self.labels is None else len(self.classes)
        )

    def select(
        self,
        indices: npt.NDArray[np.int64],
        *,
        clips: bool = True,
        random: Random | None = None,
        together: npt.NDArray[np.int64] | None = None,
    ) -> tuple[Selection, ...]:
        return (Selection("image", self.images, indices),)

    def part(self, indices: npt.NDArray[np.int64], name: str) -> Self:
        return type(self)(
            images=self.images[indices],
            labels=None if self.labels is None else self.labels[indices],
            classes=self.classes,
            name=name,
            corrupt=self.corrupt,
        )
