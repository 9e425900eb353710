from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from heliostat.data import recordings
from heliostat.data.recordings import recorded
from heliostat.errors import InputError


def arrays() -> dict[str, Any]:
    return {"frames": np.arange(3000, dtype=np.uint8).reshape(3, 1000), "labels": np.array([2, 0, 1])}


@pytest.fixture
def counted() -> Iterator[Any]:
    """``recorded`` in a folder, and how many times it recorded."""

    class Recorder:
        times = 0

        def __call__(self, folder: Path, **settings: Any) -> dict[str, Any]:
            def record() -> dict[str, Any]:
                self.times += 1
                return arrays()

            found = recorded(folder, "toy", settings, record)
            assert found.keys() == {"frames", "labels"}
            np.testing.assert_array_equal(found["frames"], arrays()["frames"])
            np.testing.assert_array_equal(found["labels"], arrays()["labels"])
            return found

    return Recorder()


def kept(folder: Path) -> Path:
    (path,) = folder.glob("*.npz")
    return path


def test_recordings_are_kept_by_their_settings(tmp_path, counted):
    for settings in ({"n": 1}, {"n": 1}, {"n": 2}, {"m": 1}, {"n": 1}):
        counted(tmp_path / "deep", **settings)
    assert counted.times == 3
    assert sorted(path.suffix for path in (tmp_path / "deep").iterdir()) == [".lock"] * 3 + [".npz"] * 3


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 0xFF
    path.write_bytes(content)


def other_content(path: Path) -> None:
    with zipfile.ZipFile(path) as members:
        content = {name: members.read(name) for name in members.namelist()}
    changed = content["labels.npy"]
    content["labels.npy"] = changed[:-8] + bytes([changed[-8] ^ 1]) + changed[-7:]
    with zipfile.ZipFile(path, "w") as members:  # with right checksums of its own
        for name, data in content.items():
            members.writestr(name, data)


def pickled(path: Path) -> None:
    np.savez(path, frames=np.array([{"a": 1}], dtype=object), sha256=np.zeros(32, np.uint8), allow_pickle=True)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def other_file(path: Path) -> None:
    path.write_bytes(b"x" * 5000)


def without_sum(path: Path) -> None:
    np.savez(path, **arrays())


@pytest.mark.parametrize("damage", [cut, flip, other_content, pickled, without_sum, empty, other_file])
def test_a_damaged_recording_is_told_and_made_again(tmp_path, counted, caplog, damage):
    counted(tmp_path)
    sound = kept(tmp_path).read_bytes()
    damage(kept(tmp_path))
    with caplog.at_level(logging.WARNING):
        counted(tmp_path)
    assert f"{kept(tmp_path)} is damaged (" in caplog.text
    assert "it is recorded again" in caplog.text
    assert counted.times == 2
    assert kept(tmp_path).read_bytes() == sound
    counted(tmp_path)
    assert counted.times == 2


def test_a_recording_that_may_not_be_read(tmp_path, counted, unreadable):
    tmp_path.chmod(0o777)
    counted(tmp_path)
    with (
        unreadable(kept(tmp_path)),
        pytest.raises(InputError, match=r"ermission denied.*remove it to have it recorded"),
    ):
        counted(tmp_path)


def test_a_folder_that_cannot_be_written(tmp_path, counted, caplog):
    (tmp_path / "file").write_text("x")
    with caplog.at_level(logging.WARNING):
        counted(tmp_path / "file" / "deep")
        counted(tmp_path / "file" / "deep")
    assert counted.times == 2
    assert "cannot be kept" in caplog.text


def test_a_full_disk(tmp_path, counted, caplog, monkeypatch):
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched, caplog.at_level(logging.WARNING):
        patched.setattr(recordings.os, "fsync", full)
        counted(tmp_path)
    assert "cannot be kept: [Errno 28] No space left on device; it will be recorded each time" in caplog.text
    assert [path.suffix for path in tmp_path.iterdir()] == [".lock"]
    counted(tmp_path)
    assert (counted.times, kept(tmp_path).exists()) == (2, True)


def _record_and_hang(folder: str, ready: Any) -> None:
    def hang(descriptor: int) -> None:
        ready.set()
        threading.Event().wait(60)

    recordings.os.fsync = hang  # all is written, and the file has no name yet
    recorded(Path(folder), "toy", {}, arrays)


def test_a_process_that_is_killed_leaves_nothing_that_is_believed(tmp_path, counted):
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    other = context.Process(target=_record_and_hang, args=(str(tmp_path), ready))
    other.start()
    assert ready.wait(20)
    waiting = threading.Thread(target=counted, args=(tmp_path,))
    waiting.start()
    waiting.join(0.3)
    assert waiting.is_alive(), "it did not wait for the process that records"
    assert counted.times == 0
    os.kill(other.pid, signal.SIGKILL)
    waiting.join(20)
    other.join(20)
    assert counted.times == 1
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".lock", ".npz"]


def _record_slowly(folder: str, ready: Any, release: Any) -> None:
    def record() -> dict[str, Any]:
        ready.set()
        release.wait(20)
        return arrays()

    recorded(Path(folder), "toy", {}, record)


def test_a_second_process_waits_and_finds_the_recording(tmp_path, counted):
    context = multiprocessing.get_context("fork")
    ready, release = context.Event(), context.Event()
    other = context.Process(target=_record_slowly, args=(str(tmp_path), ready, release))
    other.start()
    assert ready.wait(20)
    waiting = threading.Thread(target=counted, args=(tmp_path,))
    waiting.start()
    waiting.join(0.3)
    assert waiting.is_alive()
    release.set()
    waiting.join(20)
    other.join(20)
    assert counted.times == 0
