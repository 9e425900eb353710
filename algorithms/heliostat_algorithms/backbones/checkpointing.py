"""Activation checkpointing: Training Deep Nets with Sublinear Memory Cost, Chen et al. 2016 (arXiv 1604.06174).

Of each block only the input is kept; what is inside is computed again when the backward pass needs it. That is one more
forward pass, a third of a step's arithmetic, for the memory of one block in place of all. Gradients keep their bits:
nothing inside a block is drawn at random (stochastic depth and dropout come with the inputs), and batch normalisation
has seen its batch once, however often it is computed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint, noop_context_fn

from heliostat_algorithms.backbones.batch_norm import GroupBatchNorm
from heliostat_algorithms.encoder import Encoder


class Blockwise(Encoder):
    """An encoder that is mostly blocks, one after the other."""

    checkpointing: bool = False
    """Whether backward passes compute the insides of blocks again in place of keeping them."""

    def _through(self, block: nn.Module, *args: Any) -> Tensor:
        """What a block makes of its arguments."""
        if not (self.checkpointing and torch.is_grad_enabled()):
            return cast("Tensor", block(*args))
        layers = [module for module in block.modules() if isinstance(module, _BatchNorm)]
        contexts = partial(_contexts, layers) if layers else noop_context_fn
        made = checkpoint(block, *args, use_reentrant=False, context_fn=contexts, preserve_rng_state=False)
        return cast("Tensor", made)


def checkpoint_blocks(network: nn.Module) -> int:
    """Turn checkpointing on in all encoders inside that have blocks. Returns how many there are."""
    encoders = [module for module in network.modules() if isinstance(module, Blockwise)]
    for encoder in encoders:
        encoder.checkpointing = True
    return len(encoders)


def _contexts(layers: list[_BatchNorm]) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """For the first computation of a block with batch normalisation, and for the second."""
    return nullcontext(), _again(
        [(layer, layer._groups) for layer in layers if isinstance(layer, GroupBatchNorm)], layers
    )


@contextmanager
def _again(groups: list[tuple[GroupBatchNorm, Any]], layers: list[_BatchNorm]) -> Iterator[None]:
    """Inside, layers normalise as before, and what they remember is forgotten: their buffers have seen this batch. The
    buffers are copies rather than switched off, as torch wants to save as many tensors as the first time."""
    with ExitStack() as restored:
        for layer in layers:
            restored.callback(layer._buffers.update, dict(layer._buffers))
            layer._buffers.update({n: None if x is None else x.clone() for n, x in layer._buffers.items()})
        for grouped, then in groups:
            restored.callback(setattr, grouped, "_groups", grouped._groups)
            restored.callback(setattr, grouped, "_seen", grouped._seen)
            grouped._groups, grouped._seen = then, []
        yield
