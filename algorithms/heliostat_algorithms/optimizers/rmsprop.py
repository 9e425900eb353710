"""RMSProp as DQN has it: Human-level control through deep reinforcement learning, Mnih et al. 2015 (Nature 518), and
its reference code; after Graves 2013 (arXiv 1308.0850), equations 38 to 40.

For each number w with gradient g:

    m  <- decay * m + (1 - decay) * g               (only where centred)
    v  <- decay * v + (1 - decay) * g^2
    w  <- w - lr * g / sqrt(v - m^2 + eps)          (m = 0 where not centred)

torch's own adds eps outside the root, where it does something else: here sqrt(eps) bounds the divisor from below.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


class RMSProp(Optimizer):
    """Gradients divided by their recent size, or where centred by their recent standard deviation.

    Args:
        params: tensors or groups.
        lr: learning rate.
        decay: share of the old averages that stays; both begin at 0 and are not corrected for it.
        eps: added to the variance inside the root.
        centered: subtract the square of the mean.
        weight_decay: L2 coefficient, added to the gradient.

    Raises:
        ValueError: a number is outside its range.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float,
        decay: float = 0.95,
        eps: float = 0.01,
        centered: bool = True,
        weight_decay: float = 0.0,
    ) -> None:
        for name, value in (("lr", lr), ("weight_decay", weight_decay)):
            if not value >= 0:
                raise ValueError(f"{name} is {value}; it cannot be negative")
        if not 0 <= decay < 1:
            raise ValueError(f"decay is {decay}; it must be at least 0 and below 1")
        if not eps > 0:
            raise ValueError(f"eps is {eps}; it must be above 0")
        defaults = {"lr": lr, "decay": decay, "eps": eps, "centered": centered, "weight_decay": weight_decay}
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
        """One pass of fused ("foreach") kernels over all tensors."""
        names = ["square", "mean"] if group["centered"] else ["square"]
        for weight in weights:
            if "square" not in self.state[weight]:
                self.state[weight].update({name: torch.zeros_like(weight) for name in names})
        gradients: Any = [weight.grad for weight in weights]
        if group["weight_decay"]:
            gradients = torch._foreach_add(gradients, weights, alpha=group["weight_decay"])
        decay = group["decay"]
        squares = [self.state[weight]["square"] for weight in weights]
        torch._foreach_mul_(squares, decay)
        torch._foreach_addcmul_(squares, gradients, gradients, value=1 - decay)
        if group["centered"]:
            means = [self.state[weight]["mean"] for weight in weights]
            torch._foreach_lerp_(means, gradients, 1 - decay)
            divisors = torch._foreach_addcmul(squares, means, means, value=-1)
            torch._foreach_add_(divisors, group["eps"])
        else:
            divisors = torch._foreach_add(squares, group["eps"])
        torch._foreach_sqrt_(divisors)
        torch._foreach_addcdiv_(weights, gradients, divisors, value=-group["lr"])
