"""V-JEPA: Revisiting Feature Prediction for Learning Visual Representations from Video, Bardes et al. 2024 (arXiv
2404.08471).

A context encoder sees a few patches of a clip; a predictor says, from these, what a target encoder makes of the hidden
ones, which are hidden for the whole length of the clip (section 3, figure 2). The target encoder sees everything and is
a moving average of the context encoder. Nothing is compared with pixels, and there are no negatives.

Images are learned from as clips that stand still for one tubelet.
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
from heliostat_algorithms.augmentation.clips import ClipAugmentation
from heliostat_algorithms.backbones import ViTBackboneConfig, ViTLarge
from heliostat_algorithms.backbones.positions import sincos_positions_3d
from heliostat_algorithms.backbones.predictor import Predictor
from heliostat_algorithms.backbones.video import VideoTransformer, check_for_video
from heliostat_algorithms.encoder import Encoder
from heliostat_algorithms.masking.tubes import TubeMasking, TubeMasks
from heliostat_algorithms.objectives.latent_targets import normalize_tokens
from heliostat_algorithms.objectives.spread import spread
from heliostat_algorithms.randomness import Random
from heliostat_algorithms.schedules import Ramp, cosine_ramp, linear_ramp
from heliostat_algorithms.teachers import follow, teacher_of

PREDICTED, IGNORED = 0.5, 1.0
"""In pictures: grey stands for patches that are to be predicted, white for those that are left out altogether."""


class VJEPA(Algorithm):
    """V-JEPA (Bardes et al. 2024): features of what is hidden in a clip, predicted from what is seen of it."""

    video = True
    separable = True  # the loss is a mean over clips; only the sizes of the masks come from the batch

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """The paper's choices for ViT-L/16."""

        type: Literal["vjepa"] = "vjepa"
        backbone: ViTBackboneConfig = field(
            default_factory=lambda: ViTLarge(class_token=False, pool="mean", positions="sincos")
        )
        """Both encoders, as Vision Transformers for clips: without class token and registers, with fixed positions. Its
        ``initialization`` is the predictor's too."""
        tubelet: int = 2
        """Frames in a token; must divide the frames of a clip. Images are repeated so often."""
        augmentation: ClipAugmentation = field(default_factory=ClipAugmentation)
        """How views of clips are made."""
        short_range: TubeMasking = field(default_factory=lambda: TubeMasking(blocks=8, scale=0.15))
        """The first kind of mask: many small blocks."""
        long_range: TubeMasking = field(default_factory=lambda: TubeMasking(blocks=2, scale=0.7))
        """The second kind: few large blocks."""
        predictor_width: int = 384
        """Width inside the predictor, narrower than the encoder's."""
        predictor_depth: int = 12
        """Blocks of the predictor."""
        predictor_heads: int | None = None
        """Attention heads of the predictor; null: as many as the encoder has."""
        teacher_momentum: Ramp = field(default_factory=lambda: Ramp(start=0.998, end=1.0, shape="linear"))
        """Share of the old target encoder that stays in each step. Lower it for short trainings: at 0.998 the target
        needs some 500 steps to follow."""
        stretch: float = 1.25
        """``teacher_momentum`` moves as in a training so many times as long, and is cut off at the end: the last values
        of a schedule harm (official code). 1 to reach its end."""

        def __post_init__(self) -> None:
            check_for_video(self.backbone)
            for name in ("tubelet", "predictor_width", "predictor_depth", "predictor_heads"):
                value = getattr(self, name)
                if value is not None and value < 1:
                    raise ValueError(f"{name} is {value}; it must be at least 1")
            heads = self.predictor_heads or self.backbone.heads
            if self.predictor_width % heads:
                raise ValueError(f"{heads} heads do not divide a predictor_width of {self.predictor_width}")
            for name in ("start", "end"):
                share = getattr(self.teacher_momentum, name)
                if not 0 <= share <= 1:
                    raise ValueError(f"teacher_momentum.{name} is {share}; it is a share, from 0 to 1")
            if not self.stretch >= 1:
                raise ValueError(f"stretch is {self.stretch}; it must be at least 1")

        def momentum(self, clock: Clock) -> float:
            """Share of the old target encoder that stays in a step."""
            ramp = linear_ramp if self.teacher_momentum.shape == "linear" else cosine_ramp
            return ramp(self.teacher_momentum.start, self.teacher_momentum.end, clock.progress / self.stretch)

    def __init__(self, config: Config, data: DataSpec) -> None:
        super().__init__(config, data)
        self.config = config
        channels, *stored = data.image_shape
        size = config.augmentation.output_size((stored[0], stored[1]))
        self.of_clips = data.frames is not None
        """Whether the data are clips; images otherwise."""
        self.frames = config.tubelet if data.frames is None else data.frames
        """Frames that the encoders are shown; images are repeated so often."""
        backbone = config.backbone
        self.context_encoder = VideoTransformer(backbone, channels, self.frames, size, config.tubelet)
        self.grid = self.context_encoder.position_grid
        """Tokens in depth (time), down and across a view."""
        self.masking = {"short_range": config.short_range, "long_range": config.long_range}
        """By kind, in the order of the predictor's mask tokens."""
        for masking in self.masking.values():
            masking.check(self.grid[1:])
        self.predictor = Predictor(
            backbone.width,
            backbone.width,
            sincos_positions_3d(self.grid, config.predictor_width),
            depth=config.predictor_depth,
            heads=config.predictor_heads or backbone.heads,
            initialization=backbone.initialization,
            mask_tokens=len(self.masking),
            mask_token_std=0.0,
        )
        self.target_encoder = teacher_of(self.context_encoder)

    def prepare(self, batch: Batch, clock: Clock, random: Random) -> Inputs:
        """``clips`` (B, C, T, S, S) in [0, 1], and for each kind of mask the places (B, K) int64 of the tokens that the
        context encoder sees, ``short_range_context``, and (B, M) int64 of those to be predicted,
        ``short_range_targets``. K and M are the same for all clips of the global batch."""
        clips = self._view(batch, random.within("view"))
        inputs = {"clips": clips}
        for kind, masks in self._masks(random, clock.batch_size).items():
            inputs[f"{kind}_context"] = masks.context.to(clips.device)
            inputs[f"{kind}_targets"] = masks.targets.to(clips.device)
        return inputs

    def _view(self, batch: Batch, random: Random) -> Tensor:
        """(B, C, T, S, S): one random view of each clip; images stand still."""
        stored = batch["video"] if self.of_clips else batch["image"].unsqueeze(1)
        return self._lasting(self.config.augmentation(stored, random))

    def _lasting(self, clips: Tensor) -> Tensor:
        """(B, C, 1, S, S) -> (B, C, T, S, S), repeated; clips of more frames stay as they are."""
        return clips.expand(-1, -1, self.frames, -1, -1) if clips.shape[2] == 1 else clips

    def _masks(self, random: Random, batch_size: int) -> dict[str, TubeMasks]:
        return {kind: draw(random.within(kind), batch_size, self.grid) for kind, draw in self.masking.items()}

    def forward(self, inputs: Inputs, clock: Clock) -> Step:
        """Equation 1 for each kind of mask, averaged over both; the target encoder's tokens serve both."""
        clips = inputs["clips"]
        with torch.no_grad():
            tokens = self.target_encoder.tokens(clips)
            targets = normalize_tokens(tokens)
        metrics = {"feature_std": spread(tokens.mean(dim=1)), "token_std": token_spread(tokens)}
        losses = []
        for mask_token, kind in enumerate(self.masking):
            context, hidden = inputs[f"{kind}_context"], inputs[f"{kind}_targets"]
            seen = self.context_encoder.tokens(clips, visible=context)
            predictions = self.predictor(seen, context, hidden, mask_token)
            wanted = targets.gather(1, hidden.unsqueeze(2).expand(-1, -1, targets.shape[2]))
            losses.append((predictions.to(wanted.dtype) - wanted).abs().mean())
            metrics[kind] = losses[-1].detach()
            metrics[f"{kind}_visible"] = tokens.new_full((), context.shape[1] / tokens.shape[1])
        return Step(torch.stack(losses).mean(), metrics)

    def after_step(self, clock: Clock) -> None:
        """The target encoder follows the context encoder that has just moved."""
        follow(self.target_encoder, self.context_encoder, self.config.momentum(clock))

    def encoder(self) -> Encoder:
        """The target encoder; the mean of its tokens is the representation."""
        return self.target_encoder

    def whole(self, images: Tensor) -> Tensor:
        """(B, T, C, H, W), or images (B, C, H, W), uint8 -> (B, C, T, S, S), the whole frames at the size of the views,
        in [0, 1]; images stand still for as many frames as the encoders were trained with."""
        clips = images.unsqueeze(1) if images.ndim == 4 else images
        return self._lasting(self.config.augmentation.whole(clips))

    def other_features(self) -> Mapping[str, Callable[[Tensor], Tensor]]:
        """``context_encoder``: the mean of its tokens, as ``features`` gives the target encoder's."""
        return {"context_encoder": lambda images: self.context_encoder(self.whole(images))}

    def view_pair(self, batch: Batch, random: Random) -> tuple[Tensor, Tensor]:
        """Features (B, D) of two random views of each clip."""
        first = self.target_encoder(self._view(batch, random.within("first")))
        second = self.target_encoder(self._view(batch, random.within("second")))
        return first, second

    def pictures(self, batch: Batch, random: Random) -> Mapping[str, Panels]:
        """``masks``: the first frame and one of the last tubelet of whole clips, and what the context encoder sees of
        them under each kind of mask. Grey patches are to be predicted; white ones belong to neither, because all masks
        are equally large: here as the smallest of these clips."""
        clips = self.whole(batch["video"] if self.of_clips else batch["image"])
        masks = self._masks(random, random.rows.stop)
        columns = {}
        for frame in sorted({0, self.grid[0] - 1}):
            number = frame * self.config.tubelet
            picture = clips[:, :, number]
            columns[f"frame {number + 1}"] = picture
            for kind, (context, targets) in masks.items():
                shade = torch.full((len(clips), *self.grid), IGNORED).flatten(1)
                shade.scatter_(1, targets, PREDICTED).scatter_(1, context, -1.0)
                patches = shade.to(picture).view(len(clips), *self.grid)[:, frame]
                patches = F.interpolate(patches.unsqueeze(1), picture.shape[2:], mode="nearest")
                columns[f"{kind.replace('_', ' ')}, frame {number + 1}"] = torch.where(patches < 0, picture, patches)
        return {"masks": Panels(tuple(columns), torch.stack(list(columns.values()), dim=1))}

    def diagnose(self, metrics: Mapping[str, float]) -> str | None:
        """As all methods, and where the tokens of a clip have become alike, so that any of them tells all others."""
        general = super().diagnose(metrics)
        if general is not None:
            return general
        alike = metrics.get("token_std", COLLAPSED_SPREAD)
        if alike < COLLAPSED_SPREAD:
            return (
                f"all tokens of a clip are nearly alike (token_std {alike:.3g}, healthy above {COLLAPSED_SPREAD}), so "
                "that there is nothing to predict; likely causes: a learning rate that is too high, a target encoder "
                "that follows too quickly, or masks that hide too little"
            )
        return None


@torch.no_grad()
def token_spread(tokens: Tensor) -> Tensor:
    """How far apart the tokens (B, N, D) of a sample lie: as ``objectives.spread``, within each sample, then averaged
    over this worker's samples."""
    unit = F.normalize(tokens.to(torch.promote_types(tokens.dtype, torch.float32)), dim=2)
    return unit.std(dim=1, correction=0).mean() * math.sqrt(tokens.shape[2])
