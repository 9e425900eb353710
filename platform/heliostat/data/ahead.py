"""Batches that are prepared by a thread while the step before them runs."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class _Ready:
    tensors: Tensors
    copied: torch.cuda.Event | None
    """When the copies to the device are done; None on the CPU."""


class Ahead:
    """Makes the batches that will be asked for next, at most ``depth`` of them, in one thread.

    On CUDA devices the copies run on a stream of their own, beside the step's computation.

    Args:
        make: a batch by its number. It alone decides what a batch holds; when it is called decides nothing.
        depth: batches beyond the one that was asked for: what is held at the same time is ``depth + 1`` of them.
        device: where batches are put.
    """

    def __init__(self, make: Callable[[int], Tensors], depth: int, device: torch.device) -> None:
        self._make, self._depth, self._device = make, depth, device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="batches")
        self._futures: dict[int, Future[_Ready]] = {}

    def get(self, number: int) -> Tensors:
        """The batch of this number; the same again if it is asked for twice in a row."""
        wanted = range(number, number + self._depth + 1)
        for other in [n for n in self._futures if n not in wanted]:
            self._futures.pop(other).cancel()
        for other in wanted:
            if other not in self._futures:
                self._futures[other] = self._thread.submit(self._ready, other)
        ready = self._futures[number].result()
        if ready.copied is not None:
            current = torch.cuda.current_stream(self._device)
            current.wait_event(ready.copied)
            for tensor in ready.tensors.values():
                tensor.record_stream(current)  # its memory is not given to the next copy before the step is done
        return dict(ready.tensors)

    def _ready(self, number: int) -> _Ready:
        if self._stream is None:
            return _Ready(self._make(number), None)
        with torch.cuda.stream(self._stream):
            tensors = self._make(number)
            copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            copied.record(self._stream)
        return _Ready(tensors, copied)
