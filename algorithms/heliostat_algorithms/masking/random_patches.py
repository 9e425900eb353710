"""Random masking: each image keeps a few of its patches, chosen without preference (MAE, He et al. 2021, arXiv
2111.06377, section 3)."""

from __future__ import annotations

from torch import Tensor

from heliostat_algorithms.randomness import Random


def kept_patches(patches: int, mask_ratio: float) -> int:
    """How many of an image's patches stay visible: int(N (1 - ratio)), as the official code rounds.

    Raises:
        ValueError: none would stay visible, or none would be hidden.
    """
    kept = int(patches * (1 - mask_ratio))
    if not 0 < kept < patches:
        missing = "visible" if kept < 1 else "hidden"
        raise ValueError(
            f"with mask_ratio {mask_ratio} none of an image's {patches} patches is {missing}; choose another ratio, or "
            "smaller patches, so that there are more"
        )
    return kept


def random_patches(random: Random, patches: int, mask_ratio: float) -> tuple[Tensor, Tensor]:
    """The places of the visible and of the hidden patches of each row.

    Every patch draws a number, and those with the smallest ones stay: a subset of fixed size, uniform among all such
    subsets, for each row its own. Drawn on the CPU, so that it is the same on every device.

    Args:
        random: draws for B rows of the global batch.
        patches: N, patches of an image.
        mask_ratio: share of them that is hidden.

    Returns:
        (B, K) and (B, N - K) int64, K = ``kept_patches``; together each place of a row once, in random order.

    Raises:
        ValueError: see ``kept_patches``.
    """
    kept = kept_patches(patches, mask_ratio)
    draws = Random(random.seed, random.step, random.rows, "cpu", random.scope)
    order = draws.permutation("order", patches)
    return order[:, :kept], order[:, kept:]
