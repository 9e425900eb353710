"""Batch normalisation over the global batch (Ioffe and Szegedy 2015, arXiv 1502.03167), on any device.

SimCLR normalises over all workers ("global BN", section 2.2): with statistics of one worker's rows alone, the network
can tell positive pairs by them, and the result would depend on how many workers there are.
"""

from __future__ import annotations

from typing import TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from heliostat_algorithms.collectives import gather_rows, world_size

Module = TypeVar("Module", bound=nn.Module)


class GlobalBatchNorm(_BatchNorm):
    """Batch normalisation of (N, C) or (N, C, ...) with statistics of all workers' rows, named as in torch.

    Every worker must hold equally many rows. In one process and in evaluation mode it is torch's own: workers that
    evaluate need not do so together.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        if input.ndim < 2:
            raise ValueError(f"batch normalisation needs (N, C, ...), not {tuple(input.shape)}")

    def forward(self, input: Tensor) -> Tensor:
        if world_size() == 1 or not self.training:
            return super().forward(input)
        self._check_input_dim(input)
        x = input.to(self.weight.dtype if self.weight is not None else torch.promote_types(input.dtype, torch.float32))
        dims = [d for d in range(x.ndim) if d != 1]
        shape = [1, -1] + [1] * (x.ndim - 2)
        count = x.numel() // x.shape[1] * world_size()
        # Moments of each worker, of equal weight, in one exchange. The variance is never a difference of large numbers,
        # and all workers add the same parts in the same order.
        moments = torch.stack([x.mean(dims), x.var(dims, correction=0)])
        means, variances = gather_rows(moments.unsqueeze(0)).unbind(dim=1)
        mean = means.mean(dim=0)
        variance = variances.mean(dim=0) + (means - mean).square().mean(dim=0)
        if self.track_running_stats:
            self._update_running(mean.detach(), variance.detach() * (count / (count - 1)))
        normalised = (x - mean.view(shape)) * torch.rsqrt(variance + self.eps).view(shape)
        if self.weight is not None:
            normalised = normalised * self.weight.view(shape)
        if self.bias is not None:
            normalised = normalised + self.bias.view(shape)
        return normalised.to(input.dtype)

    @torch.no_grad()
    def _update_running(self, mean: Tensor, unbiased_variance: Tensor) -> None:
        steps = cast("Tensor", self.num_batches_tracked)
        steps.add_(1)
        share = self.momentum if self.momentum is not None else 1.0 / float(steps)
        cast("Tensor", self.running_mean).lerp_(mean, share)
        cast("Tensor", self.running_var).lerp_(unbiased_variance, share)


def synchronize_batch_norm(module: Module, device_type: str) -> Module:
    """Make all batch normalisation in ``module`` global; parameters, buffers and their names stay. Returns the module.

    Args:
        module: a network; if it is itself a normalisation layer, the returned one replaces it.
        device_type: on "cuda" torch's fused SyncBatchNorm serves, which takes no other tensors.
    """
    if world_size() == 1:
        return module
    if device_type == "cuda":
        return cast("Module", nn.SyncBatchNorm.convert_sync_batchnorm(module))  # type: ignore[no-untyped-call]
    return cast("Module", _converted(module))


def _converted(module: nn.Module) -> nn.Module:
    if isinstance(module, _BatchNorm) and not isinstance(module, GlobalBatchNorm):
        found = GlobalBatchNorm(
            module.num_features, module.eps, module.momentum, module.affine, module.track_running_stats
        )
        # The same tensors, also where a parameter was removed (a normalisation without bias).
        found._parameters, found._buffers = module._parameters, module._buffers
        return found.train(module.training)
    for name, child in module.named_children():
        replacement = _converted(child)
        if replacement is not child:
            setattr(module, name, replacement)
    return module
