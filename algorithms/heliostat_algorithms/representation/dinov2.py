"""DINOv2: Learning Robust Visual Features without Supervision, Oquab et al. 2023 (arXiv 2304.07193).

DINO's self-distillation of the whole image, iBOT's of masked patches (2111.07832), Sinkhorn-Knopp in place of centring,
and KoLeo, which keeps the features of a batch apart (section 4). The student sees large crops with some patches hidden
and small crops; from its CLS tokens it predicts what the teacher says of the (other) large crop, and from each mask
token what the teacher, which sees everything, says of the hidden patch. The teacher is a moving average of the student.
A short phase at a higher resolution ends training: a second job that begins from the first (``begin_from``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, cast

import torch
from torch import Tensor, nn

from heliostat_algorithms.algorithm import Algorithm, Batch, Clock, DataSpec, Inputs, ParameterGroup, Step
from heliostat_algorithms.augmentation.multi_crop import MultiCrop
from heliostat_algorithms.backbones import VisionTransformer, ViTBackboneConfig, ViTLarge
from heliostat_algorithms.backbones.drop_path import draw_keep, uniform_rates
from heliostat_algorithms.collectives import mean_over_workers, sum_over_workers
from heliostat_algorithms.encoder import Encoder
from heliostat_algorithms.heads.dino import DINOHead
from heliostat_algorithms.masking.blocks import BlockMasking
from heliostat_algorithms.objectives.ibot import masked_patch_loss
from heliostat_algorithms.objectives.koleo import koleo
from heliostat_algorithms.objectives.self_distillation import centred_probabilities, self_distillation, teacher_signals
from heliostat_algorithms.objectives.sinkhorn import sinkhorn_knopp
from heliostat_algorithms.objectives.spread import spread
from heliostat_algorithms.randomness import Random
from heliostat_algorithms.schedules import Ramp, linear_ramp
from heliostat_algorithms.teachers import follow, teacher_of

GLOBAL_AREA, LOCAL_AREA = (0.32, 1.0), (0.05, 0.32)
"""Shares of the image that large and small crops cover; DINO parts them at 0.4."""

UNIFORM, ONE_PROTOTYPE = 3e-4, 0.05
"""Nats from log K within which the teacher's entropy, or its divergence from the uniform distribution, shows a
collapse, if the student's divergence from the teacher is as near 0; as in DINO."""

ASLEEP = 0.01
"""Mean of LayerScale's factors below which the features of all images are alike, whatever the network has learned."""


def _views() -> MultiCrop:
    """DINO's crops, with DINOv2's areas and its blur of 9 pixels at each size."""
    views = MultiCrop()
    first, second, local = (
        replace(view, crop_area=area, blur=replace(view.blur, kernel=kernel))
        for view, area, kernel in (
            (views.first_global, GLOBAL_AREA, 0.04),
            (views.second_global, GLOBAL_AREA, 0.04),
            (views.local, LOCAL_AREA, 0.1),
        )
    )
    return replace(views, first_global=first, second_global=second, local=local)


@dataclass(frozen=True, kw_only=True)
class Head:
    """A projection head: linear layers, L2 normalisation, weight-normalised prototypes."""

    prototypes: int = 65536
    """K, outputs of the head; 131072 for the paper's largest models, a few thousand for small data."""
    hidden: int = 2048
    """Width between the layers."""
    bottleneck: int = 256
    """Width of the unit vector that is compared with the prototypes; 384 in the CLS head of the largest models."""
    layers: int = 3
    """Linear layers before the prototypes."""
    frozen_gain: bool = False
    """Prototypes keep length 1, as in DINO. The official code of DINOv2 lets their lengths train, and decay."""

    def __post_init__(self) -> None:
        for name in ("prototypes", "hidden", "bottleneck", "layers"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")

    def build(self, dim: int) -> DINOHead:
        """The head for features of this width."""
        return DINOHead(
            dim,
            self.prototypes,
            hidden_dim=self.hidden,
            bottleneck_dim=self.bottleneck,
            layers=self.layers,
            frozen_gain=self.frozen_gain,
        )


class Network(nn.Module):
    """Backbone and heads: what the student and the teacher are, each.

    Args:
        patch_head: None where patches share the head of the CLS token (tied heads).
    """

    def __init__(self, backbone: VisionTransformer, head: DINOHead, patch_head: DINOHead | None) -> None:
        super().__init__()
        self.backbone, self.head, self.patch_head = backbone, head, patch_head

    def logits(self, cls: Tensor, patches: Tensor) -> tuple[Tensor, Tensor]:
        """(M, D) CLS tokens and (P, D) patches -> their (M, K) and (P, K) logits; a shared head computes them in one
        pass."""
        if self.patch_head is not None:
            return self.head(cls), self.patch_head(patches)
        together: Tensor = self.head(torch.cat([cls, patches]))
        return together[: len(cls)], together[len(cls) :]


class DINOv2(Algorithm):
    """DINOv2 (Oquab et al. 2023): self-distillation of images and of masked patches."""

    separable = False  # Sinkhorn-Knopp and KoLeo weigh the samples of the batch against one another

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """The official recipe for ViT-L/16 from scratch on ImageNet-1k (``vitl16_short``), with the paper's
        Sinkhorn-Knopp."""

        type: Literal["dinov2"] = "dinov2"
        backbone: ViTBackboneConfig = field(
            default_factory=lambda: ViTLarge(layer_scale=1e-5, interpolation_offset=0.1, mask_token=True)
        )
        """The encoder; its CLS token is the representation. ``registers: 4`` as in 2309.16588, ``feed_forward: swiglu``
        for the largest models, ``layer_scale: 1e-5``; ``mask_token`` must be true."""
        views: MultiCrop = field(default_factory=_views)
        """How the crops are made. For the phase at a high resolution, larger sizes."""
        masking: BlockMasking = field(default_factory=BlockMasking)
        """Which patches the student does not see in the large crops."""
        head: Head = field(default_factory=Head)
        """The head of CLS tokens, and of patches too where they have none of their own."""
        patch_head: Head | None = None
        """Untied heads: one of their own for patches, as the paper has it for large models and data; null: tied, as in
        iBOT and the official recipe for ImageNet-1k."""
        centering: Literal["sinkhorn-knopp", "centring"] = "sinkhorn-knopp"
        """How the teacher is kept from collapse: Sinkhorn-Knopp (paper, section 4), or DINO's running centre, which
        the official recipe for ImageNet-1k has."""
        centre_momentum: float = 0.9
        """Share of the old centres that stays in each step; with ``centring`` alone."""
        student_temperature: float = 0.1
        """Of the student's softmax."""
        teacher_temperature_start: float = 0.04
        """Of the teacher in the first step."""
        teacher_temperature_end: float = 0.07
        """Of the teacher after the warm-up."""
        teacher_temperature_warmup_epochs: float = 30.0
        """Epochs over which the teacher's temperature rises in a straight line. An "epoch" of the official recipes is
        1250 steps, whatever the data."""
        teacher_momentum: Ramp = field(default_factory=lambda: Ramp(start=0.992, end=1.0))
        """Share of the old teacher that stays in each step; from 0.994 for the largest models."""
        freeze_last_layer_epochs: float = 1.0
        """Epochs in which the prototypes do not move; see ``teacher_temperature_warmup_epochs``."""
        ibot_weight: float = 1.0
        """Weight of the loss of masked patches, where the loss of CLS tokens has 1; 0 for none."""
        koleo_weight: float = 0.1
        """Weight of KoLeo for each of the two large crops; 0 for none."""
        drop_path: float = 0.3
        """Share of the batch that each residual branch of the student leaves out; 0.4 for the largest models."""
        layer_decay: float = 0.9
        """The learning rate of each block is this times that of the next; 1 for the largest models."""
        patch_embedding_scale: float = 0.2
        """Further factor on the learning rate of the patch embedding."""

        def __post_init__(self) -> None:
            for name in ("student_temperature", "teacher_temperature_start", "teacher_temperature_end"):
                if not 0 < getattr(self, name) < math.inf:
                    raise ValueError(f"{name} is {getattr(self, name)}; it must be above 0 and finite")
            for name in (
                *("teacher_temperature_warmup_epochs", "freeze_last_layer_epochs", "ibot_weight", "koleo_weight"),
                *("layer_decay", "patch_embedding_scale"),
            ):
                if not 0 <= getattr(self, name) < math.inf:
                    raise ValueError(f"{name} is {getattr(self, name)}; it cannot be negative or infinite")
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
            if self.ibot_weight and not self.backbone.mask_token:
                raise ValueError(
                    "the backbone has no mask token for iBOT to hide patches with; set its mask_token to true"
                )
            if not self.ibot_weight and (self.patch_head is not None or self.backbone.mask_token):
                raise ValueError("without iBOT nothing is masked; leave patch_head and the backbone's mask_token out")

        def teacher_temperature(self, clock: Clock) -> float:
            """The teacher's temperature in a step: along a straight line, as the official code samples it."""
            last = self.teacher_temperature_warmup_epochs * clock.steps_per_epoch - 1
            share = min(clock.step / last, 1.0) if last > 0 else 1.0
            return linear_ramp(self.teacher_temperature_start, self.teacher_temperature_end, share)

    def __init__(self, config: Config, data: DataSpec) -> None:
        super().__init__(config, data)
        self.config = config
        channels, stored = data.image_shape[0], data.image_shape[1:]
        size = config.views.first_global.output_size(stored)
        backbone = config.backbone.build(channels, size)
        self.grid = backbone.grid(size)
        """Patches down and across a large crop."""
        if config.views.local_crops:
            backbone.grid(config.views.local.output_size(stored))  # patches must divide the small crops too
        dim = backbone.feature_dim
        patch_head = None if config.patch_head is None else config.patch_head.build(dim)
        self.student = Network(backbone, config.head.build(dim), patch_head)
        self.teacher = teacher_of(self.student)
        self.drop_rates = uniform_rates(config.drop_path, backbone.depth) if config.drop_path else []
        """Of each of the student's residual branches; empty where none is dropped."""
        if config.centering == "centring":
            self.register_buffer("centre", torch.zeros(1, config.head.prototypes))
            self.register_buffer("patch_centre", torch.zeros(1, (config.patch_head or config.head).prototypes))
        # What enters the centres: (1, K) mean over this worker's CLS tokens, and of its patches the sum (1, K) and
        # their number (1, 1); from a forward pass to its after_step.
        self._seen: tuple[Tensor, Tensor] | None = None

    def prepare(self, batch: Batch, clock: Clock, random: Random) -> Inputs:
        """Crops, ordered by crop: ``global`` (2 B, C, S, S) and ``local`` (L B, C, s, s).

        ``masked`` (2 B, N) bool, the hidden patches, and ``places`` (P,) int64, where they are among all 2 B * N. With
        drop path the factors of the student's residual branches on the CPU, ``global_keep`` (2 B, branches) and
        ``local_keep`` (L B, branches): each crop of an image leaves out a subset of the global batch of its own.
        """
        large, small = self.config.views(batch["image"], random)
        inputs, crops = {"global": large}, {"global": 2}
        if small is not None:
            inputs["local"], crops["local"] = small, self.config.views.local_crops
        if self.config.ibot_weight:
            masked = self.config.masking(random.within("masks"), 2, clock.batch_size, self.grid)
            # How many patches are hidden is known here, on the CPU, without waiting for the device.
            inputs["masked"] = masked.to(large.device)
            inputs["places"] = masked.flatten().nonzero().squeeze(1).to(large.device)
        if self.drop_rates:
            for kind, count in crops.items():
                draws = [random.within(f"drop_path/{kind}{number}") for number in range(count)]
                keep = [draw_keep(draw, self.drop_rates, "subset", clock.batch_size) for draw in draws]
                inputs[f"{kind}_keep"] = torch.cat(keep)
        return inputs

    def forward(self, inputs: Inputs, clock: Clock) -> Step:
        """The three losses of section 4; all terms of CLS tokens, large and small crops, weigh the same."""
        c = self.config
        with torch.no_grad():
            targets, patch_targets = self._targets(inputs, c.teacher_temperature(clock))
        seen = self.student.backbone.tokens(
            inputs["global"], masked=inputs.get("masked"), keep=inputs.get("global_keep")
        )
        cls = seen.feature
        if "local" in inputs:
            cls = torch.cat([cls, self.student.backbone(inputs["local"], inputs.get("local_keep"))])
        logits, patch_logits = self.student.logits(cls, _chosen(seen.patches, inputs))

        views = logits.chunk(2 * len(logits) // len(inputs["global"]))
        loss = self_distillation(views, targets.chunk(2), c.student_temperature)
        with torch.no_grad():
            # Of the 2 + 2 L pairs of different views two are of large crops: each crop with the other one.
            large = self_distillation(views[:2], targets.chunk(2), c.student_temperature) / (len(views) - 1)
        metrics = {"dino_global": large, "dino_local": loss.detach() - large}
        if c.ibot_weight:
            ibot = masked_patch_loss(
                patch_logits, patch_targets, inputs["masked"], inputs["places"], c.student_temperature
            )
            loss = loss + c.ibot_weight * ibot
            metrics["ibot"] = ibot
        if c.koleo_weight:
            first, second = seen.feature.chunk(2)  # two crops of an image are meant to be alike
            apart = koleo(first) + koleo(second)
            loss = loss + c.koleo_weight * apart
            metrics["koleo"] = apart
        metrics |= {"feature_std": spread(seen.feature), **teacher_signals(targets)}
        # Each of the teacher's views is a target equally often: cross-entropy = entropy + divergence.
        metrics["kl_teacher_student"] = metrics["dino_global"] + metrics["dino_local"] - metrics["teacher_entropy"]
        return Step(loss, {name: value.detach() for name, value in metrics.items()})

    def _targets(self, inputs: Inputs, temperature: float) -> tuple[Tensor, Tensor]:
        """The teacher's distributions: (2 B, K) of the large crops, (P, K) of the patches that the student misses."""
        seen = self.teacher.backbone.tokens(inputs["global"])
        logits, patch_logits = self.teacher.logits(seen.feature, _chosen(seen.patches, inputs))
        if self.config.centering == "sinkhorn-knopp":
            return sinkhorn_knopp(logits, temperature), sinkhorn_knopp(patch_logits, temperature)
        # The centres of the steps before are used now; this step's means enter them in after_step.
        count = patch_logits.new_full((1, 1), len(patch_logits))
        self._seen = logits.mean(dim=0, keepdim=True), torch.cat([patch_logits.sum(dim=0, keepdim=True), count], dim=1)
        centre, patch_centre = cast("Tensor", self.centre), cast("Tensor", self.patch_centre)
        return (
            centred_probabilities(logits, centre, temperature),
            centred_probabilities(patch_logits, patch_centre, temperature),
        )

    def after_backward(self, clock: Clock) -> None:
        """The prototypes stay in the first epoch. The official code sets their learning rate to 0, with which AdamW
        does not decay them either; but its moments gather the gradients of that time, here they begin after it."""
        if clock.epoch < self.config.freeze_last_layer_epochs:
            for head in (self.student.head, self.student.patch_head):
                for parameter in [] if head is None else head.last_layer_parameters():
                    parameter.grad = None

    def after_step(self, clock: Clock) -> None:
        """The teacher follows the student that has just moved; centres take in the teacher's outputs of this step."""
        follow(self.teacher, self.student, self.config.teacher_momentum.at(clock))
        if self._seen is not None:
            mean, patches = mean_over_workers(self._seen[0]), sum_over_workers(self._seen[1])
            total, count = patches[:, :-1], patches[:, -1:]
            share = 1 - self.config.centre_momentum
            centre, patch_centre = cast("Tensor", self.centre), cast("Tensor", self.patch_centre)
            centre.lerp_(mean.to(centre), share)
            patch_centre.lerp_((total / count.clamp_min(1)).to(centre), (count > 0).to(centre) * share)
            self._seen = None

    def parameter_groups(self) -> list[ParameterGroup]:
        """Learning rates that fall from block to block towards the input, and again for the patch embedding. Heads have
        the full one. Biases, normalisation layers and LayerScale are not regularised; tokens and positions are."""
        c, backbone = self.config, self.student.backbone
        found: dict[tuple[bool, float], list[nn.Parameter]] = {}
        for name, parameter in self.student.named_parameters():
            if parameter.requires_grad:
                scale = 1.0
                part, _, rest = name.partition(".")
                if part == "backbone":
                    scale = c.layer_decay ** (backbone.depth + 1 - backbone.depth_of(rest))
                    if rest.startswith("patch_embed."):
                        scale *= c.patch_embedding_scale
                found.setdefault((parameter.ndim > 1, scale), []).append(parameter)
        return [
            ParameterGroup(
                f"{'weights' if regularized else 'bias_and_norm'}_{scale:.4g}", found_here, regularized, scale
            )
            for (regularized, scale), found_here in found.items()
        ]

    def begin_from(self, other: Algorithm) -> None:
        """Take over everything: student, teacher, heads, centres. Positions that were learned on another grid are
        resampled as the other network would do it for images of this size, so that its outputs stay the same.

        Raises:
            ValueError: the other is no DINOv2, or of another shape.
        """
        if not isinstance(other, DINOv2):
            raise ValueError(f"DINOv2 continues a DINOv2, not a {type(other).__name__}")
        state = dict(other.state_dict())
        new, old = self.student.backbone, other.student.backbone
        if not (new.fixed_positions or old.fixed_positions):
            state["student.backbone.pos_embed"] = new.positions_of(old)
            state["teacher.backbone.pos_embed"] = self.teacher.backbone.positions_of(other.teacher.backbone)
        try:
            self.load_state_dict(state)
        except RuntimeError as error:
            raise ValueError(str(error)) from None

    def diagnose(self, metrics: Mapping[str, float]) -> str | None:
        """As all methods, and by the teacher: where all images are alike to it, Sinkhorn-Knopp, as centring, leaves it
        without any preference; and a centre that moves too slowly lets one prototype take all. An untrained network may
        look like either; that the student agrees with its teacher takes training.

        None as long as LayerScale keeps the network near the identity: at 1e-5 every training begins with features that
        are all alike (feature_std below 1e-4), and wakes up in its first hundreds of steps.
        """
        factors = [p.detach().abs().mean() for name, p in self.student.named_parameters() if name.endswith(".gamma")]
        if factors and torch.stack(factors).mean() < ASLEEP:
            return None
        if (found := super().diagnose(metrics)) is not None:
            return found
        entropy, divergence, disagreement = (
            metrics.get(name, math.nan) for name in ("teacher_entropy", "teacher_kl_uniform", "kl_teacher_student")
        )
        most = math.log(self.config.head.prototypes)
        if most - entropy < UNIFORM and disagreement < UNIFORM:
            return (
                f"the teacher says the same of all images (teacher_entropy {entropy:.5g}, of at most {most:.5g}) and "
                "the student repeats it; likely causes: a learning rate or a teacher temperature that is too high"
            )
        if most - divergence < ONE_PROTOTYPE and disagreement < ONE_PROTOTYPE:
            return (
                f"the teacher gives all images one prototype (teacher_kl_uniform {divergence:.4g}, of at most "
                f"{most:.4g}) and the student repeats it; likely causes: a centre that moves too slowly, or a teacher "
                "temperature that is too low"
            )
        return None

    def encoder(self) -> Encoder:
        """The teacher's backbone; its CLS token is the representation."""
        return self.teacher.backbone

    def whole(self, images: Tensor) -> Tensor:
        """(B, C, H, W) uint8 -> the whole images at the size of the views, in [0, 1]."""
        return self.config.views.first_global.whole(images)

    def other_features(self) -> Mapping[str, Callable[[Tensor], Tensor]]:
        """``student``: its CLS token, as ``features`` gives the teacher's."""
        return {"student": lambda images: self.student.backbone(self.config.views.first_global.whole(images))}

    def view_pair(self, batch: Batch, random: Random) -> tuple[Tensor, Tensor]:
        """The teacher's CLS tokens (B, D) of the two large crops of each image."""
        views = self.config.views
        first = self.teacher.backbone(views.first_global(batch["image"], random.within("global0")))
        second = self.teacher.backbone(views.second_global(batch["image"], random.within("global1")))
        return first, second


def _chosen(patches: Tensor, inputs: Inputs) -> Tensor:
    """The hidden ones (P, D) of all patches (2 B, N, D): only what the loss uses passes the head."""
    everything = patches.flatten(0, 1)
    return everything.index_select(0, inputs["places"]) if "places" in inputs else everything[:0]
