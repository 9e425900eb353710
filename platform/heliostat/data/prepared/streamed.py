"""Images of a prepared set, decoded when a batch asks for them; only labels and a few encoded row groups are held."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt

from heliostat.data.decoding import THREADED_BYTES, CorruptImage, decode_image, decoding_threads
from heliostat.data.order import PooledOrder
from heliostat.data.prepared.index import Index
from heliostat.data.prepared.row_groups import RowGroups
from heliostat.data.samples import Samples, Selection
from heliostat.errors import InputError, RunError
from heliostat.training.storage import Storage

if TYPE_CHECKING:
    from heliostat.data.order import Order
    from heliostat_algorithms.algorithm import DataSpec
    from heliostat_algorithms.randomness import Random

_MIB = 2**20


@dataclass(frozen=True, kw_only=True)
class Streaming:
    """How a set is streamed. ``shards`` and ``pool`` decide the order of the samples, the others nothing but speed."""

    shards: int
    """Virtual shards: see ``data.order``."""
    pool: int
    """Row groups that are mixed in each shard."""
    memory: int
    """Bytes of encoded images that a worker keeps."""
    ahead: int
    """Batches that are decoded while a step runs."""


@dataclass(frozen=True, kw_only=True, eq=False)
class StreamedImages(Samples):
    """A prepared set of images.

    Raises:
        InputError: as ``Samples``.
    """

    path: str
    """The folder; every worker reads from it."""
    index: Index
    size: tuple[int, int]
    """(height, width) of decoded images."""
    crop: int | None
    """The shorter side is resized to it and the centre square cut out; None where all images have one size."""
    streaming: Streaming
    chosen: npt.NDArray[np.int64] | None = None
    """(N,) rows of the set that belong to it, ascending; None: all."""

    def __len__(self) -> int:
        return self.index.rows if self.chosen is None else len(self.chosen)

    def spec(self) -> DataSpec:
        from heliostat_algorithms.algorithm import DataSpec

        return DataSpec(
            image_shape=(self.index.settings.channels, *self.size),
            classes=None if self.labels is None else len(self.classes),
        )

    @property
    def ahead(self) -> int:
        return self.streaming.ahead

    def order(self, *, batch_size: int, minibatches: int, seed: int, workers: int) -> Order:
        """The pooled order of the set's row groups.

        Raises:
            InputError: the groups that a worker mixes are larger than the memory it may use.
        """
        streaming = self.streaming
        order = PooledOrder(
            self._starts,
            shards=streaming.shards,
            pool=streaming.pool,
            batch_size=batch_size,
            minibatches=minibatches,
            seed=seed,
        )
        # Where one pool ends and the next begins, a batch takes rows of both.
        mine = 2 * -(-order.shards // workers)
        needed = min(mine * streaming.pool, len(self._starts) - 1) * self.index.largest_group
        if needed > streaming.memory:
            fits = streaming.memory // (mine * self.index.largest_group)
            advice = f"pool: {fits}, or " if fits else ""
            raise InputError(
                f"{self.name}: {mine // 2} shards of two pools of {streaming.pool} row groups need up to "
                f"{-(-needed // _MIB)} MiB on a worker, and memory is {streaming.memory // _MIB}; set {advice}"
                f"memory: {-(-needed // _MIB)}"
            )
        return order

    def select(
        self,
        indices: npt.NDArray[np.int64],
        *,
        clips: bool = True,
        random: Random | None = None,
        together: npt.NDArray[np.int64] | None = None,
    ) -> tuple[Selection, ...]:
        """Reads and decodes the images.

        Raises:
            RunError: a file was damaged after the set was opened.
        """
        rows = indices if self.chosen is None else self.chosen[indices]
        groups = np.searchsorted(self.index.starts, rows, side="right") - 1
        columns = self.groups.get(np.unique(groups).tolist())
        first = self.index.starts
        encoded = [columns[g][int(r - first[g])] for g, r in zip(groups.tolist(), rows.tolist(), strict=True)]
        images = np.empty((len(rows), self.index.settings.channels, *self.size), np.uint8)

        def fill(part: range) -> None:
            for position in part:
                self._decode(encoded[position], int(rows[position]), images[position])

        threads = decoding_threads() if self.index.bytes > THREADED_BYTES * self.index.rows else 1
        if threads == 1:
            fill(range(len(rows)))
        else:
            list(self._decoders.map(fill, (range(start, len(rows), threads) for start in range(threads))))
        return (Selection("image", images, np.arange(len(rows))),)

    def _decode(self, encoded: Any, row: int, out: npt.NDArray[np.uint8]) -> None:
        try:
            pixels = decode_image(encoded.as_py(), channels=self.index.settings.channels, image_size=self.crop)
        except CorruptImage as error:
            raise RunError(f"{self.path}: row {row} was whole when it was prepared, and is corrupt: {error}") from error
        if pixels.shape != out.shape:
            raise RunError(f"{self.path}: row {row} is {pixels.shape}, and the index says {out.shape}")
        out[:] = pixels

    @cached_property
    def groups(self) -> RowGroups:
        """What is kept of the files; opened by the process that uses it."""
        return RowGroups(Storage(self.path), self.index, self.streaming.memory)

    @cached_property
    def _decoders(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(decoding_threads(), thread_name_prefix="decode")

    @cached_property
    def _starts(self) -> npt.NDArray[np.int64]:
        """(G + 1,) the first of these samples in each row group."""
        if self.chosen is None:
            return self.index.starts
        return np.searchsorted(self.chosen, self.index.starts).astype(np.int64)

    def part(self, indices: npt.NDArray[np.int64], name: str) -> Self:
        if np.any(np.diff(indices) <= 0):
            raise ValueError("a part of streamed data keeps the order of its rows")
        return replace(
            self,
            labels=None if self.labels is None else self.labels[indices],
            name=name,
            fingerprint="",
            chosen=indices if self.chosen is None else self.chosen[indices],
        )

    def _digest(self) -> str:
        """Of the files' hashes, not of pixels: those are not read before they are needed."""
        digest = hashlib.sha256(f"{self.index.fingerprint} {self.size} {self.crop}".encode())
        if self.chosen is not None:
            digest.update(self.chosen.astype("<i8", copy=False).tobytes())
        return digest.hexdigest()
