"""Accumulation for losses that compare samples: the gradients of the whole batch, the memory of a part.

See ``heliostat_algorithms.comparing`` for why it is exact.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn

from heliostat_algorithms.algorithm import Clock, Inputs, Step
from heliostat_algorithms.comparing import Comparing, Rows


def cached_backward(
    algorithm: Comparing,
    module: nn.Module,
    parts: Sequence[Callable[[], Inputs]],
    clock: Clock,
    autocast: Callable[[], AbstractContextManager[object]],
    scaler: torch.amp.GradScaler,
    local: Callable[[], AbstractContextManager[object]],
) -> Step:
    """Add the (scaled) gradient of this worker's rows to all parameters.

    Args:
        algorithm: the method.
        module: the algorithm as it runs data-parallel; its last part averages all gradients over workers.
        parts: make the inputs of each part; called twice, in place of keeping the views of the whole batch.
        clock: when.
        autocast: the job's precision.
        scaler: multiplies the loss.
        local: inside, gradients stay on the worker.

    Returns:
        The loss and metrics of all parts together, without gradient.
    """
    with torch.no_grad():
        seen: list[tuple[Rows, Rows]] = []
        for part in parts:
            inputs = part()
            with autocast():
                seen.append((algorithm.represent(inputs, clock), algorithm.targets(inputs, clock)))
        rows, targets = _joined([rows for rows, _ in seen]), _joined([targets for _, targets in seen])
        sizes = [len(next(iter(rows.values()))) for rows, _ in seen]
        del seen
    leaves = {name: row.requires_grad_() for name, row in rows.items()}
    with local():
        with autocast():
            made = algorithm.compare(leaves, targets, clock)
        scaler.scale(made.loss).backward()  # type: ignore[no-untyped-call]
    step = Step(made.loss.detach(), {name: value.detach() for name, value in made.metrics.items()})
    del made
    gradients = {name: torch.split(leaf.grad, sizes) for name, leaf in leaves.items() if leaf.grad is not None}
    for number, part in enumerate(parts):
        with local() if number < len(parts) - 1 else nullcontext():
            inputs = part()
            with autocast():
                again: Rows = module(inputs, clock, alone=True)
            known = [name for name in gradients if again[name].requires_grad]
            torch.autograd.backward([again[name] for name in known], [gradients[name][number] for name in known])
    return step


def _joined(parts: Sequence[Rows]) -> dict[str, torch.Tensor]:
    """The rows of all parts, in their order."""
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
