"""Encoded images in Parquet, as on the Hugging Face hub.

The image column is ``struct<bytes: binary, path: string>`` or plain binary; labels are integers or strings. Class names
come from the schema's metadata: key ``classes`` (a JSON list, or separated by commas), or the hub's own ``huggingface``
entry. String labels without class names there are numbered in sorted order.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from heliostat.data.decoding import Encoded, decode
from heliostat.data.images import ImageData, Progress
from heliostat.data.locations import locate
from heliostat.errors import InputError, Problem, nearest

_CHUNK = 128
"""Images read and decoded at a time."""


@dataclass(frozen=True)
class ParquetTable:
    """Parquet files that together are one data set; their footers have been read, their rows have not."""

    paths: tuple[str, ...]
    files: tuple[Any, ...]
    """Open ``pyarrow.parquet.ParquetFile``s, one for each path."""

    @classmethod
    def open(cls, paths: Sequence[str]) -> ParquetTable:
        """Read the footers of files, and of all ``*.parquet`` in folders, in the order of their names.

        Raises:
            InputError: with every path that is missing, unreadable, not Parquet or cut off.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        problems: list[Problem] = []
        found: list[tuple[str, Any]] = []
        for path in paths:
            try:
                found += parquet_files(path)
            except InputError as error:
                problems += error.problems
        opened: list[tuple[str, Any]] = []
        for path, filesystem in found:
            try:
                opened.append((path, pq.ParquetFile(filesystem.open_input_file(path))))
            except (pa.ArrowException, OSError) as error:
                problems.append(Problem(f"it is not a Parquet file, is cut off or cannot be read: {error}", path))
        if problems:
            raise InputError(problems)
        return cls(tuple(path for path, _ in opened), tuple(file for _, file in opened))

    def __len__(self) -> int:
        return sum(file.metadata.num_rows for file in self.files)

    def problems(self, image: str, label: str | None) -> list[Problem]:
        """What keeps the footers from being those of images with labels."""
        found = []
        for path, file in zip(self.paths, self.files, strict=True):
            schema = file.schema_arrow
            for key, name, valid, wanted in (
                ("image", image, _is_image, "binary or struct<bytes: binary, path: string>"),
                ("label", label, _is_label, "integers or strings"),
            ):
                if name is None:
                    continue
                if name not in schema.names:
                    hint = nearest(name, schema.names)
                    hint += " Without labels: label: null." if key == "label" else ""
                    found.append(Problem(f"it has no column '{name}' ({key}).{hint}", path))
                elif schema.names.count(name) > 1:
                    found.append(Problem(f"it has several columns '{name}' ({key}); it must have one", path))
                elif not valid(schema.field(name).type):
                    kind = schema.field(name).type
                    found.append(Problem(f"column '{name}' ({key}) is {kind}; it must be {wanted}", path))
        if not len(self):
            found.append(Problem("it holds no rows", ", ".join(self.paths)))
        return found

    def load(
        self,
        *,
        image: str,
        label: str | None,
        channels: int,
        image_size: int | None,
        max_corrupt: float,
        name: str,
        progress: Progress | None = None,
    ) -> ImageData:
        """Decode all rows; the arguments are the fields of ``sources.ParquetImages``.

        Raises:
            InputError: the columns, the labels or too many images are wrong.
        """
        if problems := self.problems(image, label):
            raise InputError(problems)
        labels, classes = (None, ()) if label is None else self.numbered_labels(label)  # the quick column first
        decoded = decode(
            self._rows(image),
            len(self),
            channels=channels,
            image_size=image_size,
            max_corrupt=max_corrupt,
            name=name,
            progress=progress,
        )
        return ImageData(
            images=decoded.images,
            labels=None if labels is None else labels[decoded.kept],
            classes=classes,
            name=name,
            corrupt=decoded.corrupt,
        )

    def _rows(self, image: str) -> Iterator[Encoded]:
        import pyarrow as pa

        for path, file in zip(self.paths, self.files, strict=True):
            nested = pa.types.is_struct(file.schema_arrow.field(image).type)
            first = 0
            try:
                for batch in file.iter_batches(_CHUNK, columns=[f"{image}.bytes" if nested else image]):
                    column = batch.column(0)
                    values = column.flatten()[0] if nested else column  # flatten also passes on the struct's own nulls
                    yield _Rows(path, first, values.to_pylist())
                    first += len(batch)
            except (pa.ArrowException, OSError) as error:
                raise InputError(Problem(f"its rows after {first} cannot be read: {error}", path)) from error

    def numbered_labels(self, label: str) -> tuple[npt.NDArray[np.int64], tuple[str, ...]]:
        """(N,) labels as numbers of classes, and the classes' names; reads this column only.

        Raises:
            InputError: a label is missing, negative or unknown, or the column cannot be read.
        """
        import pyarrow as pa

        columns = []
        for path, file in zip(self.paths, self.files, strict=True):
            try:
                column = file.read(columns=[label]).column(0).combine_chunks()
            except (pa.ArrowException, OSError) as error:
                raise InputError(Problem(f"column '{label}' cannot be read: {error}", path)) from error
            if column.null_count:
                row = int(np.flatnonzero(np.asarray(column.is_null()))[0])
                raise InputError(
                    Problem(
                        f"column '{label}' is null in {column.null_count} of {len(column)} rows, first in row {row}; "
                        "label every row, or set label: null to do without labels",
                        path,
                    )
                )
            if pa.types.is_dictionary(column.type):
                column = column.dictionary_decode()
            values = np.asarray(column)
            if values.dtype.kind in "iu":
                if len(values) and int(values.min()) < 0:
                    row = int(np.flatnonzero(values < 0)[0])
                    problem = (
                        f"column '{label}' is {values[row]} in row {row}; classes are numbered from 0 "
                        "(-1 often means that labels are withheld: label: null does without them)"
                    )
                    raise InputError(Problem(problem, path))
                values = values.astype(np.int64)
            columns.append(values)
        named = self._classes(label)
        if len({column.dtype.kind == "i" for column in columns}) > 1:
            raise InputError(f"column '{label}' holds integers in some files and strings in others")
        values = np.concatenate(columns)
        if values.dtype.kind != "i":
            return self._numbered(values, named, label)
        return values, named or tuple(str(number) for number in range(int(values.max()) + 1))

    def _numbered(
        self, values: npt.NDArray[Any], named: tuple[str, ...], label: str
    ) -> tuple[npt.NDArray[np.int64], tuple[str, ...]]:
        texts, numbers = np.unique(values.astype(str), return_inverse=True)
        classes = named or tuple(texts.tolist())
        order = {text: number for number, text in enumerate(classes)}
        unknown = [text for text in texts.tolist() if text not in order]
        if unknown:
            raise InputError(
                f"column '{label}' holds '{unknown[0]}', which the class names in the schema's "
                f"metadata lack.{nearest(unknown[0], classes)}"
            )
        return np.array([order[text] for text in texts.tolist()], np.int64)[numbers], classes

    def _classes(self, label: str) -> tuple[str, ...]:
        """Class names from the first file's metadata; empty where it has none."""
        metadata = self.files[0].schema_arrow.metadata or {}
        try:
            if b"classes" in metadata:
                text = metadata[b"classes"].decode()
                names = json.loads(text) if text.lstrip().startswith("[") else text.split(",")
                return tuple(str(name).strip() for name in names)
            if b"huggingface" in metadata:
                features = json.loads(metadata[b"huggingface"])["info"]["features"]
                return tuple(features.get(label, {}).get("names") or ())
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(
                Problem(f"the class names in its metadata are not readable: {error!r}", self.paths[0])
            ) from error
        return ()


@dataclass(frozen=True, slots=True)
class _Rows:
    path: str
    first: int
    values: list[bytes | None]

    def __len__(self) -> int:
        return len(self.values)

    def where(self, position: int) -> str:
        return f"{self.path}:{self.first + position}"

    def read(self, position: int) -> bytes | None:
        return self.values[position]


def parquet_files(path: str) -> list[tuple[str, Any]]:
    """The Parquet files at a path, each with its file system.

    Raises:
        InputError: there is none.
    """
    from pyarrow import fs

    filesystem, info = locate(path)
    if info.type == fs.FileType.File:
        return [(info.path, filesystem)]
    inside = filesystem.get_file_info(fs.FileSelector(info.path))
    names = sorted(entry.path for entry in inside if entry.is_file and entry.extension == "parquet")
    if not names:
        raise InputError(f"the folder {path} holds no .parquet file")
    return [(name, filesystem) for name in names]


def _is_image(kind: Any) -> bool:
    import pyarrow as pa

    if pa.types.is_struct(kind):
        return any(field.name == "bytes" and _is_image(field.type) for field in kind.fields)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _is_label(kind: Any) -> bool:
    import pyarrow as pa

    if pa.types.is_dictionary(kind):
        return _is_label(kind.value_type)
    return bool(pa.types.is_integer(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind))
