"""Recordings kept in the cache folder, because making them takes a minute: verified when read, complete or absent.

One file holds the arrays, compressed, and their SHA-256. A process that records holds a lock, which the system releases
even if the process is killed; others wait and find the result.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from heliostat.errors import InputError

Arrays: TypeAlias = dict[str, npt.NDArray[Any]]

_SUM = "sha256"
"""The member of the file that holds the checksum of the others."""
_COMPRESSION = 1
"""Of zlib's nine levels the quickest; emulator pictures shrink to a twentieth with any."""

logger = logging.getLogger(__name__)


class _Damaged(Exception):  # noqa: N818 - handled where it happens
    """The file is not what was written; the message says how it shows."""


def recorded(folder: Path, name: str, settings: Mapping[str, Any], record: Callable[[], Arrays]) -> Arrays:
    """The recording with these settings, made unless it is there already.

    A file that is damaged is made again, with a warning. Where the folder cannot be written, the recording is used and
    not kept, with a warning.

    Args:
        folder: where recordings are kept.
        name: begins the file's name.
        settings: all that the recording depends on, as plain data.
        record: makes it.

    Raises:
        InputError: there is a file that may not be read.
    """
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
    path = folder / f"{name}-{digest[:16]}.npz"
    with suppress(_Damaged):  # told below, unless somebody else makes it again meanwhile
        if (found := _kept(path)) is not None:
            return found
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = path.with_suffix(".lock").open("ab")
    except OSError as error:
        logger.warning("%s cannot be kept: %s; it will be recorded each time it is used", path, error)
        return record()
    with lock, _held(lock, path):
        try:
            if (found := _kept(path)) is not None:  # somebody else recorded it meanwhile
                return found
        except _Damaged as reason:
            logger.warning("%s is damaged (%s); it is recorded again", path, reason)
        logger.warning("recording %s; it will be found in %s from now on", name, path)
        arrays = record()
        try:
            _write(path, arrays)
        except OSError as error:
            logger.warning("%s cannot be kept: %s; it will be recorded each time it is used", path, error)
        return arrays


@contextmanager
def _held(lock: IO[bytes], path: Path) -> Iterator[None]:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        logger.warning("another process records %s; waiting for it", path)
        fcntl.flock(lock, fcntl.LOCK_EX)
    yield


def _kept(path: Path) -> Arrays | None:
    """What the file holds; None where there is none."""
    try:
        return _read(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise InputError(
            f"{path} cannot be read: {error}. Make it readable, remove it to have it recorded again, or choose another "
            "folder with 'cache' or $HELIOSTAT_CACHE"
        ) from error


def _read(path: Path) -> Arrays:
    try:
        with zipfile.ZipFile(path) as members:
            arrays = {name.removesuffix(".npy"): _array(members, name) for name in members.namelist()}
    except (zipfile.BadZipFile, zlib.error, ValueError, EOFError, NotImplementedError, RuntimeError) as error:
        raise _Damaged(str(error) or type(error).__name__) from error
    expected = arrays.pop(_SUM, None)
    if expected is None or expected.tobytes() != _checksum(arrays):
        raise _Damaged("its checksum is not that of what it holds")
    return arrays


def _array(members: zipfile.ZipFile, name: str) -> npt.NDArray[Any]:
    with members.open(name) as member:
        array: npt.NDArray[Any] = np.lib.format.read_array(member, allow_pickle=False)
    return array


def _write(path: Path, arrays: Arrays) -> None:
    part = path.with_suffix(".part")
    try:
        with part.open("wb") as file:
            with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=_COMPRESSION) as members:
                for name, array in {**arrays, _SUM: np.frombuffer(_checksum(arrays), np.uint8)}.items():
                    with members.open(f"{name}.npy", "w", force_zip64=True) as member:
                        np.lib.format.write_array(member, array, allow_pickle=False)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError:
        with suppress(OSError):
            part.unlink()
        raise


def _checksum(arrays: Arrays) -> bytes:
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name} {array.dtype.str} {array.shape} ".encode())
        digest.update(array.data)
    return digest.digest()
