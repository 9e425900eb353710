"""What all sources of data have in common.

A source is checked cheaply before any resource is taken (``check``), made independent of the current directory in the
driver (``resolved``), and loaded once (``load``).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field

from heliostat.data.download import cache_folder
from heliostat.data.locations import absolute
from heliostat.data.samples import Progress, Samples

Location = Annotated[str, Field(min_length=1)]


class Source(BaseModel, ABC):
    """What all sources have in common."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    def check(self) -> list[str]:
        """What is wrong, as far as it shows without decoding an image or downloading anything; empty if all is well."""
        return []

    def resolved(self) -> Self:
        """The same source with absolute paths, for workers that run in other directories."""
        return self

    @abstractmethod
    def load(self, progress: Progress | None = None) -> Samples:
        """Read and decode everything.

        Raises:
            InputError: the data is missing or wrong.
        """


class Cached(Source):
    """A source that keeps what it made or got, so that it is there next time."""

    cache: Location | None = None
    """The cache folder. Null: ``$HELIOSTAT_CACHE``, or else ``~/.cache/heliostat``."""

    def check(self) -> list[str]:
        folder = existing = cache_folder(self.cache)
        while not existing.exists():
            existing = existing.parent
        return [] if existing.is_dir() else [f"{folder} cannot be the cache folder: {existing} is a file"]

    def resolved(self) -> Self:
        return self if self.cache is None else self.model_copy(update={"cache": absolute(self.cache)})
