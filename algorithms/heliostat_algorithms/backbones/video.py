"""The Vision Transformer for clips, as V-JEPA trains it (Bardes et al. 2024, arXiv 2404.08471, appendix B).

A clip is cut into tubelets, boxes of a few frames and a patch of each; all become tokens and attend to one another.
There is no class token: the feature is the mean of the tokens. Parameters are named as in V-JEPA's code
(``patch_embed.proj``, ``blocks.0.norm1``, ..., ``norm``), so that its weights load once ``pos_embed`` is left out:
positions are computed, not stored.
"""

from __future__ import annotations

import json
from typing import cast

import torch
from torch import Tensor, nn

from heliostat_algorithms.backbones.checkpointing import Blockwise
from heliostat_algorithms.backbones.positions import sincos_positions_3d
from heliostat_algorithms.backbones.standardization import Standardization
from heliostat_algorithms.backbones.transformer import Block, initialize
from heliostat_algorithms.backbones.vit import ViTConfig

_REQUIRED = {
    "class_token": False,
    "pool": "mean",
    "positions": "sincos",
    "registers": 0,
    "mask_token": False,
    "frozen_patch_embedding": False,
    "position_grid": None,
    "interpolation_offset": 0.0,
}
"""What a Vision Transformer's config has to say to be one for clips; all else is free."""


def check_for_video(config: ViTConfig) -> None:
    """Whether a Vision Transformer's config describes one for clips.

    Raises:
        ValueError: it asks for what a video transformer has not; says what to set.
    """
    wrong = [f"{name}: {json.dumps(value)}" for name, value in _REQUIRED.items() if getattr(config, name) != value]
    if wrong:
        raise ValueError(
            "a video transformer has tokens of patches alone, at fixed positions, and its feature is their mean; set "
            f"the backbone's {', '.join(wrong)}".replace('"', "")
        )


class TubeletEmbedding(nn.Module):
    """A linear map of each tubelet, as a convolution whose stride is its size."""

    def __init__(self, config: ViTConfig, channels: int, tubelet: int) -> None:
        super().__init__()
        self.standardize = Standardization(config.pixel_mean, config.pixel_std, channels, 3)
        size = (tubelet, config.patch_size, config.patch_size)
        self.proj = nn.Conv3d(channels, config.width, size, stride=size)

    def forward(self, clips: Tensor) -> Tensor:
        """(B, C, T, H, W) -> (B, N, D), frame by frame, row by row."""
        x: Tensor = self.proj(self.standardize(clips))
        return x.flatten(2).transpose(1, 2)


class VideoTransformer(Blockwise):
    """A Vision Transformer for clips of any length and size that the tubelets divide.

    Args:
        config: width, depth, heads, patches and initialisation; see ``check_for_video``.
        channels: C.
        frames: T of the clips that it mostly sees.
        image_size: (height, width) of their frames.
        tubelet: frames in a tubelet.

    Raises:
        ValueError: the tubelets do not divide these clips, or ``check_for_video`` refuses the config.
    """

    def __init__(
        self, config: ViTConfig, channels: int, frames: int, image_size: tuple[int, int], tubelet: int = 2
    ) -> None:
        super().__init__()
        check_for_video(config)
        width = config.width
        self.patch_size, self.tubelet, self.depth = config.patch_size, tubelet, config.depth
        self.feature_dim = width
        self.position_grid = self.grid(frames, image_size)
        """Tubelets in depth, down and across the clips that it mostly sees."""
        self.register_buffer("pos_embed", sincos_positions_3d(self.position_grid, width), persistent=False)
        self.patch_embed = TubeletEmbedding(config, channels, tubelet)
        hidden = int(width * config.mlp_ratio)
        self.blocks = nn.ModuleList(
            Block(width, config.heads, hidden, config.feed_forward, config.layer_scale, config.qkv_bias)
            for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(width, eps=1e-6)
        initialize(self, config.initialization)
        weight, bias = self.patch_embed.proj.weight, self.patch_embed.proj.bias
        if config.initialization == "xavier":
            with torch.no_grad():
                nn.init.xavier_uniform_(weight.flatten(1))  # of the linear map that the convolution is
        else:
            nn.init.trunc_normal_(weight, std=0.02)
        nn.init.zeros_(cast("Tensor", bias))

    def forward(self, clips: Tensor) -> Tensor:
        """(B, C, T, H, W) -> (B, D): the mean of the tokens."""
        return self.tokens(clips).mean(dim=1)

    def sequence(self, clips: Tensor) -> Tensor:
        """(B, C, T, H, W) -> (B, N, D): all tokens."""
        return self.tokens(clips)

    def tokens(self, clips: Tensor, visible: Tensor | None = None) -> Tensor:
        """(B, N, D) after the final norm, frame by frame, row by row, or (B, K, D) in the order of ``visible``.

        Args:
            clips: (B, C, T, H, W) of any length and size that the tubelets divide.
            visible: (B, K) int64: the tubelets that are encoded, each with its own position. The others are left out:
                the encoder computes K tokens in place of N and knows nothing of the rest.

        Raises:
            ValueError: the shapes do not fit.
        """
        if clips.ndim != 5:
            raise ValueError(f"clips are (B, C, T, H, W), not {tuple(clips.shape)}")
        grid = self.grid(clips.shape[2], (clips.shape[3], clips.shape[4]))
        x = self.patch_embed(clips) + self._positions(grid)
        if visible is not None:
            if visible.ndim != 2 or len(visible) != len(x):
                raise ValueError(f"visible is {tuple(visible.shape)}; it lists tubelets for each of {len(x)} clips")
            x = x.gather(1, visible.unsqueeze(2).expand(-1, -1, x.shape[2]))
        for block in self.blocks:
            x = self._through(block, x)
        tokens: Tensor = self.norm(x)
        return tokens

    def grid(self, frames: int, image_size: tuple[int, int]) -> tuple[int, int, int]:
        """How many tubelets go through the frames, down and across a clip with frames of this (height, width).

        Raises:
            ValueError: not a whole number.
        """
        sides = {"frames": (frames, self.tubelet)}
        sides |= {name: (side, self.patch_size) for name, side in zip(("height", "width"), image_size, strict=True)}
        wrong = [f"{name} {side} by {size}" for name, (side, size) in sides.items() if side < 1 or side % size]
        if wrong:
            raise ValueError(
                f"tubelets of {self.tubelet} frames and {self.patch_size} x {self.patch_size} pixels do not divide "
                f"these clips: {', '.join(wrong)}"
            )
        return frames // self.tubelet, image_size[0] // self.patch_size, image_size[1] // self.patch_size

    def _positions(self, grid: tuple[int, int, int]) -> Tensor:
        """(N, D) of this grid."""
        known = cast("Tensor", self.pos_embed)
        return known if grid == self.position_grid else sincos_positions_3d(grid, self.feature_dim).to(known)
