"""The index of a prepared set: which files and row groups there are, how many rows, which classes, what statistics.

``index.json`` is written last, so a folder that has one is whole.
"""

from __future__ import annotations

import hashlib
import json
from functools import cached_property
from typing import Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from heliostat.errors import InputError, Problem
from heliostat.training.storage import Storage

INDEX, CORRUPT = "index.json", "corrupt.json"
VERSION = 1
IMAGE, LABEL = "image", "label"


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class PreparedFile(_Frozen):
    """One Parquet file."""

    name: str
    """Within the folder."""
    bytes: int = Field(gt=0)
    sha256: str
    """Of the file, hexadecimal."""
    group_rows: tuple[int, ...]
    """Rows of each row group."""
    group_bytes: tuple[int, ...]
    """Bytes of each row group's encoded images."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if len(self.group_rows) != len(self.group_bytes):
            raise ValueError("group_rows and group_bytes must have one number for each row group")
        return self

    @property
    def rows(self) -> int:
        return sum(self.group_rows)


class Statistics(_Frozen):
    """Of the images as they are stored."""

    class_counts: tuple[int, ...]
    """Images of each class; empty without labels."""
    width: tuple[int, int]
    """Pixels, least and greatest."""
    height: tuple[int, int]
    mean: tuple[float, ...]
    """Of each channel over all pixels, which lie in 0 to 1."""
    std: tuple[float, ...]
    classes_per_group: float
    """Mean number of different classes in a row group: how well the rows are mixed; 0 without labels."""


class Settings(_Frozen):
    """What decides the bytes of a prepared set beside its input."""

    image_size: int | None = Field(default=None, gt=0)
    """Pixels to which a longer shorter side is reduced. None: images stay as they are."""
    format: Literal["jpeg", "png"] = "jpeg"
    """Of images that were resized; the others keep their bytes."""
    quality: int = Field(default=90, ge=1, le=100)
    """Of JPEG."""
    channels: Literal[3, 1] = 3
    """3 for RGB, 1 for grey: what statistics and resized images are of."""
    rows_per_group: int = Field(default=64, gt=0)
    """Images that are read at once, at most."""
    rows_per_file: int = Field(default=4096, gt=0)
    """Images of a file, at most."""
    seed: int = 0
    """Decides the order in which the input is mixed."""
    max_corrupt: float = Field(default=0.0, ge=0.0, le=1.0)
    """The share of images that may be impossible to decode."""


class Index(_Frozen):
    """A prepared set."""

    format: Literal["heliostat-images"] = "heliostat-images"
    version: int = VERSION
    settings: Settings
    classes: tuple[str, ...] | None
    """Class names in the order of the labels; None for a set without labels."""
    corrupt: int = Field(ge=0)
    """Images of the input that could not be decoded and were left out; ``corrupt.json`` lists them."""
    statistics: Statistics
    files: tuple[PreparedFile, ...] = Field(min_length=1)

    @classmethod
    def read(cls, storage: Storage) -> Index:
        """Read a folder's index.

        Raises:
            InputError: there is none, or it is not one that this version reads.
        """
        try:
            index = cls.model_validate(storage.read_json(INDEX))
        except FileNotFoundError:
            what = f"it has no {INDEX}, so it is no prepared set, or its preparation was not finished; run: "
            raise InputError(Problem(f"{what}heliostat data prepare INPUT {storage.uri}", storage.uri)) from None
        except OSError as error:
            raise InputError(Problem(f"{INDEX} cannot be read: {error}", storage.uri)) from error
        except (ValidationError, json.JSONDecodeError, UnicodeDecodeError) as error:
            what = f"{INDEX} is damaged or of another format: {' '.join(str(error).split())}"
            raise InputError(Problem(what, storage.uri)) from error
        if index.version != VERSION:
            what = f"{INDEX} is of version {index.version}, and this release reads version {VERSION}; prepare it anew"
            raise InputError(Problem(what, storage.uri))
        return index

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the files' hashes and the classes."""
        content = [self.classes, *(file.sha256 for file in self.files)]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    @cached_property
    def starts(self) -> npt.NDArray[np.int64]:
        """(G + 1,) the first row of each row group over all files, and how many rows there are."""
        rows = [rows for file in self.files for rows in file.group_rows]
        return np.concatenate([[0], np.cumsum(rows)]).astype(np.int64)

    @property
    def rows(self) -> int:
        return int(self.starts[-1])

    @property
    def bytes(self) -> int:
        """Of all files."""
        return sum(file.bytes for file in self.files)

    @property
    def largest_group(self) -> int:
        """Bytes of the largest row group."""
        return max(size for file in self.files for size in file.group_bytes)

    @property
    def one_size(self) -> tuple[int, int] | None:
        """(height, width) where all images have one; else None."""
        (width, widest), (height, highest) = self.statistics.width, self.statistics.height
        return (height, width) if width == widest and height == highest else None
