"""DINO: Emerging Properties in Self-Supervised Vision Transformers, Caron et al. 2021 (arXiv 2104.14294).

A student sees ten crops of each image, a teacher only the two large ones. From each crop the student predicts what the
teacher says of the others: a distribution over K prototypes (algorithm 1). The teacher is a moving average of the
student. Two forces that oppose each other keep it from saying the same of all images: centring spreads its choices over
the prototypes, sharpening (a low temperature) makes each of them distinct (section 5.3).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, cast

import torch
from torch import Tensor

from heliostat_algorithms.algorithm import Algorithm, Batch, Clock, DataSpec, Inputs, Step
from heliostat_algorithms.augmentation.multi_crop import MultiCrop
from heliostat_algorithms.backbones import BackboneConfig, VisionTransformer, ViTSmall
from heliostat_algorithms.backbones.drop_path import draw_keep, linear_rates
from heliostat_algorithms.collectives import mean_over_workers
from heliostat_algorithms.encoder import Encoder
from heliostat_algorithms.heads.dino import DINOHead
from heliostat_algorithms.objectives.self_distillation import centred_probabilities, self_distillation, teacher_signals
from heliostat_algorithms.objectives.spread import spread
from heliostat_algorithms.randomness import Random
from heliostat_algorithms.schedules import Ramp, linear_ramp
from heliostat_algorithms.teachers import follow, teacher_of

UNIFORM = 3e-4
"""Nats from log K within which the teacher's mean entropy, and from 0 the student's divergence from it, show that all
images get the same uniform answer. Plateaus short of a collapse, seen on digits with 256 and 512 prototypes, stayed
four times further away."""
ONE_PROTOTYPE = 0.05
"""Nats from log K within which ``teacher_kl_uniform``, and from 0 the student's divergence, show that all images get
the same prototype. Images that share only two of them are 0.69 away."""


class DINO(Algorithm):
    """DINO (Caron et al. 2021): a student predicts, from any crop, what its own average says of the large crops."""

    separable = False  # the centre moves by the mean of the whole batch

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """The paper's choices for ViT-S/16 on ImageNet."""

        type: Literal["dino"] = "dino"
        backbone: BackboneConfig = field(default_factory=lambda: ViTSmall(interpolation_offset=0.1))
        """The encoder; its output h is the representation. Small crops interpolate its positions, with the offset of
        the official code."""
        views: MultiCrop = field(default_factory=MultiCrop)
        """How the crops are made."""
        prototypes: int = 65536
        """K, outputs of the head. So many suit large and varied data (official code); small data need fewer."""
        head_hidden: int = 2048
        """Width between the head's layers."""
        head_bottleneck: int = 256
        """Width of the unit vector that is compared with the prototypes."""
        head_layers: int = 3
        """Linear layers before the prototypes."""
        head_batch_norm: bool = False
        """Batch normalisation in the head; the paper leaves it out, and with ViT the method has none at all."""
        frozen_gain: bool = True
        """Prototypes keep length 1. False is better for ViT-S but may be unstable (official code)."""
        student_temperature: float = 0.1
        """Of the student's softmax."""
        teacher_temperature_start: float = 0.04
        """Of the teacher's softmax in the first epoch; lower it if the loss does not fall."""
        teacher_temperature_end: float = 0.07
        """After the warm-up; above 0.07 most trainings are unstable, and with the student's there is no sharpening."""
        teacher_temperature_warmup_epochs: int = 30
        """Epochs over which the teacher's temperature rises in a straight line, one step in each epoch."""
        centre_momentum: float = 0.9
        """Share of the old centre that stays in each step. Near 1 it lags behind the teacher, and one prototype may
        take all images."""
        teacher_momentum: Ramp = field(default_factory=lambda: Ramp(start=0.996, end=1.0))
        """Share of the old teacher that stays in each step; higher for small batches, 0.9995 for 256."""
        freeze_last_layer_epochs: float = 1.0
        """Epochs in which the prototypes do not move; more if the loss does not fall."""
        drop_path: float = 0.1
        """Drop rate of the student's deepest residual branches, falling linearly to 0 in the first; for Vision
        Transformers, which alone have it."""

        def __post_init__(self) -> None:
            for name, least in (("prototypes", 2), ("head_hidden", 1), ("head_bottleneck", 1), ("head_layers", 1)):
                if getattr(self, name) < least:
                    raise ValueError(f"{name} is {getattr(self, name)}; it must be at least {least}")
            for name in ("student_temperature", "teacher_temperature_start", "teacher_temperature_end"):
                if not 0 < getattr(self, name) < math.inf:
                    raise ValueError(f"{name} is {getattr(self, name)}; it must be above 0 and finite")
            for name in ("teacher_temperature_warmup_epochs", "freeze_last_layer_epochs"):
                if not getattr(self, name) >= 0:
                    raise ValueError(f"{name} is {getattr(self, name)}; it cannot be negative")
            shares = {
                "centre_momentum": self.centre_momentum,
                "teacher_momentum.start": self.teacher_momentum.start,
                "teacher_momentum.end": self.teacher_momentum.end,
            }
            for name, share in shares.items():
                if not 0 <= share <= 1:
                    raise ValueError(f"{name} is {share}; it is a share, from 0 to 1")
            if not 0 <= self.drop_path < 1:
                raise ValueError(f"drop_path is {self.drop_path}; it must be at least 0 and below 1")

        def teacher_temperature(self, clock: Clock) -> float:
            """The teacher's temperature in a step: constant within an epoch, as in the official code."""
            epoch, last = clock.step // clock.steps_per_epoch, self.teacher_temperature_warmup_epochs - 1
            if epoch > last:
                return self.teacher_temperature_end
            share = epoch / last if last > 0 else 0.0
            return linear_ramp(self.teacher_temperature_start, self.teacher_temperature_end, share)

    def __init__(self, config: Config, data: DataSpec) -> None:
        super().__init__(config, data)
        self.config = config
        channels, stored = data.image_shape[0], data.image_shape[1:]
        self.backbone = config.backbone.build(channels, config.views.first_global.output_size(stored))
        self.head = DINOHead(
            self.backbone.feature_dim,
            config.prototypes,
            hidden_dim=config.head_hidden,
            bottleneck_dim=config.head_bottleneck,
            layers=config.head_layers,
            batch_norm=config.head_batch_norm,
            frozen_gain=config.frozen_gain,
        )
        self.teacher_backbone = teacher_of(self.backbone)
        self.teacher_head = teacher_of(self.head)
        self.register_buffer("centre", torch.zeros(1, config.prototypes))
        self._teacher_mean: Tensor | None = None  # (1, K), of this worker's rows, from a forward pass to its after_step
        self.drop_rates: list[float] = []
        """Of each of the student's residual branches; empty where none is dropped."""
        if isinstance(self.backbone, VisionTransformer):
            if config.views.local_crops:
                self.backbone.grid(config.views.local.output_size(stored))  # patches must divide the small crops too
            if config.drop_path:
                self.drop_rates = linear_rates(config.drop_path, self.backbone.depth)

    def prepare(self, batch: Batch, clock: Clock, random: Random) -> Inputs:
        """``global`` (2 B, C, S, S) and ``local`` (L B, C, s, s), ordered by crop; with drop path also the factors of
        the student's residual branches, ``global_keep`` (2 B, branches) and ``local_keep`` (L B, branches)."""
        large, small = self.config.views(batch["image"], random)
        inputs = {"global": large}
        crops = {"global": 2}
        if small is not None:
            inputs["local"] = small
            crops["local"] = self.config.views.local_crops
        if self.drop_rates:
            for kind, count in crops.items():
                draws = [random.within(f"drop_path/{kind}{number}") for number in range(count)]
                inputs[f"{kind}_keep"] = torch.cat([draw_keep(draw, self.drop_rates, "sample") for draw in draws])
        return inputs

    def forward(self, inputs: Inputs, clock: Clock) -> Step:
        """Algorithm 1 with multi-crop (equation 3)."""
        c = self.config
        with torch.no_grad():
            teacher_logits = self.teacher_head(self.teacher_backbone(inputs["global"]))
        # The centre of the steps before is used now; this step's mean enters it in after_step.
        probabilities = centred_probabilities(teacher_logits, cast("Tensor", self.centre), c.teacher_temperature(clock))
        self._teacher_mean = teacher_logits.mean(dim=0, keepdim=True)

        h = self._student_features(inputs)
        large = len(inputs["global"])
        views = 2 * len(h) // large
        loss = self_distillation(self.head(h).chunk(views), probabilities.chunk(2), c.student_temperature)

        metrics = {"feature_std": spread(h[:large]), **teacher_signals(probabilities)}
        # Each view of the teacher is a target equally often: cross-entropy = entropy + divergence (section 5.3).
        metrics["kl_teacher_student"] = loss.detach() - metrics["teacher_entropy"]
        return Step(loss, metrics)

    def _student_features(self, inputs: Inputs) -> Tensor:
        """h of all crops, (2 B + L B, D): one pass for each resolution, as in the official code. A ResNet's batch
        statistics are those of a pass."""
        passes = [(inputs[kind], inputs.get(f"{kind}_keep")) for kind in ("global", "local") if kind in inputs]
        if len({crops.shape[2:] for crops, _ in passes}) == 1:
            keep = [factors for _, factors in passes if factors is not None]
            passes = [(torch.cat([crops for crops, _ in passes]), torch.cat(keep) if keep else None)]
        return torch.cat([self.backbone(x) if keep is None else self.backbone(x, keep) for x, keep in passes])

    def after_backward(self, clock: Clock) -> None:
        """The prototypes stay in the first epoch. Without a gradient the optimiser does not decay them either."""
        if clock.epoch < self.config.freeze_last_layer_epochs:
            for parameter in self.head.last_layer_parameters():
                parameter.grad = None

    def after_step(self, clock: Clock) -> None:
        """The teacher follows the student that has just moved; the centre takes in the teacher's outputs of this step
        (equation 4)."""
        momentum = self.config.teacher_momentum.at(clock)
        follow(self.teacher_backbone, self.backbone, momentum)
        follow(self.teacher_head, self.head, momentum)
        if self._teacher_mean is not None:
            centre = cast("Tensor", self.centre)
            centre.lerp_(mean_over_workers(self._teacher_mean).to(centre.dtype), 1 - self.config.centre_momentum)
            self._teacher_mean = None

    def encoder(self) -> Encoder:
        """The teacher's backbone."""
        return self.teacher_backbone

    def whole(self, images: Tensor) -> Tensor:
        """(B, C, H, W) uint8 -> the whole images at the size of the views, in [0, 1]."""
        return self.config.views.first_global.whole(images)

    def other_features(self) -> Mapping[str, Callable[[Tensor], Tensor]]:
        """``student``: its h, as ``features`` gives the teacher's."""
        return {"student": lambda images: self.backbone(self.config.views.first_global.whole(images))}

    def view_pair(self, batch: Batch, random: Random) -> tuple[Tensor, Tensor]:
        """The teacher's h (B, D) of the two global crops of each image."""
        views = self.config.views
        first = self.teacher_backbone(views.first_global(batch["image"], random.within("global0")))
        second = self.teacher_backbone(views.second_global(batch["image"], random.within("global1")))
        return first, second

    def diagnose(self, metrics: Mapping[str, float]) -> str | None:
        """As all methods, and the two ways in which the teacher itself can collapse (section 5.3). An untrained
        network may look like either; that the student agrees with the teacher as well takes training."""
        general = super().diagnose(metrics)
        if general is not None:
            return general
        c, highest = self.config, math.log(self.config.prototypes)
        entropy, kl_uniform, kl_student = (
            metrics.get(name, math.nan) for name in ("teacher_entropy", "teacher_kl_uniform", "kl_teacher_student")
        )
        if highest - entropy < UNIFORM and kl_student < UNIFORM:
            return (
                f"the teacher answers every image with the uniform distribution (teacher_entropy {entropy:.4f} of at "
                f"most log K = {highest:.4f}) and the student repeats it: nothing sharpens. Likely causes: a teacher "
                f"temperature that is too high (here {c.teacher_temperature_start:g} to "
                f"{c.teacher_temperature_end:g}, against the student's {c.student_temperature:g}), a learning rate "
                "that is too high, or crops with too little in common"
            )
        if highest - kl_uniform < ONE_PROTOTYPE and kl_student < ONE_PROTOTYPE:
            return (
                f"the teacher gives all images to one prototype (teacher_kl_uniform {kl_uniform:.4f} of at most log K "
                f"= {highest:.4f}) and the student repeats it: nothing centres. Likely causes: a centre that moves too "
                f"slowly (centre_momentum {c.centre_momentum:g}), a teacher that follows too quickly "
                f"(teacher_momentum from {c.teacher_momentum.start:g}), a teacher temperature that is too low, or a "
                "learning rate that is too high"
            )
        return None
