"""Replay as part of the checkpoint: incremental, crash-safe, without pickle, and off the run's own thread.

A buffer's arrays are cut into blocks, fixed ranges of slots. A snapshot writes the blocks that changed since the one
before, each as a raw ``.npy`` file under a name that was never used before, and then a manifest that lists the file,
size and SHA-256 of *every* block; blocks that did not change are listed under the file of an older snapshot. Until the
manifest is there, in one piece, nothing of the new snapshot is seen, and nothing of the older ones was touched::

    replay/shard-0/step-00050000.json                    manifests, newest ``keep``
    replay/shard-0/blocks/frame-00017-000003.npy         array, block, version
"""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from heliostat.errors import InputError, Problem, RunError
from heliostat.reinforcement.manifest import Manifest, StoredArray, StoredBlock
from heliostat.training.storage import Storage

BLOCK_BYTES = 2 << 20
"""Bytes of a block, about: small enough that new slots drag few others along, large enough for an object store."""

_SEALED = "frame"
"""The array that changes only together with its slot's generation. Priorities of slots everywhere change between two
snapshots; without this, nearly all frames would be copied for them."""

_Copies: TypeAlias = dict[tuple[str, int], npt.NDArray[Any] | None]
"""Changed blocks by array and number; None stands for one that is all zeros."""


class SnapshotError(RunError):
    """A snapshot could not be written; the ones before it are untouched, and the next one holds what this one would
    have."""


class Snapshotted(Protocol):
    """What a snapshot is taken of: a ``ReplayBuffer``."""

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """All storage: live views whose axis 0 is the slot. ``frame`` changes only together with ``generation``."""

    def counters(self) -> dict[str, Any]:
        """The rest, as plain JSON data; ``settings`` are those that a buffer must share to take over this one."""

    def restore(self, arrays: Mapping[str, npt.NDArray[Any]], counters: Mapping[str, Any]) -> None:
        """Take over storage, which may be the buffer's own, filled from outside, and the rest."""

    def take_written(self) -> npt.NDArray[np.bool_]:
        """(capacity,): slots whose arrays changed since the last call."""


class ReplaySnapshots:
    """The snapshots of one replay buffer.

    Snapshots are incremental as long as one object sees every snapshot of the buffer: it takes the buffer's marks of
    what was written. A new object begins with a snapshot of the whole buffer, or goes on from the one that it loads.

    Args:
        storage: the run's folder.
        name: the buffer's folder below it, such as ``replay/shard-0``; no one else may write there.
        keep: how many of the newest stay. A run whose snapshots and checkpoints are written one after the other needs
            two: when it is stopped in between, the newest checkpoint's snapshot is the one before the newest.
        block_bytes: size of a block, about.

    Raises:
        ValueError: ``keep`` or ``block_bytes`` is below 1.
    """

    def __init__(self, storage: Storage, name: str, keep: int = 2, block_bytes: int = BLOCK_BYTES) -> None:
        if keep < 1 or block_bytes < 1:
            raise ValueError(f"keep and block_bytes must be at least 1, not {keep} and {block_bytes}")
        self.storage, self.name, self.keep, self.block_bytes = storage, name, keep, block_bytes
        self._base: Manifest | None = None  # the newest snapshot of the buffer that this object knows
        self._generation: npt.NDArray[Any] | None = None  # of the slots then
        self._unsaved: npt.NDArray[np.bool_] | None = None  # slots that no complete snapshot holds
        self._pending: Pending | None = None

    def steps(self) -> list[int]:
        """Steps that have a complete snapshot, oldest first."""
        matches = (re.fullmatch(r"step-(\d+)\.json", file) for file in self.storage.files(self.name))
        return sorted(int(match[1]) for match in matches if match)

    def save(self, buffer: Snapshotted, step: int) -> int:
        """Both phases at once: :meth:`begin` and :meth:`Pending.write`."""
        return self.begin(buffer, step).write()

    def begin(self, buffer: Snapshotted, step: int) -> Pending:
        """Copy what changed since the last snapshot; the buffer may be written again as soon as this returns.

        Args:
            buffer: always the same one, or the one of the last :meth:`load`.
            step: of the run. A snapshot of the same step is replaced, and those of later steps are removed: the run
                went back behind them.

        Raises:
            ValueError: the snapshot before has not been written yet, or an array does not have one row for each slot.
        """
        if self._pending is not None:
            raise ValueError(f"the snapshot of step {self._pending.step} is still to be written")
        written = buffer.take_written()
        if self._unsaved is not None:
            written |= self._unsaved
        self._unsaved = written  # until a complete snapshot holds them
        arrays = buffer.arrays()
        generation = arrays["generation"]
        layout: dict[str, StoredArray] = {}
        copies: _Copies = {}
        for name, array in arrays.items():
            if len(array) != len(written):
                raise ValueError(f"{name} has {len(array)} rows, the buffer has {len(written)} slots")
            layout[name] = stored = self._layout(name, array)
            changed = written
            if self._base is None:
                changed = np.ones_like(written)
            elif name == _SEALED:
                changed = written & (generation != self._generation)
            ranges = list(stored.ranges())
            for block in np.unique(np.flatnonzero(changed) // stored.block_slots).tolist():
                rows = array[ranges[block]]
                copies[name, block] = rows.copy() if _holds_anything(rows) else None
        self._pending = Pending(self, step, layout, copies, buffer.counters(), generation.copy())
        return self._pending

    def _layout(self, name: str, array: npt.NDArray[Any]) -> StoredArray:
        """How the array was stored in the last snapshot, or all new."""
        if self._base is not None:
            return self._base.arrays[name]
        slots = max(1, self.block_bytes // max(1, array[:1].nbytes))
        count = -(-len(array) // slots)
        return StoredArray(array.dtype.str, array.shape, slots, (None,) * count)

    def load(self, step: int, buffer: Snapshotted) -> None:
        """Restore a buffer, block by block; what it holds is as before where this raises.

        Every file is read twice, first to verify it, so that no second buffer is needed in memory.

        Raises:
            InputError: there is no complete snapshot of this step, a file is damaged (names it), or the snapshot is of
                a buffer with other settings.
            ValueError: a snapshot is still being written.
        """
        if self._pending is not None:
            raise ValueError(f"the snapshot of step {self._pending.step} is still to be written")
        if step not in (steps := self.steps()):
            known = ", ".join(map(str, steps)) or "none"
            raise InputError(
                Problem(f"there is no replay snapshot of step {step}; complete ones: {known}", self._uri())
            )
        manifest, views = self._manifest(step), buffer.arrays()
        self._check(manifest, views, buffer.counters())
        for stored in manifest.arrays.values():
            for block in stored.blocks:
                if block is not None:
                    self._read(block)
        for name, stored in manifest.arrays.items():
            for rows, block in zip(stored.ranges(), stored.blocks, strict=True):
                view = views[name][rows]
                if block is not None:
                    view[...] = self._read(block)
                elif _holds_anything(view):  # memory that was never used stays so
                    view[...] = 0
        buffer.restore(views, manifest.counters)
        buffer.take_written()  # what the snapshot brought is in the snapshot
        self._base, self._generation, self._unsaved = manifest, views["generation"].copy(), None

    def _check(self, manifest: Manifest, views: Mapping[str, npt.NDArray[Any]], counters: Mapping[str, Any]) -> None:
        there, here = manifest.counters["settings"], counters["settings"]
        differences = [
            f"{name} is {there.get(name)} there and {here.get(name)} here"
            for name in sorted(there.keys() | here.keys())
            if there.get(name) != here.get(name)
        ]
        found = {name: (array.dtype, array.shape) for name, array in manifest.arrays.items()}
        expected = {name: (view.dtype.str, view.shape) for name, view in views.items()}
        differences += [
            f"the array {name} is {_described(found.get(name))} there and {_described(expected.get(name))} here"
            for name in sorted(found.keys() | expected.keys())
            if found.get(name) != expected.get(name)
        ]
        if differences:
            where = self._uri(_manifest_name(manifest.step))
            raise InputError(Problem(f"the snapshot is of another replay buffer: {'; '.join(differences)}", where))

    def _manifest(self, step: int) -> Manifest:
        name = _manifest_name(step)
        try:
            return Manifest.parse(json.loads(self.storage.read(f"{self.name}/{name}")))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(
                Problem(f"the manifest of a replay snapshot is damaged: {error}", self._uri(name))
            ) from None

    def _read(self, block: StoredBlock) -> npt.NDArray[Any]:
        """A block's content, verified."""
        where = self._uri(f"blocks/{block.file}")
        try:
            data = self.storage.read(f"{self.name}/blocks/{block.file}")
        except FileNotFoundError:
            raise InputError(Problem("a file of a replay snapshot is missing", where)) from None
        if len(data) != block.bytes or hashlib.sha256(data).hexdigest() != block.sha256:
            size = f"{len(data)} bytes, {block.bytes} expected"
            raise InputError(Problem(f"a file of a replay snapshot is damaged: {size}, or other content", where))
        return np.load(io.BytesIO(data), allow_pickle=False)  # type: ignore[no-any-return]

    def _uri(self, file: str = "") -> str:
        return f"{self.storage.uri}/{self.name}/{file}".rstrip("/")

    def _write(self, pending: Pending) -> int:
        if pending is not self._pending:
            raise ValueError(f"the snapshot of step {pending.step} was written already, or could not be")
        where = self._uri(_manifest_name(pending.step))
        try:
            written = self._write_snapshot(pending)
        except OSError as error:
            raise SnapshotError(f"the replay snapshot {where} could not be written: {error}") from error
        finally:
            self._pending = None
        try:
            steps = self.steps()
            later = [step for step in steps if step > pending.step]
            for step in [*later, *[step for step in steps if step <= pending.step][: -self.keep]]:
                self._delete(_manifest_name(step))
            self._sweep()
        except OSError as error:
            raise SnapshotError(f"{where} is complete, but an older snapshot could not be deleted: {error}") from error
        return written

    def _write_snapshot(self, pending: Pending) -> int:
        """The blocks, then the manifest; returns the bytes of the blocks."""
        self.storage.make(f"{self.name}/blocks")
        self._sweep()
        present = set(self.storage.files(f"{self.name}/blocks"))
        version = 1 + max(map(_version, present), default=0)
        blocks = {name: list(stored.blocks) for name, stored in pending.layout.items()}
        written = 0
        try:
            for name, block in list(pending.copies):
                rows = pending.copies.pop((name, block))  # gives its memory back once it is written
                if rows is None:
                    blocks[name][block] = None
                    continue
                stream = io.BytesIO()
                np.save(stream, rows, allow_pickle=False)
                content = stream.getbuffer()
                digest = hashlib.sha256(content).hexdigest()
                before = blocks[name][block]
                if before is not None and before.sha256 == digest and before.file in present:
                    continue  # the slot was written, but not this array of it
                file = StoredBlock(f"{name}-{block:05d}-{version:06d}.npy", len(content), digest)
                with self.storage.writing(f"{self.name}/blocks/{file.file}") as target:
                    target.write(content)
                present.add(file.file)
                blocks[name][block] = file
                written += file.bytes
            layout = {name: replace(stored, blocks=tuple(blocks[name])) for name, stored in pending.layout.items()}
            manifest = Manifest(pending.step, layout, pending.counters)
            if gone := sorted(manifest.files() - present):
                self._base = None
                raise FileNotFoundError(f"{gone[0]} of an older snapshot is gone; the next snapshot is a whole one")
            self.storage.write_json(f"{self.name}/{_manifest_name(pending.step)}", manifest.as_data())
        except OSError:
            with suppress(OSError):
                self._sweep()
            raise
        self._base, self._generation, self._unsaved = manifest, pending.generation, None
        return written

    def _sweep(self) -> None:
        """Remove files that no snapshot refers to: those of removed snapshots and of writes that did not end."""
        try:
            needed = {file for step in self.steps() for file in self._manifest(step).files()}
        except InputError:
            return  # a manifest that cannot be read may refer to anything; ``keep`` snapshots later it is gone
        for file in self.storage.files(f"{self.name}/blocks"):
            if file not in needed:
                self._delete(f"blocks/{file}")
        for file in self.storage.files(self.name):
            if file.startswith("."):  # a manifest whose writing was interrupted
                self._delete(file)

    def _delete(self, file: str) -> None:
        self.storage.filesystem.delete_file(self.storage.path(f"{self.name}/{file}"))


@dataclass(frozen=True, eq=False)
class Pending:
    """What changed since the last snapshot, copied and still to be written."""

    snapshots: ReplaySnapshots
    step: int
    layout: dict[str, StoredArray]
    copies: _Copies
    counters: dict[str, Any]
    generation: npt.NDArray[Any]

    @property
    def nbytes(self) -> int:
        """Bytes that are held in memory until they are written."""
        return sum(rows.nbytes for rows in self.copies.values() if rows is not None)

    def write(self) -> int:
        """Write the snapshot, in any thread, then delete the oldest beyond ``keep``; returns the bytes of the blocks
        written.

        Raises:
            SnapshotError: the storage refused, for example because the disk is full: nothing of the snapshot remains,
                and the next one holds what changed since the last complete one. Or an old snapshot could not be
                deleted; this one is complete then.
            ValueError: this was called before.
        """
        return self.snapshots._write(self)


def _manifest_name(step: int) -> str:
    return f"step-{step:08d}.json"


def _version(file: str) -> int:
    """Of a block's file."""
    return int(file.removesuffix(".npy").rpartition("-")[2])


def _holds_anything(rows: npt.NDArray[Any]) -> bool:
    """Whether any byte differs from 0."""
    return bool(np.ascontiguousarray(rows).reshape(-1).view(np.uint8).max(initial=0))


def _described(array: tuple[str, tuple[int, ...]] | None) -> str:
    return "missing" if array is None else f"{np.dtype(array[0])} {list(array[1])}"
