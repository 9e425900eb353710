"""Video files in folders, decoded by PyAV (FFmpeg), which the extra ``video`` installs.

Files may be of any length and shape: the shorter side is resized, the centre square cut out. A rotation that a file
only announces is ignored. A file that cannot be decoded to its end is left out, counted and named; of formats that do
not say how many frames there are (Matroska, GIF, MPEG-TS), one that was cut off between two frames ends there.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np

from heliostat.data.folders import Listing, list_folder
from heliostat.data.samples import CorruptItem, Progress
from heliostat.data.videos import VideoData, check_lengths
from heliostat.errors import InputError

if TYPE_CHECKING:
    from av.video.frame import VideoFrame

EXTENSIONS = frozenset(
    {"mp4", "m4v", "mov", "mkv", "webm", "avi", "gif", "mpg", "mpeg", "ts", "ogv", "wmv", "flv", "3gp"}
)

_SLACK = 0.01
"""Share by which a file's frame rate may miss the wanted one: 29.97 passes for 30."""

logger = logging.getLogger(__name__)


class CorruptVideo(Exception):  # noqa: N818 - handled where it happens, never shown as an error
    """A video that cannot be decoded; the message is the reason."""


def check_decoder() -> None:
    """Whether videos can be decoded here.

    Raises:
        InputError: PyAV is not installed; says how to install it.
    """
    if find_spec("av") is None:
        raise InputError("videos are decoded by PyAV, which is not installed: pip install 'heliostat[video]'")


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """How files become frames."""

    image_size: int
    """Pixels: the shorter side is resized to it and the centre square cut out."""
    channels: int
    """3 for RGB, 1 for grey."""
    frame_rate: float | None
    """Frames per second that are kept; None keeps all."""

    def decode(self, filesystem: Any, path: str) -> list[bytes]:
        """The frames of a file, each (C, H, W) uint8.

        Raises:
            CorruptVideo: it cannot be decoded to its end.
            InputError: it cannot be read, or has fewer frames per second than wanted.
        """
        import av

        frames: list[bytes] = []
        try:
            with filesystem.open_input_file(path) as file, av.open(file) as container:
                if not container.streams.video:
                    raise CorruptVideo("it holds no video")
                stream = container.streams.video[0]
                stream.thread_type = "AUTO"
                rate = stream.average_rate
                if self.frame_rate is not None and rate is not None and rate < self.frame_rate * (1 - _SLACK):
                    raise InputError(
                        f"{path} has {float(rate):.4g} frames per second, so frame_rate: {self.frame_rate:g} cannot be "
                        "taken from it; take a smaller one, or leave the file out"
                    )
                for frame in container.decode(stream):
                    if frame.is_corrupt:
                        raise CorruptVideo(f"frame {len(frames)} is broken")
                    if self._wanted(frame, len(frames)):
                        frames.append(self._square(frame))
        except av.error.FFmpegError as error:
            raise CorruptVideo(error.strerror or str(error)) from error
        except OSError as error:
            raise InputError(f"{path} cannot be read: {error}") from error
        if not frames:
            raise CorruptVideo("it holds no frames")
        return frames

    def _wanted(self, frame: VideoFrame, kept: int) -> bool:
        """Of each interval the first frame."""
        return self.frame_rate is None or frame.time is None or frame.time >= (kept - _SLACK) / self.frame_rate

    def _square(self, frame: VideoFrame) -> bytes:
        from av.video.reformatter import Interpolation

        size, shorter = self.image_size, min(frame.width, frame.height)
        width, height = (max(size, round(side * size / shorter)) for side in (frame.width, frame.height))
        exact = Interpolation.ACCURATE_RND | Interpolation.BITEXACT  # the same pixels on every processor
        pixels = frame.to_ndarray(
            width=width,
            height=height,
            format="rgb24" if self.channels == 3 else "gray",
            interpolation=Interpolation.BICUBIC | exact,
        ).reshape(height, width, self.channels)
        left, top = (width - size) // 2, (height - size) // 2
        return pixels[top : top + size, left : left + size].transpose(2, 0, 1).tobytes()


def list_videos(path: str) -> Listing:
    """The video files of a folder.

    Raises:
        InputError: as ``list_folder``.
    """
    return list_folder(path, EXTENSIONS, "videos")


def load_videos(
    listing: Listing,
    decoding: Decoding,
    *,
    clip_frames: int,
    clip_stride: int,
    max_corrupt: float,
    progress: Progress | None = None,
) -> VideoData:
    """Decode all files.

    Args:
        clip_frames, clip_stride: of the clips that are cut from them.
        max_corrupt: the share of files, 0 to 1, that may be corrupt.

    Raises:
        InputError: a file cannot be read or is shorter than a clip, or too many are corrupt.
    """
    check_decoder()
    if listing.skipped:
        shown = ", ".join(listing.skipped[:3]) + (", ..." if len(listing.skipped) > 3 else "")
        logger.warning("%s: %d files are not videos and are left out: %s", listing.path, len(listing.skipped), shown)
    pixels = bytearray()  # grows in place: a list of arrays would be there twice at the end
    lengths, kept, corrupt = [], [], []
    for number, path in enumerate(listing.files):
        try:
            frames = decoding.decode(listing.filesystem, path)
        except CorruptVideo as reason:
            corrupt.append(CorruptItem(path, str(reason)))
        else:
            for frame in frames:
                pixels += frame
            lengths.append(len(frames))
            kept.append(number)
        if progress is not None:
            progress(f"decoding {listing.path}", number + 1, len(listing.files))
    _check_share(corrupt, listing, max_corrupt)
    check_lengths(np.array(lengths), clip_frames, clip_stride, listing.path, lambda video: listing.files[kept[video]])
    size = decoding.image_size
    return VideoData(
        frames=np.frombuffer(pixels, np.uint8).reshape(-1, decoding.channels, size, size),
        starts=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        labels=np.array(listing.labels, np.int64)[kept] if listing.classes else None,
        classes=listing.classes,
        name=listing.path,
        corrupt=tuple(corrupt),
        clip_frames=clip_frames,
        clip_stride=clip_stride,
    )


def _check_share(corrupt: list[CorruptItem], listing: Listing, max_corrupt: float) -> None:
    count = len(listing.files)
    first = "; ".join(f"{item.where}: {item.why}" for item in corrupt[:5]) + ("; ..." if len(corrupt) > 5 else "")
    if len(corrupt) > max_corrupt * count:
        raise InputError(
            f"{len(corrupt)} of {count} videos of {listing.path} cannot be decoded ({first}). Repair them, or set "
            f"max_corrupt: {math.ceil(len(corrupt) / count * 1e4) / 1e4} to leave them out"
        )
    if len(corrupt) == count:
        raise InputError(f"none of the {count} videos of {listing.path} can be decoded ({first})")
