"""The row groups of a prepared set: read when they are needed, kept encoded within a limit of bytes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from threading import Lock
from typing import Any

from heliostat.data.prepared.index import IMAGE, LABEL, Index
from heliostat.errors import InputError, Problem, RunError
from heliostat.training.storage import Storage

_READERS = 16
"""Threads that wait for the disk or the network."""


class RowGroups:
    """Reads row groups by their number over all files, and keeps the ones used last.

    Args:
        storage: the set's folder.
        index: of the set.
        limit: bytes of encoded images that are kept. The groups of one request are held whatever their size.
    """

    def __init__(self, storage: Storage, index: Index, limit: int) -> None:
        self._storage, self._index, self._limit = storage, index, limit
        self._places = [(f, g) for f, file in enumerate(index.files) for g in range(len(file.group_rows))]
        self._sizes = [size for file in index.files for size in file.group_bytes]
        self._kept: OrderedDict[int, Any] = OrderedDict()
        self._footers: dict[int, Any] = {}
        self._lock = Lock()
        self._pool = ThreadPoolExecutor(_READERS, thread_name_prefix="row-groups")
        self.reads = 0
        """Row groups that were read."""
        self.held = 0
        """Bytes of encoded images that are kept now."""
        self.most_held = 0
        """The most that were ever kept."""

    def get(self, numbers: Collection[int]) -> Mapping[int, Any]:
        """Their columns of encoded images, as ``pyarrow.BinaryArray``.

        Raises:
            RunError: a file has changed or was damaged since the set was opened.
        """
        with self._lock:
            missing = [number for number in numbers if number not in self._kept]
            self._make_room(sum(self._sizes[number] for number in missing), set(numbers))
            reading = [(number, self._pool.submit(self._read, number)) for number in missing]
            for number, future in reading:
                self._kept[number] = future.result()
                self.held += self._sizes[number]
                self.reads += 1
            self.most_held = max(self.most_held, self.held)
            for number in numbers:
                self._kept.move_to_end(number)
            return {number: self._kept[number] for number in numbers}

    def _make_room(self, size: int, used: set[int]) -> None:
        """Forget the groups that were used longest ago, until there is room for so many bytes."""
        for number in [number for number in self._kept if number not in used]:
            if self.held + size <= self._limit:
                return
            del self._kept[number]
            self.held -= self._sizes[number]

    def _read(self, number: int) -> Any:
        import pyarrow as pa
        import pyarrow.parquet as pq

        file, group = self._places[number]
        name = self._index.files[file].name
        try:
            # A handle for each read: Arrow's files are not made for several threads. The footer is read once.
            with self._storage.filesystem.open_input_file(self._storage.path(name)) as source:
                opened = pq.ParquetFile(
                    source, metadata=self._footers.get(file), pre_buffer=True, page_checksum_verification=True
                )
                self._footers[file] = opened.metadata
                table = opened.read_row_group(group, columns=[f"{IMAGE}.bytes"])
        except (pa.ArrowException, OSError) as error:
            raise RunError(f"{self._storage.path(name)}: row group {group} cannot be read: {error}") from error
        return table.column(0).combine_chunks().flatten()[0]


def read_labels(storage: Storage, index: Index) -> Any:
    """(N,) int64 labels of all rows, None without; on the way every file is held against the index.

    Raises:
        InputError: with every file that is missing, cut off, or does not fit the index.
    """
    import numpy as np

    with ThreadPoolExecutor(_READERS) as pool:
        read = list(pool.map(lambda number: _labels_of(storage, index, number), range(len(index.files))))
    if problems := [each for each in read if isinstance(each, Problem)]:
        raise InputError(problems)
    return np.concatenate(read) if index.classes is not None else None


def _labels_of(storage: Storage, index: Index, number: int) -> Any:
    """A file's labels, or what is wrong with it."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq
    from pyarrow import fs

    file = index.files[number]
    path = storage.path(file.name)
    try:
        info = storage.filesystem.get_file_info(path)
        if info.type == fs.FileType.NotFound:
            return Problem("the index names it, and it does not exist", path)
        if info.size != file.bytes:
            return Problem(f"it has {info.size:,} bytes, and the index says {file.bytes:,}: cut off or changed", path)
        with storage.filesystem.open_input_file(path) as source:
            opened = pq.ParquetFile(source)
            metadata, names = opened.metadata, opened.schema_arrow.names
            rows = tuple(metadata.row_group(group).num_rows for group in range(metadata.num_row_groups))
            if rows != file.group_rows:
                what = f"it has {metadata.num_rows} rows in {len(rows)} row groups, and the index says "
                return Problem(f"{what}{file.rows} in {len(file.group_rows)}", path)
            missing = [name for name in (IMAGE, *(() if index.classes is None else (LABEL,))) if name not in names]
            if missing:
                return Problem(f"it has no column '{missing[0]}', and the index says so", path)
            if index.classes is None:
                return np.empty(0, np.int64)
            return np.asarray(opened.read(columns=[LABEL]).column(0).combine_chunks(), np.int64)
    except (pa.ArrowException, OSError) as error:
        return Problem(f"it cannot be read: {error}", path)
