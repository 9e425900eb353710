"""SimCLRv2: Big Self-Supervised Models are Strong Semi-Supervised Learners, Chen et al. 2020 (arXiv 2006.10029).

Three stages: contrastive pretraining (this file), fine-tuning on a few labels and distillation with unlabelled images
(``simclr_v2_transfer``). Pretraining is SimCLR with a larger network, a head of three layers and, if wanted, the memory
of MoCo: keys of earlier batches, computed by a moving average of the network, as further negatives (section 2).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heliostat_algorithms.algorithm import Batch, Clock, DataSpec, Inputs, Step
from heliostat_algorithms.augmentation import ViewAugmentation
from heliostat_algorithms.backbones import BackboneConfig, ResNet50
from heliostat_algorithms.collectives import gather_rows, rank
from heliostat_algorithms.comparing import Comparing, Rows
from heliostat_algorithms.encoder import Encoder
from heliostat_algorithms.heads.projection import ProjectionHead
from heliostat_algorithms.memory import Memory
from heliostat_algorithms.objectives.nt_xent import find_positive, nt_xent
from heliostat_algorithms.objectives.spread import spread
from heliostat_algorithms.objectives.tiled import check_tile
from heliostat_algorithms.randomness import Random
from heliostat_algorithms.teachers import follow, teacher_of


class SimCLRv2(Comparing):
    """SimCLRv2 pretraining (Chen et al. 2020): SimCLR with a deeper head and, if wanted, a memory of negatives."""

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """The paper's choices for ImageNet, without the memory, as in the official code."""

        type: Literal["simclr-v2"] = "simclr-v2"
        backbone: BackboneConfig = field(default_factory=ResNet50)
        """The encoder f; its output h is the representation. The paper's largest: resnet152, width 192,
        selective_kernels."""
        projection_layers: int = 3
        """Linear layers of the head g; the deeper, the better for few labels (figure 5), and fine-tuning keeps some."""
        projection_hidden: int | None = None
        """Width between the head's layers; null: that of the representation, as in the paper."""
        projection_dim: int = 128
        """Width of the projections z."""
        temperature: float = 0.1
        """Lower weighs hard negatives more."""
        tile: int | None = None
        """Compute the loss by tiles of so many rows and columns of the similarities and never hold them all: memory
        linear in the batch, the similarities computed twice. Some thousand on accelerators. null: all at once."""
        memory_size: int = 0
        """Keys of earlier views that are further negatives; 65536 in the paper, worth about 1 % there. 0: no memory and
        no second network."""
        memory_momentum: float = 0.999
        """Share of the key network that each step keeps; the rest comes from the trained network."""
        augmentation: ViewAugmentation = field(default_factory=ViewAugmentation)
        """How views are made; those of SimCLR."""

        def __post_init__(self) -> None:
            for name in ("projection_layers", "projection_dim", "projection_hidden"):
                value = getattr(self, name)
                if value is not None and value < 1:
                    raise ValueError(f"{name} is {value}; it must be at least 1")
            if not self.temperature > 0:
                raise ValueError(f"temperature is {self.temperature}; it must be above 0")
            if self.memory_size < 0:
                raise ValueError(f"memory_size is {self.memory_size}; it must be a number of keys, or 0 for no memory")
            if not 0 <= self.memory_momentum < 1:
                raise ValueError(f"memory_momentum is {self.memory_momentum}; it must be at least 0 and below 1")
            check_tile(self.tile)

    def __init__(self, config: Config, data: DataSpec) -> None:
        super().__init__(config, data)
        self.config = config
        channels, *size = data.image_shape
        self.backbone = config.backbone.build(channels, config.augmentation.output_size((size[0], size[1])))
        dim = self.backbone.feature_dim
        hidden = config.projection_hidden or dim
        self.projection = ProjectionHead(dim, hidden, config.projection_dim, config.projection_layers)
        self.memory: Memory | None = None
        if config.memory_size:
            self.memory = Memory(config.memory_size, config.projection_dim)
            self.key_backbone: nn.Module = teacher_of(self.backbone)
            self.key_projection = teacher_of(self.projection)
        self._keys: Tensor | None = None  # of this step's views, until they enter the memory

    def before_step(self, clock: Clock) -> None:
        """The key network moves before it is used, as in MoCo."""
        if self.memory is not None:
            follow(self.key_backbone, self.backbone, self.config.memory_momentum)
            follow(self.key_projection, self.projection, self.config.memory_momentum)

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

    def targets(self, inputs: Inputs, clock: Clock) -> Rows:
        """With a memory, h (B, D) of both views by the key network, likewise in one pass."""
        if self.memory is None:
            return {}
        with torch.no_grad():
            first, second = self.key_backbone(torch.cat([inputs["first"], inputs["second"]])).chunk(2)
        return {"first": first, "second": second}

    def compare(self, rows: Rows, targets: Rows, clock: Clock) -> Step:
        """Equation 1. Both views share the batch statistics of the head, and of the key network's."""
        t, tile = self.config.temperature, self.config.tile
        h = torch.cat([rows["first"], rows["second"]])
        first, second = self.projection(h).chunk(2)
        if self.memory is None:
            loss, metrics = nt_xent(first, second, t, tile)
        else:
            with torch.no_grad():
                key_h = torch.cat([targets["first"], targets["second"]])
                keys = gather_views(_directions(self.key_projection(key_h)))
            loss, metrics = nt_xent_to_keys(first, second, keys, self.memory.negatives(), t, tile)
            self._keys = keys
        return Step(loss, metrics | {"feature_std": spread(h)})

    def after_step(self, clock: Clock) -> None:
        """This step's keys become negatives of the next ones."""
        if self.memory is not None and self._keys is not None:
            self.memory.enqueue(self._keys)
            self._keys = None

    def encoder(self) -> Encoder:
        """The backbone f."""
        return self.backbone

    def whole(self, images: Tensor) -> Tensor:
        """(B, C, H, W) uint8 -> the whole images at the size of the views, in [0, 1]."""
        return self.config.augmentation.whole(images)

    def other_features(self) -> Mapping[str, Callable[[Tensor], Tensor]]:
        """With a memory, those of the key network."""
        if self.memory is None:
            return {}
        return {"key_encoder": lambda images: self.key_backbone(self.config.augmentation.whole(images))}

    def view_pair(self, batch: Batch, random: Random) -> tuple[Tensor, Tensor]:
        """h (B, D) of two views of each image."""
        augment = self.config.augmentation
        first = self.backbone(augment(batch["image"], random.within("first")))
        second = self.backbone(augment(batch["image"], random.within("second")))
        return first, second


def gather_views(rows: Tensor) -> Tensor:
    """(2 B, D) this worker's first views, then its second -> (2 N, D) those of the global batch in the same order."""
    first, second = rows.chunk(2)
    return torch.cat([gather_rows(first), gather_rows(second)])


def nt_xent_to_keys(
    first: Tensor, second: Tensor, keys: Tensor, memory: Tensor, temperature: float, tile: int | None = None
) -> tuple[Tensor, dict[str, Tensor]]:
    """NT-Xent in which each view must find the *key* of the other view of its image.

        l(i, j) = -log( exp(z_i . k_j / t) / (sum_{n != i} exp(z_i . k_n / t) + sum_m exp(z_i . q_m / t)) )

    for keys k of this batch's views and q in the memory, all of length 1. As in SimCLR a view is not compared with
    itself, so its own key is left out. Keys have no gradient. The loss is the mean of l over both views of all images.

    Args:
        first: (B, D) this worker's projections of the first views, of any length.
        second: (B, D) those of the second views.
        keys: (2 N, D) normalised keys of the global batch: all first views, then all second views.
        memory: (K, D) normalised keys of earlier batches.
        temperature: t.
        tile: as in ``nt_xent``.

    Returns:
        The mean over this worker's 2 B anchors, and the metrics of ``nt_xent``.
    """
    with torch.autocast(first.device.type, enabled=False):  # half precision has too few digits for similarities near 1
        anchors = _directions(torch.cat([first, second]))
        B, N = len(first), len(keys) // 2
        rows = rank() * B + torch.arange(B, device=first.device)
        own, positive = torch.cat([rows, rows + N]), torch.cat([rows + N, rows])
        candidates = torch.cat([keys, memory]).to(anchors.dtype)
        return find_positive(anchors, candidates, positive, own, temperature, tile)


def _directions(rows: Tensor) -> Tensor:
    """(N, D) -> rows of length 1, in float32 at least."""
    return F.normalize(rows.to(torch.promote_types(rows.dtype, torch.float32)), dim=1)
