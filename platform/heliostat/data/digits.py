"""The 1,797 handwritten digits that ship with scikit-learn, with a split that never changes.

They are the test set of the UCI "Optical Recognition of Handwritten Digits" (Alpaydin and Kaynak 1998): 8 x 8 pixels
with 17 levels of grey.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt

from heliostat.data.images import ImageData

TEST_SAMPLES = 360


def load_digits(split: Literal["train", "test"], image_size: int | None = None) -> ImageData:
    """1,437 or 360 images (N, 1, 8, 8), the levels 0 .. 16 scaled to 0 .. 255; or (N, 1, S, S), bicubic."""
    from sklearn import datasets

    levels, labels = datasets.load_digits(return_X_y=True)
    rows = np.sort(_split(labels)[split])
    images = np.round(levels[rows] * (255 / 16)).astype(np.uint8).reshape(-1, 1, 8, 8)
    name = f"digits/{split}"
    if image_size is not None:
        images, name = enlarged(images[:, 0], image_size)[:, None], f"{name} at {image_size} pixels"
    return ImageData(
        images=images,
        labels=labels[rows].astype(np.int64),
        classes=tuple("0123456789"),
        name=name,
    )


def enlarged(images: npt.NDArray[np.uint8], size: int) -> npt.NDArray[np.uint8]:
    """(N, h, w) to (N, size, size)."""
    from PIL import Image

    return np.stack(
        [np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC)) for image in images]
    )


def _split(labels: npt.NDArray[np.int64]) -> dict[str, npt.NDArray[np.int64]]:
    """Every class gives the same share: samples are ordered by their quantile in a random order of their class."""
    from heliostat_algorithms.randomness import permutation

    quantile = np.empty(len(labels))
    for digit in range(10):
        members = np.flatnonzero(labels == digit)
        order = permutation(f"heliostat:digits:{digit}", len(members)).numpy()
        quantile[members[order]] = (np.arange(len(members)) + 0.5) / len(members)
    ranked = np.argsort(quantile, kind="stable")
    return {"test": ranked[:TEST_SAMPLES], "train": ranked[TEST_SAMPLES:]}
