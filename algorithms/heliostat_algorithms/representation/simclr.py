"""SimCLR: A Simple Framework for Contrastive Learning of Visual Representations, Chen et al. 2020 (arXiv 2002.05709).

Two random views of each image go through an encoder f and a projection head g; each must find the other among all views
of the batch (algorithm 1). The head is thrown away; what f gives is the representation. The views of all workers are
negatives of each other.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from heliostat_algorithms.algorithm import Batch, Clock, DataSpec, Inputs, Step
from heliostat_algorithms.augmentation import ViewAugmentation
from heliostat_algorithms.backbones import BackboneConfig, ResNet50
from heliostat_algorithms.comparing import Comparing, Rows
from heliostat_algorithms.encoder import Encoder
from heliostat_algorithms.heads.projection import ProjectionHead
from heliostat_algorithms.objectives.nt_xent import nt_xent
from heliostat_algorithms.objectives.tiled import check_tile
from heliostat_algorithms.randomness import Random


class SimCLR(Comparing):
    """SimCLR (Chen et al. 2020): each view finds the other view of its image among all views of the batch."""

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """The paper's choices for ImageNet."""

        type: Literal["simclr"] = "simclr"
        backbone: BackboneConfig = field(default_factory=ResNet50)
        """The encoder f; its output h is the representation."""
        projection_layers: int = 2
        """Linear layers of the head g; section 4.2 finds 2 better than 1, and both better than none."""
        projection_hidden: int | None = None
        """Width between the head's layers; null: that of the representation, as in the paper."""
        projection_dim: int = 128
        """Width of the projections z; the paper sees little difference from 32 to 2048 (figure 8)."""
        temperature: float = 0.1
        """Lower weighs hard negatives more; 0.5 for CIFAR-10 (appendix B.9)."""
        tile: int | None = None
        """Compute the loss by tiles of so many rows and columns of the similarities and never hold them all: memory
        linear in the batch, the similarities computed twice. Some thousand on accelerators. null: all at once."""
        augmentation: ViewAugmentation = field(default_factory=ViewAugmentation)
        """How views are made; for CIFAR-10 jitter.strength 0.5 and no blur."""

        def __post_init__(self) -> None:
            for name in ("projection_layers", "projection_dim", "projection_hidden"):
                value = getattr(self, name)
                if value is not None and value < 1:
                    raise ValueError(f"{name} is {value}; it must be at least 1")
            if not self.temperature > 0:
                raise ValueError(f"temperature is {self.temperature}; it must be above 0")
            check_tile(self.tile)

    def __init__(self, config: Config, data: DataSpec) -> None:
        super().__init__(config, data)
        self.config = config
        channels, *stored = data.image_shape
        self.backbone = config.backbone.build(channels, config.augmentation.output_size((stored[0], stored[1])))
        dim = self.backbone.feature_dim
        hidden = config.projection_hidden or dim
        self.projection = ProjectionHead(dim, hidden, config.projection_dim, config.projection_layers)

    def prepare(self, batch: Batch, clock: Clock, random: Random) -> Inputs:
        """``first`` and ``second``: two views (B, C, S, S) of each image, in [0, 1] as the official code has them."""
        augment = self.config.augmentation
        return {
            "first": augment(batch["image"], random.within("first")),
            "second": augment(batch["image"], random.within("second")),
        }

    def represent(self, inputs: Inputs, clock: Clock) -> Rows:
        """h (B, D) of the ``first`` and the ``second`` views. Both share one pass, and so its batch statistics."""
        first, second = self.backbone(torch.cat([inputs["first"], inputs["second"]])).chunk(2)
        return {"first": first, "second": second}

    def compare(self, rows: Rows, targets: Rows, clock: Clock) -> Step:
        """The rest of algorithm 1; equation 1 is in ``nt_xent``. Both views share the head's batch statistics, too."""
        first, second = self.projection(torch.cat([rows["first"], rows["second"]])).chunk(2)
        loss, metrics = nt_xent(first, second, self.config.temperature, self.config.tile)
        return Step(loss, metrics)

    def encoder(self) -> Encoder:
        """The backbone f."""
        return self.backbone

    def whole(self, images: Tensor) -> Tensor:
        """(B, C, H, W) uint8 -> the whole images at the size of the views, in [0, 1]."""
        return self.config.augmentation.whole(images)

    def view_pair(self, batch: Batch, random: Random) -> tuple[Tensor, Tensor]:
        """h (B, D) of two views of each image."""
        augment = self.config.augmentation
        first = self.backbone(augment(batch["image"], random.within("first")))
        second = self.backbone(augment(batch["image"], random.within("second")))
        return first, second
