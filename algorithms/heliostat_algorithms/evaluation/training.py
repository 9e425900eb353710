"""What evaluators share that train on all workers: decay, gradients and accuracies over workers.

Each worker's loss is the sum over its rows, divided by the rows of the *global* batch, so that the sum of all workers'
gradients is the gradient of the batch, however unequally its rows are spread.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from heliostat_algorithms.collectives import sum_over_workers, world_size

_BUCKET = 1 << 23
"""Numbers from which on gradients are exchanged, together with those before them (32 MiB)."""


def decayed(parameters: Iterable[nn.Parameter], weight_decay: float) -> list[dict[str, Any]]:
    """Groups as torch's optimisers take them: biases and normalisation layers are not decayed."""
    groups: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for parameter in parameters:
        groups[parameter.ndim > 1].append(parameter)
    decays = {True: weight_decay, False: 0.0}
    return [{"params": members, "weight_decay": decays[kind]} for kind, members in groups.items() if members]


@torch.no_grad()
def add_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Make each gradient the sum of all workers'. All of them have gradients for the same parameters, of one type."""
    if world_size() == 1:
        return
    bucket: list[Tensor] = []
    for parameter in parameters:
        if parameter.grad is not None:
            bucket.append(parameter.grad)
            if sum(gradient.numel() for gradient in bucket) >= _BUCKET:
                _add(bucket)
                bucket = []
    if bucket:
        _add(bucket)


def _add(gradients: list[Tensor]) -> None:
    """In one exchange."""
    together = sum_over_workers(torch.cat([gradient.flatten() for gradient in gradients]))
    for gradient, total in zip(gradients, torch.split(together, [g.numel() for g in gradients]), strict=True):
        gradient.copy_(total.view_as(gradient))


@torch.no_grad()
def accuracies_over_workers(
    ranks: Sequence[Tensor], classes: int, prefix: str, device: torch.device
) -> dict[str, float]:
    """As ``accuracies``, from the ranks of all workers' test samples: each worker has some (n,) tensors, or none."""
    tops = (1, 5) if classes > 5 else (1,)
    mine = torch.cat([found.to(device) for found in ranks]) if ranks else torch.empty(0, device=device)
    counts = torch.tensor([len(mine), *(int((mine < top).sum()) for top in tops)], device=device)
    total, *right = sum_over_workers(counts).tolist()
    return {f"{prefix}_top{top}": count / total for top, count in zip(tops, right, strict=True)}
