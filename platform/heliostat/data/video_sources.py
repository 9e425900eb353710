"""Sources that give videos, and Atari pictures: recorded, generated or decoded."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, model_validator

from heliostat.data.download import cache_folder
from heliostat.data.images import ImageData
from heliostat.data.locations import absolute
from heliostat.data.samples import Progress
from heliostat.data.source import Cached, Location, Source
from heliostat.data.videos import VideoData, span
from heliostat.errors import InputError


class Clip(BaseModel):
    """What is cut from a video for each step."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    frames: int = Field(default=16, ge=1)
    """T, the frames of a clip."""
    stride: int = Field(default=1, ge=1)
    """How many frames further in the video the next frame of the clip is; 2 leaves out every other one."""

    @property
    def span(self) -> int:
        """Frames of the video from a clip's first to its last one, both counted."""
        return span(self.frames, self.stride)


Games = Annotated[str, Field(min_length=1)] | Annotated[tuple[str, ...], Field(min_length=1)]
_RECORDING = 1
"""Part of a recording's identity; counted up when the same settings give other pixels."""


class Atari(Cached):
    """What is recorded from the Atari emulator."""

    games: Games
    """One or several of the emulator's games by their names there, such as pong, breakout, ms_pacman."""
    split: Literal["train", "test"]
    """Other matches; of the same settings, they never change."""
    image_size: int = Field(default=64, ge=8, le=160)
    """Pixels: the whole screen (210 x 160) becomes a square, each pixel the mean of its area."""
    channels: Literal[3, 1] = 3
    """3 for RGB, 1 for grey."""

    @property
    def played(self) -> tuple[str, ...]:
        """``games`` as a list, always."""
        return (self.games,) if isinstance(self.games, str) else self.games

    @model_validator(mode="after")
    def _each_once(self) -> Self:
        if len(set(self.played)) < len(self.played):
            raise ValueError(f"games: each may be named once, got {list(self.played)}")
        return self

    def check(self) -> list[str]:
        from heliostat.data.atari import check_games

        problems = super().check()
        try:
            check_games(self.played)
        except InputError as error:
            problems += [str(problem) for problem in error.problems]
        return problems

    def _recorded(
        self, *, videos: int, frames: int, frame_skip: int, label: str, progress: Progress | None
    ) -> dict[str, Any]:
        """``frames`` (videos, frames, C, H, W) and ``labels`` (videos,)."""
        from importlib.metadata import version

        from heliostat.data.recordings import recorded

        def record() -> dict[str, Any]:
            from heliostat.data.atari import Shape, record_games
            from heliostat.data.freeway import record_traffic
            from heliostat.data.pong import record_directions
            from heliostat.data.riverraid import record_speeds

            shape = Shape(frames=frames, frame_skip=frame_skip, image_size=self.image_size, channels=self.channels)
            match label:
                case "ball-direction":
                    pixels, labels = record_directions(self.split, videos, shape, progress)
                case "river-speed":
                    pixels, labels = record_speeds(self.split, videos, shape, progress)
                case "traffic-speed":
                    pixels, labels = record_traffic(self.split, videos, shape, progress)
                case _:
                    pixels, labels = record_games(self.played, self.split, videos, shape, progress)
            return {"frames": pixels, "labels": labels}

        settings = {
            "recording": _RECORDING,
            "emulator": version("ale-py"),
            "games": self.played,
            "split": self.split,
            "image_size": self.image_size,
            "channels": self.channels,
            "videos": videos,
            "frames": frames,
            "frame_skip": frame_skip,
            "label": label,
        }
        name = f"atari-{'-'.join(self.played[:3])}-{self.split}"
        return recorded(cache_folder(self.cache) / "atari", name, settings, record)


class AtariFrames(Atari):
    """Pictures of Atari games, recorded from the emulator; the class is the game."""

    source: Literal["atari-frames"]
    images: int = Field(gt=0)
    """How many; the games take turns."""

    def load(self, progress: Progress | None = None) -> ImageData:
        found = self._recorded(videos=self.images, frames=1, frame_skip=1, label="game", progress=progress)
        return ImageData(
            images=found["frames"][:, 0],
            labels=found["labels"],
            classes=self.played,
            name=f"atari-frames/{'+'.join(self.played)}/{self.split}",
        )


_MOTIONS = {"ball-direction": "pong", "river-speed": "riverraid", "traffic-speed": "freeway"}
"""Labels of motion, and the game that has them."""


class AtariClips(Atari):
    """Videos of Atari games, recorded from the emulator; the class is the game or a motion that one frame hides."""

    source: Literal["atari-clips"]
    videos: int = Field(gt=0)
    """How many; the classes take turns."""
    clip: Clip = Clip()
    """The frames that each step sees of a video."""
    video_frames: int | None = Field(default=None, gt=0)
    """Frames of each video, at least those that a clip spans. Null: exactly those, so that each video is one clip."""
    frame_skip: int = Field(default=2, ge=1)
    """Frames of the emulator, which makes 60 a second, from one frame of a video to the next."""
    label: Literal["game", "ball-direction", "river-speed", "traffic-speed"] = "game"
    """``ball-direction``: the ball of Pong flies left-up, left-down, right-up or right-down, without a bounce, and
    where it is in a frame does not tell which. ``river-speed``: the plane of River Raid flies slowly, cruises or flies
    fast, over the same stretches of river. ``traffic-speed``: all cars of Freeway are slow, medium or fast, and are
    anywhere."""

    @property
    def _length(self) -> int:
        return self.clip.span if self.video_frames is None else self.video_frames

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        game = _MOTIONS.get(self.label)
        if game is not None and self.played != (game,):
            raise ValueError(f"label: {self.label} is known of {game} alone, not of {', '.join(self.played)}")
        if self._length < self.clip.span:
            raise ValueError(
                f"video_frames: a clip of {self.clip.frames} frames at stride {self.clip.stride} spans "
                f"{self.clip.span} frames, so videos of {self._length} are too short"
            )
        return self

    def check(self) -> list[str]:
        from heliostat.data.pong import check_flight

        problems = super().check()
        if self.label == "ball-direction":
            try:
                check_flight(self._length, self.frame_skip)
            except InputError as error:
                problems += [str(problem) for problem in error.problems]
        return problems

    def load(self, progress: Progress | None = None) -> VideoData:
        from heliostat.data import freeway, pong, riverraid

        classes = {
            "ball-direction": tuple(pong.DIRECTIONS),
            "river-speed": tuple(riverraid.SPEEDS),
            "traffic-speed": tuple(freeway.SPEEDS),
        }
        found = self._recorded(
            videos=self.videos,
            frames=self._length,
            frame_skip=self.frame_skip,
            label=self.label,
            progress=progress,
        )
        return VideoData(
            frames=found["frames"].reshape(-1, *found["frames"].shape[2:]),
            starts=np.arange(self.videos + 1, dtype=np.int64) * self._length,
            labels=found["labels"],
            classes=classes.get(self.label, self.played),
            name=f"atari-clips/{'+'.join(self.played)}/{self.split}",
            clip_frames=self.clip.frames,
            clip_stride=self.clip.stride,
        )


class GeneratedVideos(Source):
    """What sources have in common that make their videos on the spot; nothing to download."""

    split: Literal["train", "test"]
    """Other videos in each."""
    videos: int = Field(gt=0)
    """How many. More leave the first ones as they are."""
    video_frames: int = Field(default=20, gt=0)
    """Frames of each video."""
    clip: Clip = Clip()
    """The frames that each step sees of a video."""

    @model_validator(mode="after")
    def _long_enough(self) -> Self:
        if self.video_frames < self.clip.span:
            raise ValueError(
                f"video_frames: a clip of {self.clip.frames} frames at stride {self.clip.stride} spans "
                f"{self.clip.span} frames, so videos of {self.video_frames} are too short"
            )
        return self

    def _data(
        self, name: str, frames: npt.NDArray[np.uint8], labels: npt.NDArray[np.int64], classes: tuple[str, ...]
    ) -> VideoData:
        """From frames (videos, video_frames, C, H, W)."""
        return VideoData(
            frames=frames.reshape(-1, *frames.shape[2:]),
            starts=np.arange(self.videos + 1, dtype=np.int64) * self.video_frames,
            labels=labels,
            classes=classes,
            name=f"{name}/{self.split}",
            clip_frames=self.clip.frames,
            clip_stride=self.clip.stride,
        )


class MovingDigits(GeneratedVideos):
    """Handwritten digits that move over a black canvas, made from scikit-learn's digits; nothing to download."""

    source: Literal["moving-digits"]
    digits: Literal[1, 2] = 1
    """A second digit is half as bright."""
    image_size: Literal[32, 64] = 32
    """Pixels; digits are half as large."""
    label: Literal["digit", "direction"] = "digit"
    """The class is the (bright) digit, which bounces off the edges, or its direction, one of eight: then it leaves at
    one edge and comes back at the opposite one, so that the direction lasts."""

    def load(self, progress: Progress | None = None) -> VideoData:
        from heliostat.data.moving_digits import DIRECTIONS, moving_digits

        frames, labels = moving_digits(
            self.split,
            videos=self.videos,
            frames=self.video_frames,
            digits=self.digits,
            image_size=self.image_size,
            label=self.label,
        )
        return self._data("moving-digits", frames, labels, tuple("0123456789") if self.label == "digit" else DIRECTIONS)


class BouncingShapes(GeneratedVideos):
    """White shapes that fly at constant speed and bounce off the walls; nothing to download."""

    source: Literal["bouncing-shapes"]
    video_frames: int = Field(default=8, gt=0)
    """Frames of each video."""
    clip: Clip = Clip(frames=8)
    """The frames that each step sees of a video."""
    image_size: Literal[16, 32, 64] = 16
    """Pixels. Speeds are uniform from 3 % to 12 % of it per frame."""
    label: Literal["shape", "speed"] = "shape"
    """The class is the shape (disc, square, cross), or the third of the range of speeds (slow, medium, fast)."""

    def load(self, progress: Progress | None = None) -> VideoData:
        from heliostat.data.bouncing_shapes import SHAPES, SPEEDS, bouncing_shapes

        made = bouncing_shapes(
            self.split,
            videos=self.videos,
            frames=self.video_frames,
            image_size=self.image_size,
            label=self.label,
        )
        return self._data("bouncing-shapes", made.frames, made.labels, SHAPES if self.label == "shape" else SPEEDS)


class VideoFolder(Source):
    """Video files, in one sub-folder per class (classes in sorted order) or in one flat folder without labels."""

    source: Literal["video-folder"]
    path: Location
    """A folder; local, or a URI such as ``s3://bucket/folder``."""
    image_size: int = Field(gt=0)
    """Pixels: the shorter side is resized to it and the centre square cut out."""
    clip: Clip = Clip()
    """The frames that each step sees of a video."""
    frame_rate: float | None = Field(default=None, gt=0)
    """Frames per second that are kept, so that clips of all files are equally long in time. Null: all frames."""
    channels: Literal[3, 1] = 3
    """3 for RGB, 1 for grey."""
    max_corrupt: float = Field(default=0.0, ge=0.0, le=1.0)
    """The share of videos, 0 to 1, that may be impossible to decode; they are left out and named."""

    def check(self) -> list[str]:
        from heliostat.data.video_folder import check_decoder, list_videos

        problems = []
        for look in (check_decoder, lambda: list_videos(self.path)):
            try:
                look()
            except InputError as error:
                problems += [str(problem) for problem in error.problems]
        return problems

    def resolved(self) -> Self:
        return self.model_copy(update={"path": absolute(self.path)})

    def load(self, progress: Progress | None = None) -> VideoData:
        from heliostat.data.video_folder import Decoding, list_videos, load_videos

        return load_videos(
            list_videos(self.path),
            Decoding(image_size=self.image_size, channels=self.channels, frame_rate=self.frame_rate),
            clip_frames=self.clip.frames,
            clip_stride=self.clip.stride,
            max_corrupt=self.max_corrupt,
            progress=progress,
        )
