"""What can be prepared: folders of image files, tar shards and Parquet, listed in one order and read by position."""

from __future__ import annotations

import tarfile
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import PurePosixPath
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from heliostat.data.folders import list_folder
from heliostat.data.image_folder import EXTENSIONS
from heliostat.data.locations import locate
from heliostat.data.parquet import ParquetTable, parquet_files
from heliostat.errors import InputError, Problem

Labels = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Inputs(ABC):
    """Encoded images in a fixed order. A part of it can be sent to a worker, which reads on its own."""

    labels: Labels | None
    """(N,), each an index into ``classes``; None where there are none."""
    classes: tuple[str, ...]

    @cached_property
    @abstractmethod
    def starts(self) -> npt.NDArray[np.int64]:
        """(G + 1,) the first image of each group that is read at once, and N."""

    @abstractmethod
    def name(self, position: int) -> str:
        """Of an image, within the input."""

    @abstractmethod
    def part(self, positions: Labels) -> Self:
        """Some of the images, in this order, without what is known of the others."""

    @abstractmethod
    def read(self) -> Iterator[tuple[int, bytes | None]]:
        """All images with their positions, each once, in whatever order is read quickly.

        Raises:
            InputError: something cannot be read.
        """

    def __len__(self) -> int:
        return int(self.starts[-1])


@dataclass(frozen=True, kw_only=True)
class Files(Inputs):
    """Image files, in a sub-folder for each class or in one flat folder."""

    filesystem: Any
    root: str
    paths: tuple[str, ...]

    @classmethod
    def of(cls, path: str) -> Files:
        """List a folder; see ``list_folder``."""
        found = list_folder(path, EXTENSIONS, "images")
        return cls(
            labels=np.array(found.labels, np.int64) if found.classes else None,
            classes=found.classes,
            filesystem=found.filesystem,
            root=locate(path)[1].path.rstrip("/") + "/",
            paths=found.files,
        )

    @cached_property
    def starts(self) -> npt.NDArray[np.int64]:
        return np.arange(len(self.paths) + 1)

    def name(self, position: int) -> str:
        return self.paths[position].removeprefix(self.root)

    def part(self, positions: Labels) -> Self:
        paths = tuple(self.paths[position] for position in positions.tolist())
        return replace(self, paths=paths, labels=None if self.labels is None else self.labels[positions])

    def read(self) -> Iterator[tuple[int, bytes | None]]:
        for position, path in enumerate(self.paths):
            yield position, _whole(self.filesystem, path)


def _whole(filesystem: Any, path: str) -> bytes:
    try:
        with filesystem.open_input_stream(path) as file:
            return bytes(file.read())
    except OSError as error:
        raise InputError(Problem(f"it cannot be read: {error}", path)) from error


@dataclass(frozen=True, kw_only=True)
class Shards(Inputs):
    """Tar files as WebDataset lays them out: members ``key.jpg`` with ``key.cls`` beside them, an integer or a name."""

    filesystem: Any
    paths: tuple[str, ...]
    members: tuple[tuple[int, str, int, int], ...]
    """Of each image: its shard, its name, where its bytes begin and how many there are."""

    @classmethod
    def of(cls, filesystem: Any, paths: Sequence[str]) -> Shards:
        """Read the headers of all shards.

        Raises:
            InputError: a shard is no plain tar file or is cut off, images have no class while others do, or there is
                no image.
        """
        members: list[tuple[int, str, int, int]] = []
        texts: list[str | None] = []
        problems = []
        for number, path in enumerate(paths):
            try:
                for name, offset, size, text in _members(filesystem, path):
                    members.append((number, name, offset, size))
                    texts.append(text)
            except (tarfile.TarError, OSError, UnicodeDecodeError) as error:
                problems.append(Problem(f"it is no plain tar file, is cut off or cannot be read: {error}", path))
        if problems:
            raise InputError(problems)
        if not members:
            raise InputError(f"{', '.join(paths[:3])}: no shard holds an image ({', '.join(sorted(EXTENSIONS))})")
        bare = [member for member, text in zip(members, texts, strict=True) if text is None]
        if bare and len(bare) < len(members):
            what = f"{bare[0][1]} has no class (.cls), while other images have; {len(bare)} of {len(members)} lack it"
            raise InputError(Problem(what, paths[bare[0][0]]))
        labels, classes = (None, ()) if bare else _numbered([text or "" for text in texts])
        return cls(labels=labels, classes=classes, filesystem=filesystem, paths=tuple(paths), members=tuple(members))

    @cached_property
    def starts(self) -> npt.NDArray[np.int64]:
        return np.arange(len(self.members) + 1)

    def name(self, position: int) -> str:
        shard, name, _, _ = self.members[position]
        return f"{PurePosixPath(self.paths[shard]).name}/{name}"

    def part(self, positions: Labels) -> Self:
        members = tuple(self.members[position] for position in positions.tolist())
        return replace(self, members=members, labels=None if self.labels is None else self.labels[positions])

    def read(self) -> Iterator[tuple[int, bytes | None]]:
        by_shard = defaultdict(list)
        for position, (shard, _, offset, size) in enumerate(self.members):
            by_shard[shard].append((offset, size, position))
        for shard, wanted in sorted(by_shard.items()):
            try:
                with self.filesystem.open_input_file(self.paths[shard]) as file:
                    for offset, size, position in sorted(wanted):
                        yield position, bytes(file.read_at(size, offset))
            except OSError as error:
                raise InputError(Problem(f"it cannot be read: {error}", self.paths[shard])) from error


def _members(filesystem: Any, path: str) -> list[tuple[str, int, int, str | None]]:
    """A shard's images by name: where their bytes are, and the text of their class."""
    images: dict[str, tuple[str, int, int]] = {}
    texts: dict[str, str] = {}
    with filesystem.open_input_file(path) as file, tarfile.open(fileobj=file, mode="r:") as archive:
        end = file.size()
        for member in archive:
            if not member.isfile():
                continue
            folder, _, base = member.name.rpartition("/")
            key, _, extension = base.partition(".")
            key, extension = f"{folder}/{key}", extension.lower()
            if member.offset_data + member.size > end:
                raise tarfile.ReadError(f"{member.name} ends beyond the file")
            if extension in EXTENSIONS:
                images[key] = (member.name, member.offset_data, member.size)
            elif extension in ("cls", "cls.txt"):
                content = archive.extractfile(member)
                texts[key] = content.read().decode().strip() if content is not None else ""
    return [(*place, texts.get(key)) for key, place in images.items()]


def _numbered(texts: Sequence[str]) -> tuple[Labels, tuple[str, ...]]:
    """Labels from texts: integers where all are, else names in sorted order."""
    if all(text.isdecimal() for text in texts):
        numbers = np.array([int(text) for text in texts], np.int64)
        return numbers, tuple(str(number) for number in range(int(numbers.max()) + 1))
    classes, numbers = np.unique(np.array(texts), return_inverse=True)
    return numbers.astype(np.int64), tuple(classes.tolist())


@dataclass(frozen=True, kw_only=True)
class Tables(Inputs):
    """Parquet files with encoded images, as on the Hugging Face hub."""

    filesystem: Any
    paths: tuple[str, ...]
    image: str
    groups: tuple[tuple[int, int], ...]
    """Of each row group: its file, and its number within."""
    group_starts: tuple[int, ...]
    """The first row of each row group over all files, and how many rows there are."""
    rows: Labels | None = None
    """(N,) the images' rows; None: all."""

    @classmethod
    def of(cls, path: str, image: str, label: str | None) -> Tables:
        """Read the footers and the labels.

        Raises:
            InputError: as ``ParquetTable``.
        """
        table = ParquetTable.open([path])
        if problems := table.problems(image, label):
            raise InputError(problems)
        labels, classes = (None, ()) if label is None else table.numbered_labels(label)
        groups, starts = [], [0]
        for number, file in enumerate(table.files):
            for group in range(file.metadata.num_row_groups):
                groups.append((number, group))
                starts.append(starts[-1] + file.metadata.row_group(group).num_rows)
        return cls(
            labels=labels,
            classes=classes,
            filesystem=parquet_files(path)[0][1],
            paths=table.paths,
            image=image,
            groups=tuple(groups),
            group_starts=tuple(starts),
        )

    @cached_property
    def starts(self) -> npt.NDArray[np.int64]:
        starts = np.array(self.group_starts, np.int64)
        return starts if self.rows is None else np.arange(len(self.rows) + 1)

    @cached_property
    def _places(self) -> tuple[Labels, dict[int, int]]:
        """``group_starts`` as an array, and the first row of each file."""
        first: dict[int, int] = {}
        for start, (file, _) in zip(self.group_starts, self.groups, strict=False):
            first.setdefault(file, start)
        return np.array(self.group_starts, np.int64), first

    def _row(self, position: int) -> tuple[int, int]:
        """The row of an image, and its row group."""
        row = position if self.rows is None else int(self.rows[position])
        return row, int(np.searchsorted(self._places[0], row, side="right")) - 1

    def name(self, position: int) -> str:
        row, group = self._row(position)
        file = self.groups[group][0]
        return f"{PurePosixPath(self.paths[file]).name}:{row - self._places[1][file]}"

    def part(self, positions: Labels) -> Self:
        rows = positions if self.rows is None else self.rows[positions]
        return replace(self, rows=rows, labels=None if self.labels is None else self.labels[positions])

    def read(self) -> Iterator[tuple[int, bytes | None]]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        by_group = defaultdict(list)
        for position in range(len(self)):
            row, group = self._row(position)
            by_group[group].append((row - self.group_starts[group], position))
        for group, wanted in sorted(by_group.items()):
            number, within = self.groups[group]
            try:
                with self.filesystem.open_input_file(self.paths[number]) as source:
                    file = pq.ParquetFile(source)
                    nested = pa.types.is_struct(file.schema_arrow.field(self.image).type)
                    column = file.read_row_group(within, columns=[f"{self.image}.bytes" if nested else self.image])
            except (pa.ArrowException, OSError) as error:
                what = f"its row group {within} cannot be read: {error}"
                raise InputError(Problem(what, self.paths[number])) from error
            values = column.column(0).combine_chunks()
            values = values.flatten()[0] if nested else values
            for row, position in wanted:
                yield position, values[row].as_py()


def find_inputs(path: str, *, image: str = "image", label: str | None = "label") -> Inputs:
    """What lies at a path: a Parquet or tar file, a folder of either, or a folder of image files.

    Args:
        image, label: columns of Parquet; ``label`` None: without labels.

    Raises:
        InputError: there is nothing of the kind, or it cannot be read.
    """
    from pyarrow import fs

    filesystem, info = locate(path)
    entries = [info]
    if info.type == fs.FileType.Directory:
        entries = filesystem.get_file_info(fs.FileSelector(info.path))
    files = sorted(e.path for e in entries if e.is_file and not e.base_name.startswith("."))
    kinds = {PurePosixPath(name).suffix.lower() for name in files}
    if {".tar", ".parquet"} <= kinds:
        raise InputError(Problem("it holds tar shards and Parquet files; give a folder of one kind", path))
    if ".parquet" in kinds:
        return Tables.of(path, image, label)
    if ".tar" in kinds:
        return Shards.of(filesystem, [name for name in files if name.lower().endswith(".tar")])
    if any(name.lower().endswith((".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")) for name in files):
        raise InputError(Problem("compressed tar files cannot be read by position; unpack them to plain .tar", path))
    return Files.of(path)
