"""The Vision Transformer: An Image is Worth 16x16 Words, Dosovitskiy et al. 2020 (arXiv 2010.11929), without its head.

An image is cut into patches; each becomes a token; a class token (CLS) joins them, and what the encoder makes of it is
the feature. Options of later work: register tokens (2309.16588), LayerScale (2103.17239), stochastic depth
(1603.09382), SwiGLU and a mask token as in DINOv2 (2304.07193), fixed positions and a frozen patch embedding as in
MoCo v3 (2104.02057).

Parameters are named as in timm, DINO and DINOv2 (``cls_token``, ``pos_embed``, ``patch_embed.proj``,
``blocks.0.norm1``, ``blocks.0.attn.qkv``, ``blocks.0.attn.proj``, ``blocks.0.ls1.gamma``, ``blocks.0.mlp.fc1`` or
``blocks.0.mlp.w12``, ``norm``, ``register_tokens``, ``mask_token``), so that such weights load as they are once the
head is left out. Sin-cos positions are computed, not stored: leave ``pos_embed`` out of such weights too. Those of MAE
and I-JEPA do not fit: they count columns in the first half of the width and rows in the second, MoCo v3 and this file
the other way round.

How the rest begins, in the papers' codes: CLS at 0 (ViT), 1e-6 (MoCo v3, DINOv2) or 0.02 (DINO, MAE), here 0; positions
at 0.02 (all); registers at 1e-6 (all at 0, they would stay alike for ever); the mask token at 0; the patch embedding
as torch has it (DINO, DINOv2), or with "xavier" like the linear map that it is (MoCo v3, MAE).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from heliostat_algorithms.backbones.checkpointing import Blockwise
from heliostat_algorithms.backbones.drop_path import Kept, kept_rows
from heliostat_algorithms.backbones.positions import interpolate_positions, sincos_positions
from heliostat_algorithms.backbones.standardization import PerChannel, Standardization
from heliostat_algorithms.backbones.transformer import Block, Initialization, initialize


class Tokens(NamedTuple):
    """What the encoder makes of an image, after the final norm."""

    feature: Tensor
    """(B, D): the CLS token, or the mean of the patches."""
    registers: Tensor
    """(B, R, D)."""
    patches: Tensor
    """(B, N, D), row by row, or in the order of ``visible``."""


class PatchEmbedding(nn.Module):
    """A linear map of each patch, as a convolution whose stride is its size (equation 1)."""

    def __init__(self, config: ViTConfig, channels: int) -> None:
        super().__init__()
        self.standardize = Standardization(config.pixel_mean, config.pixel_std, channels, 2)
        self.proj = nn.Conv2d(channels, config.width, config.patch_size, stride=config.patch_size)

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, N, D), row by row."""
        x: Tensor = self.proj(self.standardize(images))
        return x.flatten(2).transpose(1, 2)


class VisionTransformer(Blockwise):
    """A Vision Transformer for images of so many channels and, unless ``position_grid`` says otherwise, positions for
    images of this (height, width); those of other sizes are interpolated.

    Raises:
        ValueError: the patches do not divide the images.
    """

    def __init__(self, config: ViTConfig, channels: int, image_size: tuple[int, int]) -> None:
        super().__init__()
        width = config.width
        self.patch_size, self.depth, self.registers = config.patch_size, config.depth, config.registers
        self.feature_dim = width
        """D, the width of the features."""
        self.branches = 2 * config.depth
        """Residual branches: attention and MLP of each block in turn."""
        self.interpolation_offset = config.interpolation_offset
        self.position_grid = self.grid(image_size)
        """Rows and columns of the positions."""
        if config.position_grid is not None:
            self.position_grid = (config.position_grid, config.position_grid)

        self.cls_token = nn.Parameter(torch.zeros(1, 1, width)) if config.class_token else None
        self.first = int(config.class_token)
        """Where the positions of patches begin: after that of CLS."""
        self.pool = config.pool
        self.fixed_positions = config.positions == "sincos"
        if self.fixed_positions:
            self.register_buffer("pos_embed", self._fixed(self.position_grid), persistent=False)
        else:
            down, across = self.position_grid
            self.pos_embed = nn.Parameter(torch.empty(1, self.first + down * across, width))
        self.register_tokens = nn.Parameter(torch.empty(1, self.registers, width)) if self.registers else None
        self.mask_token = nn.Parameter(torch.zeros(1, width)) if config.mask_token else None
        self.patch_embed = PatchEmbedding(config, channels)
        hidden = int(width * config.mlp_ratio)
        self.blocks = nn.ModuleList(
            Block(width, config.heads, hidden, config.feed_forward, config.layer_scale, config.qkv_bias)
            for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self._initialize(config)

    def _initialize(self, config: ViTConfig) -> None:
        initialize(self, config.initialization)
        if not self.fixed_positions:
            nn.init.trunc_normal_(self.pos_embed, std=0.02)
        if self.register_tokens is not None:
            nn.init.normal_(self.register_tokens, std=1e-6)
        patches = self.patch_embed.proj
        if config.initialization == "xavier" or config.frozen_patch_embedding:
            with torch.no_grad():
                nn.init.xavier_uniform_(patches.weight.flatten(1))  # of the linear map that the convolution is
            nn.init.zeros_(patches.bias)  # type: ignore[arg-type]
        if config.frozen_patch_embedding:
            self.patch_embed.requires_grad_(False)

    def forward(self, images: Tensor, keep: Tensor | None = None) -> Tensor:
        """(B, C, H, W) -> (B, D), after the final norm: CLS, or the mean of the patches; ``keep`` as in ``tokens``."""
        if self.pool == "mean":
            return self.tokens(images, keep=keep).feature
        features: Tensor = self.norm(self._encode(images, keep=keep, outputs=1)[:, 0])
        return features

    def tokens(
        self,
        images: Tensor,
        *,
        masked: Tensor | None = None,
        visible: Tensor | None = None,
        keep: Tensor | None = None,
    ) -> Tokens:
        """All tokens after the final norm.

        Args:
            images: (B, C, H, W) of any size that the patches divide.
            masked: (B, N) bool: the patches that the mask token takes the place of, before positions are added.
            visible: (B, K) int64: the patches that are encoded, each with its own position. The others are left out:
                the encoder computes K tokens in place of N.
            keep: (B, branches) the factor of each residual branch for each sample, of ``draw_keep``; best on the CPU,
                where branches that are left out are not computed. None: all branches.

        Raises:
            ValueError: the shapes do not fit, or there is no mask token.
        """
        x = self.norm(self._encode(images, masked, visible, keep))
        registers, patches = x.tensor_split([self.first + self.registers], dim=1)
        return Tokens(patches.mean(dim=1) if self.pool == "mean" else x[:, 0], registers[:, self.first :], patches)

    def sequence(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, N', D): CLS, where there is one, and the patches, after the final norm."""
        x: Tensor = self.norm(self._encode(images))
        return torch.cat([x[:, : self.first], x[:, self.first + self.registers :]], dim=1)

    def attention(self, images: Tensor) -> Tensor:
        """(B, heads, h, w): how CLS weighs the patches in each head of the last block; without CLS, how the patches do
        on average. The softmax is over all tokens, so that with CLS the patches' weights sum to less than 1."""
        x = self._embed(images)
        for block in self.blocks[:-1]:
            x = block(x)
        last = self.blocks[-1]
        outputs = 1 if self.cls_token is not None else None
        weights: Tensor = last.attn.weights(last.norm1(x), outputs=outputs)  # type: ignore[operator, union-attr]
        grid = self.grid((images.shape[2], images.shape[3]))
        return weights.mean(dim=2)[:, :, self.first + self.registers :].reshape(len(x), -1, *grid)

    def positions_of(self, other: VisionTransformer) -> Tensor:
        """(1, CLS + N, D): the learned positions of another network on this one's grid, resampled as that one would do
        it for images of this size (section 3.2), so that its outputs stay the same.

        Raises:
            ValueError: one of them has a CLS token, the other has not.
        """
        if self.first != other.first:
            raise ValueError("one of the two Vision Transformers has a class token, the other has not")
        if self.position_grid == other.position_grid:
            return other.pos_embed.detach()
        learned = other.pos_embed.detach()[0, self.first :].view(*other.position_grid, -1)
        patches = interpolate_positions(learned, self.position_grid, other.interpolation_offset)
        return torch.cat([other.pos_embed.detach()[:, : self.first], patches.flatten(0, 1).unsqueeze(0)], dim=1)

    def grid(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """How many patches go down and across an image of this (height, width).

        Raises:
            ValueError: not a whole number.
        """
        wrong = []
        for name, side in zip(("height", "width"), image_size, strict=True):
            if side % self.patch_size or side < 1:
                below = side // self.patch_size * self.patch_size
                nearest = f"{below} or {below + self.patch_size}" if below > 0 else f"{self.patch_size}"
                wrong.append(f"{name} {side} (the nearest that would do: {nearest})")
        if wrong:
            raise ValueError(f"patches of {self.patch_size} pixels do not divide images of {' and '.join(wrong)}")
        return image_size[0] // self.patch_size, image_size[1] // self.patch_size

    def depth_of(self, name: str) -> int:
        """Where a parameter lies, for learning rates that decay from layer to layer: 0 for embeddings (patches,
        positions, CLS, registers, mask token), i + 1 for block i, depth + 1 for the final norm.

        Args:
            name: as in ``named_parameters``.

        Raises:
            ValueError: there is no such parameter.
        """
        part, _, rest = name.partition(".")
        number = rest.partition(".")[0]
        if part == "blocks" and number.isdigit() and int(number) < self.depth:
            return int(number) + 1
        if part == "norm":
            return self.depth + 1
        if part in ("patch_embed", "pos_embed", "cls_token", "register_tokens", "mask_token"):
            return 0
        raise ValueError(f"a Vision Transformer has no parameter {name}")

    def _encode(
        self,
        images: Tensor,
        masked: Tensor | None = None,
        visible: Tensor | None = None,
        keep: Tensor | None = None,
        outputs: int | None = None,
    ) -> Tensor:
        """The tokens (B, CLS + R + N, D) after the last block, or the first ones alone (B, outputs, D)."""
        x = self._embed(images, masked, visible)
        plan: list[Kept | None] = [None] * self.branches
        if keep is not None:
            if keep.shape != (len(x), self.branches):
                expected = (len(x), self.branches)
                raise ValueError(f"keep is {tuple(keep.shape)}; (samples, residual branches) are {expected}")
            plan = kept_rows(keep, x)
        for number, block in enumerate(self.blocks):
            last = number == self.depth - 1
            x = self._through(block, x, plan[2 * number], plan[2 * number + 1], outputs if last else None)
        return x

    def _embed(self, images: Tensor, masked: Tensor | None = None, visible: Tensor | None = None) -> Tensor:
        """CLS, registers and patches (B, CLS + R + N, D), with positions but for registers."""
        grid = self.grid((images.shape[2], images.shape[3]))
        patches = self.patch_embed(images)
        if masked is not None:
            if self.mask_token is None:
                raise ValueError("this network has no mask token; build it with mask_token=True")
            if masked.shape != patches.shape[:2]:
                raise ValueError(f"masked is {tuple(masked.shape)}; (samples, patches) are {tuple(patches.shape[:2])}")
            patches = torch.where(masked.unsqueeze(2), self.mask_token.to(patches.dtype), patches)
        positions = self._positions(grid)
        patches = patches + positions[:, self.first :]
        if visible is not None:
            if visible.ndim != 2 or len(visible) != len(patches):
                raise ValueError(f"visible is {tuple(visible.shape)}; it lists patches for each of {len(patches)} rows")
            patches = patches.gather(1, visible.unsqueeze(2).expand(-1, -1, patches.shape[2]))
        parts = [patches]
        if self.register_tokens is not None:
            parts.insert(0, self.register_tokens.expand(len(patches), -1, -1))
        if self.cls_token is not None:
            parts.insert(0, (self.cls_token + positions[:, :1]).expand(len(patches), -1, -1))
        return torch.cat(parts, dim=1)

    def _positions(self, grid: tuple[int, int]) -> Tensor:
        """(1, CLS + N, D): those of CLS, where there is one, and of each patch of this grid."""
        if grid == self.position_grid:
            return self.pos_embed
        if self.fixed_positions:
            return self._fixed(grid).to(self.pos_embed)
        learned = self.pos_embed[0, self.first :].view(*self.position_grid, -1)
        patches = interpolate_positions(learned, grid, self.interpolation_offset).flatten(0, 1).unsqueeze(0)
        return torch.cat([self.pos_embed[:, : self.first], patches.to(self.pos_embed.dtype)], dim=1)

    def _fixed(self, grid: tuple[int, int]) -> Tensor:
        return sincos_positions(grid, self.feature_dim)[:, 1 - self.first :]


@dataclass(frozen=True, kw_only=True)
class ViTConfig:
    """What all Vision Transformers let one choose."""

    type: str
    """Which network this is."""
    patch_size: int = 16
    """Side of a patch in pixels; must divide the sides of all views. 4 for images of 32 pixels, 8 for 64 to 96."""
    width: int
    """D, the width of tokens and features; a multiple of ``heads``."""
    depth: int
    """Blocks."""
    heads: int
    """Attention heads in each block; MoCo v3 gives its ViT-S 12."""
    mlp_ratio: float = 4.0
    """Width inside the MLP over D."""
    feed_forward: Literal["mlp", "swiglu"] = "mlp"
    """``swiglu``: gated, with two thirds of the MLP's inner width, as in DINOv2's giant."""
    registers: int = 0
    """Tokens without a meaning of their own, which keep artefacts out of attention maps; 4 in 2309.16588."""
    layer_scale: float | None = None
    """Where LayerScale's factors start: 1e-5 in DINOv2, 0.1 to 1e-6 by depth in 2103.17239; null: without."""
    qkv_bias: bool = True
    """Whether queries, keys and values have a bias."""
    pixel_mean: PerChannel = 0.0
    """Subtracted from pixels, which are from 0 to 1; one number, or one for each channel. With ImageNet's mean (0.485,
    0.456, 0.406) and deviation most codes of Vision Transformers standardise their images; ViT's own takes 0.5 and
    0.5."""
    pixel_std: PerChannel = 1.0
    """What pixels are divided by then; ImageNet's: 0.229, 0.224, 0.225. It decides how strong patches are beside their
    positions at first: where they are weak, as a small ball on a plain field, methods that predict features (I-JEPA,
    V-JEPA) can do so from positions alone."""
    positions: Literal["learned", "sincos"] = "learned"
    """``sincos``: fixed sines and cosines, as in MoCo v3; the width must be a multiple of 4."""
    frozen_patch_embedding: bool = False
    """Leave the patch embedding at its random start, as MoCo v3 does against sudden dips of training."""
    position_grid: int | None = None
    """Learned positions on a square grid with this side, whatever the image size; 37 in DINOv2's public weights. null:
    the grid of the images."""
    interpolation_offset: float = 0.0
    """Added to the grid of other image sizes when positions are interpolated, at least 0 and below 1. DINO's and
    DINOv2's codes take 0.1 against rounding, which shifts the positions a little: needed with their weights."""
    mask_token: bool = False
    """A learned token in place of masked patches, for methods that show the encoder something there (iBOT, DINOv2)."""
    class_token: bool = True
    """The CLS token; I-JEPA has none."""
    pool: Literal["cls", "mean"] = "cls"
    """What the feature is: the CLS token, or the mean of the patches."""
    initialization: Initialization = "trunc-normal"
    """How weights begin: ``trunc-normal`` as in DINO, DINOv2, I-JEPA and V-JEPA, ``trunc-normal-by-depth`` as in BEiT,
    ``xavier`` as in the ViT paper's code, MoCo v3 and MAE."""

    mixes_samples: ClassVar[bool] = False
    """Whether the features of a sample depend on the others of its batch; layer normalisation sees one sample."""

    def __post_init__(self) -> None:
        for name in ("patch_size", "width", "depth", "heads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.width % self.heads:
            raise ValueError(f"{self.heads} heads do not divide a width of {self.width}")
        if not self.width * self.mlp_ratio >= 1:
            raise ValueError(f"mlp_ratio is {self.mlp_ratio}; it must be above 0, and 1 / {self.width} at least")
        deviations = (self.pixel_std,) if isinstance(self.pixel_std, float) else self.pixel_std
        if not all(0 < deviation < math.inf for deviation in deviations):
            raise ValueError(f"pixel_std is {self.pixel_std}; it must be above 0 and finite")
        if self.registers < 0:
            raise ValueError(f"registers is {self.registers}; it must be at least 0")
        if self.layer_scale is not None and not self.layer_scale > 0:
            raise ValueError(f"layer_scale is {self.layer_scale}; it must be above 0, or null for none")
        if self.positions == "sincos" and self.width % 4:
            raise ValueError(f"sincos positions need a width that 4 divides, not {self.width}")
        if self.position_grid is not None and self.position_grid < 1:
            raise ValueError(f"position_grid is {self.position_grid}; it must be at least 1")
        if self.pool == "cls" and not self.class_token:
            raise ValueError("without a class token the feature cannot be it; set pool: mean")
        if not 0 <= self.interpolation_offset < 1:
            raise ValueError(f"interpolation_offset is {self.interpolation_offset}; it must be at least 0 and below 1")

    def build(self, channels: int, image_size: tuple[int, int]) -> VisionTransformer:
        """The network for images of so many channels and, to begin with, this (height, width).

        Raises:
            ValueError: the patches do not divide the images.
        """
        return VisionTransformer(self, channels, image_size)


@dataclass(frozen=True, kw_only=True)
class ViTTiny(ViTConfig):
    """ViT-Ti: 5.5 million parameters with patches of 16, features of width 192."""

    type: Literal["vit-tiny"] = "vit-tiny"
    width: int = 192
    depth: int = 12
    heads: int = 3


@dataclass(frozen=True, kw_only=True)
class ViTSmall(ViTConfig):
    """ViT-S: 21.7 million parameters with patches of 16, features of width 384."""

    type: Literal["vit-small"] = "vit-small"
    width: int = 384
    depth: int = 12
    heads: int = 6


@dataclass(frozen=True, kw_only=True)
class ViTBase(ViTConfig):
    """ViT-B: 85.8 million parameters with patches of 16, features of width 768."""

    type: Literal["vit-base"] = "vit-base"
    width: int = 768
    depth: int = 12
    heads: int = 12


@dataclass(frozen=True, kw_only=True)
class ViTLarge(ViTConfig):
    """ViT-L: 303 million parameters with patches of 16, features of width 1024."""

    type: Literal["vit-large"] = "vit-large"
    width: int = 1024
    depth: int = 24
    heads: int = 16


@dataclass(frozen=True, kw_only=True)
class ViTHuge(ViTConfig):
    """ViT-H: 631 million parameters with patches of 16, features of width 1280."""

    type: Literal["vit-huge"] = "vit-huge"
    width: int = 1280
    depth: int = 32
    heads: int = 16


@dataclass(frozen=True, kw_only=True)
class ViTGiant(ViTConfig):
    """ViT-g of DINOv2: 1.1 billion parameters with patches of 14, features of width 1536."""

    type: Literal["vit-giant"] = "vit-giant"
    width: int = 1536
    depth: int = 40
    heads: int = 24
    feed_forward: Literal["mlp", "swiglu"] = "swiglu"
