"""Paths of the job file: local ones and the URIs of pyarrow's file systems (``s3://``, ``gs://``, ``hdfs://``, ``file://``)."""

from __future__ import annotations

import difflib
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from heliostat.errors import InputError

if TYPE_CHECKING:
    from pyarrow import fs


def absolute(path: str) -> str:
    """The same place named from anywhere: ``~`` expanded, relative to the current directory; URIs stay as they are."""
    return path if "://" in path else str(Path(path).expanduser().absolute())


def locate(path: str) -> tuple[fs.FileSystem, fs.FileInfo]:
    """The file system of a path or URI, and what lies there.

    Raises:
        InputError: there is nothing, or the file system cannot be reached; names the nearest entry that exists.
    """
    import pyarrow as pa
    from pyarrow import fs

    try:
        if "://" in path:
            filesystem, inner = fs.FileSystem.from_uri(path)
        else:
            filesystem, inner = fs.LocalFileSystem(), absolute(path)
        info = filesystem.get_file_info(inner)
        if info.type == fs.FileType.NotFound:
            raise InputError(f"{path} does not exist.{_nearest_entry(filesystem, PurePosixPath(inner))}")
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path} cannot be reached: {error}") from error
    return filesystem, info


def _nearest_entry(filesystem: Any, missing: PurePosixPath) -> str:
    """A hint: the closest name beside the missing one, or what its deepest existing folder holds."""
    from pyarrow import fs

    folder = missing.parent
    while folder != folder.parent and filesystem.get_file_info(str(folder)).type != fs.FileType.Directory:
        missing, folder = folder, folder.parent
    names = sorted(
        info.base_name for info in filesystem.get_file_info(fs.FileSelector(str(folder), allow_not_found=True))
    )
    close = difflib.get_close_matches(missing.name, names, n=1)
    if close:
        return f" Did you mean '{folder / close[0]}'?"
    shown = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
    return f" The folder {folder} holds: {shown}." if names else f" The folder {folder} is empty."
