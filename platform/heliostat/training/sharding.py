"""Weights, gradients and the optimiser's state spread over workers: ``resources.strategy: fsdp``.

ZeRO, Rajbhandari et al. 2019 (arXiv 1910.02054), stage 3, by PyTorch's ``fully_shard``. Of each tensor a worker holds
its share of the rows; a block's weights are gathered when the block runs and let go after it. Gradients are averaged as
in data-parallel training, so the trajectory is the same. Between steps all that is not training (evaluation, pictures)
sees a plain copy of the algorithm, which each worker gathers for as long as it is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, Shard

from heliostat.errors import InputError
from heliostat.training.checkpoint import CheckpointError, CheckpointStore, Rows, own_rows, parted
from heliostat_algorithms.algorithm import Algorithm
from heliostat_algorithms.comparing import Comparing

Made = TypeVar("Made")


def check_sharding(algorithm: Algorithm, players: int) -> None:
    """Whether an algorithm's weights can be spread.

    Raises:
        ValueError: they cannot; says why.
    """
    if players > 1:
        raise ValueError("strategy fsdp is for methods of one player; leave it out, and every worker holds all weights")
    for name, parameter in algorithm.named_parameters():
        if parameter.ndim == 0:
            raise ValueError(f"strategy fsdp spreads rows, and {name} is a single number; leave it out")


def shard(algorithm: Algorithm, device: torch.device, world_size: int, *, in_two_steps: bool) -> None:
    """Spread an algorithm that is still whole, and on the CPU, over all workers; its parameters become new ones.

    Args:
        algorithm: is changed.
        device: where it is to compute.
        world_size: how many workers there are.
        in_two_steps: whether a step calls ``represent`` and ``compare`` by themselves (gradient caching).
    """
    mesh = init_device_mesh(device.type, (world_size,))
    # What belongs to no block is let go as well after each pass: it would keep the values of before the update where
    # no backward pass comes after a forward pass.
    for block in list(blocks(algorithm)):
        fully_shard(block, mesh=mesh, reshard_after_forward=True)
    fully_shard(algorithm, mesh=mesh, reshard_after_forward=True)
    if in_two_steps and isinstance(algorithm, Comparing):
        for method in ("represent", "targets", "compare"):
            register_fsdp_forward_method(algorithm, method)


def blocks(network: nn.Module) -> Iterator[nn.Module]:
    """The parts that a network has in a row and that are networks themselves: residual blocks, Transformer layers. Not
    the layers of a small head, which are not worth a message each."""
    for child in network.children():
        if isinstance(child, nn.ModuleList | nn.Sequential):
            yield from (part for part in child if any(True for _ in part.children()))
        else:
            yield from blocks(child)


def mesh_of(algorithm: nn.Module) -> DeviceMesh | None:
    """Over which workers the parameters are spread; None where each worker holds all of them."""
    first = next(algorithm.parameters(), None)
    return first.device_mesh if isinstance(first, DTensor) else None


def spread(leaf: Tensor | Rows, mesh: DeviceMesh) -> DTensor:
    """A tensor over all workers, of which this one has been given everything or its own rows."""
    rows = (
        leaf.rows if isinstance(leaf, Rows) else leaf[own_rows(len(leaf), mesh.get_local_rank(), mesh.size())].clone()
    )
    stride = torch.empty(leaf.shape, device="meta").stride()
    rows = rows.contiguous().to(mesh.device_type)
    return DTensor.from_local(rows, mesh, [Shard(0)], shape=leaf.shape, stride=stride, run_check=False)


def gathered(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The whole of each, on every worker; all call it together."""
    return {name: value.full_tensor() if isinstance(value, DTensor) else value for name, value in tensors.items()}


def save_together(
    store: CheckpointStore, step: int, state: Mapping[str, Any], about: Mapping[str, Any], *, replace: bool
) -> None:
    """As :meth:`CheckpointStore.save`, by all workers together: each writes its rows, and the first one what all know.

    Raises:
        CheckpointError: on all workers, if one of them could not write.
    """
    rank, world_size = dist.get_rank(), dist.get_world_size()
    tree, rows = parted(state)
    try:
        if not _together(lambda: rank != 0 or store.begin(step, replace=replace))[0]:
            return
        names = [f"rows-{number}-of-{world_size}.pt" for number in range(world_size)]
        entries = _together(lambda: store.write(step, names[rank], rows))

        def complete() -> None:
            files = {"state.pt": store.write(step, "state.pt", tree), **dict(zip(names, entries, strict=True))}
            store.complete(step, files, about)

        _together(lambda: complete() if rank == 0 else None)
    except CheckpointError as error:
        if rank == 0:
            store.discard(step)
        what = f"the checkpoint of step {step} could not be written to {store.uri(step)}: {error}"
        raise CheckpointError(what) from None
    _together(lambda: store.prune(step) if rank == 0 else None)


def load_together(store: CheckpointStore, step: int) -> dict[str, Any]:
    """As :meth:`CheckpointStore.load`, on all workers: each gets its rows of what is spread.

    Raises:
        InputError: on all workers, if one of them could not read its part.
    """
    try:
        share = dist.get_rank(), dist.get_world_size()
        read, problem = store.load(step, share=share), None
    except InputError as error:
        read, problem = {}, error
    told: list[InputError | None] = [None] * dist.get_world_size()
    dist.all_gather_object(told, problem)
    first = next((problem for problem in told if problem is not None), None)
    if first is not None:
        raise first
    return read


def _together(work: Callable[[], Made]) -> list[Made]:
    """What each worker's work gives, on all workers; if one fails, all do."""
    made, problem = None, None
    try:
        made = work()
    except (OSError, RuntimeError, CheckpointError) as error:  # torch reports a failed write as a RuntimeError
        problem = str(error)
    told: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(told, (made, problem))
    problems = [f"worker {number}: {problem}" for number, (_, problem) in enumerate(told) if problem is not None]
    if problems:
        raise CheckpointError("; ".join(problems))
    return [cast("Made", made) for made, _ in told]
