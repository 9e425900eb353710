"""Checkpoints are whole or not there."""

from __future__ import annotations

import errno
import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from heliostat.errors import InputError
from heliostat.training.checkpoint import CheckpointError, CheckpointStore, check_architecture
from heliostat.training.storage import Storage


def state(value: float) -> dict[str, object]:
    return {"algorithm": {"weight": torch.full((3, 2), value)}, "optimizer": {"step": 7, "nested": [1.5, None, True]}}


@pytest.fixture(params=["path", "uri"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> CheckpointStore:
    root = str(tmp_path / "run") if request.param == "path" else (tmp_path / "run").as_uri()
    return CheckpointStore(Storage(root), keep=2)


def test_what_is_saved_is_what_is_loaded(store: CheckpointStore) -> None:
    store.save(10, state(0.1), {"run": "r"})
    loaded = store.load(10)
    assert torch.equal(loaded["algorithm"]["weight"], torch.full((3, 2), 0.1))
    assert loaded["optimizer"] == {"step": 7, "nested": [1.5, None, True]}
    assert store.manifest(10)["run"] == "r"


def test_only_the_newest_stay(store: CheckpointStore) -> None:
    for step in (5, 10, 20):
        store.save(step, state(step), {})
    assert store.steps() == [10, 20]
    assert store.storage.folders("checkpoints") == ["step-00000010", "step-00000020"]


def test_a_step_that_is_there_is_not_written_again(store: CheckpointStore) -> None:
    store.save(5, state(1.0), {})
    store.save(5, state(2.0), {})
    assert float(store.load(5)["algorithm"]["weight"][0, 0]) == 1.0


def test_a_write_that_did_not_end_is_never_seen_and_is_cleaned_up(store: CheckpointStore) -> None:
    store.save(5, state(1.0), {})
    store.storage.make("checkpoints/step-00000007")
    with store.storage.writing("checkpoints/step-00000007/state.pt") as stream:
        stream.write(b"half of a state")
    assert store.steps() == [5]
    with pytest.raises(InputError, match="no checkpoint of step 7; complete ones: 5"):
        store.load(7)
    store.save(9, state(2.0), {})
    assert store.storage.folders("checkpoints") == ["step-00000005", "step-00000009"]


@pytest.mark.parametrize("damage", ["cut", "flipped", "gone"])
def test_a_damaged_file_is_refused(store: CheckpointStore, tmp_path: Path, damage: str) -> None:
    store.save(5, state(1.0), {})
    file = tmp_path / "run/checkpoints/step-00000005/state.pt"
    content = bytearray(file.read_bytes())
    if damage == "cut":
        del content[len(content) // 2 :]
    else:
        content[len(content) // 2] ^= 1
    file.write_bytes(content)
    if damage == "gone":
        file.unlink()
    with pytest.raises(InputError, match=r"damaged|missing"):
        store.load(5)


class _FullDisk(io.RawIOBase):
    """Takes some bytes and then has no room."""

    def __init__(self, room: int) -> None:
        self.room = room

    def writable(self) -> bool:
        return True

    def write(self, data: object) -> int:
        size = len(bytes(data))  # type: ignore[call-overload]
        self.room -= size
        if self.room < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return size


@pytest.mark.parametrize("room", [0, 700])
def test_a_full_disk_leaves_the_checkpoints_before(
    store: CheckpointStore, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    store.save(5, state(1.0), {})

    @contextmanager
    def full(name: str) -> Iterator[_FullDisk]:
        yield _FullDisk(room)

    with monkeypatch.context() as patch:
        patch.setattr(store.storage, "writing", full)
        with pytest.raises(CheckpointError, match="step 10 could not be written"):
            store.save(10, state(2.0), {})
    assert store.steps() == [5]
    assert store.storage.folders("checkpoints") == ["step-00000005"]
    store.save(10, state(2.0), {})
    assert store.steps() == [5, 10]


def test_an_unknown_format_is_refused(store: CheckpointStore) -> None:
    store.save(5, state(1.0), {})
    store.storage.write_json("checkpoints/step-00000005/manifest.json", {**store.manifest(5), "format": 99})
    with pytest.raises(InputError, match="format 99"):
        store.load(5)


def test_pickled_code_is_refused(store: CheckpointStore) -> None:
    store.save(5, {"algorithm": {}, "code": _Code()}, {})
    with pytest.raises(Exception, match=r"[Ww]eights.only|Unsupported"):
        store.load(5)
    assert not _Code.ran


class _Code:
    ran = False

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return setattr, (_Code, "ran", True)


def test_differences_of_architecture_are_named() -> None:
    here = {"conv.weight": torch.zeros(4, 3), "head.bias": torch.zeros(2), "gone": torch.zeros(1)}
    there = {"conv.weight": torch.zeros(8, 3), "head.bias": torch.zeros(2), "extra": torch.zeros(1)}
    with pytest.raises(InputError) as caught:
        check_architecture(here, there, "checkpoint of another run")
    said = str(caught.value)
    assert "conv.weight has shape [8, 3], this network's has [4, 3]" in said
    assert "gone is missing" in said
    assert "extra is not part of this network" in said
    check_architecture(here, here, "itself")


def test_replace_is_atomic_under_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = Storage(str(tmp_path))
    storage.replace("run.json", b"old")

    def fail(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="No space"):
        storage.replace("run.json", b"new")
    assert storage.read("run.json") == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["run.json"]


@pytest.mark.parametrize("uri", ["nowhere://bucket/x", "s3://", "http://host/x"])
def test_places_that_cannot_be(uri: str) -> None:
    with pytest.raises(InputError, match="place for runs"):
        Storage(uri)
