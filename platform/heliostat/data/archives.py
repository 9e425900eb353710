"""The published binary formats of the classic sets, read without unpacking them to disk and without pickle."""

from __future__ import annotations

import gzip
import tarfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from heliostat.errors import InputError, Problem


def read_members(archive: Path, names: Sequence[str]) -> dict[str, bytes]:
    """Some members of a ``.tar.gz``, read in one pass.

    Raises:
        InputError: one is missing, or the archive is damaged.
    """
    found: dict[str, bytes] = {}
    try:
        with tarfile.open(archive, "r|gz") as tar:
            for member in tar:
                if member.name in names and (file := tar.extractfile(member)) is not None:
                    found[member.name] = file.read()
                    if len(found) == len(names):
                        break
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise InputError(Problem(f"it cannot be unpacked: {error}", str(archive))) from error
    if missing := [name for name in names if name not in found]:
        raise InputError(Problem(f"it lacks {', '.join(missing)}", str(archive)))
    return found


def cifar_records(data: bytes, label_bytes: int, where: str) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """CIFAR's binary version: records of labels (the last one is the finest) and 3 x 32 x 32 pixels, plane by plane.

    Args:
        label_bytes: 1 for CIFAR-10, 2 for CIFAR-100 (coarse, fine).

    Returns:
        images (N, 3, 32, 32) uint8 and labels (N,) int64.
    """
    size = label_bytes + 3 * 32 * 32
    if len(data) % size:
        raise InputError(Problem(f"its {len(data)} bytes are no whole number of records of {size} bytes", where))
    records = np.frombuffer(data, np.uint8).reshape(-1, size)
    images = np.ascontiguousarray(records[:, label_bytes:]).reshape(-1, 3, 32, 32)
    return images, records[:, label_bytes - 1].astype(np.int64)


def read_idx(path: Path) -> npt.NDArray[np.uint8]:
    """MNIST's format, gzipped: two zero bytes, the type (8: unsigned bytes), the rank, big-endian sizes, the values."""
    try:
        with gzip.open(path) as file:
            data = file.read()
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(Problem(f"it cannot be unpacked: {error}", str(path))) from error
    if len(data) < 4 or data[:3] != b"\0\0\x08" or len(data) < 4 + 4 * data[3]:
        raise InputError(Problem("it is not an IDX file of unsigned bytes", str(path)))
    shape = np.frombuffer(data, ">u4", count=data[3], offset=4).astype(int)
    values = np.frombuffer(data, np.uint8, offset=4 + 4 * data[3])
    if len(values) != shape.prod():
        raise InputError(Problem(f"it holds {len(values)} values, not {' x '.join(map(str, shape))}", str(path)))
    return values.reshape(shape)


def stl10_images(data: bytes, where: str) -> npt.NDArray[np.uint8]:
    """STL-10's binary images, plane by plane and **column** by column, as (N, 3, 96, 96)."""
    size = 3 * 96 * 96
    if len(data) % size:
        raise InputError(Problem(f"its {len(data)} bytes are no whole number of images of {size} bytes", where))
    return np.ascontiguousarray(np.frombuffer(data, np.uint8).reshape(-1, 3, 96, 96).transpose(0, 1, 3, 2))


def class_names(data: bytes) -> tuple[str, ...]:
    """The lines of a file of class names."""
    return tuple(line.strip() for line in data.decode().splitlines() if line.strip())
