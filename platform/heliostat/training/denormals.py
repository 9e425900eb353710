"""Numbers too small to be written the usual way, below 1.2e-38 in float32, count as zero while training.

CPUs take far longer for each operation with one. They come from averages that decay: behind a ReLU that no
sample of a batch passes, gradients are exactly zero, and Adam's first moments shrink by a tenth in each step until,
after some 800, they are that small. In DQN on Pong a fifth of them is after 1,400 updates, in a CVAE on MNIST a third;
an update of CartPole's network takes a fifth less without. Nothing else changes: what such a moment moves a weight by
is lost in rounding.

The processor keeps this setting for each thread, and a thread takes it over from the one that starts it. So it is made
before anything is computed; threads of OpenMP that are there already go on as they were.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def flush_denormals() -> None:
    """From now on, in this thread and those that it starts; on processors that can (x86-64 and ARM)."""
    torch.set_flush_denormal(True)


@contextmanager
def flushed_denormals() -> Iterator[None]:
    """Within the block, or the function that this decorates, alone: other code of this process may count on them."""
    before = sys.float_info.min / 2 == 0.0
    flush_denormals()
    try:
        yield
    finally:
        torch.set_flush_denormal(before)
