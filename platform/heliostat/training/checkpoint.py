"""Checkpoints: complete, atomic, verified, and kept in small number.

``checkpoints/step-00000120/`` holds ``state.pt`` and, written last, ``manifest.json`` with the size and SHA-256 of the
state. A folder without a manifest is a write that did not end; it is never read and the next save removes it. This
needs no rename of folders, which object stores do not have, so local and remote runs look the same.

A state that is spread over n workers (``sharding``) has n more files, ``rows-0-of-n.pt`` and so on: of each spread
tensor, in the order of the state, the rows of one worker. In ``state.pt`` such a tensor has a shape and no content. Any
number of workers reads it, and so does whoever wants it whole.
"""

from __future__ import annotations

import hashlib
import platform
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import IO, Any, TypeAlias, cast

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from heliostat.errors import InputError, Problem, RunError
from heliostat.training.storage import Storage

FORMAT, SPREAD_FORMAT = 1, 2
"""Of a state in one file, and of one whose rows are in files of their own."""
_FOLDER = "checkpoints"

Entry: TypeAlias = dict[str, int | str]
"""What the manifest says of a file: ``bytes`` and ``sha256``."""


@dataclass(frozen=True)
class Rows:
    """What one worker holds of a tensor that is spread over workers by its rows."""

    rows: Tensor
    shape: torch.Size
    """Of the whole tensor."""


def own_rows(count: int, rank: int, world_size: int) -> slice:
    """Which of ``count`` rows a worker holds: equally many each, but for the last ones, as ``torch.chunk`` does it."""
    each = -(-count // world_size)
    return slice(min(rank * each, count), min((rank + 1) * each, count))


def mapped(tree: Any, change: Callable[[Tensor], Any]) -> Any:
    """Plain data with each tensor in it replaced, in its order."""
    if isinstance(tree, Tensor):
        return change(tree)
    if isinstance(tree, Mapping):
        return {name: mapped(value, change) for name, value in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)(mapped(value, change) for value in tree)
    return tree


class CheckpointError(RunError):
    """A checkpoint could not be written; the ones before it are untouched."""


class _Hashing:
    """Passes bytes on and remembers how many there were and what they hash to."""

    def __init__(self, stream: IO[bytes]) -> None:
        self.stream, self.size, self.digest = stream, 0, hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.size += len(data)
        self.digest.update(data)
        self.stream.write(data)
        return len(data)

    def flush(self) -> None:
        self.stream.flush()


class CheckpointStore:
    """The checkpoints of one run.

    Args:
        storage: the run's folder.
        keep: how many of the newest stay.
    """

    def __init__(self, storage: Storage, keep: int = 2) -> None:
        self.storage, self.keep = storage, keep

    @staticmethod
    def name(step: int) -> str:
        """The folder of a step's checkpoint, relative to the run."""
        return f"{_FOLDER}/step-{step:08d}"

    def uri(self, step: int) -> str:
        """Where a step's checkpoint is, as the run's own location is written."""
        return f"{self.storage.uri}/{self.name(step)}"

    def steps(self) -> list[int]:
        """Steps that have a complete checkpoint, oldest first."""
        return [step for step in self._folders() if self.storage.exists(f"{self.name(step)}/manifest.json")]

    def _folders(self) -> Iterator[int]:
        for folder in self.storage.folders(_FOLDER):
            prefix, _, digits = folder.partition("-")
            if prefix == "step" and digits.isdigit():
                yield int(digits)

    def save(self, step: int, state: Mapping[str, Any], about: Mapping[str, Any], *, replace: bool = False) -> None:
        """Write a checkpoint, then delete the oldest beyond ``keep``. A step that is already there is left as it is.

        Args:
            step: optimiser steps done.
            state: tensors and plain data, as ``torch.load(weights_only=True)`` can read.
            about: facts for the manifest.
            replace: write a step that is already there again, because what is there cannot be read.

        Raises:
            CheckpointError: the storage refused, for example because the disk is full; no partial checkpoint remains.
        """
        with self.writing(step):
            if not self.begin(step, replace=replace):
                return
            self.complete(step, {"state.pt": self.write(step, "state.pt", state)}, about)
        self.prune(step)

    @contextmanager
    def writing(self, step: int) -> Iterator[None]:
        """Around all that writes a checkpoint: what fails leaves nothing behind, and is a :class:`CheckpointError`."""
        try:
            yield
        except (OSError, RuntimeError) as error:  # torch reports a failed write as a RuntimeError
            self.discard(step)
            raise CheckpointError(
                f"the checkpoint of step {step} could not be written to {self.uri(step)}: {error}"
            ) from error

    def discard(self, step: int) -> None:
        """Remove what was written of a checkpoint that is not complete."""
        with suppress(OSError):
            self.storage.delete(self.name(step))

    def begin(self, step: int, *, replace: bool) -> bool:
        """Make room for a checkpoint, and remove what earlier writes left. Returns whether it has to be written."""
        complete = self.steps()
        if step in complete:
            if not replace:
                return False
            self._remove(step)
            complete.remove(step)
        for stale in set(self._folders()) - set(complete):
            self.storage.delete(self.name(stale))
        self.storage.make(self.name(step))
        return True

    def write(self, step: int, name: str, content: Any) -> Entry:
        """Write one of a checkpoint's files."""
        with self.storage.writing(f"{self.name(step)}/{name}") as stream:
            hashing = _Hashing(stream)
            torch.save(dict(content) if isinstance(content, Mapping) else content, cast("IO[bytes]", hashing))
        return {"bytes": hashing.size, "sha256": hashing.digest.hexdigest()}

    def complete(self, step: int, files: Mapping[str, Entry], about: Mapping[str, Any]) -> None:
        """Write the manifest, with which the checkpoint is there."""
        manifest = {
            "format": FORMAT if len(files) == 1 else SPREAD_FORMAT,
            "step": step,
            "files": dict(files),
            "written": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "torch": torch.__version__,
            "machine": platform.machine(),
            **about,
        }
        self.storage.write_json(f"{self.name(step)}/manifest.json", manifest)

    def prune(self, step: int) -> None:
        """Delete the oldest checkpoints beyond ``keep``; ``step`` is the newest.

        Raises:
            CheckpointError: the storage refused.
        """
        try:
            for old in [s for s in self.steps() if s != step][: 1 - self.keep or None]:
                self._remove(old)
        except OSError as error:
            raise CheckpointError(f"an old checkpoint of {self.storage.uri} could not be deleted: {error}") from error

    def _remove(self, step: int) -> None:
        """The manifest first, so that a removal that does not end leaves nothing that looks complete."""
        self.storage.filesystem.delete_file(self.storage.path(f"{self.name(step)}/manifest.json"))
        self.storage.delete(self.name(step))

    def manifest(self, step: int) -> dict[str, Any]:
        """What is known of a checkpoint without reading its tensors."""
        return cast("dict[str, Any]", self.storage.read_json(f"{self.name(step)}/manifest.json"))

    def load(
        self, step: int, device: torch.device | str = "cpu", share: tuple[int, int] | None = None
    ) -> dict[str, Any]:
        """Read and verify a checkpoint.

        Args:
            step: which.
            device: where its tensors are put.
            share: rank and number of the workers that share the tensors that are spread: these come as :class:`Rows`.
                None: they come whole, like all others.

        Raises:
            InputError: it is not there, is damaged, or is of a format that this version does not know.
        """
        if not self.storage.exists(f"{self.name(step)}/manifest.json"):
            known = ", ".join(map(str, self.steps())) or "none"
            raise InputError(
                Problem(f"there is no checkpoint of step {step}; complete ones: {known}", self.storage.uri)
            )
        manifest = self.manifest(step)
        if manifest.get("format") not in (FORMAT, SPREAD_FORMAT):
            what = f"format {manifest.get('format')} is not known here (expected {FORMAT} or {SPREAD_FORMAT})"
            raise InputError(Problem(what, self.uri(step)))
        state = self._read(step, "state.pt", manifest, device)
        others = sorted(manifest["files"].keys() - {"state.pt"}, key=lambda name: int(name.split("-")[1]))
        if others:
            state = self._with_rows(step, state, others, manifest, device, share)
        return cast("dict[str, Any]", state)

    def _with_rows(
        self,
        step: int,
        state: Any,
        files: list[str],
        manifest: Mapping[str, Any],
        device: torch.device | str,
        share: tuple[int, int] | None,
    ) -> Any:
        """Fill in the tensors of a state that have no content; one file is read after the other, and of each no more is
        kept than is wanted."""
        spread: list[Tensor] = []
        mapped(state, lambda leaf: spread.append(leaf) if leaf.is_meta else None)
        wanted = [slice(0, len(leaf)) if share is None else own_rows(len(leaf), *share) for leaf in spread]
        pieces: list[list[Tensor]] = [[leaf.new_empty(0, *leaf.shape[1:], device=device)] for leaf in spread]
        for number, name in enumerate(files):
            held = [own_rows(len(leaf), number, len(files)) for leaf in spread]
            common = [range(max(h.start, w.start), min(h.stop, w.stop)) for h, w in zip(held, wanted, strict=True)]
            if any(common):
                parts: list[Tensor] = self._read(step, name, manifest, "cpu")
                for known, part, rows, first in zip(pieces, parts, common, held, strict=True):
                    known.append(part[rows.start - first.start :][: len(rows)].to(device))
        found = [torch.cat(known) for known in pieces]
        if share is not None:
            filled: Iterator[Any] = iter(Rows(rows, leaf.shape) for rows, leaf in zip(found, spread, strict=True))
        else:
            filled = iter(found)
        return mapped(state, lambda leaf: next(filled) if leaf.is_meta else leaf)

    def _read(self, step: int, name: str, manifest: Mapping[str, Any], device: torch.device | str) -> Any:
        """One of a checkpoint's files, verified."""
        path, expected = f"{self.name(step)}/{name}", manifest["files"][name]
        if not self.storage.exists(path):
            raise InputError(Problem(f"{name} is missing", self.uri(step)))
        with self.storage.filesystem.open_input_file(self.storage.path(path)) as file:
            digest = hashlib.sha256()
            size = 0
            while block := file.read(1 << 22):
                digest.update(block)
                size += len(block)
            if size != expected["bytes"] or digest.hexdigest() != expected["sha256"]:
                what = f"{name} is damaged: {size} bytes, {expected['bytes']} expected, or other content"
                raise InputError(Problem(what, self.uri(step)))
            file.seek(0)
            return torch.load(file, map_location=device, weights_only=True)


def parted(state: Mapping[str, Any]) -> tuple[dict[str, Any], list[Tensor]]:
    """A state for ``state.pt``, in which tensors that are spread over workers have no content, and this worker's rows
    of these."""
    rows: list[Tensor] = []

    def emptied(leaf: Tensor) -> Tensor:
        if not isinstance(leaf, DTensor):
            return leaf
        rows.append(leaf.to_local())
        return torch.empty(leaf.shape, dtype=leaf.dtype, device="meta")

    return mapped(state, emptied), rows


def check_architecture(expected: Mapping[str, Tensor], found: Mapping[str, Tensor | Rows], where: str) -> None:
    """Compare a network's state with a checkpoint's before anything is loaded.

    Raises:
        InputError: names or shapes differ; names the first few differences.
    """
    differences = [f"{name} is missing" for name in expected.keys() - found.keys()]
    differences += [f"{name} is not part of this network" for name in found.keys() - expected.keys()]
    differences += [
        f"{name} has shape {list(found[name].shape)}, this network's has {list(expected[name].shape)}"
        for name in expected.keys() & found.keys()
        if expected[name].shape != found[name].shape
    ]
    if differences:
        shown = "; ".join(sorted(differences)[:5])
        more = f"; and {len(differences) - 5} more" if len(differences) > 5 else ""
        raise InputError(Problem(f"the checkpoint is of another architecture: {shown}{more}", where))
