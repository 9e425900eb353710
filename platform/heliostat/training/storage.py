"""A run's folder on a local disk or in an object store, through pyarrow's file systems."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, Any, cast

from pyarrow import fs

from heliostat.errors import InputError, Problem


class Storage:
    """Files below one root.

    Args:
        root: a local path or a URI that pyarrow understands (``s3://bucket/runs``, ``gs://``, ``hdfs://``, ``file://``).

    Raises:
        InputError: the URI cannot be understood.
    """

    def __init__(self, root: str) -> None:
        if "://" in root:
            try:
                self.filesystem, self.root = fs.FileSystem.from_uri(root)
            except (OSError, ValueError) as error:  # pyarrow's own errors derive from these
                raise InputError(Problem(f"cannot be used as a place for runs: {error}", root)) from None
            if not self.root.strip("/"):
                raise InputError(Problem("cannot be used as a place for runs: it names no bucket or folder", root))
            self.uri = root.rstrip("/")
        else:
            self.root = str(Path(root).expanduser().absolute())
            self.filesystem, self.uri = fs.LocalFileSystem(), self.root
        self.local = isinstance(self.filesystem, fs.LocalFileSystem)

    def __reduce__(self) -> tuple[type[Storage], tuple[str]]:
        return Storage, (self.uri,)

    def path(self, name: str = "") -> str:
        """The path of a file below the root, as the file system knows it."""
        return str(PurePosixPath(self.root) / name)

    def exists(self, name: str = "") -> bool:
        """Whether a file or folder is there."""
        return bool(self.filesystem.get_file_info(self.path(name)).type != fs.FileType.NotFound)

    def folders(self, name: str = "") -> list[str]:
        """Names of the folders directly below ``name``, sorted; empty if it does not exist."""
        selector = fs.FileSelector(self.path(name), allow_not_found=True)
        return sorted(i.base_name for i in self.filesystem.get_file_info(selector) if i.type == fs.FileType.Directory)

    def files(self, name: str = "") -> list[str]:
        """Names of the files directly in ``name``, sorted; empty if it does not exist."""
        selector = fs.FileSelector(self.path(name), allow_not_found=True)
        return sorted(i.base_name for i in self.filesystem.get_file_info(selector) if i.type == fs.FileType.File)

    def make(self, name: str = "") -> None:
        """Create a folder and its parents."""
        self.filesystem.create_dir(self.path(name), recursive=True)

    def delete(self, name: str) -> None:
        """Delete a file, or a folder with its content, if it exists."""
        kind = self.filesystem.get_file_info(self.path(name)).type
        if kind == fs.FileType.File:
            self.filesystem.delete_file(self.path(name))
        elif kind == fs.FileType.Directory:
            self.filesystem.delete_dir(self.path(name))

    @contextmanager
    def writing(self, name: str) -> Iterator[IO[bytes]]:
        """Open a file for writing; on a local disk its bytes have reached the disk when the context ends.

        An object store shows an object only once it is whole; on a local disk a crash can leave a partial file, so
        whoever needs atomicity writes with :meth:`replace` or writes a manifest last.
        """
        if self.local:
            with Path(self.path(name)).open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
        else:
            with self.filesystem.open_output_stream(self.path(name), compression=None) as stream:
                yield cast("IO[bytes]", stream)

    def replace(self, name: str, content: bytes) -> None:
        """Write a small file so that readers see the old content or the new, never a part."""
        if not self.local:
            with self.writing(name) as stream:
                stream.write(content)
            return
        target = Path(self.path(name))
        partial = target.with_name(f".{target.name}.partial")
        try:
            with partial.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(target)
        except OSError:
            partial.unlink(missing_ok=True)
            raise

    def read(self, name: str) -> bytes:
        """A file's bytes. Raises FileNotFoundError."""
        with self.filesystem.open_input_stream(self.path(name), compression=None) as stream:
            return bytes(stream.read())

    def write_json(self, name: str, value: Any) -> None:
        """As :meth:`replace`, for plain data."""
        self.replace(name, (json.dumps(value, indent=2) + "\n").encode())

    def read_json(self, name: str) -> Any:
        """Plain data that :meth:`write_json` wrote."""
        return json.loads(self.read(name))
