"""The data source ``prepared``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Self

from pydantic import Field

from heliostat.data.locations import absolute
from heliostat.data.samples import Progress
from heliostat.data.source import Location, Source
from heliostat.errors import InputError

if TYPE_CHECKING:
    from heliostat.data.prepared.index import Index
    from heliostat.data.prepared.streamed import StreamedImages


class PreparedImages(Source):
    """A set that ``heliostat data prepare`` made: streamed and decoded while training goes on, of any size."""

    source: Literal["prepared"]
    path: Location
    """The folder; local, or a URI such as ``s3://bucket/folder``. Every node must see it."""
    image_size: int | None = Field(default=None, gt=0)
    """Pixels: the shorter side is resized to it and the centre square cut out. Null: all have one size already."""
    shards: int = Field(default=8, gt=0)
    """Parts that every batch takes equally many rows from. Workers read least where their number divides it. It decides
    the order of the samples."""
    pool: int = Field(default=16, gt=0)
    """Row groups whose rows are mixed, in each shard. It decides the order of the samples."""
    memory: int = Field(default=1024, gt=0)
    """MiB of encoded images that a worker keeps at most."""
    ahead: int = Field(default=2, ge=0)
    """Batches that are decoded while a step runs."""

    def check(self) -> list[str]:
        try:
            self._crop(self._index())
        except InputError as error:
            return [str(problem) for problem in error.problems]
        return []

    def resolved(self) -> Self:
        return self.model_copy(update={"path": absolute(self.path)})

    def load(self, progress: Progress | None = None) -> StreamedImages:
        from heliostat.data.prepared.row_groups import read_labels
        from heliostat.data.prepared.streamed import StreamedImages, Streaming
        from heliostat.training.storage import Storage

        index = self._index()
        size = self._crop(index)
        return StreamedImages(
            labels=read_labels(Storage(self.path), index),
            classes=index.classes or (),
            name=self.path,
            path=self.path,
            index=index,
            size=size,
            crop=self.image_size,
            streaming=Streaming(shards=self.shards, pool=self.pool, memory=self.memory * 2**20, ahead=self.ahead),
        )

    def _index(self) -> Index:
        from heliostat.data.locations import locate
        from heliostat.data.prepared.index import Index
        from heliostat.training.storage import Storage

        locate(self.path)
        return Index.read(Storage(self.path))

    def _crop(self, index: Index) -> tuple[int, int]:
        """(height, width) of decoded images.

        Raises:
            InputError: images differ in size, and no ``image_size`` makes them alike.
        """
        if self.image_size is not None:
            return self.image_size, self.image_size
        if index.one_size is None:
            (narrow, wide), (low, high) = index.statistics.width, index.statistics.height
            raise InputError(
                f"{self.path}: images are {narrow} to {wide} pixels wide and {low} to {high} high; image_size: "
                f"{min(narrow, low)} would resize and crop all to one square"
            )
        return index.one_size
