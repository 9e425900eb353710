"""LARS: Large Batch Training of Convolutional Networks, You, Gitman and Ginsburg 2017 (arXiv 1708.03888).

It is the variant of SimCLR's official code.
For each tensor w with gradient g, of an adapted group:

    g  <- g + weight_decay * w
    q  =  trust_coefficient * |w| / |g|      (1 if either norm is 0)
    v  <- momentum * v + lr * q * g          (the "classic" momentum of SimCLR's code: v holds the learning rate)
    w  <- w - v

Groups with ``adapt`` false (biases, normalisation layers) have q = 1; SimCLR also gives them no weight decay.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from heliostat_algorithms.collectives import norms, own_part


class LARS(Optimizer):
    """SGD with momentum whose step is scaled for each tensor to a share of the tensor's norm.

    Args:
        params: tensors or groups; a group may set ``adapt`` to false.
        lr: learning rate, already scaled for the batch size.
        momentum: decay of the velocity.
        weight_decay: L2 coefficient, added to the gradient *before* its norm is taken.
        trust_coefficient: eta of the paper.

    Raises:
        ValueError: a number is outside its range.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust_coefficient: float = 0.001,
    ) -> None:
        for name, value in (("lr", lr), ("weight_decay", weight_decay), ("trust_coefficient", trust_coefficient)):
            if not value >= 0:
                raise ValueError(f"{name} is {value}; it cannot be negative")
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum is {momentum}; it must be at least 0 and below 1")
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "trust_coefficient": trust_coefficient,
            "adapt": True,
        }
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Move all parameters that have a gradient; gradients are left as they were."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            weights = [parameter for parameter in group["params"] if parameter.grad is not None]
            if weights:
                self._step_group(weights, group)
        return loss

    def _step_group(self, weights: list[Tensor], group: dict[str, Any]) -> None:
        """One pass of fused ("foreach") kernels over all tensors; norms stay on the device."""
        velocities = []
        for weight in weights:
            state = self.state[weight]
            if "velocity" not in state:
                state["velocity"] = torch.zeros_like(weight)
            velocities.append(own_part(state["velocity"]))
        # Of weights that are spread over workers each moves its rows; only norms need the others.
        own = [own_part(weight) for weight in weights]
        updates: Any = [own_part(weight.grad) for weight in weights if weight.grad is not None]
        if group["weight_decay"]:
            updates = torch._foreach_add(updates, own, alpha=group["weight_decay"])
        torch._foreach_mul_(velocities, group["momentum"])
        if group["adapt"]:
            weight_norms, update_norms = norms([*own, *updates], [*weights, *weights]).chunk(2)
            ratios = group["trust_coefficient"] * weight_norms / update_norms
            ratios = torch.where((weight_norms > 0) & (update_norms > 0), ratios, 1.0)
            torch._foreach_addcmul_(velocities, updates, list((ratios * group["lr"]).unbind()))
        else:
            torch._foreach_add_(velocities, updates, alpha=group["lr"])
        torch._foreach_sub_(own, velocities)
