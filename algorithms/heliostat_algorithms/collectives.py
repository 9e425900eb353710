"""Communication between workers that gradients can pass through; the identity in one process.

Each worker's loss is the mean over its own rows, and data-parallel training averages the gradients of W workers. With
the derivatives below, that average is the gradient of the global batch's loss: what a worker receives for a tensor that
it sent out is the *sum* of what all workers' losses say about it, and the factor 1 / W enters once, when the gradients
of parameters are averaged.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor


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


def own_part(x: Tensor) -> Tensor:
    """What this worker holds of ``x``, in the same memory: all of a plain tensor, some rows of a sharded one."""
    return x.to_local() if isinstance(x, DTensor) else x


@torch.no_grad()
def norms(parts: Sequence[Tensor], of: Sequence[Tensor]) -> Tensor:
    """Euclidean norms of tensors that may be spread over workers, who all ask together.

    Args:
        parts: n tensors, what this worker holds of each.
        of: n tensors that are spread in the same way.

    Returns:
        (n,) norms of the whole tensors.
    """
    found = torch.stack(torch._foreach_norm(list(parts)))
    if not any(isinstance(x, DTensor) for x in of):
        return found
    # What every worker holds counts once.
    counts = torch.tensor([1.0 if isinstance(x, DTensor) else world_size() for x in of], device=found.device)
    return _summed(found.double().square() / counts).sqrt().to(found)
