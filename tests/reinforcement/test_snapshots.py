"""Snapshots of a replay buffer: whole or not there, and no larger than what changed."""

from __future__ import annotations

import copy
import errno
import io
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import fs

from heliostat.errors import InputError
from heliostat.reinforcement.snapshots import ReplaySnapshots, SnapshotError
from heliostat.training.storage import Storage
from heliostat_algorithms.reinforcement.replay.buffer import ReplayBuffer
from heliostat_algorithms.reinforcement.replay.prioritization import Prioritization
from heliostat_algorithms.reinforcement.replay.steps import Steps

NAME = "replay/shard-0"
FRAME = 64
"""Bytes of a fake buffer's frame."""


class Fake:
    """A buffer that is written slot by slot."""

    def __init__(self, capacity: int = 40, discount: float = 0.9) -> None:
        self.frame = np.zeros((capacity, FRAME), np.uint8)
        self.generation = np.zeros(capacity, np.int64)
        self.mass = np.zeros(capacity)
        self.touched = np.zeros(capacity, np.bool_)
        self.discount, self.inserted = discount, 0

    def insert(self, *slots: int) -> None:
        for slot in slots:
            self.inserted += 1
            self.frame[slot] = np.random.default_rng(self.inserted).integers(1, 255, FRAME)
            self.generation[slot] = self.inserted
            self.mass[slot] = 1 / self.inserted
            self.touched[slot] = True

    def prioritize(self, slots: list[int], value: float) -> None:
        self.mass[slots] = value
        self.touched[slots] = True

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        return {"frame": self.frame, "generation": self.generation, "mass": self.mass}

    def counters(self) -> dict[str, Any]:
        return {"settings": {"discount": self.discount}, "inserted": self.inserted, "largest": 1 / 3}

    def restore(self, arrays: Mapping[str, npt.NDArray[Any]], counters: Mapping[str, Any]) -> None:
        for name, array in self.arrays().items():
            array[:] = arrays[name]
        self.inserted = counters["inserted"]
        self.touched[:] = True

    def take_written(self) -> npt.NDArray[np.bool_]:
        touched, self.touched = self.touched, np.zeros_like(self.touched)
        return touched


def state(buffer: Fake | ReplayBuffer) -> tuple[dict[str, bytes], dict[str, Any]]:
    """All that a buffer is, copied."""
    return {name: array.tobytes() for name, array in buffer.arrays().items()}, copy.deepcopy(buffer.counters())


class Remote(Storage):
    """Takes the paths of an object store."""

    def __init__(self, root: Path) -> None:
        root.mkdir(parents=True, exist_ok=True)
        self.filesystem, self.root, self.uri = fs.SubTreeFileSystem(str(root), fs.LocalFileSystem()), "", "store://run"
        self.local = False


@pytest.fixture(params=["local", "uri", "remote"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    root = tmp_path / "run"
    if request.param == "remote":
        return Remote(root)
    return Storage(str(root) if request.param == "local" else root.as_uri())


def snapshots_of(storage: Storage, keep: int = 2, block_bytes: int = 4 * FRAME) -> ReplaySnapshots:
    return ReplaySnapshots(storage, NAME, keep, block_bytes)


def loaded(storage: Storage, step: int) -> tuple[dict[str, bytes], dict[str, Any]]:
    """What another process reads."""
    buffer = Fake()
    snapshots_of(storage).load(step, buffer)
    return state(buffer)


def blocks(storage: Storage) -> set[str]:
    return set(storage.files(f"{NAME}/blocks"))


def referred(storage: Storage) -> set[str]:
    """Files that the manifests name."""
    return {
        block["file"]
        for file in storage.files(NAME)
        for array in storage.read_json(f"{NAME}/{file}")["snapshot"]["arrays"].values()
        for block in array["blocks"]
        if block is not None
    }


def test_what_is_saved_is_what_is_loaded(storage: Storage) -> None:
    buffer, snapshots = Fake(), snapshots_of(storage)
    assert snapshots.steps() == []
    buffer.insert(*range(11), 39)
    buffer.mass[3] = np.nan
    expected = state(buffer)
    snapshots.save(buffer, 100)
    assert snapshots_of(storage).steps() == [100]
    assert loaded(storage, 100) == expected


def test_files_are_plain_arrays(storage: Storage) -> None:
    buffer = Fake()
    buffer.insert(*range(40))
    snapshots_of(storage).save(buffer, 7)
    names = sorted(name for name in blocks(storage) if name.startswith("frame"))
    assert names == [f"frame-{block:05d}-000001.npy" for block in range(10)]
    read = [np.load(io.BytesIO(storage.read(f"{NAME}/blocks/{name}")), allow_pickle=False) for name in names]
    assert np.array_equal(np.concatenate(read), buffer.frame)


def test_only_what_changed_is_copied_and_written(storage: Storage) -> None:
    buffer, snapshots = Fake(), snapshots_of(storage, keep=1)
    buffer.insert(*range(40))
    whole = snapshots.save(buffer, 1)
    before = blocks(storage)
    buffer.insert(17)  # block 4 of the frames, block 0 of the others: 32 slots of 8 bytes
    pending = snapshots.begin(buffer, 2)
    assert pending.nbytes == 4 * FRAME + 2 * 32 * 8
    written = pending.write()
    assert {name[:-11] for name in blocks(storage) - before} == {"frame-00004", "generation-00000", "mass-00000"}
    assert written == sum(len(storage.read(f"{NAME}/blocks/{name}")) for name in blocks(storage) - before)
    assert written < whole / 3
    assert len(blocks(storage)) == len(before)  # what the new ones replace is gone
    assert snapshots.save(buffer, 3) == 0
    assert loaded(storage, 3) == state(buffer)


def test_bytes_are_in_proportion_to_what_changed(tmp_path: Path) -> None:
    buffer, snapshots = Fake(1280), snapshots_of(Remote(tmp_path))
    buffer.insert(*range(1280))
    snapshots.save(buffer, 0)
    per_block = 4 * FRAME + 128  # and the header of .npy
    for step, count in enumerate((4, 40, 400), start=1):
        buffer.insert(*range(count))
        others = 2 * (-(-count // 32)) * (32 * 8 + 128)
        assert snapshots.save(buffer, step) == count // 4 * per_block + others


def test_priorities_alone_do_not_touch_frames(storage: Storage) -> None:
    buffer, snapshots = Fake(), snapshots_of(storage)
    buffer.insert(*range(40))
    snapshots.save(buffer, 1)
    before = blocks(storage)
    buffer.prioritize(list(range(0, 40, 2)), 0.25)
    pending = snapshots.begin(buffer, 2)
    assert pending.nbytes == 2 * 40 * 8
    assert pending.write() == 40 * 8 + 2 * 128
    assert {name[:-11] for name in blocks(storage) - before} == {"mass-00000", "mass-00001"}
    assert loaded(storage, 2) == state(buffer)


def test_what_was_never_written_takes_no_space(storage: Storage) -> None:
    buffer = Fake()
    buffer.insert(0, 1)
    snapshots_of(storage).save(buffer, 1)
    assert blocks(storage) == {"frame-00000-000001.npy", "generation-00000-000001.npy", "mass-00000-000001.npy"}
    other = Fake()
    other.insert(*range(40))  # is overwritten by the zeros, too
    snapshots_of(storage).load(1, other)
    assert state(other) == state(buffer)


def test_the_newest_stay_each_complete(storage: Storage) -> None:
    buffer, snapshots, states = Fake(), snapshots_of(storage, keep=3), {}
    for step in range(1, 8):
        buffer.insert(step, 3 * step)
        buffer.prioritize([step - 1], step / 10)
        states[step] = state(buffer)
        snapshots.save(buffer, step)
        kept = list(range(1, step + 1))[-3:]
        assert snapshots.steps() == kept
        assert blocks(storage) == referred(storage)
        for s in kept:
            assert loaded(storage, s) == states[s]


def test_a_loaded_buffer_goes_on_incrementally(storage: Storage) -> None:
    buffer = Fake()
    buffer.insert(*range(40))
    snapshots_of(storage).save(buffer, 1)
    other, snapshots = Fake(), snapshots_of(storage, block_bytes=100)  # of another size from now on
    snapshots.load(1, other)
    other.insert(20)
    pending = snapshots.begin(other, 2)
    assert pending.nbytes == 4 * FRAME + 2 * 32 * 8
    assert pending.write() == 4 * FRAME + 2 * 32 * 8 + 3 * 128
    assert loaded(storage, 2) == state(other)
    assert loaded(storage, 1) == state(buffer)


def test_a_buffer_that_begins_again_is_saved_whole(storage: Storage) -> None:
    """A shard was replaced by an empty one, which knows nothing of the snapshots before."""
    first = Fake()
    first.insert(*range(40))
    snapshots_of(storage).save(first, 1)
    second = Fake()
    second.insert(5, 6)
    snapshots_of(storage).save(second, 2)
    assert loaded(storage, 1) == state(first)
    assert loaded(storage, 2) == state(second)


def test_going_back_removes_what_was_left_behind(storage: Storage) -> None:
    buffer, snapshots = Fake(), snapshots_of(storage, keep=3)
    for step in (10, 20, 30):
        buffer.insert(step)
        snapshots.save(buffer, step)
    snapshots.load(10, buffer)
    buffer.insert(20, 7)  # slot 20 gets the generation that it had before
    snapshots.save(buffer, 20)
    assert snapshots.steps() == [10, 20]
    assert loaded(storage, 20) == state(buffer)
    assert blocks(storage) == referred(storage)


def test_the_buffer_may_change_while_its_snapshot_is_written(storage: Storage) -> None:
    buffer, snapshots = Fake(), snapshots_of(storage)
    buffer.insert(*range(20))
    then = state(buffer)
    pending = snapshots.begin(buffer, 1)
    buffer.insert(*range(10, 30))
    thread = threading.Thread(target=pending.write)
    thread.start()
    thread.join()
    assert loaded(storage, 1) == then
    snapshots.save(buffer, 2)
    assert loaded(storage, 2) == state(buffer)


def test_snapshots_are_written_one_after_the_other(storage: Storage) -> None:
    buffer, snapshots = Fake(), snapshots_of(storage)
    pending = snapshots.begin(buffer, 1)
    with pytest.raises(ValueError, match="step 1 is still to be written"):
        snapshots.begin(buffer, 2)
    with pytest.raises(ValueError, match="step 1 is still to be written"):
        snapshots.load(1, buffer)
    pending.write()
    with pytest.raises(ValueError, match="written already"):
        pending.write()


class Killed(BaseException):
    """The process is gone: nobody tidies up."""


class Failing:
    """Lets a storage do some operations, then fails at one of them.

    Args:
        at: the operation that fails, from 0.
        half: whether it does half of its work before.
        error: what it raises.
    """

    def __init__(self, storage: Storage, at: int, half: bool, error: BaseException) -> None:
        self.storage, self.left, self.half, self.error = storage, at, half, error
        self.writing_before, self.replace_before = storage.writing, storage.replace
        self.files_before = storage.filesystem

    def __enter__(self) -> Failing:
        self.storage.writing, self.storage.replace = self.writing, self.replace  # type: ignore[method-assign]
        self.storage.filesystem = self
        return self

    def __exit__(self, *_: object) -> None:
        del self.storage.writing, self.storage.replace  # type: ignore[method-assign]
        self.storage.filesystem = self.files_before

    def __getattr__(self, name: str) -> Any:
        return getattr(self.files_before, name)

    def due(self) -> bool:
        self.left -= 1
        return self.left == -1

    @contextmanager
    def writing(self, name: str) -> Iterator[IO[bytes]]:
        content = io.BytesIO()
        yield content
        fails = self.due()
        if not fails or self.half:
            with self.writing_before(name) as stream:
                stream.write(content.getvalue()[: len(content.getvalue()) // 2] if fails else content.getvalue())
        if fails:
            raise self.error

    def replace(self, name: str, content: bytes) -> None:
        fails = self.due()
        if self.storage.local:
            if not fails:
                self.replace_before(name, content)
            elif self.half:
                folder, _, file = name.rpartition("/")
                with self.writing_before(f"{folder}/.{file}.partial") as stream:
                    stream.write(content[:100])
        elif not fails or self.half:  # an object store may have taken what it seemed to refuse, but never half of it
            with self.writing_before(name) as stream:
                stream.write(content)
        if fails:
            raise self.error

    def delete_file(self, path: str) -> None:
        fails = self.due()
        if not fails or self.half:
            self.files_before.delete_file(path)
        if fails:
            raise self.error


def history(storage: Storage) -> tuple[Fake, ReplaySnapshots, dict[int, Any]]:
    """A buffer with two snapshots, changed since: blocks written again, blocks written first, priorities."""
    buffer, snapshots, states = Fake(), snapshots_of(storage), {}
    for step, slots in ((1, range(8)), (2, range(6, 14))):
        buffer.insert(*slots)
        states[step] = state(buffer)
        snapshots.save(buffer, step)
    buffer.insert(0, 13, 14, 39)
    buffer.prioritize([9, 30], 0.5)
    states[3] = state(buffer)
    return buffer, snapshots, states


@pytest.mark.parametrize("half", [False, True])
def test_whenever_the_process_dies_the_last_snapshot_is_there(tmp_path: Path, half: bool) -> None:
    saw = set()
    for at in range(100):
        storage = Storage(str(tmp_path / str(at)))
        buffer, snapshots, states = history(storage)
        try:
            with Failing(storage, at, half, Killed()):
                snapshots.save(buffer, 3)
        except Killed:
            pass
        else:
            break
        steps = snapshots_of(storage).steps()
        assert steps in ([1, 2], [1, 2, 3], [2, 3])
        saw.add(tuple(steps))
        for step in steps:
            assert loaded(storage, step) == states[step]
        # Another process goes on from there.
        other, again = Fake(), snapshots_of(storage)
        again.load(steps[-1], other)
        other.insert(2, 22)
        again.save(other, 4)
        assert again.steps() == [steps[-1], 4]
        assert loaded(storage, 4) == state(other)
        assert loaded(storage, steps[-1]) == states[steps[-1]]
        assert blocks(storage) == referred(storage)
        assert all(file.startswith("step-") for file in storage.files(NAME))
    assert at >= 8
    assert saw == {(1, 2), (2, 3)} | (set() if half else {(1, 2, 3)})


FULL = OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("half", [False, True])
def test_a_full_disk_loses_nothing(storage: Storage, half: bool) -> None:
    """Each block's write fails once, then the manifest's; the process lives on and saves again."""
    buffer, snapshots, states = history(storage)
    before = blocks(storage)
    changed = 3 + 2 + 2  # blocks of frames, generations and masses
    for at in range(changed + 1):
        with Failing(storage, at, half, FULL), pytest.raises(SnapshotError, match="could not be written") as caught:
            snapshots.save(buffer, 3)
        assert f"{NAME}/step-00000003.json" in str(caught.value)
        assert "No space left on device" in str(caught.value)
        if at == changed and half and not storage.local:
            assert snapshots.steps() == [1, 2, 3]  # the store had taken it
            assert loaded(storage, 3) == states[3]
        else:
            assert snapshots.steps() == [1, 2]
            assert blocks(storage) == before
        assert blocks(storage) == referred(storage)
        assert loaded(storage, 2) == states[2]
    buffer.insert(25)
    snapshots.save(buffer, 4)
    assert snapshots.steps()[-1] == 4
    assert loaded(storage, 4) == state(buffer)
    assert loaded(storage, snapshots.steps()[0]) == states[snapshots.steps()[0]]
    assert blocks(storage) == referred(storage)


def test_a_replacement_that_the_store_only_seemed_to_refuse_costs_nothing(tmp_path: Path) -> None:
    """It has the new manifest of the step, and the files of the old one are gone."""
    storage = Remote(tmp_path)
    buffer, snapshots, _ = history(storage)
    snapshots.save(buffer, 3)
    before = buffer.mass[13]
    buffer.prioritize([13], 7.0)
    with Failing(storage, 1, True, FULL), pytest.raises(SnapshotError):
        snapshots.save(buffer, 3)
    assert buffer.mass.tobytes() == loaded(storage, 3)[0]["mass"]
    buffer.prioritize([13], before)
    snapshots.save(buffer, 4)
    assert loaded(storage, 4) == state(buffer)


def test_an_old_snapshot_that_cannot_be_deleted_is_told(storage: Storage) -> None:
    buffer, snapshots, states = history(storage)
    with Failing(storage, 8, False, FULL), pytest.raises(SnapshotError, match="is complete, but an older snapshot"):
        snapshots.save(buffer, 3)
    assert snapshots.steps() == [1, 2, 3]
    assert loaded(storage, 3) == states[3]
    buffer.insert(4)
    assert snapshots.save(buffer, 4) == 4 * FRAME + 2 * 32 * 8 + 3 * 128  # it goes on from the complete one
    assert snapshots.steps() == [3, 4]
    assert loaded(storage, 4) == state(buffer)
    assert blocks(storage) == referred(storage)


def test_a_write_that_fails_at_the_first_snapshot_leaves_nothing(storage: Storage) -> None:
    buffer, snapshots = Fake(), snapshots_of(storage)
    buffer.insert(*range(9))
    with Failing(storage, 2, True, FULL), pytest.raises(SnapshotError):
        snapshots.save(buffer, 1)
    assert snapshots.steps() == []
    assert blocks(storage) == set()
    snapshots.save(buffer, 2)
    assert loaded(storage, 2) == state(buffer)


@pytest.mark.parametrize("damage", ["cut", "flipped", "gone", "longer"])
def test_every_damaged_file_is_named_and_the_buffer_stays(tmp_path: Path, damage: str) -> None:
    storage = Storage(str(tmp_path))
    buffer, snapshots, _ = history(storage)
    snapshots.save(buffer, 3)
    other = Fake()
    other.insert(33, 34)
    expected = state(other)
    for name in sorted(blocks(storage)):
        if name not in json.dumps(storage.read_json(f"{NAME}/step-00000003.json")):
            continue
        file = tmp_path / NAME / "blocks" / name
        content = file.read_bytes()
        damaged = bytearray(content)
        if damage == "cut":
            del damaged[-10:]
        elif damage == "longer":
            damaged += b"0"
        else:
            damaged[-3] ^= 1
        file.write_bytes(damaged)
        if damage == "gone":
            file.unlink()
        with pytest.raises(InputError, match="missing" if damage == "gone" else "damaged") as caught:
            snapshots_of(storage).load(3, other)
        assert str(file) in str(caught.value)
        assert state(other) == expected
        file.write_bytes(content)
    snapshots_of(storage).load(3, other)
    assert state(other) == state(buffer)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"inserted": 20', '"inserted": 21', "not what was written"),
        ('"block_slots": 4', '"block_slots": 5', "not what was written"),
        ('"format": 1', '"format": 9', "format 9 is not known here"),
        ('"snapshot"', '"snapshit"', "damaged"),
        ("{", "[", "damaged"),
    ],
)
def test_a_damaged_manifest_is_refused(storage: Storage, old: str, new: str, message: str) -> None:
    buffer, snapshots, _ = history(storage)
    snapshots.save(buffer, 3)
    name = f"{NAME}/step-00000003.json"
    content = storage.read(name).decode()
    assert old in content
    with storage.writing(name) as stream:
        stream.write(content.replace(old, new, 1).encode())
    with pytest.raises(InputError, match=message) as caught:
        snapshots_of(storage).load(3, Fake())
    assert "step-00000003.json" in str(caught.value)
    assert loaded(storage, 2)[1]["inserted"] == 16  # the one before can still be read,
    other, again = Fake(), snapshots_of(storage)
    again.load(2, other)
    for step in (4, 5):  # and after it the run goes on
        other.insert(step)
        again.save(other, step)
        assert loaded(storage, step) == state(other)
    assert again.steps() == [4, 5]
    assert blocks(storage) == referred(storage)


def test_a_snapshot_never_refers_to_a_file_that_is_gone(storage: Storage) -> None:
    buffer, snapshots, _ = history(storage)
    snapshots.save(buffer, 3)
    storage.filesystem.delete_file(storage.path(f"{NAME}/blocks/frame-00001-000002.npy"))
    buffer.insert(20)
    with pytest.raises(SnapshotError, match=r"frame-00001-000002\.npy of an older snapshot is gone"):
        snapshots.save(buffer, 4)
    snapshots.save(buffer, 5)
    assert loaded(storage, 5) == state(buffer)


def test_a_step_without_snapshot_is_refused(storage: Storage) -> None:
    buffer, snapshots, _ = history(storage)
    with pytest.raises(InputError, match="no replay snapshot of step 7; complete ones: 1, 2"):
        snapshots.load(7, buffer)
    with pytest.raises(InputError, match="complete ones: none"):
        ReplaySnapshots(storage, "replay/shard-1").load(7, buffer)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (Fake(41), r"frame is uint8 \[40, 64\] there and uint8 \[41, 64\] here"),
        (Fake(discount=0.5), r"discount is 0\.9 there and 0\.5 here"),
    ],
)
def test_a_buffer_with_other_settings_is_refused(storage: Storage, other: Fake, message: str) -> None:
    buffer, snapshots, _ = history(storage)
    snapshots.save(buffer, 3)
    with pytest.raises(InputError, match=message):
        snapshots_of(storage).load(3, other)
    assert not other.frame.any()


def test_an_array_that_is_not_of_slots_is_a_mistake(storage: Storage) -> None:
    buffer = Fake()
    buffer.mass = np.zeros(64)
    with pytest.raises(ValueError, match="mass has 64 rows, the buffer has 40 slots"):
        snapshots_of(storage).save(buffer, 1)


@pytest.mark.parametrize("arguments", [{"keep": 0}, {"block_bytes": 0}])
def test_impossible_settings_are_refused(storage: Storage, arguments: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="must be at least 1"):
        ReplaySnapshots(storage, NAME, **arguments)


# The real buffer


def made(prioritized: bool, lanes: int = 2) -> ReplayBuffer:
    return ReplayBuffer(
        capacity=37,
        lanes=lanes,
        frame_shape=(5, 4),
        frame_dtype=np.dtype(np.uint8),
        stack=3,
        n_step=2,
        prioritization=Prioritization() if prioritized else None,
    )


class Player:
    """Experience that follows the order of events in every lane."""

    def __init__(self, seed: int, lanes: int = 2) -> None:
        self.generator, self.lanes = np.random.default_rng(seed), lanes
        self.start, self.over = np.ones(lanes, np.bool_), np.zeros(lanes, np.bool_)

    def steps(self, calls: int) -> Steps:
        shape = (calls, self.lanes)
        acted, start, ended = (np.zeros(shape, np.bool_) for _ in range(3))
        for call in range(calls):
            acted[call] = ~self.over
            start[call] = self.start & acted[call]
            ended[call] = acted[call] & (self.generator.random(self.lanes) < 0.2)
            self.start, self.over = self.over.copy(), ended[call]
        cut = ended & (self.generator.random(shape) < 0.5)
        draw = self.generator
        return Steps(
            frame=draw.integers(0, 256, (*shape, 5, 4)).astype(np.uint8),
            action=draw.integers(0, 4, shape),
            reward=np.where(acted, draw.normal(size=shape), 0).astype(np.float32),
            terminated=ended & ~cut,
            truncated=cut,
            life_lost=acted & (draw.random(shape) < 0.1),
            acted=acted,
            start=start,
        )


@given(
    prioritized=st.booleans(),
    seed=st.integers(0, 10_000),
    turns=st.lists(st.sampled_from(["insert", "prioritize", "save", "fail", "load"]), min_size=3, max_size=14),
)
@settings(max_examples=40, deadline=None)
def test_a_replay_buffer_goes_on_from_a_snapshot_as_if_nothing_had_happened(
    tmp_path_factory: pytest.TempPathFactory, prioritized: bool, seed: int, turns: list[str]
) -> None:
    storage = Remote(tmp_path_factory.mktemp("run"))
    buffer, snapshots = made(prioritized), snapshots_of(storage, block_bytes=100)
    player, points, states = Player(seed), np.random.default_rng(seed).random(16), {}
    for step, turn in enumerate([*turns, "insert", "save", "load"]):
        if turn == "insert":
            buffer.insert(player.steps(int(player.generator.integers(1, 9))), range(2))
        elif turn == "prioritize" and prioritized and buffer.size:
            batch = buffer.sample(points)
            buffer.update_priorities(batch.slot, batch.generation, player.generator.random(16))
        elif turn == "save":
            snapshots.save(buffer, step)
            states[step] = state(buffer)
        elif turn == "fail":
            states[step] = state(buffer)  # it may be complete all the same
            with Failing(storage, int(player.generator.integers(0, 30)), True, FULL), suppress(SnapshotError):
                snapshots.save(buffer, step)
        elif turn == "load" and snapshots.steps():
            newest = snapshots.steps()[-1]
            other, again = made(prioritized), snapshots_of(storage)
            again.load(newest, other)
            assert state(other) == states[newest]
            if state(buffer) == states[newest]:
                assert (other.size, other.mass, other.inserted, other.lost) == pytest.approx(
                    (buffer.size, buffer.mass, buffer.inserted, buffer.lost)
                )
                if buffer.size:
                    for name, values in vars(buffer.sample(points)).items():
                        assert np.array_equal(values, getattr(other.sample(points), name)), name
                buffer, snapshots = other, again
