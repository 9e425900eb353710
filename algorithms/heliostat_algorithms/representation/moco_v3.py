"""MoCo v3: An Empirical Study of Training Self-Supervised Vision Transformers, Chen, Xie and He 2021 (arXiv
2104.02057).

MoCo without the queue: with batches of thousands the keys of the other images are negatives enough. Each of two views
is query and key (algorithm 1); queries pass a predictor, as in BYOL. Vision Transformers train stably only with a
patch embedding that stays at its random start (section 4.2).

For ResNet-50, ``temperature: 1.0`` and a ``crop_area`` of (0.2, 1) in both views.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from heliostat_algorithms.algorithm import Batch, Clock, DataSpec, Inputs, ParameterGroup, Step
from heliostat_algorithms.augmentation import ColorJitter, GaussianBlur, ViewAugmentation
from heliostat_algorithms.backbones import BackboneConfig, VisionTransformer, ViTBase
from heliostat_algorithms.comparing import Comparing, Rows
from heliostat_algorithms.encoder import Encoder
from heliostat_algorithms.heads.mlp import MLP
from heliostat_algorithms.objectives.info_nce import batch_info_nce
from heliostat_algorithms.objectives.spread import spread
from heliostat_algorithms.objectives.tiled import check_tile
from heliostat_algorithms.randomness import Random
from heliostat_algorithms.schedules import Ramp
from heliostat_algorithms.teachers import follow, teacher_of


@dataclass(frozen=True, kw_only=True)
class FirstView(ViewAugmentation):
    """``ViewAugmentation`` with the numbers of BYOL's first view (2006.07733, appendix B): always blurred."""

    jitter: ColorJitter = field(
        default_factory=lambda: ColorJitter(probability=0.8, brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1)
    )
    """Brightness, contrast, saturation and hue."""
    blur: GaussianBlur = field(default_factory=lambda: GaussianBlur(probability=1.0))
    """Gaussian blur."""


@dataclass(frozen=True, kw_only=True)
class SecondView(FirstView):
    """``ViewAugmentation`` with the numbers of BYOL's second view: rarely blurred, sometimes solarised."""

    blur: GaussianBlur = field(default_factory=lambda: GaussianBlur(probability=0.1))
    """Gaussian blur."""
    solarize: float = 0.2
    """Share of the views that are solarised."""


def _vit_base() -> ViTBase:
    return ViTBase(positions="sincos", frozen_patch_embedding=True, initialization="xavier")


class MoCoV3(Comparing):
    """MoCo v3 (Chen, Xie and He 2021): each view finds the other view's key among all keys of the batch."""

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """The paper's choices for ViT-B/16 on ImageNet."""

        type: Literal["moco-v3"] = "moco-v3"
        backbone: BackboneConfig = field(default_factory=_vit_base)
        """The encoder; its output h is the representation. The paper's Vision Transformers have positions: sincos,
        frozen_patch_embedding: true and initialization: xavier, and its ViT-S has 12 heads."""
        projection_hidden: int = 4096
        """Width inside projector and predictor."""
        projection_dim: int = 256
        """Width of queries and keys."""
        projection_layers: int | None = None
        """Linear layers of the projector; null: 3 for Vision Transformers, 2 for ResNets, as in the paper."""
        temperature: float = 0.2
        """Lower weighs hard negatives more; 1.0 for ResNet-50."""
        tile: int | None = None
        """Compute the loss by tiles of so many rows and columns of the similarities and never hold them all: memory
        linear in the batch, the similarities computed twice. Some thousand on accelerators. null: all at once."""
        momentum: Ramp = field(default_factory=lambda: Ramp(start=0.99, end=1.0))
        """Share of the old key encoder that stays in each step; from 0.996 for ResNet-50 and 1000 epochs."""
        first_view: FirstView = field(default_factory=FirstView)
        """How one view is made."""
        second_view: SecondView = field(default_factory=SecondView)
        """How the other view is made; of the same size."""

        def __post_init__(self) -> None:
            for name in ("projection_hidden", "projection_dim", "projection_layers"):
                value = getattr(self, name)
                if value is not None and value < 1:
                    raise ValueError(f"{name} is {value}; it must be at least 1")
            if not 0 < self.temperature < math.inf:
                raise ValueError(f"temperature is {self.temperature}; it must be above 0 and finite")
            for name, share in (("momentum.start", self.momentum.start), ("momentum.end", self.momentum.end)):
                if not 0 <= share <= 1:
                    raise ValueError(f"{name} is {share}; it is a share, from 0 to 1")
            if self.first_view.size != self.second_view.size:
                raise ValueError(
                    f"the views have sizes {self.first_view.size} and {self.second_view.size}; they must be of one size"
                )
            check_tile(self.tile)

    def __init__(self, config: Config, data: DataSpec) -> None:
        super().__init__(config, data)
        self.config = config
        channels, size = data.image_shape[0], config.first_view.output_size(data.image_shape[1:])
        self.backbone = config.backbone.build(channels, size)
        self.transformer = isinstance(self.backbone, VisionTransformer)
        layers = config.projection_layers or (3 if self.transformer else 2)
        hidden, dim = config.projection_hidden, config.projection_dim
        self.projector = MLP(self.backbone.feature_dim, hidden, dim, layers)
        # The official code leaves the predictor of a ResNet without the last normalisation.
        self.predictor = MLP(dim, hidden, dim, layers=2, last_norm=self.transformer)
        self.key_backbone = teacher_of(self.backbone)
        self.key_projector = teacher_of(self.projector)

    def before_step(self, clock: Clock) -> None:
        """The key encoder follows the query encoder, before it makes this step's keys; it has no predictor."""
        momentum = self.config.momentum.at(clock)
        follow(self.key_backbone, self.backbone, momentum)
        follow(self.key_projector, self.projector, momentum)

    def prepare(self, batch: Batch, clock: Clock, random: Random) -> Inputs:
        """``first`` and ``second``: two views (B, C, S, S) of each image, in [0, 1] as SimCLR has them."""
        return {
            "first": self.config.first_view(batch["image"], random.within("first")),
            "second": self.config.second_view(batch["image"], random.within("second")),
        }

    def represent(self, inputs: Inputs, clock: Clock) -> Rows:
        """h (B, D) of the ``first`` and the ``second`` views. Each view is a pass of its own, with its own batch
        statistics, as in the official code."""
        return {name: self.backbone(inputs[name]) for name in ("first", "second")}

    def targets(self, inputs: Inputs, clock: Clock) -> Rows:
        """h (B, D) of both views by the key encoder, likewise."""
        with torch.no_grad():
            return {name: self.key_backbone(inputs[name]) for name in ("first", "second")}

    def compare(self, rows: Rows, targets: Rows, clock: Clock) -> Step:
        """Algorithm 1: the loss of both directions, times 2 t."""
        t, tile = self.config.temperature, self.config.tile
        h1, h2 = rows["first"], rows["second"]
        q1, q2 = self.predictor(self.projector(h1)), self.predictor(self.projector(h2))
        with torch.no_grad():
            k1, k2 = self.key_projector(targets["first"]), self.key_projector(targets["second"])
        first, metrics = batch_info_nce(q1, k2, t, tile)
        second, others = batch_info_nce(q2, k1, t, tile)
        top1 = (metrics["contrastive_top1"] + others["contrastive_top1"]) / 2
        return Step(2 * t * (first + second), {"contrastive_top1": top1, "feature_std": spread(h1)})

    def parameter_groups(self) -> list[ParameterGroup]:
        """As in the official code: of a Vision Transformer, trained with AdamW, all parameters are decayed alike; of a
        ResNet, trained with LARS, biases and normalisation layers are not."""
        if self.transformer:
            return [ParameterGroup("all", list(self.trainable()), True)]
        return super().parameter_groups()

    def encoder(self) -> Encoder:
        """The query encoder."""
        return self.backbone

    def whole(self, images: Tensor) -> Tensor:
        """(B, C, H, W) uint8 -> the whole images at the size of the views, in [0, 1]."""
        return self.config.first_view.whole(images)

    def other_features(self) -> Mapping[str, Callable[[Tensor], Tensor]]:
        """``key_encoder``: its h, as ``features`` gives the query encoder's."""
        return {"key_encoder": lambda images: self.key_backbone(self.config.first_view.whole(images))}

    def view_pair(self, batch: Batch, random: Random) -> tuple[Tensor, Tensor]:
        """The query encoder's h (B, D) of two views of each image."""
        first = self.backbone(self.config.first_view(batch["image"], random.within("first")))
        second = self.backbone(self.config.second_view(batch["image"], random.within("second")))
        return first, second
