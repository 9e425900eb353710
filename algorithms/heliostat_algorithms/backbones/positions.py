"""Positions of patches: fixed sines and cosines, and learned ones for another grid."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def sincos_positions(grid: tuple[int, int], width: int) -> Tensor:
    """(1, 1 + N, D) float32, fixed: 0 for CLS; for the patch in row r and column c, with D / 4 frequencies
    w_k = 10000^(-4 k / D), the sines of r w_k, their cosines, the sines of c w_k, and their cosines (MoCo v3)."""
    frequencies = 10000.0 ** (-torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    down, across = (torch.arange(side, dtype=torch.float64)[:, None] * frequencies for side in grid)
    rows = torch.cat([down.sin(), down.cos()], dim=1)[:, None].expand(-1, grid[1], -1)
    columns = torch.cat([across.sin(), across.cos()], dim=1)[None].expand(grid[0], -1, -1)
    patches = torch.cat([rows, columns], dim=2).flatten(0, 1)
    return F.pad(patches, (0, 0, 1, 0)).unsqueeze(0).float()


def sincos_positions_3d(grid: tuple[int, int, int], width: int) -> Tensor:
    """(N, D) float32, fixed, for the patches of a clip: frame by frame, row by row.

    Depth, row and column of a patch get S = 2 * ceil(D / 6) dimensions each, in this order: with S / 2 frequencies
    w_k = 10000^(-2 k / S), the sines of its place times w_k, then their cosines. 3 S may be larger than D; the last of
    the column's are then left out (V-JEPA's code, with the switch ``uniform_power`` that all of its models have).

    Args:
        grid: patches in depth (time), down and across.
        width: D.

    Raises:
        ValueError: so narrow that nothing would be left for the columns.
    """
    share = 2 * math.ceil(width / 6)
    if 2 * share >= width:
        raise ValueError(f"positions in three directions need a width of 9 or more, not {width}")
    frequencies = 10000.0 ** (-torch.arange(share // 2, dtype=torch.float64) / (share // 2))
    angles = (torch.arange(side, dtype=torch.float64)[:, None] * frequencies for side in grid)
    depth, down, across = (torch.cat([angle.sin(), angle.cos()], dim=1) for angle in angles)
    parts = depth[:, None, None], down[None, :, None], across[None, None]
    return torch.cat([part.expand(*grid, -1) for part in parts], dim=3).flatten(0, 2)[:, :width].float()


def interpolate_positions(positions: Tensor, grid: tuple[int, int], offset: float = 0.0) -> Tensor:
    """Learned positions (h, w, D) for another grid (H, W, D): bicubic, without antialiasing.

    ``torch.nn.functional.interpolate`` gives the same values. As two products with the matrices of the two axes the
    gradient is also the same in every run on a GPU, where torch sums it in any order, and it is quicker there.

    Args:
        positions: those of the grid that was learned.
        grid: the one that is wanted.
        offset: added to the wanted size where the distance between samples is computed; see ``ViTConfig``.
    """
    with torch.autocast(positions.device.type, enabled=False):
        x = positions.to(torch.promote_types(positions.dtype, torch.float32))
        down, across = (_bicubic(x.shape[axis], grid[axis], offset).to(x) for axis in (0, 1))
        return torch.einsum("Ww,Hwd->HWd", across, torch.einsum("Hh,hwd->Hwd", down, x))


def _bicubic(old: int, new: int, offset: float) -> Tensor:
    """(new, old) float64: the share of each old sample in each new one along one axis, from resampled unit vectors."""
    units = torch.eye(old, dtype=torch.float64, device="cpu").view(1, old, old, 1)
    if offset:
        resampled = F.interpolate(units, scale_factor=((new + offset) / old, 1.0), mode="bicubic")
    else:
        resampled = F.interpolate(units, size=(new, 1), mode="bicubic")
    return resampled[0, :, :, 0].T
