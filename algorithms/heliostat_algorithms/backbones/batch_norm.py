"""Batch normalisation over the global batch or over groups of its rows (Ioffe and Szegedy 2015, arXiv 1502.03167).

SimCLR normalises over all workers ("global BN", section 2.2): with statistics of one worker's rows alone, the network
can tell positive pairs by them, and the result would depend on how many workers there are.

MoCo wants statistics of small groups, drawn anew for the keys ("shuffling BN", 1911.05722, section 3.3). Its code takes
one group for each GPU and sends images around; here a group is a number for each row, images stay where they are, and
the groups are the same whatever the number of workers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from heliostat_algorithms.collectives import gather_rows, mean_over_workers, rank, sum_over_workers, world_size

Module = TypeVar("Module", bound=nn.Module)


class _AcrossWorkers(_BatchNorm):
    """What batch normalisation with statistics of several workers' rows shares; named as in torch."""

    def _check_input_dim(self, input: Tensor) -> None:
        if input.ndim < 2:
            raise ValueError(f"batch normalisation needs (N, C, ...), not {tuple(input.shape)}")

    def _dtype(self, input: Tensor) -> torch.dtype:
        """That of the statistics."""
        return self.weight.dtype if self.weight is not None else torch.promote_types(input.dtype, torch.float32)

    def _scaled(self, normalised: Tensor) -> Tensor:
        """With gain and shift, where there are such."""
        shape = [1, -1] + [1] * (normalised.ndim - 2)
        if self.weight is not None:
            normalised = normalised * self.weight.view(shape)
        if self.bias is not None:
            normalised = normalised + self.bias.view(shape)
        return normalised

    @torch.no_grad()
    def _update_running(self, mean: Tensor, unbiased_variance: Tensor) -> None:
        steps = cast("Tensor", self.num_batches_tracked)
        steps.add_(1)
        share = self.momentum if self.momentum is not None else 1.0 / float(steps)
        cast("Tensor", self.running_mean).lerp_(mean, share)
        cast("Tensor", self.running_var).lerp_(unbiased_variance, share)


class GlobalBatchNorm(_AcrossWorkers):
    """Batch normalisation of (N, C) or (N, C, ...) with statistics of all workers' rows, named as in torch.

    Every worker must hold equally many rows. In one process and in evaluation mode it is torch's own: workers that
    evaluate need not do so together.
    """

    def forward(self, input: Tensor) -> Tensor:
        if world_size() == 1 or not self.training:
            return super().forward(input)
        self._check_input_dim(input)
        x = input.to(self._dtype(input))
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
        return self._scaled(normalised).to(input.dtype)


@dataclass(frozen=True)
class _Groups:
    """How the rows of a global batch are divided."""

    count: int
    """How many groups; all hold equally many rows."""
    members: Tensor | None
    """(B,) the group of each of this worker's rows, from 0; None: groups are contiguous."""

    @property
    def local(self) -> bool:
        """Whether each group is known to lie inside one worker, so that statistics need no communication."""
        return self.members is None and self.count % world_size() == 0


class GroupBatchNorm(_AcrossWorkers):
    """Batch normalisation of (N, C) or (N, C, ...) in which each row meets only the rows of its group, on all workers.

    In training mode it works inside ``assigned`` alone, which says what the groups are. Running statistics take the
    average over groups of their mean and unbiased variance, on all workers the same; in evaluation mode it is torch's
    own. Every worker must hold equally many rows.
    """

    _groups: _Groups | None = None
    _seen: list[Tensor] | None = None
    """(2, C) for each forward pass inside ``assigned``: averages over groups of mean and unbiased variance."""

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        self._check_input_dim(input)
        groups, rows = self._groups, len(input) * world_size()
        if groups is None or self._seen is None:
            raise RuntimeError(
                "GroupBatchNorm needs to know its groups in training: call the network inside assigned()"
            )
        if rows % groups.count:
            raise ValueError(
                f"{rows} rows cannot be split into {groups.count} groups of equal size for batch normalisation"
            )
        if input[0, 0].numel() * rows == groups.count:
            raise ValueError("each group of batch normalisation has a single value per channel; it needs at least two")
        return self._by_chunks(input, groups) if groups.local else self._by_members(input, groups)

    def _by_chunks(self, input: Tensor, groups: _Groups) -> Tensor:
        """Contiguous groups of this worker, each by torch's own kernel."""
        chunks = groups.count // world_size()
        # With a momentum of 1, what torch takes for running statistics become those of the batch.
        moments = torch.zeros(2, chunks, input.shape[1], dtype=self._dtype(input), device=input.device)
        normalised = [
            F.batch_norm(rows, mean, variance, self.weight, self.bias, True, 1.0, self.eps)
            for rows, mean, variance in zip(input.chunk(chunks), moments[0], moments[1], strict=True)
        ]
        self._remember(moments.mean(dim=1))
        return normalised[0] if chunks == 1 else torch.cat(normalised)

    def _by_members(self, input: Tensor, groups: _Groups) -> Tensor:
        """Groups spread over rows and workers: moments of each row, summed over the rows of its group."""
        x = input.to(self._dtype(input))
        B, C = x.shape[:2]
        size = B * world_size() // groups.count  # rows of a group
        positions = x[0, 0].numel()
        if x.ndim > 2:
            variances, means = torch.var_mean(x, dim=list(range(2, x.ndim)), correction=0)  # (B, C)
        else:
            variances, means = torch.zeros_like(x), x
        members = groups.members
        if members is None:
            members = (rank() * B + torch.arange(B, device=x.device)) // size
        belongs = (members == torch.arange(groups.count, device=x.device).unsqueeze(1)).to(x.dtype)  # (G, B)
        # The variance is taken about the group's mean: never a difference of large numbers.
        mean = sum_over_workers(_weighted(belongs, means)) / size
        own_mean = _weighted(belongs.T, mean)
        variance = sum_over_workers(_weighted(belongs, variances + (means - own_mean).square())) / size
        own_scale = _weighted(belongs.T, torch.rsqrt(variance + self.eps))
        values = size * positions
        self._remember(torch.stack([mean.mean(dim=0), variance.mean(dim=0) * (values / (values - 1))]).detach())
        shape = [B, C] + [1] * (x.ndim - 2)
        return self._scaled((x - own_mean.view(shape)) * own_scale.view(shape)).to(input.dtype)

    def _remember(self, moments: Tensor) -> None:
        if self.track_running_stats and self._seen is not None:
            self._seen.append(moments)


def _weighted(weights: Tensor, values: Tensor) -> Tensor:
    """(I, J), (J, C) -> (I, C): a matrix product whose sums are taken in the same order each time, in both directions
    (index_add is not on all devices), and in full precision (matrix products may be set to less)."""
    return (weights.unsqueeze(2) * values).sum(dim=1)


@contextmanager
def assigned(network: nn.Module, count: int, members: Tensor | None = None) -> Iterator[None]:
    """Inside, all ``GroupBatchNorm`` of ``network`` normalise by these groups; at the end, running statistics move.

    Args:
        network: called inside, with this worker's rows.
        count: groups of the global batch, all with the same number of rows.
        members: (B,) the group of each of this worker's rows, from 0 to count - 1. By default groups are contiguous:
            row r of the global batch of N belongs to group r // (N / count). Where they do not cross workers, that
            takes no communication but one exchange of all layers' running statistics.
    """
    layers = [module for module in network.modules() if isinstance(module, GroupBatchNorm)]
    groups = _Groups(count, members)
    for layer in layers:
        layer._groups, layer._seen = groups, []
    try:
        yield
        _move_running(layers, groups)
    finally:
        for layer in layers:
            layer._groups = layer._seen = None


def _move_running(layers: list[GroupBatchNorm], groups: _Groups) -> None:
    seen = [(layer, moments) for layer in layers for moments in layer._seen or ()]
    if not seen:
        return
    together = torch.cat([moments.flatten() for _, moments in seen])
    if groups.local:  # otherwise all workers have the same already
        together = mean_over_workers(together)
    for (layer, moments), agreed in zip(seen, torch.split(together, [m.numel() for _, m in seen]), strict=True):
        layer._update_running(*agreed.view_as(moments))


def group_batch_norm(module: Module) -> Module:
    """Make all batch normalisation in ``module`` a ``GroupBatchNorm``; parameters, buffers and their names stay.

    Returns:
        The module; if it is itself a normalisation layer, the one that replaces it.
    """
    return cast("Module", _replaced(module, lambda layer: _converted(layer, GroupBatchNorm)))


def synchronize_batch_norm(module: Module, device_type: str) -> Module:
    """Make all batch normalisation in ``module`` global, but for ``GroupBatchNorm``; parameters, buffers and their
    names stay. Returns the module.

    Args:
        module: a network; if it is itself a normalisation layer, the returned one replaces it.
        device_type: on "cuda" torch's fused SyncBatchNorm serves, which takes no other tensors.
    """
    if world_size() == 1:
        return module
    if device_type == "cuda":
        return cast("Module", _replaced(module, nn.SyncBatchNorm.convert_sync_batchnorm))
    return cast("Module", _replaced(module, lambda layer: _converted(layer, GlobalBatchNorm)))


def _replaced(module: nn.Module, replacement: Callable[[_BatchNorm], nn.Module]) -> nn.Module:
    """The module with each of torch's batch normalisations replaced; those of this file stay."""
    if isinstance(module, _BatchNorm):
        return module if isinstance(module, _AcrossWorkers) else replacement(module)
    for name, child in module.named_children():
        found = _replaced(child, replacement)
        if found is not child:
            setattr(module, name, found)
    return module


def _converted(layer: _BatchNorm, kind: type[_AcrossWorkers]) -> nn.Module:
    found = kind(layer.num_features, layer.eps, layer.momentum, layer.affine, layer.track_running_stats)
    # The same tensors, also where a parameter was removed (a normalisation without bias).
    found._parameters, found._buffers = layer._parameters, layer._buffers
    return found.train(layer.training)
