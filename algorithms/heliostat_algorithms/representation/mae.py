"""MAE: Masked Autoencoders Are Scalable Vision Learners, He et al. 2021 (arXiv 2111.06377).

Three quarters of an image's patches are hidden. A large encoder computes the others alone; a small decoder puts mask
tokens in the places of the hidden ones and says what their pixels are (section 3, figure 1). The decoder is thrown
away; the encoder, shown all patches, is the representation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heliostat_algorithms.algorithm import Algorithm, Batch, Clock, DataSpec, Inputs, Panels, Step
from heliostat_algorithms.augmentation import CropAndFlip
from heliostat_algorithms.backbones import Tokens, ViTBackboneConfig, ViTLarge
from heliostat_algorithms.backbones.positions import sincos_positions
from heliostat_algorithms.backbones.predictor import Predictor
from heliostat_algorithms.encoder import Encoder
from heliostat_algorithms.masking.random_patches import kept_patches, random_patches
from heliostat_algorithms.objectives.patches import (
    masked_reconstruction,
    normalize_patches,
    patchify,
    select,
    unpatchify,
)
from heliostat_algorithms.objectives.spread import spread
from heliostat_algorithms.randomness import Random

GREY = 0.5
"""What stands in pictures where there is nothing to show."""


@dataclass(frozen=True, kw_only=True)
class MAEView(CropAndFlip):
    """A random crop and a flip, and no change of colour: masking makes the task hard enough (section 4.1, "Data
    augmentation")."""

    size: int | None = 224
    """Height and width of a view in pixels; null: those of the stored image."""
    crop_area: tuple[float, float] = (0.2, 1.0)
    """Smallest and largest share of the image's area that a crop covers."""


@dataclass(frozen=True, kw_only=True)
class Decoder:
    """The small transformer that reconstructs pixels, with fixed sin-cos positions and Glorot's initial weights."""

    width: int = 512
    """Of its tokens; a multiple of 4 and of ``heads``. 512 for all encoders of the paper."""
    depth: int = 8
    """Blocks. For fine-tuning one is enough; linear probes gain from 8, which take the work of pixels off the encoder
    (section 4.1)."""
    heads: int = 16
    """Attention heads in each block."""

    def __post_init__(self) -> None:
        for name in ("width", "depth", "heads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.width % self.heads or self.width % 4:
            raise ValueError(f"width is {self.width}; it must be a multiple of 4 and of the {self.heads} heads")


class MAE(Algorithm):
    """MAE (He et al. 2021): an encoder sees a quarter of the patches, a decoder reconstructs the others."""

    separable = True  # the loss is a mean over images, and nothing mixes them

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """The paper's choices for ViT-L/16 on ImageNet, with normalised pixels as in its best results."""

        type: Literal["mae"] = "mae"
        backbone: ViTBackboneConfig = field(
            default_factory=lambda: ViTLarge(positions="sincos", initialization="xavier")
        )
        """The encoder. With ``pool: cls`` its CLS token is the representation, and the decoder sees it as it sees the
        visible patches. With ``pool: mean`` their mean is, and the decoder sees the patches alone."""
        mask_ratio: float = 0.75
        """Share of the patches that is hidden, above 0 and below 1; int(N (1 - ratio)) of N stay visible. Around 0.75
        is best; linear probes suffer sooner than fine-tuning from less (figure 5)."""
        decoder: Decoder = field(default_factory=Decoder)
        """The decoder, which only pretraining needs."""
        normalize_targets: bool = True
        """Predict pixels relative to the mean and deviation of their own patch, which gives better features; false:
        the pixels as they are, from 0 to 1, which gives better pictures."""
        augmentation: MAEView = field(default_factory=MAEView)
        """How the view of an image is made."""

        def __post_init__(self) -> None:
            if not 0 < self.mask_ratio < 1:
                raise ValueError(f"mask_ratio is {self.mask_ratio}; it must be above 0 and below 1")
            if self.backbone.mask_token:
                raise ValueError("the encoder sees no masked patches; leave the backbone's mask_token out")

    def __init__(self, config: Config, data: DataSpec) -> None:
        super().__init__(config, data)
        self.config = config
        self.channels, *stored = data.image_shape
        size = config.augmentation.output_size((stored[0], stored[1]))
        self.backbone = config.backbone.build(self.channels, size)
        self.grid = self.backbone.grid(size)
        """Patches down and across a view."""
        self.patches = self.grid[0] * self.grid[1]
        kept_patches(self.patches, config.mask_ratio)  # some must be visible, some hidden
        values = self.backbone.patch_size**2 * self.channels
        if config.normalize_targets and values == 1:
            raise ValueError("a patch of one value has no variance; take larger patches, or normalize_targets: false")
        self.decoder = Predictor(
            self.backbone.feature_dim,
            values,
            sincos_positions(self.grid, config.decoder.width)[0],
            depth=config.decoder.depth,
            heads=config.decoder.heads,
            initialization="xavier",
        )
        if self.backbone.cls_token is not None:
            nn.init.normal_(self.backbone.cls_token, std=0.02)

    def prepare(self, batch: Batch, clock: Clock, random: Random) -> Inputs:
        """``view`` (B, C, S, S) in [0, 1], and the places of its patches: ``visible`` (B, K) and ``hidden`` (B, N - K)
        int64, for each image its own."""
        view = self.config.augmentation(batch["image"], random.within("view"))
        visible, hidden = self._mask(random, view)
        return {"view": view, "visible": visible, "hidden": hidden}

    def forward(self, inputs: Inputs, clock: Clock) -> Step:
        """Encode what is visible, decode what is hidden, compare the pixels.

        The official decoder computes outputs for the visible patches too, and its loss leaves them out; here they are
        not computed, which is the same loss and the same gradient.
        """
        view, visible, hidden = inputs["view"], inputs["visible"], inputs["hidden"]
        seen = self.backbone.tokens(view, visible=visible)
        predictions = self._decode(seen, visible, hidden)
        patches = patchify(view, self.backbone.patch_size)
        loss = masked_reconstruction(predictions, patches, hidden, self.config.normalize_targets)
        return Step(loss, {"feature_std": spread(seen.feature)})

    def _mask(self, random: Random, view: Tensor) -> tuple[Tensor, Tensor]:
        """Places of visible and of hidden patches, on the view's device."""
        visible, hidden = random_patches(random.within("mask"), self.patches, self.config.mask_ratio)
        return visible.to(view.device), hidden.to(view.device)

    def _decode(self, seen: Tokens, visible: Tensor, hidden: Tensor) -> Tensor:
        """(B, N - K, P * P * C): what the decoder says of the hidden patches. Place 0 is that of CLS."""
        context, places = seen.patches, 1 + visible
        if self.backbone.pool == "cls":
            context = torch.cat([seen.feature.unsqueeze(1), context], dim=1)
            places = F.pad(places, (1, 0))
        predictions: Tensor = self.decoder(context, places, 1 + hidden)
        return predictions

    def encoder(self) -> Encoder:
        """The encoder, which outside pretraining is shown all patches."""
        return self.backbone

    def whole(self, images: Tensor) -> Tensor:
        """(B, C, H, W) uint8 -> the whole images at the size of the views, in [0, 1]."""
        return self.config.augmentation.whole(images)

    def view_pair(self, batch: Batch, random: Random) -> tuple[Tensor, Tensor]:
        """Features (B, D) of two random views of each image, all patches visible."""
        augment = self.config.augmentation
        first = self.backbone(augment(batch["image"], random.within("first")))
        second = self.backbone(augment(batch["image"], random.within("second")))
        return first, second

    def pictures(self, batch: Batch, random: Random) -> Mapping[str, Panels]:
        """``reconstruction``: whole images, what the encoder sees of them, what the decoder makes of the rest, and both
        together.

        Normalised predictions have neither brightness nor contrast: for the picture they are given those of the true
        patch, so that it shows more than the network knows. (The official demo takes a network that was trained on
        pixels as they are.)
        """
        view = self.whole(batch["image"])
        visible, hidden = self._mask(random, view)
        patches = patchify(view, self.backbone.patch_size)
        predictions = self._decode(self.backbone.tokens(view, visible=visible), visible, hidden).to(patches.dtype)
        if self.config.normalize_targets:
            _, mean, deviation = normalize_patches(select(patches, hidden))
            predictions = predictions * deviation + mean
        predictions = predictions.clamp(0, 1)
        places = hidden.unsqueeze(2).expand_as(predictions)
        columns = {
            "image": patches,
            "masked": patches.scatter(1, places, GREY),
            "reconstruction": torch.full_like(patches, GREY).scatter(1, places, predictions),
            "reconstruction and visible": patches.scatter(1, places, predictions),
        }
        images = [unpatchify(column, self.grid, self.channels) for column in columns.values()]
        return {"reconstruction": Panels(tuple(columns), torch.stack(images, dim=1))}
