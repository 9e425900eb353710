from __future__ import annotations

import logging
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from pydantic import ValidationError

from heliostat.data import VideoData, video_folder
from heliostat.data.sources import VideoFolder
from heliostat.errors import InputError

RATE = 30


def write(path: Path, count: int, size: tuple[int, int] = (32, 24), rate: int = RATE, codec: str | None = None) -> Path:
    """A video whose frame n is grey of the level 10 + 6 n, with a white bar at its left and a black one at its right
    edge; (width, height)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    gif = path.suffix == ".gif"
    width, height = size
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec or ("gif" if gif else "mpeg4"), rate=rate)
        stream.width, stream.height, stream.pix_fmt = width, height, "rgb8" if gif else "yuv420p"
        if not gif:
            stream.bit_rate = 4_000_000
            stream.gop_size = 5
        for number in range(count):
            pixels = np.full((height, width, 3), 10 + 6 * number, np.uint8)
            pixels[:, :2], pixels[:, -2:] = 255, 0
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def source(path: Path, **fields: Any) -> VideoFolder:
    return VideoFolder.model_validate(
        {"source": "video-folder", "path": str(path), "image_size": 12, "clip": {"frames": 4}} | fields
    )


def levels(data: VideoData, video: int) -> list[int]:
    """Which of the written frames a video's are, by their grey."""
    own = data.frames[data.starts[video] : data.starts[video + 1], :, 4:8, 4:8].astype(float)
    return ((own.mean(axis=(1, 2, 3)) - 10) / 6).round().astype(int).tolist()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Classes "run" (2 videos, one of them deeper) and "walk" (1)."""
    write(tmp_path / "set" / "run" / "1.mp4", 9)
    write(tmp_path / "set" / "run" / "more" / "0.avi", 7)
    write(tmp_path / "set" / "walk" / "a.MKV", 12)
    return tmp_path / "set"


def test_sub_folders_are_classes(folder):
    assert source(folder).check() == []
    data = source(folder).load()
    assert data.classes == ("run", "walk")
    assert data.labels.tolist() == [0, 0, 1]
    assert data.lengths.tolist() == [9, 7, 12]
    assert [levels(data, video) for video in range(3)] == [list(range(n)) for n in (9, 7, 12)]
    assert data.frames.shape == (28, 3, 12, 12)
    assert (data.name, data.clip_frames, data.clip_stride) == (str(folder), 4, 1)


def test_uri_gives_the_same(folder):
    uri = source(folder).model_copy(update={"path": f"file://{folder}"})
    assert uri.check() == []
    assert uri.load().fingerprint == source(folder).load().fingerprint


def test_flat_folder_has_no_labels(tmp_path):
    for name in ("b.mp4", "a.mp4"):
        write(tmp_path / name, 5 if name == "b.mp4" else 6)
    data = source(tmp_path).load()
    assert data.labels is None
    assert data.classes == ()
    assert data.lengths.tolist() == [6, 5]


def test_animated_gifs_are_videos(tmp_path):
    write(tmp_path / "a.gif", 8, rate=10)
    data = source(tmp_path).load()
    greys = data.frames[:, :, 6, 6].astype(int)
    assert data.lengths.tolist() == [8]
    assert np.abs(greys - (10 + 6 * np.arange(8))[:, None]).max() < 45  # eight levels of red and green, four of blue


@pytest.mark.parametrize("size", [(64, 24), (24, 64)])
def test_the_shorter_side_is_resized_and_the_centre_cut_out(tmp_path, size):
    write(tmp_path / "a.mp4", 4, size=size)
    frame = source(tmp_path).load().frames[0].astype(int)
    if size[0] > size[1]:  # the bars at the edges are cut away
        assert np.abs(frame - 10).max() < 12
    else:
        assert frame[:, :, 0].min() > 150
        assert frame[:, :, -1].max() < 12
        assert np.abs(frame[:, :, 3:9] - 10).max() < 12


def test_grey(folder):
    data = source(folder, channels=1).load()
    assert data.frames.shape == (28, 1, 12, 12)
    assert levels(data, 2) == list(range(12))


@pytest.mark.parametrize(("frame_rate", "kept"), [(30, range(12)), (15, range(0, 12, 2)), (10, range(0, 12, 3))])
def test_frame_rate_keeps_the_first_frame_of_each_interval(tmp_path, frame_rate, kept):
    write(tmp_path / "a.mp4", 12)
    assert levels(source(tmp_path, frame_rate=frame_rate).load(), 0) == list(kept)


def test_frame_rate_that_does_not_divide(tmp_path):
    write(tmp_path / "a.mp4", 30)
    assert levels(source(tmp_path, frame_rate=12).load(), 0) == [0, 3, 5, 8, 10, 13, 15, 18, 20, 23, 25, 28]


def test_more_frames_than_there_are_cannot_be_had(tmp_path):
    path = write(tmp_path / "a.mp4", 12, rate=10)
    with pytest.raises(InputError, match=f"{path} has 10 frames per second, so frame_rate: 25 cannot be taken"):
        source(tmp_path, frame_rate=25).load()


def test_short_videos_are_named(folder):
    with pytest.raises(InputError) as error:
        source(folder, clip={"frames": 5, "stride": 2}).load()
    assert f"1 of 3 videos of {folder} are shorter: {folder}/run/more/0.avi has 7" in str(error.value)


@pytest.mark.parametrize("damage", ["text", "empty", "half", "hole"])
def test_broken_files_below_and_above_the_share(folder, damage):
    bad = folder / "run" / "1.mp4"
    write(bad, 40)
    content = bad.read_bytes()
    hole = content[: len(content) // 3] + bytes(len(content) // 2) + content[len(content) // 3 + len(content) // 2 :]
    bad.write_bytes({"text": b"not a video", "empty": b"", "half": content[: len(content) // 2], "hole": hole}[damage])
    with pytest.raises(
        InputError, match=rf"1 of 3 videos of {folder} cannot be decoded \({bad}: .*max_corrupt: 0.3334"
    ):
        source(folder, max_corrupt=0.1).load()
    data = source(folder, max_corrupt=0.34).load()
    assert data.lengths.tolist() == [7, 12]
    assert data.labels.tolist() == [0, 1]
    assert [levels(data, video) for video in (0, 1)] == [list(range(7)), list(range(12))]
    assert [item.where for item in data.corrupt] == [str(bad)]


def test_a_file_that_ends_early_is_broken(tmp_path):
    """An .avi can be played as far as it goes, which is not enough."""
    path = write(tmp_path / "a.avi", 40)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(InputError, match="1 of 1 videos"):
        source(tmp_path).load()


def test_nothing_good_is_an_error_whatever_is_allowed(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"not a video")
    with pytest.raises(InputError, match="none of the 1 videos"):
        source(tmp_path, max_corrupt=1.0).load()


def test_a_file_of_sound(tmp_path):
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with pytest.raises(InputError, match="it holds no video"):
        source(tmp_path).load()


def test_other_files_are_left_out_and_named(folder, caplog):
    (folder / "run" / "notes.txt").write_text("x")
    (folder / ".DS_Store").write_text("x")
    with caplog.at_level(logging.WARNING):
        assert len(source(folder).load()) == 3
    assert "1 files are not videos and are left out: " in caplog.text
    assert "notes.txt" in caplog.text


def test_folders_that_cannot_be_used(folder, tmp_path):
    (tmp_path / "empty").mkdir()
    (problem,) = source(tmp_path / "empty").check()
    assert "holds no videos" in problem
    (problem,) = source(folder / "run" / "1.mp4").check()
    assert "is not a folder of videos" in problem
    (problem,) = source(tmp_path / "sets").check()
    assert f"Did you mean '{folder}'?" in problem
    write(folder / "loose.mp4", 3)
    (problem,) = source(folder).check()
    assert "loose.mp4 lies beside" in problem
    (folder / "loose.mp4").unlink()
    (folder / "swim").mkdir()
    (problem,) = source(folder).check()
    assert f"class folder {folder}/swim holds no videos" in problem


def test_an_unreadable_file_is_not_a_corrupt_one(folder, unreadable):
    listing = video_folder.list_videos(str(folder))
    decoding = video_folder.Decoding(image_size=12, channels=3, frame_rate=None)
    with (
        unreadable(folder / "walk" / "a.MKV"),
        pytest.raises(InputError, match=r"cannot be read: .*ermission denied"),
    ):
        video_folder.load_videos(listing, decoding, clip_frames=4, clip_stride=1, max_corrupt=1.0)


def test_without_the_extra(folder, monkeypatch):
    monkeypatch.setattr(video_folder, "find_spec", lambda name: None)
    monkeypatch.setitem(sys.modules, "av", None)
    assert source(folder).check() == [
        "videos are decoded by PyAV, which is not installed: pip install 'heliostat[video]'"
    ]
    with pytest.raises(InputError, match=r"heliostat\[video\]"):
        source(folder).load()


def test_progress_is_told(folder):
    told = []
    source(folder).load(lambda *seen: told.append(seen))
    assert told == [(f"decoding {folder}", done, 3) for done in (1, 2, 3)]


def test_resolved_paths_do_not_depend_on_the_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert source(Path("a/b")).resolved().path == str(tmp_path / "a" / "b")


@pytest.mark.parametrize("fields", [{"image_size": 0}, {"frame_rate": 0}, {"channels": 4}, {"max_corrupt": 1.5}])
def test_wrong_fields_are_refused(fields):
    with pytest.raises(ValidationError):
        source(Path("x"), **fields)
