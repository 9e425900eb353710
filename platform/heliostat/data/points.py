"""Points in memory: samples of a few real numbers, for generative models whose truth is known.

Pixels are 8-bit numbers, and a mixture of narrow Gaussians would be cut into steps by them; so points are a kind of
samples of their own, which an algorithm has to say that it takes (``Algorithm.learns_from``).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Self

import numpy as np
import numpy.typing as npt

from heliostat.data.samples import Samples, Selection
from heliostat.errors import InputError

if TYPE_CHECKING:
    from heliostat_algorithms.algorithm import DataSpec
    from heliostat_algorithms.randomness import Random


@dataclass(frozen=True, kw_only=True, eq=False)
class PointData(Samples):
    """A data set of points of one dimension.

    Raises:
        InputError: there is no point, or a label is outside the classes.
        ValueError: an array has the wrong type or shape, which is a mistake of the code that read it.
    """

    points: npt.NDArray[np.float32]
    """(N, D), contiguous; may be read-only."""

    def __post_init__(self) -> None:
        points = self.points
        if points.dtype != np.float32 or points.ndim != 2 or not points.flags.c_contiguous:
            raise ValueError(f"points must be contiguous float32 (N, D), not {points.dtype} {points.shape}")
        if not len(points):
            raise InputError(f"{self.name} holds no points")
        super().__post_init__()

    def __len__(self) -> int:
        return len(self.points)

    def spec(self) -> DataSpec:
        """What an algorithm may know of the data before it sees a batch."""
        from heliostat_algorithms.algorithm import DataSpec

        classes = None if self.labels is None else len(self.classes)
        return DataSpec(image_shape=(1, 1, self.points.shape[1]), classes=classes, points=True)

    def select(
        self,
        indices: npt.NDArray[np.int64],
        *,
        clips: bool = True,
        random: Random | None = None,
        together: npt.NDArray[np.int64] | None = None,
    ) -> tuple[Selection, ...]:
        return (Selection("point", self.points, indices),)

    def _digest(self) -> str:
        digest = hashlib.sha256(np.array(self.points.shape, "<i8").tobytes())
        digest.update(self.points.astype("<f4", copy=False).tobytes())
        for array in self._further_arrays():
            digest.update(array.astype("<i8", copy=False).tobytes())
        return digest.hexdigest()

    def part(self, indices: npt.NDArray[np.int64], name: str) -> Self:
        return type(self)(
            points=self.points[indices],
            labels=None if self.labels is None else self.labels[indices],
            classes=self.classes,
            name=name,
            corrupt=self.corrupt,
        )


def ring(split: Literal["train", "test"], *, samples: int, modes: int, radius: float, deviation: float) -> PointData:
    """A mixture of Gaussians of equal weight, whose centres lie evenly on a circle around the origin; the label is the
    Gaussian. More samples leave the first ones as they are.

    Args:
        radius: of the circle.
        deviation: of each Gaussian in each direction.
    """
    from heliostat_algorithms.randomness import Random

    random = Random(0, 0, range(samples), scope=f"heliostat:ring:{split}")
    labels = random.integers("mode", modes)
    angles = labels.double() * (2 * np.pi / modes)
    centres = radius * np.stack([angles.cos().numpy(), angles.sin().numpy()], axis=1)
    points = centres + deviation * random.normal("place", 2).numpy()
    return PointData(
        points=np.ascontiguousarray(points, np.float32),
        labels=labels.numpy(),
        classes=tuple(str(mode) for mode in range(modes)),
        name=f"ring/{split}",
    )
