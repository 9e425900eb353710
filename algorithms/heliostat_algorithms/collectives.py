"""Communication between workers that gradients can pass through; the identity in one process.

Each worker's loss is the mean over its own rows, and data-parallel training averages the gradients of W workers. With
the derivatives below, that average is the gradient of the global batch's loss: what a worker receives for a tensor that
it sent out is the *sum* of what all workers' losses say about it, and the factor 1 / W enters once, when the gradients
of parameters are averaged.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor


def world_size() -> int:
    """How many workers there are; 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This worker's position, from 0."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        gathered = rows.new_empty(world_size() * len(rows), *rows.shape[1:])
        dist.all_gather_single(gathered, rows.contiguous())
        return gathered

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        own = gradient.new_empty(len(gradient) // world_size(), *gradient.shape[1:])
        dist.reduce_scatter_single(own, gradient.contiguous())
        return own


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return _summed(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return _summed(gradient)


def _summed(x: Tensor) -> Tensor:
    x = x.clone(memory_format=torch.contiguous_format)  # all_reduce writes into its argument
    dist.all_reduce(x)
    return x


def gather_rows(rows: Tensor) -> Tensor:
    """(B, ...) on each of W workers -> (W * B, ...) on all, in rank order, with gradient; B is equal everywhere."""
    return rows if world_size() == 1 else cast("Tensor", _Gather.apply(rows))  # type: ignore[no-untyped-call]


def sum_over_workers(x: Tensor) -> Tensor:
    """Elementwise sum of all workers' tensors, with gradient."""
    return x if world_size() == 1 else cast("Tensor", _Sum.apply(x))  # type: ignore[no-untyped-call]


@torch.no_grad()
def mean_over_workers(x: Tensor) -> Tensor:
    """Elementwise mean of all workers' tensors, without gradient: for metrics."""
    return x.detach() if world_size() == 1 else _summed(x) / world_size()
