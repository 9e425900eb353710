"""Networks that follow another one as a moving average of its weights: key encoders, momentum encoders, teachers.

Mean teachers are better role models, Tarvainen and Valpola 2017 (arXiv 1703.01780).
"""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import Tensor, nn

Network = TypeVar("Network", bound=nn.Module)


def teacher_of(student: Network) -> Network:
    """A copy that begins with the student's weights and has no gradients."""
    return copy.deepcopy(student).requires_grad_(False)


@torch.no_grad()
def follow(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """teacher <- momentum * teacher + (1 - momentum) * student, for parameters.

    Buffers are left alone, as in the official codes of MoCo and DINO: a teacher in training mode collects batch
    statistics of its own.
    """
    followers: list[Tensor] = list(teacher.parameters())
    leaders = [parameter.detach() for parameter in student.parameters()]
    torch._foreach_mul_(followers, momentum)
    torch._foreach_add_(followers, leaders, alpha=1.0 - momentum)
