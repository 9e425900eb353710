"""Texts and pairs of texts from files, as tokens."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from heliostat.data.download import cache_folder
from heliostat.data.locations import locate
from heliostat.data.parquet import ParquetTable
from heliostat.data.sequences import PairData, TextData
from heliostat.data.vocabulary import Bytes, Characters, Subwords, Vocabulary
from heliostat.errors import InputError, Problem, nearest

_SUFFIX = ".parquet"


def read_text(path: str) -> str:
    """A UTF-8 file, local or on any of pyarrow's file systems.

    Raises:
        InputError: it is missing, no text, or empty.
    """
    filesystem, info = locate(path)
    if not info.is_file:
        raise InputError(Problem("this is a folder; name a text file", path))
    try:
        with filesystem.open_input_stream(info.path) as stream:
            text: str = stream.read().decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(Problem(f"it cannot be read as UTF-8: {error}", path)) from None
    if not text:
        raise InputError(Problem("it is empty", path))
    return text


def cut(text: str, held_out: float) -> tuple[str, str]:
    """The text for training, and its last share, which is held out."""
    place = round(len(text) * (1 - held_out))
    return text[:place], text[place:]


def load_text(
    path: str,
    split: Literal["train", "test"],
    held_out: float,
    window: int,
    tokens: Literal["bytes", "characters", "subwords"],
    vocabulary_size: int,
    cache: str | None,
) -> TextData:
    """A split of a text file in windows.

    Raises:
        InputError: the file cannot be read or is too short, or its end holds characters that its beginning lacks.
    """
    train, test = cut(read_text(path), held_out)
    chosen = train if split == "train" else test
    vocabulary: Vocabulary
    if tokens == "bytes":
        vocabulary = Bytes()
    elif tokens == "characters":
        vocabulary = Characters.of(train)
    else:
        vocabulary = learned(train.splitlines(), vocabulary_size, cache, path)
    try:
        numbers = vocabulary.encode(chosen)
    except ValueError as error:
        raise InputError(Problem(str(error), path)) from None
    return TextData(
        tokens=np.array(numbers, np.int32),
        window=window,
        characters=len(chosen),
        vocabulary=vocabulary,
        name=f"{path} ({split})",
    )


def learned(lines: Sequence[str], size: int, cache: str | None, where: str) -> Subwords:
    """Subwords of a text, from the cache where they have been learned before.

    Raises:
        InputError: the text has fewer.
    """
    lines = [line for line in lines if line.strip()]
    digest = hashlib.sha256(f"bpe:{size}\n".encode())
    for line in lines:
        digest.update(line.encode() + b"\n")
    file = cache_folder(cache) / "subwords" / f"{digest.hexdigest()}.model"
    if file.exists():
        return Subwords(file.read_bytes())
    try:
        made = Subwords.learn(lines, size)
    except ValueError as error:
        raise InputError(Problem(str(error), where)) from None
    _keep(file, made.model)
    return made


def _keep(file: Path, content: bytes) -> None:
    """Whole or not at all: several runs may learn the same subwords at once."""
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(f".{hashlib.sha256(content).hexdigest()[:8]}.part")
    part.write_bytes(content)
    part.replace(file)


def split_file(folder: str, split: str) -> list[str]:
    """The Parquet files of a split in a folder: ``train.parquet`` or, as on the Hugging Face hub,
    ``train-00000-of-00002.parquet``.

    Raises:
        InputError: there is none.
    """
    from pyarrow import fs

    filesystem, info = locate(folder)
    if info.type != fs.FileType.Directory:
        raise InputError(Problem("this is a file; name the folder that holds a Parquet file for each split", folder))
    names = sorted(entry.base_name for entry in filesystem.get_file_info(fs.FileSelector(info.path)) if entry.is_file)
    tables = [name for name in names if name.endswith(_SUFFIX)]
    found = [name for name in tables if name.removesuffix(_SUFFIX).partition("-")[0] == split]
    if not found:
        known = sorted({name.removesuffix(_SUFFIX).partition("-")[0] for name in tables})
        hint = nearest(split, known) if known else " It holds no Parquet file."
        raise InputError(Problem(f"there is no split '{split}'.{hint}", folder))
    return [f"{folder.rstrip('/')}/{name}" for name in found]


def pair_problems(table: ParquetTable, columns: tuple[str, str]) -> list[Problem]:
    """What keeps a table from being one of pairs of texts."""
    import pyarrow as pa

    problems = []
    for path, file in zip(table.paths, table.files, strict=True):
        schema = file.schema_arrow
        for name in columns:
            if name not in schema.names:
                problems.append(Problem(f"it has no column '{name}'.{nearest(name, schema.names)}", path))
            elif not (pa.types.is_string(schema.field(name).type) or pa.types.is_large_string(schema.field(name).type)):
                problems.append(Problem(f"column '{name}' is {schema.field(name).type}; it must be strings", path))
    return problems


def read_pairs(table: ParquetTable, columns: tuple[str, str]) -> tuple[list[str], list[str]]:
    """Sources and targets.

    Raises:
        InputError: a text is missing or empty.
    """
    texts: tuple[list[str], list[str]] = ([], [])
    for path, file in zip(table.paths, table.files, strict=True):
        content: Any = file.read(columns=list(dict.fromkeys(columns)))
        for name, known in zip(columns, texts, strict=True):
            column = content.column(name).to_pylist()
            empty = next((row for row, text in enumerate(column) if not text or not text.strip()), None)
            if empty is not None:
                raise InputError(Problem(f"column '{name}' has no text in row {empty}", path))
            known.extend(column)
    return texts


def load_pairs(folder: str, split: str, columns: tuple[str, str], vocabulary_size: int, cache: str | None) -> PairData:
    """A split of pairs of texts; subwords are those of both languages of the split ``train`` together.

    Raises:
        InputError: a file is missing or wrong.
    """
    known = {}
    for name in dict.fromkeys(("train", split)):
        table = ParquetTable.open(split_file(folder, name))
        problems = pair_problems(table, columns)
        if problems:
            raise InputError(problems)
        known[name] = read_pairs(table, columns)
    vocabulary = learned([*known["train"][0], *known["train"][1]], vocabulary_size, cache, folder)
    sources, targets = known[split]
    return PairData.of(
        vocabulary.encode_all(sources),
        vocabulary.encode_all(targets),
        vocabulary,
        f"{folder} ({split}, {columns[0]} to {columns[1]})",
        targets,
    )
