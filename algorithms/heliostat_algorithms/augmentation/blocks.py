"""Cutting a batch into pieces whose temporaries stay in the processor's cache.

An augmentation is some forty passes over the pixels, each a few additions: reading and writing memory is its cost. On a
CPU a piece of a few megabytes stays in the cache from the first pass to the last. On a GPU a launch costs more than its
memory traffic, so pieces are as large as memory allows. The cut changes results by rounding at most.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

CPU_ELEMENTS = 1 << 20
"""Elements of a piece on a CPU: 4 MiB of float32. Half or twice as many are as fast, a quarter pays for more calls."""
DEVICE_ELEMENTS = 1 << 28
"""Elements of a piece elsewhere: 1 GiB of float32."""


def blocks(groups: Tensor, elements: int, device: torch.device) -> Iterator[slice]:
    """Slices that cover all samples in order, none of them across a border between groups.

    Args:
        groups: (B,) int64 on the CPU, sorted: the group of each sample.
        elements: of one sample.
        device: where samples are worked on; decides how many fit into a slice. There is always room for one.
    """
    length = max(1, (CPU_ELEMENTS if device.type == "cpu" else DEVICE_ELEMENTS) // elements)
    start = 0
    for count in torch.unique_consecutive(groups, return_counts=True)[1].tolist():
        end = start + count
        for first in range(start, end, length):
            yield slice(first, min(first + length, end))
        start = end
