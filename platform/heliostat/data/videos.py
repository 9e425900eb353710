"""Videos in memory: all frames stored once, of which every step reads other clips.

A clip is ``clip_frames`` frames of one video, ``clip_stride`` apart. Training takes it from a random place of its
video, evaluation from the middle. Methods that learn from images are given one random frame instead.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import numpy as np
import numpy.typing as npt

from heliostat.data.samples import PictureSamples, Selection
from heliostat.errors import InputError

if TYPE_CHECKING:
    from heliostat_algorithms.algorithm import DataSpec
    from heliostat_algorithms.randomness import Random

_WORD_BITS = 31
"""Random bits that decide a place in a video: exact to 1e-6 for videos of two thousand frames."""


def span(frames: int, stride: int) -> int:
    """Frames of the video from a clip's first to its last one, both counted."""
    return (frames - 1) * stride + 1


def check_lengths(
    lengths: npt.NDArray[np.int64], frames: int, stride: int, name: str, where: Callable[[int], str]
) -> None:
    """Whether each video is at least as long as a clip.

    Args:
        lengths: (N,) frames of the videos.
        frames, stride: of a clip.
        name: of the data set.
        where: names a video by its number.

    Raises:
        InputError: some are shorter; names them.
    """
    needed = span(frames, stride)
    short = np.flatnonzero(lengths < needed).tolist()
    if short:
        named = "; ".join(f"{where(video)} has {lengths[video]}" for video in short[:5])
        raise InputError(
            f"a clip of {frames} frames at stride {stride} spans {needed} frames of its video, and {len(short)} of "
            f"{len(lengths)} videos of {name} are shorter: {named}{'; ...' if len(short) > 5 else ''}. Leave them out, "
            f"or take shorter clips: the shortest video has {lengths.min()} frames"
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class VideoData(PictureSamples):
    """A data set of videos of one picture size, decoded; a sample is a video.

    Raises:
        InputError: there is no video, a video is shorter than a clip, or a label is outside the classes.
        ValueError: an array has the wrong type or shape, which is a mistake of the code that read it.
    """

    frames: npt.NDArray[np.uint8]
    """(F, C, H, W), contiguous: one video after another; may be read-only."""
    starts: npt.NDArray[np.int64]
    """(N + 1,): video n is ``frames[starts[n] : starts[n + 1]]``."""
    clip_frames: int
    """T, the frames of a clip."""
    clip_stride: int = 1
    """How many frames further in the video the next frame of the clip is; 2 leaves out every other one."""

    def __post_init__(self) -> None:
        frames, starts = self.frames, self.starts
        if frames.dtype != np.uint8 or frames.ndim != 4 or not frames.flags.c_contiguous:
            raise ValueError(f"frames must be contiguous uint8 (F, C, H, W), not {frames.dtype} {frames.shape}")
        if starts.dtype != np.int64 or starts.ndim != 1 or not len(starts):
            raise ValueError(f"starts must be int64 (N + 1,), not {starts.dtype} {starts.shape}")
        if len(starts) == 1:
            raise InputError(f"{self.name} holds no videos")
        if starts[0] != 0 or starts[-1] != len(frames) or (np.diff(starts) < 0).any():
            raise ValueError(f"starts must rise from 0 to {len(frames)}, the number of frames")
        if self.clip_frames < 1 or self.clip_stride < 1:
            raise ValueError(f"clips have frames and a stride from 1, not {self.clip_frames} and {self.clip_stride}")
        check_lengths(self.lengths, self.clip_frames, self.clip_stride, self.name, lambda video: f"video {video}")
        super().__post_init__()

    @property
    def pictures(self) -> npt.NDArray[np.uint8]:
        return self.frames

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """(N,): frames of each video."""
        return np.diff(self.starts)

    @property
    def span(self) -> int:
        """Frames of the video from a clip's first to its last one, both counted."""
        return span(self.clip_frames, self.clip_stride)

    def __len__(self) -> int:
        return len(self.starts) - 1

    def spec(self) -> DataSpec:
        """What an algorithm may know of the data before it sees a batch."""
        from heliostat_algorithms.algorithm import DataSpec

        _, channels, height, width = self.frames.shape
        return DataSpec(
            image_shape=(channels, height, width),
            classes=None if self.labels is None else len(self.classes),
            frames=self.clip_frames,
        )

    def select(
        self,
        indices: npt.NDArray[np.int64],
        *,
        clips: bool = True,
        random: Random | None = None,
        together: npt.NDArray[np.int64] | None = None,
    ) -> tuple[Selection, ...]:
        # A middle that falls between two places is the earlier one.
        places = self.lengths[indices] - (self.span if clips else 1) + 1
        first = self.starts[indices] + ((places - 1) // 2 if random is None else _draw(random, places))
        if not clips:
            return (Selection("image", self.frames, first),)
        return (Selection("video", self.frames, first[:, None] + np.arange(self.clip_frames) * self.clip_stride),)

    def part(self, indices: npt.NDArray[np.int64], name: str) -> Self:
        lengths = self.lengths[indices]
        starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        rows = np.repeat(self.starts[indices] - starts[:-1], lengths) + np.arange(starts[-1])
        return type(self)(
            frames=self.frames[rows],
            starts=starts,
            labels=None if self.labels is None else self.labels[indices],
            classes=self.classes,
            name=name,
            corrupt=self.corrupt,
            clip_frames=self.clip_frames,
            clip_stride=self.clip_stride,
        )

    def _further_arrays(self) -> list[npt.NDArray[np.int64]]:
        return [self.starts, *super()._further_arrays()]


def _draw(random: Random, places: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """(B,): in each row a place below its own number of them."""
    words: npt.NDArray[np.int64] = random.integers("place", 1 << _WORD_BITS).numpy()
    if len(words) != len(places):
        raise ValueError(f"the draws have {len(words)} rows, but there are {len(places)} samples")
    return (words * places) >> _WORD_BITS
