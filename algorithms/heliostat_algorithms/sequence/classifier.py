"""Classification of sequences: any network of ``networks`` reads an image pixel by pixel, or a sequence of tokens.

Images are sequences of their pixels, row by row, each with C numbers in [0, 1]: sequential MNIST and CIFAR (Le, Jaitly
and Hinton 2015, arXiv 1504.00941; Gu, Goel and Re 2021, 2111.00396).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heliostat_algorithms.algorithm import (
    PAD,
    Algorithm,
    Batch,
    Clock,
    DataSpec,
    Inputs,
    Kind,
    ParameterGroup,
    Step,
)
from heliostat_algorithms.backbones.dropout import draw_keys, number
from heliostat_algorithms.objectives.spread import spread
from heliostat_algorithms.randomness import Random
from heliostat_algorithms.sequence.decoder import TransformerDecoder
from heliostat_algorithms.sequence.network import embedding, grouped
from heliostat_algorithms.sequence.networks import SequenceNetworkConfig


class SequenceClassifier(Algorithm):
    """A classifier of sequences: pixels of an image one by one, or tokens, with any network of sequences."""

    learns_from: ClassVar[frozenset[Kind]] = frozenset({"images", "tokens"})
    separable: ClassVar[bool] = True

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """The network, and what is around it."""

        type: Literal["sequence-classifier"] = "sequence-classifier"
        network: SequenceNetworkConfig = field(default_factory=TransformerDecoder)
        """What is between embedding and head."""
        pool: Literal["mean", "last"] = "mean"
        """What the classifier looks at: the mean over all positions, or the last one."""

    def __init__(self, config: Config, data: DataSpec) -> None:
        super().__init__(config, data)
        if data.classes is None:
            raise ValueError("a classifier learns from labels, and the data has none")
        self.config = config
        self.network = config.network.build()
        width = self.network.width
        self.embedding: nn.Module
        if data.tokens is None:
            self.embedding = nn.Linear(data.image_shape[0], width)
        else:
            self.embedding = embedding(data.tokens.vocabulary, self.network)
        self.head = nn.Linear(width, data.classes)
        number(self)

    def prepare(self, batch: Batch, clock: Clock, random: Random) -> Inputs:
        """``samples``: pixels (B, L, C) in [0, 1] or tokens (B, L); ``label`` (B,); ``keys`` (B,) for dropout."""
        samples = batch["tokens"] if "tokens" in batch else self.whole(batch["image"])
        return {"samples": samples, "label": batch["label"], "keys": draw_keys(random)}

    def forward(self, inputs: Inputs, clock: Clock) -> Step:
        """Cross-entropy."""
        feature = self._feature(inputs["samples"], inputs["keys"])
        logits = self.head(feature)
        with torch.autocast(logits.device.type, enabled=False):
            exact = logits.to(torch.promote_types(logits.dtype, torch.float32))
            loss = F.cross_entropy(exact, inputs["label"])
        right = logits.detach().argmax(dim=1) == inputs["label"]
        return Step(loss, {"top1": right.to(loss.dtype).mean(), "feature_std": spread(feature)})

    def whole(self, images: Tensor) -> Tensor:
        """(B, C, H, W) uint8 -> (B, H * W, C) in [0, 1]."""
        return images.flatten(2).transpose(1, 2).float() / 255

    def features(self, images: Tensor) -> Tensor:
        """(B, C, H, W) uint8, or tokens (B, L) int64 -> (B, D)."""
        return self._feature(images if images.dtype == torch.int64 else self.whole(images))

    def class_scores(self, images: Tensor) -> Tensor:
        """(B, C, H, W) uint8, or tokens (B, L) int64 -> (B, classes)."""
        scores: Tensor = self.head(self.features(images))
        return scores

    def _feature(self, samples: Tensor, keys: Tensor | None = None) -> Tensor:
        """Pixels (B, L, C), or tokens (B, L) filled up with PAD -> (B, D)."""
        if samples.is_floating_point():
            h: Tensor = self.network(self.embedding(samples.to(self.head.weight.dtype)), keys)
            return h.mean(dim=1) if self.config.pool == "mean" else h[:, -1]
        h = self.network(self.embedding(samples) * self.network.embedding_scale, keys)
        inside = (samples != PAD).unsqueeze(2)
        if self.config.pool == "mean":
            return (h * inside).sum(dim=1) / inside.sum(dim=1).clamp(min=1)
        last = inside.squeeze(2).sum(dim=1).clamp(min=1) - 1
        return h[torch.arange(len(h), device=h.device), last]

    def parameter_groups(self) -> list[ParameterGroup]:
        return grouped(self)
