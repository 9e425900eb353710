"""Videos of agents at play are what was played."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Iterator
from itertools import count, pairwise
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from heliostat.errors import InputError, RunError
from heliostat.reinforcement.playing import TAKEN, Board, Moment, check_video, record

NAMES = ("NOOP", "FIRE", "RIGHT", "LEFT")
OTHER = (86, 180, 233)
Pixels = npt.NDArray[np.uint8]


def moment(
    step: int, q: list[float] | None = None, action: int | None = None, shape: tuple[int, int] = (21, 16)
) -> Moment:
    """A grey picture with one bright column, which moves; actions take turns."""
    frame = np.full((*shape, 3), 40, np.uint8)
    frame[:, step % shape[1]] = (250, 20, 160)
    q_values = np.array([1.0, 2.0, 3.0, 4.0] if q is None else q, np.float32)
    return Moment(frame, q_values, step % len(q_values) if action is None else action, 1.0, float(step))


def frames_of(path: Path) -> list[Pixels]:
    """(H, W, 3) each, decoded."""
    if path.suffix == ".gif":
        with Image.open(path) as image:
            frames = []
            for number in range(image.n_frames):  # type: ignore[attr-defined]
                image.seek(number)
                frames.append(np.asarray(image.convert("RGB")))
            return frames
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def box_of(pixels: Pixels, color: tuple[int, int, int], tolerance: int) -> tuple[int, int, int, int] | None:
    """Left, top, right, bottom (exclusive) around all pixels of a colour."""
    found = (abs(pixels.astype(int) - color) <= tolerance).all(axis=-1)
    if not found.any():
        return None
    rows, columns = np.flatnonzero(found.any(axis=1)), np.flatnonzero(found.any(axis=0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


@pytest.mark.parametrize(("suffix", "tolerance"), [(".gif", 0), (".mp4", 24)])
def test_the_file_holds_every_step_with_its_picture_and_its_action(tmp_path: Path, suffix: str, tolerance: int) -> None:
    path = tmp_path / f"play{suffix}"
    recording = record((moment(step) for step in range(9)), path, NAMES, 15)
    assert (recording.path, recording.frames, recording.seconds, recording.cut) == (path, 9, 9 / 15, False)
    frames = frames_of(path)
    board = Board((21, 16, 3), NAMES)
    assert len(frames) == 9
    assert {frame.shape for frame in frames} == {(board.size[1], board.size[0], 3)}
    scale = 480 // 21
    for step, frame in enumerate(frames):
        top = (board.size[1] - 21 * scale) // 2
        picture = frame[top : top + 21 * scale : scale, scale // 2 : 16 * scale : scale]  # one pixel of each square
        bright = abs(picture.astype(int) - (250, 20, 160)).max(axis=-1) < 60
        assert bright[5].nonzero()[0].tolist() == [step % 16]
        left, top, right, bottom = board.bar_box(step % 4)
        bar = frame[top + 2 : bottom - 2, left + 2]
        assert abs(bar.astype(int) - TAKEN).max() <= max(tolerance, 2)
        for other in set(range(4)) - {step % 4}:
            left, top, right, bottom = board.bar_box(other)
            assert box_of(frame[top:bottom, left:right], TAKEN, tolerance) is None
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(("suffix", "rate"), [(".gif", 15), (".gif", 7.5), (".mp4", 15), (".mp4", 59.94)])
def test_a_video_runs_at_its_speed(tmp_path: Path, suffix: str, rate: float) -> None:
    path = tmp_path / f"play{suffix}"
    record((moment(step) for step in range(31)), path, NAMES, rate)
    with av.open(str(path)) as container:
        times = [frame.time for frame in container.decode(video=0)]
    assert np.allclose(times, np.arange(31) / rate, atol=0.0051 if suffix == ".gif" else 1e-3)
    if suffix == ".gif":
        with Image.open(path) as image:
            lengths = []
            for number in range(31):
                image.seek(number)
                lengths.append(image.info["duration"])
        assert sum(lengths) == pytest.approx(31 / rate * 1000, abs=5)
        assert set(lengths) <= {10 * int(100 / rate), 10 * int(100 / rate) + 10}


def test_bars_are_as_long_as_their_values(tmp_path: Path) -> None:
    values = [0.25, 1.0, -0.5, 0.0]
    board = Board((21, 16, 3), NAMES)
    board.draw(moment(0, values, 1), 0)
    pixels = np.asarray(board.draw(moment(1, values, 1), 1))
    unit = 139 / (1.5 * 1.1)  # bars' width over values from -0.5 to 1, and a twentieth of that at both ends
    lengths = []
    for action in range(4):
        left, top, right, bottom = board.bar_box(action)
        box = box_of(pixels[top:bottom, left:right], TAKEN if action == 1 else OTHER, 0)
        lengths.append(0 if box is None else box[2] - box[0])
        if action == 2:
            assert box is not None
            assert box[2] <= (0.5 + 0.075) * unit + 1  # it goes to the left of zero
    assert np.allclose(lengths, np.abs(values) * unit, atol=2)


def test_the_axis_only_widens() -> None:
    board = Board((21, 16, 3), ("A", "B"))
    left, top, right, bottom = board.bar_box(0)

    def length(value: float) -> int:
        pixels = np.asarray(board.draw(moment(0, [value, 5.0], 0), 0))
        box = box_of(pixels[top:bottom, left:right], TAKEN, 0)
        assert box is not None
        return box[2] - box[0]

    assert length(10.0) == pytest.approx(140 * 21 / 22, abs=2)  # 5 to 10 and a twentieth on both sides
    assert length(20.0) == pytest.approx(140 * 21 / 22, abs=2)
    assert length(10.0) == pytest.approx(140 * (5.75 / 16.5), abs=2)  # 4.25 to 20.75


def test_values_that_are_not_finite_have_no_bar() -> None:
    board = Board((21, 16, 3), NAMES)
    pixels = np.asarray(board.draw(moment(0, [np.nan, np.inf, -np.inf, np.nan], 1), 0))
    pixels = np.asarray(board.draw(moment(0, [np.nan, np.inf, -np.inf, 2.0], 1), 1))
    for action in range(3):
        left, top, right, bottom = board.bar_box(action)
        for color in (TAKEN, OTHER):
            assert box_of(pixels[top:bottom, left:right], color, 0) is None
    left, top, right, bottom = board.bar_box(3)
    assert box_of(pixels[top:bottom, left:right], OTHER, 0) is not None


@pytest.mark.parametrize(
    ("shape", "scale"), [((10, 10), 48), ((210, 160), 2), ((400, 600), 1), ((96, 96), 5), ((700, 900), 1)]
)
@pytest.mark.parametrize("actions", [2, 18])
def test_pictures_are_enlarged_to_a_readable_size(shape: tuple[int, int], scale: int, actions: int) -> None:
    board = Board((*shape, 3), [f"UPRIGHTFIRE {n}" for n in range(actions)], "montezuma_revenge")
    image = board.draw(moment(0, [0.5] * actions, 0, shape), 0)
    assert (image.size, board.scale) == (board.size, scale)
    width, height = board.size
    assert height >= max(360, shape[0] * scale)
    assert width % 2 == height % 2 == 0
    boxes = [board.bar_box(action) for action in range(actions)]
    assert all(box[3] - box[1] >= 12 for box in boxes)
    assert all(below[1] > above[3] for above, below in pairwise(boxes))
    assert boxes[-1][3] <= height
    assert boxes[0][0] > shape[1] * scale


def test_text_changes_with_what_it_says() -> None:
    """The return and the step stand above the bars."""
    board = Board((21, 16, 3), NAMES)
    still = moment(3)
    above = slice(0, board.bar_box(0)[1] - 4)

    def header(moment: Moment, step: int) -> Pixels:
        return np.asarray(board.draw(moment, step))[above, 16 * board.scale :]

    same = header(still, 3)
    assert np.array_equal(header(still, 3), same)
    assert not np.array_equal(header(still, 4), same)
    other = Moment(still.frame, still.q_values, still.action, still.reward, 4.0)
    assert not np.array_equal(header(other, 3), same)
    other = Moment(still.frame, still.q_values, still.action, 0.0, still.episode_return)
    assert not np.array_equal(header(other, 3), same)


def test_a_gif_has_a_limit_that_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "play.gif"
    asked = []

    def play() -> Iterator[Moment]:
        for step in count():
            asked.append(step)
            yield moment(step)

    recording = record(play(), path, NAMES, 10, gif_frames=20)
    assert (recording.frames, recording.seconds, recording.cut) == (20, 2.0, True)
    assert len(frames_of(path)) == 20
    assert len(asked) <= 21
    assert "ends after 20 frames (2 s)" in caplog.text
    caplog.clear()
    assert not record((moment(step) for step in range(20)), path, NAMES, 10, gif_frames=20).cut
    assert not caplog.text


def test_an_mp4_is_written_while_the_agent_plays(tmp_path: Path) -> None:
    pictures: list[weakref.ref[Pixels]] = []
    held = []

    def play() -> Iterator[Moment]:
        for step in range(60):
            made = moment(step)
            pictures.append(weakref.ref(made.frame))
            yield made
            del made
            held.append(sum(picture() is not None for picture in pictures))

    record(play(), tmp_path / "play.mp4", NAMES, 30)
    assert len(frames_of(tmp_path / "play.mp4")) == 60
    assert max(held) <= 2


@pytest.mark.parametrize("suffix", [".gif", ".mp4"])
def test_play_that_fails_leaves_the_file_before(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"play{suffix}"
    path.write_bytes(b"the video before")

    def play() -> Iterator[Moment]:
        yield moment(0)
        yield moment(1)
        raise RunError("the emulator hangs")

    with pytest.raises(RunError, match="the emulator hangs"):
        record(play(), path, NAMES, 10)
    assert path.read_bytes() == b"the video before"
    assert list(tmp_path.iterdir()) == [path]


def test_without_a_moment_there_is_no_video(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="nothing was played"):
        record(iter(()), tmp_path / "play.gif", NAMES, 10)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("suffix", [".gif", ".mp4"])
def test_a_file_that_cannot_be_written_is_told(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"play{suffix}"
    path.mkdir()
    with pytest.raises(RunError, match="cannot be written"):
        record([moment(0)], path, NAMES, 10)


@pytest.mark.parametrize(
    ("name", "rate", "message"),
    [
        ("play.avi", 15, r"as \.gif or \.mp4, not as 'play.avi'"),
        ("play", 15, r"as \.gif or \.mp4"),
        ("missing/play.gif", 15, "there is no folder"),
        ("play.gif", 60, "1 to 50 frames per second, not 60"),
        ("play.mp4", 0, "1 to 1000 frames per second, not 0"),
        ("play.mp4", float("nan"), "not nan"),
    ],
)
def test_what_cannot_be_a_video_is_refused(tmp_path: Path, name: str, rate: float, message: str) -> None:
    with pytest.raises(InputError, match=message):
        record([moment(0)], tmp_path / name, NAMES, rate)


def test_mp4_without_its_encoder_says_how_to_install_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(InputError, match=r"pip install 'heliostat\[video\]'"):
        check_video(tmp_path / "play.mp4", 15)
    check_video(tmp_path / "play.gif", 15)
    assert record([moment(0), moment(1)], tmp_path / "play.gif", NAMES, 15).frames == 2


@pytest.mark.parametrize(
    ("second", "message"),
    [
        (moment(1, shape=(20, 16)), r"uint8 \(21, 16, 3\), not uint8 \(20, 16, 3\)"),
        (moment(1, [1.0, 2.0]), r"4 actions, but \[2\] Q-values"),
        (moment(1, action=4), "action 4"),
    ],
)
def test_moments_that_do_not_fit_are_refused(tmp_path: Path, second: Moment, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        record([moment(0), second], tmp_path / "play.gif", NAMES, 10)
    assert not list(tmp_path.iterdir())
