"""MoCo: Momentum Contrast for Unsupervised Visual Representation Learning, He et al. 2019 (arXiv 1911.05722), and MoCo
v2: Improved Baselines with Momentum Contrastive Learning, Chen et al. 2020 (arXiv 2003.04297).

A query encoder must find, for one view of an image, the key that another encoder made of a second view, among the keys
of many earlier batches (algorithm 1). These wait in a queue, so that their number does not depend on the size of the
batch; the key encoder is a slow average of the query encoder, so that they still fit each other.

Version 2 is the same method with a deeper head, another temperature, stronger views and a cosine schedule:

    head: mlp
    temperature: 0.2
    augmentation:
      jitter: {probability: 0.8, brightness: 0.4, contrast: 0.4, saturation: 0.4, hue: 0.1}
      blur: {probability: 0.5}
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heliostat_algorithms.algorithm import Algorithm, Batch, Clock, DataSpec, Inputs, ParameterGroup, Step
from heliostat_algorithms.augmentation import ColorJitter, GaussianBlur, ViewAugmentation
from heliostat_algorithms.backbones import BackboneConfig, ResNet50
from heliostat_algorithms.backbones.batch_norm import GroupBatchNorm, assigned, group_batch_norm
from heliostat_algorithms.collectives import gather_rows, world_size
from heliostat_algorithms.encoder import Encoder
from heliostat_algorithms.memory import Memory
from heliostat_algorithms.objectives.info_nce import queue_info_nce
from heliostat_algorithms.objectives.spread import spread
from heliostat_algorithms.randomness import Random
from heliostat_algorithms.schedules import Ramp
from heliostat_algorithms.teachers import follow, teacher_of


@dataclass(frozen=True, kw_only=True)
class MoCoViews(ViewAugmentation):
    """``ViewAugmentation`` with the numbers of MoCo v1, which are those of instance discrimination (1805.01978).

    The official code of v1 takes the colour away before the jitter, here it is taken away after it, as in v2: grey
    views are then of jittered saturation and hue, not only of jittered brightness and contrast.
    """

    crop_area: tuple[float, float] = (0.2, 1.0)
    """Smallest and largest share of the image's area that a crop covers."""
    jitter: ColorJitter = field(
        default_factory=lambda: ColorJitter(probability=1.0, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.4)
    )
    """Brightness, contrast, saturation and hue; always in v1. In v2 probability 0.8 and hue 0.1."""
    blur: GaussianBlur = field(default_factory=lambda: GaussianBlur(probability=0.0))
    """Gaussian blur; none in v1, probability 0.5 in v2."""


class MoCo(Algorithm):
    """MoCo (He et al. 2019) and MoCo v2 (Chen et al. 2020): each query finds its key among those of earlier batches."""

    separable = False  # batch normalisation mixes the samples of a group

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """The choices of MoCo v1 for ImageNet; those of v2 stand above."""

        type: Literal["moco"] = "moco"
        backbone: BackboneConfig = field(default_factory=lambda: ResNet50(zero_init_residual=False))
        """The encoder f; its output h is the representation. The official code begins residual blocks as torchvision
        does, not as the identity."""
        head: Literal["linear", "mlp"] = "linear"
        """From h to what is compared: one linear layer (v1), or two with a ReLU between them (v2)."""
        projection_dim: int = 128
        """Width of queries and keys."""
        temperature: float = 0.07
        """Lower weighs hard negatives more; 0.2 in v2."""
        queue_size: int = 65536
        """Keys that are remembered, K; 4096 suffices for CIFAR-10."""
        momentum: Ramp = field(default_factory=lambda: Ramp(start=0.999, end=0.999))
        """Share of the old key encoder that stays in each step; 0.99 to 0.9999 work, 0.9 is too quick (section 4.1).
        0.99 for CIFAR-10."""
        symmetric: bool = False
        """Take each view as query and as key: two losses in each step, at twice the cost."""
        batch_norm_groups: int = 8
        """How many groups batch normalisation divides a batch into, whatever the number of workers: queries in order,
        keys at random, so that the network cannot tell a key by the statistics that it shares with its query (section
        3.3). The paper has one group for each of 8 GPUs. 1: statistics of the whole batch, without that protection.
        Must divide batch_size; without effect on networks without batch normalisation."""
        augmentation: MoCoViews = field(default_factory=MoCoViews)
        """How views are made."""

        def __post_init__(self) -> None:
            for name in ("projection_dim", "queue_size", "batch_norm_groups"):
                if getattr(self, name) < 1:
                    raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
            if not 0 < self.temperature < math.inf:
                raise ValueError(f"temperature is {self.temperature}; it must be above 0 and finite")
            for name, share in (("momentum.start", self.momentum.start), ("momentum.end", self.momentum.end)):
                if not 0 <= share <= 1:
                    raise ValueError(f"{name} is {share}; it is a share, from 0 to 1")

    def __init__(self, config: Config, data: DataSpec) -> None:
        super().__init__(config, data)
        self.config = config
        channels, size = data.image_shape[0], config.augmentation.output_size(data.image_shape[1:])
        self.backbone = group_batch_norm(config.backbone.build(channels, size))
        self.head = _head(config, self.backbone.feature_dim)
        self.key_backbone = teacher_of(self.backbone)
        self.key_head = teacher_of(self.head)
        self.memory = Memory(config.queue_size, config.projection_dim)
        self.grouped = any(isinstance(module, GroupBatchNorm) for module in self.backbone.modules())
        """Whether batch normalisation is there to be divided."""
        self._new_keys: list[Tensor] = []  # (B, D) of each view, of this worker, from a forward pass to its after_step

    def check(self, batch_size: int) -> None:
        groups = self.config.batch_norm_groups
        if self.grouped and batch_size % groups:
            below = batch_size - batch_size % groups
            fitting = f"{below} or {below + groups}" if below else f"{groups}"
            raise ValueError(
                f"batch_norm_groups is {groups}, but a batch of {batch_size} cannot be split into so many equal "
                f"groups; batch_size must be a multiple of {groups}, such as {fitting}"
            )

    def before_step(self, clock: Clock) -> None:
        """Equation 2: the key encoder follows the query encoder, before it makes this step's keys."""
        momentum = self.config.momentum.at(clock)
        follow(self.key_backbone, self.backbone, momentum)
        follow(self.key_head, self.head, momentum)

    def prepare(self, batch: Batch, clock: Clock, random: Random) -> Inputs:
        """``first`` and ``second``: two views (B, C, S, S) of each image, the query's and the key's, in [0, 1];
        ``second_groups`` (B,): the group in which each key is normalised. ``first_groups`` too if both are keys.

        Raises:
            ValueError: groups of equal size do not make up the batch.
        """
        self.check(clock.batch_size)
        augment, views = self.config.augmentation, ["first", "second"]
        inputs = {view: augment(batch["image"], random.within(view)) for view in views}
        if self.grouped:
            for view in views if self.config.symmetric else views[1:]:
                inputs[f"{view}_groups"] = self._shuffled_groups(clock.batch_size, random.within(f"{view}_groups"))
        return inputs

    def _shuffled_groups(self, batch_size: int, random: Random) -> Tensor:
        """(B,) int64: of a random order of the global batch, one group takes the first rows, another the next ones."""
        place = random.shared().permutation("order", batch_size)[0]
        return (place // (batch_size // self.config.batch_norm_groups))[random.rows.start : random.rows.stop]

    def forward(self, inputs: Inputs, clock: Clock) -> Step:
        """Algorithm 1: the keys of earlier steps are negatives; those of this step enter the queue in after_step."""
        self._new_keys = []
        negatives = self.memory.negatives()
        step = self._contrast("first", "second", inputs, negatives)
        if not self.config.symmetric:
            return step
        other = self._contrast("second", "first", inputs, negatives)
        metrics = {name: (value + other.metrics[name]) / 2 for name, value in step.metrics.items()}
        return Step((step.loss + other.loss) / 2, metrics)

    def _contrast(self, query: str, key: str, inputs: Inputs, negatives: Tensor) -> Step:
        """Equation 1 for queries of one view and keys of the other."""
        with assigned(self.backbone, self.config.batch_norm_groups):
            h = self.backbone(inputs[query])
        q = self.head(h)
        k = self._keys(inputs[key], inputs.get(f"{key}_groups"))
        self._new_keys.append(k)
        loss, metrics = queue_info_nce(q, k, negatives, self.config.temperature)
        return Step(loss, {**metrics, "feature_std": spread(h)})

    @torch.no_grad()
    def _keys(self, views: Tensor, groups: Tensor | None) -> Tensor:
        """(B, D), of any length."""
        order = None
        if groups is not None and world_size() == 1:
            # All rows are here: side by side, the rows of a group can be given to torch's own kernel. This is what the
            # paper calls shuffling.
            order, groups = torch.argsort(groups, stable=True), None
            views = views[order]
        with assigned(self.key_backbone, self.config.batch_norm_groups, groups):
            k: Tensor = self.key_head(self.key_backbone(views))
        return k if order is None else torch.empty_like(k).index_copy_(0, order, k)

    def after_step(self, clock: Clock) -> None:
        """The keys of the global batch take the place of the oldest in the queue, in the order of its rows."""
        for keys in self._new_keys:
            everyones = gather_rows(keys)
            self.memory.enqueue(F.normalize(everyones.to(torch.promote_types(keys.dtype, torch.float32)), dim=1))
        self._new_keys = []

    def parameter_groups(self) -> list[ParameterGroup]:
        """The official code decays all parameters alike, biases and normalisation layers too."""
        return [ParameterGroup("all", list(self.trainable()), True)]

    def encoder(self) -> Encoder:
        """The query encoder."""
        return self.backbone

    def whole(self, images: Tensor) -> Tensor:
        """(B, C, H, W) uint8 -> the whole images at the size of the views, in [0, 1]."""
        return self.config.augmentation.whole(images)

    def other_features(self) -> Mapping[str, Callable[[Tensor], Tensor]]:
        """``key_encoder``: its h, as ``features`` gives the query encoder's."""
        return {"key_encoder": lambda images: self.key_backbone(self.config.augmentation.whole(images))}

    def view_pair(self, batch: Batch, random: Random) -> tuple[Tensor, Tensor]:
        """The query encoder's h (B, D) of two views of each image."""
        augment = self.config.augmentation
        first = self.backbone(augment(batch["image"], random.within("first")))
        second = self.backbone(augment(batch["image"], random.within("second")))
        return first, second


def _head(config: MoCo.Config, in_dim: int) -> nn.Module:
    last = nn.Linear(in_dim, config.projection_dim)
    return last if config.head == "linear" else nn.Sequential(nn.Linear(in_dim, in_dim), nn.ReLU(), last)
