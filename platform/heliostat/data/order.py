"""The order in which training sees samples: a function of (seed, epoch), whatever the number of workers.

Data in memory is permuted as a whole. Data that streams from row groups of files cannot be: a random order over all
rows would read a group anew for every sample. Its order has three steps, none of which has a state:

1. The groups are permuted, by (seed, epoch), and laid end to end.
2. That line is cut into stretches of equal length, the virtual shards. Of a global batch with B rows and V shards, rows
   v B/V to (v+1) B/V come from shard v, one after the other. A worker holds contiguous rows, so it reads its own
   shards' groups and no others, as long as the number of workers divides V; with other numbers the order is the same,
   and some groups are read by two workers.
3. Within a shard, every k successive groups are a pool, whose rows are permuted by (seed, epoch, shard, pool).

At any time the rows of V times k groups are mixed. A step's samples follow from its number alone: nothing before it is
read or counted.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from heliostat_algorithms.randomness import permutation

Indices = npt.NDArray[np.int64]


class Order(ABC):
    """Which samples a step takes.

    Args:
        samples: N, how many there are.
        batch_size: of the global batch.
        minibatches: such batches in one step.
        seed: of the run.
    """

    def __init__(self, samples: int, *, batch_size: int, minibatches: int, seed: int) -> None:
        self.batch_size, self.minibatches, self.seed = batch_size, minibatches, seed
        self.steps_per_epoch = samples // (batch_size * minibatches)
        """Steps for which there are whole batches."""

    @abstractmethod
    def indices(self, step: int) -> Indices:
        """(minibatches x batch_size,) samples of a step, counted from 0 over all epochs; read-only."""


class ShuffledOrder(Order):
    """A random order of all samples, anew in each epoch."""

    def __init__(self, samples: int, *, batch_size: int, minibatches: int, seed: int) -> None:
        super().__init__(samples, batch_size=batch_size, minibatches=minibatches, seed=seed)
        self._samples = samples
        self._epoch: tuple[int, Indices] | None = None

    def indices(self, step: int) -> Indices:
        epoch, position = divmod(step, self.steps_per_epoch)
        if self._epoch is None or self._epoch[0] != epoch:
            order = permutation(f"{self.seed}:order:{epoch}", self._samples).numpy()
            order.flags.writeable = False
            self._epoch = (epoch, order)
        size = self.minibatches * self.batch_size
        return self._epoch[1][position * size : (position + 1) * size]


class PooledOrder(Order):
    """The order of streamed data: permuted groups, cut into shards, pooled and permuted inside; see the module.

    Args:
        starts: (G + 1,) the first sample of each group, and N.
        shards: V. Where it does not divide the batch, their greatest common divisor takes its place.
        pool: k, groups in a pool.
    """

    def __init__(
        self, starts: Indices, *, shards: int, pool: int, batch_size: int, minibatches: int, seed: int
    ) -> None:
        super().__init__(int(starts[-1]), batch_size=batch_size, minibatches=minibatches, seed=seed)
        self.shards, self.pool = math.gcd(shards, batch_size), pool
        self._starts, self._length = starts, int(starts[-1]) // self.shards
        # Those of a step and of the batches that are prepared ahead of it.
        self._line = lru_cache(2)(self._made_line)
        self._pool = lru_cache(4 * self.shards)(self._made_pool)

    def indices(self, step: int) -> Indices:
        epoch, position = divmod(step, self.steps_per_epoch)
        rows = self.batch_size // self.shards
        first = position * self.minibatches
        chosen = np.concatenate(
            [
                self._stretch(epoch, shard, batch * rows, (batch + 1) * rows)
                for batch in range(first, first + self.minibatches)
                for shard in range(self.shards)
            ]
        )
        chosen.flags.writeable = False
        return chosen

    def _stretch(self, epoch: int, shard: int, start: int, stop: int) -> Indices:
        """The samples at these places of a shard."""
        _, ends = self._line(epoch)
        begin = shard * self._length
        first_group = int(np.searchsorted(ends, begin, side="right"))
        parts = []
        while start < stop:
            group = int(np.searchsorted(ends, begin + start, side="right"))
            number = (group - first_group) // self.pool
            offset, rows = self._pool(epoch, shard, number)
            part = rows[start - offset : stop - offset]
            parts.append(part)
            start += len(part)
        return np.concatenate(parts)

    def _made_line(self, epoch: int) -> tuple[Indices, Indices]:
        """The groups in the order of an epoch, and where on the line each ends."""
        groups = permutation(f"{self.seed}:groups:{epoch}", len(self._starts) - 1).numpy()
        return groups, np.cumsum(np.diff(self._starts)[groups])

    def _made_pool(self, epoch: int, shard: int, number: int) -> tuple[int, Indices]:
        """Where in its shard a pool begins, and its samples in their order."""
        groups, ends = self._line(epoch)
        begin, end = shard * self._length, (shard + 1) * self._length
        first = int(np.searchsorted(ends, begin, side="right")) + number * self.pool
        pieces, offset = [], None
        for place in range(first, min(first + self.pool, len(groups))):
            group = groups[place]
            size = int(self._starts[group + 1] - self._starts[group])
            at = int(ends[place]) - size
            low, high = max(begin, at), min(end, at + size)
            if low >= high:
                continue  # an empty group, or one of the next shard
            offset = low - begin if offset is None else offset
            pieces.append(np.arange(low - at, high - at) + self._starts[group])
        rows = np.concatenate(pieces)
        order = permutation(f"{self.seed}:pool:{epoch}:{shard}:{number}", len(rows)).numpy()
        return offset or 0, rows[order]


def scattered(starts: Indices, *, pool: int, seed: int) -> Indices:
    """(N,) all samples in one pooled order with a single shard: how preparation mixes its input.

    Args:
        starts: (G + 1,) the first sample of each group that is read at once, and N.
    """
    total = int(starts[-1])
    order = PooledOrder(starts, shards=1, pool=pool, batch_size=total, minibatches=1, seed=seed)
    return order.indices(0)
