"""I-JEPA: Self-Supervised Learning from Images with a Joint-Embedding Predictive Architecture, Assran et al. 2023
(arXiv 2301.08243).

A context encoder sees one large block of an image's patches, without those of four smaller target blocks. From its
tokens and the places of a target's patches, a narrow transformer predicts what a target encoder, which sees the whole
image, says there (section 3). No pixel is predicted and no view is made by hand but for a crop. The target encoder is a
moving average of the context encoder; it is what the method is judged by.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from heliostat_algorithms.algorithm import (
    COLLAPSED_SPREAD,
    Algorithm,
    Batch,
    Clock,
    DataSpec,
    Inputs,
    Panels,
    Step,
)
from heliostat_algorithms.augmentation import ViewAugmentation
from heliostat_algorithms.augmentation.color import ColorJitter
from heliostat_algorithms.augmentation.filters import GaussianBlur
from heliostat_algorithms.backbones import ViTBackboneConfig, ViTHuge
from heliostat_algorithms.backbones.positions import sincos_positions
from heliostat_algorithms.backbones.predictor import Predictor
from heliostat_algorithms.collectives import mean_over_workers
from heliostat_algorithms.encoder import Encoder
from heliostat_algorithms.masking.multi_block import MultiBlockMasking
from heliostat_algorithms.objectives.latent_targets import normalize_tokens
from heliostat_algorithms.objectives.spread import spread
from heliostat_algorithms.randomness import Random
from heliostat_algorithms.schedules import Ramp
from heliostat_algorithms.teachers import follow, teacher_of

GREY = 0.5
"""What pictures show in place of patches that are not seen."""


def _crop() -> ViewAugmentation:
    """A random crop, and nothing else."""
    jitter, blur = ColorJitter(probability=0.0), GaussianBlur(probability=0.0)
    return ViewAugmentation(size=224, crop_area=(0.3, 1.0), flip=0.0, jitter=jitter, greyscale=0.0, blur=blur)


class IJEPA(Algorithm):
    """I-JEPA (Assran et al. 2023): the features of hidden blocks are predicted from those of the rest of the image."""

    separable = True  # the loss is a mean over images; masks are those of the global batch, however it is split

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """The paper's ViT-H/14 for ImageNet at 224 pixels."""

        type: Literal["ijepa"] = "ijepa"
        backbone: ViTBackboneConfig = field(
            default_factory=lambda: ViTHuge(patch_size=14, class_token=False, pool="mean", positions="sincos")
        )
        """Both encoders; the mean of all patches of the target encoder is the representation. ``class_token`` must be
        false and ``pool`` mean. Its ``initialization`` is the predictor's too."""
        predictor_width: int = 384
        """Width of the predictor; a multiple of 4 and of its heads. The paper finds a bottleneck better than the width
        of the encoder."""
        predictor_depth: int = 12
        """Blocks of the predictor; 6 for ViT-B, 12 for larger encoders, 16 for ViT-G (appendix A)."""
        predictor_heads: int | None = None
        """Attention heads in each block of the predictor; null: as many as in the encoder (official code)."""
        masking: MultiBlockMasking = field(default_factory=MultiBlockMasking)
        """Which patches are the context and which the targets."""
        loss: Literal["l2", "smooth-l1"] = "l2"
        """Distance of a prediction from its target, averaged over blocks, patches and dimensions: the square (paper,
        section 3), or half of it below a difference of 1 and the difference less a half above (official code)."""
        teacher_momentum: Ramp = field(default_factory=lambda: Ramp(start=0.996, end=1.0, shape="linear"))
        """Share of the old target encoder that stays in each step; less for short trainings."""
        augmentation: ViewAugmentation = field(default_factory=_crop)
        """How the view of an image is made: a crop alone. For small images another ``size``."""

        def __post_init__(self) -> None:
            if self.backbone.class_token or self.backbone.pool != "mean":
                raise ValueError(
                    "I-JEPA has no class token; set the backbone's class_token to false and its pool to mean"
                )
            if self.backbone.mask_token:
                raise ValueError("I-JEPA's encoders never see a mask token; set the backbone's mask_token to false")
            for name in ("predictor_width", "predictor_depth", "predictor_heads"):
                value = getattr(self, name)
                if value is not None and value < 1:
                    raise ValueError(f"{name} is {value}; it must be at least 1")
            heads = self.heads_of_predictor
            if self.predictor_width % 4 or self.predictor_width % heads:
                raise ValueError(
                    f"predictor_width is {self.predictor_width}; it must be a multiple of 4, for its positions, and of "
                    f"its {heads} attention heads"
                )
            for name in ("start", "end"):
                if not 0 <= getattr(self.teacher_momentum, name) <= 1:
                    share = getattr(self.teacher_momentum, name)
                    raise ValueError(f"teacher_momentum.{name} is {share}; it is a share, from 0 to 1")

        @property
        def heads_of_predictor(self) -> int:
            """Attention heads in each block of the predictor."""
            return self.backbone.heads if self.predictor_heads is None else self.predictor_heads

    def __init__(self, config: Config, data: DataSpec) -> None:
        super().__init__(config, data)
        self.config = config
        channels, stored = data.image_shape[0], data.image_shape[1:]
        self.context_encoder = config.backbone.build(channels, config.augmentation.output_size(stored))
        self.grid = self.context_encoder.grid(config.augmentation.output_size(stored))
        """Patches (down, across) of a view."""
        config.masking.check(self.grid)
        width = self.context_encoder.feature_dim
        self.predictor = Predictor(
            width,
            width,
            sincos_positions(self.grid, config.predictor_width)[0, 1:],
            depth=config.predictor_depth,
            heads=config.heads_of_predictor,
            initialization=config.backbone.initialization,
        )
        self.target_encoder = teacher_of(self.context_encoder)

    def prepare(self, batch: Batch, clock: Clock, random: Random) -> Inputs:
        """``image`` (B, C, S, S), a view of each image in [0, 1]; ``context`` (B, K) and ``targets`` (M, B, T), patches
        of it; ``overlapping`` (B,), 1 where the context shows patches of a target."""
        view = self.config.augmentation(batch["image"], random.within("view"))
        masks = self.config.masking(random.within("masks"), clock.batch_size, self.grid)
        return {
            "image": view,
            "context": masks.context.to(view.device),
            "targets": masks.targets.to(view.device),
            "overlapping": masks.overlapping.to(view),
        }

    def forward(self, inputs: Inputs, clock: Clock) -> Step:
        """Section 3: targets, context, prediction, loss."""
        image, context, targets = inputs["image"], inputs["context"], inputs["targets"]
        with torch.no_grad():
            whole = normalize_tokens(self.target_encoder.tokens(image).patches)
            rows = torch.arange(len(image), device=image.device)
            wanted = whole[rows[:, None], targets].flatten(0, 1)  # (M B, T, D)

        seen = self.context_encoder.tokens(image, visible=context)
        blocks = len(targets)
        predicted = self.predictor(seen.patches.repeat(blocks, 1, 1), context.repeat(blocks, 1), targets.flatten(0, 1))
        with torch.autocast(image.device.type, enabled=False):
            distance = F.mse_loss if self.config.loss == "l2" else F.smooth_l1_loss
            loss = distance(predicted.to(wanted.dtype), wanted)

        metrics = {
            "feature_std": spread(seen.feature),
            "target_std": spread_over_images(whole),
            "context_patches": torch.full_like(loss, context.shape[1]),
            "context_overlap": inputs["overlapping"].mean(),
        }
        return Step(loss, metrics)

    def after_step(self, clock: Clock) -> None:
        """The target encoder follows the context encoder that has just moved."""
        follow(self.target_encoder, self.context_encoder, self.config.teacher_momentum.at(clock))

    def encoder(self) -> Encoder:
        """The target encoder."""
        return self.target_encoder

    def whole(self, images: Tensor) -> Tensor:
        """(B, C, H, W) uint8 -> the whole images at the size of the views, in [0, 1]."""
        return self.config.augmentation.whole(images)

    def other_features(self) -> Mapping[str, Callable[[Tensor], Tensor]]:
        """``context_encoder``: the mean of its patches of whole images, as ``features`` gives the target encoder's."""
        return {"context_encoder": lambda images: self.context_encoder(self.whole(images))}

    def view_pair(self, batch: Batch, random: Random) -> tuple[Tensor, Tensor]:
        """The target encoder's features (B, D) of two crops of each image."""
        augment = self.config.augmentation
        first = self.target_encoder(augment(batch["image"], random.within("first")))
        second = self.target_encoder(augment(batch["image"], random.within("second")))
        return first, second

    def pictures(self, batch: Batch, random: Random) -> Mapping[str, Panels]:
        """``masks``: whole images, and what the context and each target have of them; contexts are cut to the smallest
        of these images' alone."""
        images = self.whole(batch["image"])
        masks = self.config.masking(random.within("masks"), random.rows.stop, self.grid)
        columns = [images, *(self._shown(images, places) for places in (masks.context, *masks.targets))]
        titles = ("image", "context", *(f"target {number + 1}" for number in range(len(masks.targets))))
        return {"masks": Panels(titles, torch.stack(columns, dim=1))}

    def _shown(self, images: Tensor, places: Tensor) -> Tensor:
        """(B, C, H, W) images, grey but for these patches (B, K)."""
        seen = images.new_zeros(len(images), math.prod(self.grid)).scatter_(1, places.to(images.device), 1.0)
        side = self.context_encoder.patch_size
        seen = seen.view(-1, 1, *self.grid).repeat_interleave(side, 2).repeat_interleave(side, 3)
        return images * seen + GREY * (1 - seen)

    def diagnose(self, metrics: Mapping[str, float]) -> str | None:
        """As all methods, and by the targets: where they are the same for all images, they can be predicted from their
        places, and the loss falls to 0."""
        if (found := super().diagnose(metrics)) is not None:
            return found
        if (target_spread := metrics.get("target_std", math.nan)) < COLLAPSED_SPREAD:
            momentum = self.config.teacher_momentum
            return (
                f"the targets of all images are nearly alike (target_std {target_spread:.3g}, healthy above "
                f"{COLLAPSED_SPREAD}): the target encoder tells places apart, but not images; likely causes: a "
                "learning rate that is too high, a target encoder that follows too quickly (teacher_momentum from "
                f"{momentum.start:g}), or targets so small that their places say enough"
            )
        return None


@torch.no_grad()
def spread_over_images(targets: Tensor) -> Tensor:
    """How much of (B, N, D) normalised tokens depends on the image, and not on the place alone: the root of their
    variance over the *global* batch, averaged over places and dimensions. 0 where all images are alike, at most 1. Its
    square is the l2 loss of the best prediction from places alone. The same on every worker."""
    mean, square = mean_over_workers(torch.stack([targets.mean(dim=0), targets.square().mean(dim=0)]))
    deviation: Tensor = (square - mean.square()).mean().clamp_min(0).sqrt()
    return deviation
