"""Accumulation for losses that compare samples: the gradients of the whole batch, the memory of a part.

See ``heliostat_algorithms.comparing`` for why it is exact.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from torch import nn

from heliostat.training.profiling import Phase
from heliostat_algorithms.algorithm import Clock, Inputs, Step
from heliostat_algorithms.comparing import Comparing, Rows


class Ways(NamedTuple):
    """How the loop wants things done."""

    autocast: Callable[[], AbstractContextManager[object]]
    """Around forward passes: the job's precision."""
    local: Callable[[], AbstractContextManager[object]]
    """Inside, gradients stay on the worker."""
    phase: Callable[[Phase], AbstractContextManager[None]]
    """Around what a profile tells apart."""


def cached_backward(
    algorithm: Comparing,
    module: nn.Module,
    parts: Sequence[Callable[[], Inputs]],
    clock: Clock,
    scaler: torch.amp.GradScaler,
    ways: Ways,
) -> Step:
    """Add the (scaled) gradient of this worker's rows to all parameters.

    Args:
        algorithm: the method.
        module: the algorithm as it runs data-parallel; its last part averages all gradients over workers.
        parts: make the inputs of each part; called twice, in place of keeping the views of the whole batch.
        clock: when.
        scaler: multiplies the loss.
        ways: how the loop does what is done here.

    Returns:
        The loss and metrics of all parts together, without gradient.
    """
    with torch.no_grad():
        seen: list[tuple[Rows, Rows]] = []
        for part in parts:
            inputs = part()
            with ways.phase("forward"), ways.autocast():
                seen.append((algorithm.represent(inputs, clock), algorithm.targets(inputs, clock)))
        rows, targets = _joined([rows for rows, _ in seen]), _joined([targets for _, targets in seen])
        sizes = [len(next(iter(rows.values()))) for rows, _ in seen]
        del seen
    leaves = {name: row.requires_grad_() for name, row in rows.items()}
    with ways.local():
        with ways.phase("forward"), ways.autocast():
            made = algorithm.compare(leaves, targets, clock)
        with ways.phase("backward"):
            scaler.scale(made.loss).backward()  # type: ignore[no-untyped-call]
    step = Step(made.loss.detach(), {name: value.detach() for name, value in made.metrics.items()})
    del made
    gradients = {name: torch.split(leaf.grad, sizes) for name, leaf in leaves.items() if leaf.grad is not None}
    for number, part in enumerate(parts):
        with ways.local() if number < len(parts) - 1 else nullcontext():
            inputs = part()
            with ways.phase("forward"), ways.autocast():
                again: Rows = module(inputs, clock, alone=True)
            known = [name for name in gradients if again[name].requires_grad]
            with ways.phase("backward"):
                torch.autograd.backward([again[name] for name in known], [gradients[name][number] for name in known])
    return step


def _joined(parts: Sequence[Rows]) -> dict[str, torch.Tensor]:
    """The rows of all parts, in their order."""
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
