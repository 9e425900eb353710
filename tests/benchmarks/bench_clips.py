"""The loader of clips against a bare copy of as many bytes: what drawing, addressing and gathering cost.

A batch has to be copied out of the shared array in any case, because the array is read-only and clips overlap. The bare
copy takes as many frames in one piece, from another place each time. Rounds alternate in one process, so that a busy
machine slows both alike; the ratio is the median of the ratios of neighbouring rounds.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from heliostat.data.loader import Loader
from heliostat.data.videos import VideoData

BATCH, FRAMES = 64, 16


def rows(quick: bool = False) -> list[dict[str, Any]]:
    """Clips per second of the loader over those of a bare copy, at two sizes and strides, and single frames."""
    rounds = 9 if quick else 99
    found = []
    for size, videos in ((64, 400), (112, 130)):
        for stride in (1, 4):
            data = noise(videos, size, stride)
            name = f"clips {BATCH} x {FRAMES} x 3 x {size} x {size} at stride {stride}"
            found.append(_compare(name, data, True, rounds))
    found.append(_compare(f"one frame of each video, {BATCH} x 3 x 64 x 64", noise(400, 64, 1), False, rounds))
    return found


def noise(videos: int, size: int, stride: int) -> VideoData:
    """Videos of 80 frames. The time of a batch does not depend on what is seen."""
    frames = np.random.default_rng(0).integers(0, 256, (videos * 80, 3, size, size), dtype=np.uint8)
    frames.flags.writeable = False
    starts = np.arange(videos + 1, dtype=np.int64) * 80
    return VideoData(
        frames=frames,
        starts=starts,
        labels=None,
        classes=(),
        name="noise",
        fingerprint="noise",
        clip_frames=FRAMES,
        clip_stride=stride,
    )


def _compare(name: str, data: VideoData, clips: bool, rounds: int) -> dict[str, Any]:
    loader = Loader(data, batch_size=BATCH, seed=0, clips=clips)
    count = BATCH * (FRAMES if clips else 1)
    places = np.random.default_rng(1).integers(0, len(data.frames) - count, rounds + 1)
    ours, bare = [], []
    for step in range(rounds + 1):
        ours.append(_seconds(lambda step=step: loader.batch(step)))  # type: ignore[misc]
        bare.append(_seconds(lambda at=places[step]: data.frames[at : at + count].copy()))  # type: ignore[misc]
    pairs = list(zip(ours[1:], bare[1:], strict=True))  # the first is a warm-up
    return {
        "name": f"{name}: loader over a bare copy of as many bytes",
        "ours": BATCH / statistics.median(seconds for seconds, _ in pairs),
        "other": BATCH / statistics.median(seconds for _, seconds in pairs),
        "ratio": statistics.median(other / seconds for seconds, other in pairs),
        "unit": f"clips/s of {FRAMES} frames" if clips else "frames/s",
        "higher_is_better": True,
    }


def _seconds(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


if __name__ == "__main__":
    for row in rows():
        frames = row["ours"] * (FRAMES if "clips" in row["unit"] else 1)
        print(f"{row['name']}: {row['ours']:,.0f} {row['unit']}, {frames:,.0f} frames/s, {row['ratio']:.2f} x")
