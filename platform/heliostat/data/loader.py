"""The deterministic loader: a step's batch is a function of (seed, step) alone, each worker takes its rows of it.

Of videos, so is the place of each clip: it is drawn for the row of the global batch. Of sequences, so is the length to
which shorter ones are filled up: it is that of the longest in the global batch.

There is no state to lose: a resumed run asks for the next step, a run with more workers cuts the same global batch into
more parts, and any single step can be loaded again. Data that is decoded while training goes on is decoded a few
batches ahead; which samples a batch holds does not depend on it.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from heliostat.data.ahead import Ahead
from heliostat.data.samples import Samples
from heliostat.errors import InputError
from heliostat_algorithms.randomness import Random

_DTYPES = {"uint8": torch.uint8, "int32": torch.int32, "int64": torch.int64, "float32": torch.float32}
_SCOPE = "loader"
"""Of the random streams; an algorithm draws from others in the same step."""


class Loader:
    """Batches of one data set for training.

    Every epoch has its own random order (``order``), of which the remainder that fills no batch is left out.

    Args:
        batch_size: samples of the global batch, over all workers.
        seed: of the run.
        minibatches: such batches in one step.
        rank, world_size: of this worker, and how many there are.
        device: where batches are put; from pinned memory and without waiting for CUDA devices.
        clips: of videos, whether batches hold clips; otherwise they hold one random frame of each video as an image.

    Raises:
        InputError: the batch is larger than the data, or cannot be shared equally by the workers.
    """

    def __init__(
        self,
        data: Samples,
        *,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        device: torch.device | str = "cpu",
        clips: bool = False,
        minibatches: int = 1,
    ) -> None:
        if not 0 <= rank < world_size:
            raise ValueError(f"rank must lie in 0 .. {world_size - 1}, not {rank}")
        if batch_size < 1 or batch_size % world_size:
            lower, upper = batch_size // world_size * world_size, -(-max(batch_size, 1) // world_size) * world_size
            right = f"{lower} or {upper}" if lower > 0 else str(upper)
            raise InputError(
                f"batch_size {batch_size} is global and cannot be shared equally by {world_size} workers; {right} can"
            )
        if minibatches * batch_size > len(data) >= batch_size:
            raise InputError(
                f"a step takes {minibatches} batches of {batch_size} samples, and {data.name} has {len(data)}; "
                f"a batch_size of at most {len(data) // minibatches // world_size * world_size} is possible"
            )
        if batch_size > len(data):
            raise InputError(
                f"batch_size {batch_size} is larger than {data.name}, which has {len(data)} samples; "
                + (
                    f"at most {len(data) // world_size * world_size} is possible"
                    if len(data) >= world_size
                    else f"it cannot even give each of the {world_size} workers one"
                )
            )
        self.data, self.batch_size, self.seed, self.device = data, batch_size, seed, torch.device(device)
        self.clips, self.minibatches = clips, minibatches
        self._rows = range(rank * batch_size // world_size, (rank + 1) * batch_size // world_size)
        self._order = data.order(batch_size=batch_size, minibatches=minibatches, seed=seed, workers=world_size)
        self._ahead = Ahead(self._load, data.ahead, self.device) if data.ahead else None

    @property
    def steps_per_epoch(self) -> int:
        """Steps for which the data has whole batches."""
        return self._order.steps_per_epoch

    @property
    def samples_per_step(self) -> int:
        """Over all workers and minibatches."""
        return self.minibatches * self.batch_size

    @property
    def dropped_per_epoch(self) -> int:
        """Samples that an epoch leaves out because they fill no step's batches; other ones each time."""
        return len(self.data) % self.samples_per_step

    def rows(self) -> range:
        """The global batch's rows that this worker holds: contiguous, and equally many for all."""
        return self._rows

    def indices(self, step: int) -> npt.NDArray[np.int64]:
        """(samples_per_step,) samples of the step's global batch; of several, one after the other. Steps count from 0
        over all epochs."""
        if step < 0:
            raise ValueError(f"steps count from 0, not {step}")
        return self._order.indices(step)

    def batch(self, step: int, minibatch: int = 0) -> dict[str, Tensor]:
        """This worker's B rows: ``image`` (B, C, H, W) or ``video`` (B, T, C, H, W) uint8, ``point`` (B, D) float32, or
        the entries of sequences int64; ``index`` and, if any, ``label`` (B,) int64.

        Args:
            minibatch: which of the step's, from 0.
        """
        number = step * self.minibatches + minibatch
        return self._load(number) if self._ahead is None else self._ahead.get(number)

    def _load(self, number: int) -> dict[str, Tensor]:
        """A batch by its number, counted over all steps and their minibatches."""
        step, minibatch = divmod(number, self.minibatches)
        together = self.indices(step)[minibatch * self.batch_size : (minibatch + 1) * self.batch_size]
        indices = together[self._rows.start : self._rows.stop]
        random = Random(self.seed, step, self._rows).within(_SCOPE if minibatch == 0 else f"{_SCOPE}-{minibatch}")
        return _gather(self.data, indices, self.device, clips=self.clips, random=random, together=together)


def sequential(
    data: Samples,
    *,
    batch_size: int,
    rank: int = 0,
    world_size: int = 1,
    device: torch.device | str = "cpu",
) -> Iterator[dict[str, Tensor]]:
    """This worker's part of the data in order, for evaluation; over all workers every sample comes exactly once.

    Of videos it is the middle clip. Parts are contiguous and differ by at most one sample; a part may be empty.

    Args:
        batch_size: samples at a time on **this** worker; the last batch may be smaller.
    """
    if not 0 <= rank < world_size:
        raise ValueError(f"rank must lie in 0 .. {world_size - 1}, not {rank}")
    if batch_size < 1:
        raise InputError(f"batch_size must be at least 1, not {batch_size}")
    first, last = rank * len(data) // world_size, (rank + 1) * len(data) // world_size
    for start in range(first, last, batch_size):
        yield _gather(data, np.arange(start, min(start + batch_size, last)), torch.device(device))


def _gather(
    data: Samples,
    indices: npt.NDArray[np.int64],
    device: torch.device,
    *,
    clips: bool = True,
    random: Random | None = None,
    together: npt.NDArray[np.int64] | None = None,
) -> dict[str, Tensor]:
    """Copies the rows only: the arrays may be read-only views of shared memory, which torch cannot wrap itself."""
    pinned = device.type == "cuda"

    def rows(values: npt.NDArray[np.generic], indices: npt.NDArray[np.int64]) -> Tensor:
        shape = (*indices.shape, *values.shape[1:])
        # On the CPU, numpy asks for huge pages, and torch does not: the system gives them out ten times as fast.
        out = (
            torch.empty(shape, dtype=_DTYPES[values.dtype.name], pin_memory=True)
            if pinned
            else torch.from_numpy(np.empty(shape, values.dtype))
        )
        # Any mode but "raise" writes into ``out`` without a buffer; all indices are in range.
        np.take(values, indices, axis=0, out=out.numpy(), mode="clip")
        # Pictures stay bytes until an algorithm has cropped them; tokens are stored small and used as int64.
        moved = out.to(device, non_blocking=pinned)
        return moved.long() if values.dtype == np.int32 else moved

    chosen = data.select(indices, clips=clips, random=random, together=together)
    batch = {each.name: rows(each.values, each.rows) for each in chosen}
    if data.labels is not None:
        batch["label"] = rows(data.labels, indices)
    index = torch.tensor(indices)
    batch["index"] = (index.pin_memory() if pinned else index).to(device, non_blocking=pinned)
    return batch
