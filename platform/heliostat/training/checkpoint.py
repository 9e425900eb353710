"""Checkpoints: complete, atomic, verified, and kept in small number.

``checkpoints/step-00000120/`` holds ``state.pt`` and, written last, ``manifest.json`` with the size and SHA-256 of the
state. A folder without a manifest is a write that did not end; it is never read and the next save removes it. This
needs no rename of folders, which object stores do not have, so local and remote runs look the same.
"""

from __future__ import annotations

import hashlib
import platform
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import IO, Any, cast

import torch
from torch import Tensor

from heliostat.errors import InputError, Problem, RunError
from heliostat.training.storage import Storage

FORMAT = 1
_FOLDER = "checkpoints"


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
        folder = self.name(step)
        try:
            complete = self.steps()
            if step in complete:
                if not replace:
                    return
                self._remove(step)
                complete.remove(step)
            for stale in set(self._folders()) - set(complete):
                self.storage.delete(self.name(stale))
            self._write(step, state, about)
        except (OSError, RuntimeError) as error:  # torch reports a failed write as a RuntimeError
            with suppress(OSError):
                self.storage.delete(folder)
            raise CheckpointError(
                f"the checkpoint of step {step} could not be written to {self.uri(step)}: {error}"
            ) from error
        try:
            for old in [*complete, step][: -self.keep]:
                self._remove(old)
        except OSError as error:
            raise CheckpointError(f"an old checkpoint of {self.storage.uri} could not be deleted: {error}") from error

    def _remove(self, step: int) -> None:
        """The manifest first, so that a removal that does not end leaves nothing that looks complete."""
        self.storage.filesystem.delete_file(self.storage.path(f"{self.name(step)}/manifest.json"))
        self.storage.delete(self.name(step))

    def _write(self, step: int, state: Mapping[str, Any], about: Mapping[str, Any]) -> None:
        folder = self.name(step)
        self.storage.make(folder)
        with self.storage.writing(f"{folder}/state.pt") as stream:
            hashing = _Hashing(stream)
            torch.save(dict(state), cast("IO[bytes]", hashing))
        manifest = {
            "format": FORMAT,
            "step": step,
            "files": {"state.pt": {"bytes": hashing.size, "sha256": hashing.digest.hexdigest()}},
            "written": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "torch": torch.__version__,
            "machine": platform.machine(),
            **about,
        }
        self.storage.write_json(f"{folder}/manifest.json", manifest)

    def manifest(self, step: int) -> dict[str, Any]:
        """What is known of a checkpoint without reading its tensors."""
        return cast("dict[str, Any]", self.storage.read_json(f"{self.name(step)}/manifest.json"))

    def load(self, step: int, device: torch.device | str = "cpu") -> dict[str, Any]:
        """Read and verify a checkpoint.

        Raises:
            InputError: it is not there, is damaged, or is of a format that this version does not know.
        """
        folder = self.name(step)
        if not self.storage.exists(f"{folder}/manifest.json"):
            known = ", ".join(map(str, self.steps())) or "none"
            raise InputError(
                Problem(f"there is no checkpoint of step {step}; complete ones: {known}", self.storage.uri)
            )
        manifest = self.manifest(step)
        if manifest.get("format") != FORMAT:
            raise InputError(
                Problem(f"format {manifest.get('format')} is not known here (expected {FORMAT})", self.uri(step))
            )
        expected = manifest["files"]["state.pt"]
        if not self.storage.exists(f"{folder}/state.pt"):
            raise InputError(Problem("state.pt is missing", self.uri(step)))
        with self.storage.filesystem.open_input_file(self.storage.path(f"{folder}/state.pt")) as file:
            digest = hashlib.sha256()
            size = 0
            while block := file.read(1 << 22):
                digest.update(block)
                size += len(block)
            if size != expected["bytes"] or digest.hexdigest() != expected["sha256"]:
                what = f"state.pt is damaged: {size} bytes, {expected['bytes']} expected, or other content"
                raise InputError(Problem(what, self.uri(step)))
            file.seek(0)
            return cast("dict[str, Any]", torch.load(file, map_location=device, weights_only=True))


def check_architecture(expected: Mapping[str, Tensor], found: Mapping[str, Tensor], where: str) -> None:
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
