"""The Vision Transformer as a classifier: An Image is Worth 16x16 Words, Dosovitskiy et al. 2020 (arXiv 2010.11929).

The encoder is ``backbones.vit``; here are its head, its training from scratch and its fine-tuning, at the same
resolution or a higher one (section 3.2). What a Vision Transformer learned by any other method can be the beginning
(``begin_from``), with all of it trained further (fine-tuning) or the encoder ``frozen`` (a linear or attentive probe).

With what later recipes add: mixup and CutMix, label smoothing, stochastic depth, learning rates that decay from layer
to layer (as MAE is fine-tuned, 2111.06377, appendix A.1) and an average of the weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal, Self, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heliostat_algorithms.algorithm import Algorithm, Batch, Clock, DataSpec, Inputs, ParameterGroup, Step
from heliostat_algorithms.augmentation import CropAndFlip
from heliostat_algorithms.augmentation.mixing import Mixing
from heliostat_algorithms.backbones import VisionTransformer, ViTBackboneConfig, ViTBase
from heliostat_algorithms.backbones.drop_path import draw_keep, linear_rates
from heliostat_algorithms.backbones.positions import sincos_positions
from heliostat_algorithms.backbones.transformer import Block
from heliostat_algorithms.collectives import world_size
from heliostat_algorithms.heads.attentive import AttentivePool
from heliostat_algorithms.objectives.spread import spread
from heliostat_algorithms.randomness import Random
from heliostat_algorithms.teachers import follow, teacher_of

_UNREGULARIZED = ("pos_embed", "cls_token", "register_tokens")
"""What of the encoder has no weight decay though it has more than one dimension."""


@dataclass(frozen=True, kw_only=True)
class SupervisedViews(CropAndFlip):
    """Random crops and flips without change of colour; "Inception crops" in the official code."""

    crop_area: tuple[float, float] = (0.05, 1.0)
    """Smallest and largest share of the image's area that a crop covers; from 0.08 in most later recipes."""


class Head(nn.Module):
    """From what the encoder made of an image to the logits of its classes.

    Args:
        width: D, of features and tokens.
        classes: how many.
        pool: what makes one vector of all tokens; None: there is one, the feature.
        normalize: whether it is standardised with the statistics of the batch.
        pre_logits: width of a hidden layer with tanh; None: without.
        std: standard deviation with which the classifier's weights begin.
    """

    def __init__(
        self, width: int, classes: int, pool: AttentivePool | None, normalize: bool, pre_logits: int | None, std: float
    ) -> None:
        super().__init__()
        self.pool = pool
        self.norm = nn.BatchNorm1d(width, eps=1e-6, affine=False) if normalize else None
        self.pre_logits = None if pre_logits is None else nn.Linear(width, pre_logits)
        if self.pre_logits is not None:
            nn.init.normal_(self.pre_logits.weight, std=width**-0.5)
            nn.init.zeros_(self.pre_logits.bias)
        self.classifier = nn.Linear(pre_logits or width, classes)
        nn.init.normal_(self.classifier.weight, std=std)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, seen: Tensor) -> Tensor:
        """(B, D), or all tokens (B, N, D) for a head that pools -> (B, classes)."""
        x = seen if self.pool is None else self.pool(seen)
        if self.norm is not None:
            x = self.norm(_exact(x))
        if self.pre_logits is not None:
            x = torch.tanh(self.pre_logits(x))
        logits: Tensor = self.classifier(x)
        return logits


class ViTClassifier(Algorithm):
    """The Vision Transformer (Dosovitskiy et al. 2020), which learns its classes from labels."""

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """The paper's choices; the networks' initial weights are those of its code."""

        type: Literal["vit"] = "vit"
        backbone: ViTBackboneConfig = field(default_factory=lambda: ViTBase(initialization="xavier"))
        """The encoder. To begin from another one, the same as there, but for ``pool``, ``mask_token`` and what concerns
        initial weights. Without a class token also ``pool: mean``, as for I-JEPA's."""
        head: Literal["linear", "attentive"] = "linear"
        """What the classifier looks at: the encoder's feature, or what a learned query gathers from all tokens (V-JEPA,
        2404.08471)."""
        pre_logits: int | None = None
        """Width of a hidden layer with tanh before the classifier. The paper has one, as wide as the encoder, when it
        trains from scratch, and none when it fine-tunes (section 3.1)."""
        normalize: bool = False
        """Standardise features with the statistics of the global batch before the classifier: batch normalisation
        without gain and shift, for linear probes of frozen encoders (MAE, appendix A.1)."""
        classifier_std: float = 0.0
        """Standard deviation with which the classifier's weights begin; 0.01 for probes with LARS, whose steps are
        shares of the weights (MoCo v3, MAE)."""
        frozen: bool = False
        """Train the head alone; the encoder stays as it began: a probe."""
        augmentation: SupervisedViews = field(default_factory=SupervisedViews)
        """How images are shown; ``class_scores`` and ``features`` see them whole. A larger ``size`` fine-tunes at a
        higher resolution."""
        mixing: Mixing = field(default_factory=Mixing)
        """Mixup and CutMix; off, as in the paper. MAE and DeiT: mixup 0.8, cutmix 1."""
        label_smoothing: float = 0.0
        """Share of each label that is spread evenly over all classes; 0.1 in MAE and DeiT."""
        drop_path: float = 0.0
        """Drop rate of the deepest residual branches, falling linearly to 0 in the first."""
        layer_decay: float = 1.0
        """The learning rate of each block is this times that of the next; 0.65 for MAE's ViT-B, 0.75 for its larger
        ones."""
        ema: float | None = None
        """Share of the old average of all weights that stays in each step, such as 0.9999; where set, the average is
        what is judged and begun from. null: without."""

        def __post_init__(self) -> None:
            if self.pre_logits is not None and self.pre_logits < 1:
                raise ValueError(f"pre_logits is {self.pre_logits}; it must be at least 1, or null for none")
            if not 0 <= self.classifier_std < math.inf:
                raise ValueError(f"classifier_std is {self.classifier_std}; it must be at least 0 and finite")
            for name in ("label_smoothing", "drop_path", "ema"):
                if getattr(self, name) is not None and not 0 <= getattr(self, name) < 1:
                    raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 0 and below 1")
            if not 0 < self.layer_decay <= 1:
                raise ValueError(f"layer_decay is {self.layer_decay}; it must be above 0 and at most 1")
            if self.frozen and (self.drop_path or self.layer_decay != 1):
                raise ValueError("drop_path and layer_decay concern an encoder that trains, and this one is frozen")
            if self.normalize and not (self.frozen and self.head == "linear"):
                raise ValueError(
                    "normalize is for linear probes; set frozen to true and head to linear, or leave it out"
                )
            if self.backbone.mask_token:
                raise ValueError("no patch is masked here; leave the backbone's mask_token out, also to begin from one")

    def __init__(self, config: Config, data: DataSpec) -> None:
        super().__init__(config, data)
        if data.classes is None:
            raise ValueError("a classifier learns from labels, and the data has none")
        self.config, self.classes = config, data.classes
        self.backbone = config.backbone.build(
            data.image_shape[0], config.augmentation.output_size(data.image_shape[1:])
        )
        width = self.backbone.feature_dim
        pool = AttentivePool(width, config.backbone.heads) if config.head == "attentive" else None
        self.head = Head(width, data.classes, pool, config.normalize, config.pre_logits, config.classifier_std)
        if config.frozen:
            self.backbone.requires_grad_(False)
        averaging = config.ema is not None
        self.average_backbone = teacher_of(self.backbone) if averaging and not config.frozen else None
        self.average_head = teacher_of(self.head) if averaging else None
        self.drop_rates = linear_rates(config.drop_path, self.backbone.depth) if config.drop_path else []
        """Of each residual branch; empty where none is dropped."""

    @classmethod
    def is_separable(cls, config: Config) -> bool:
        """Whether the loss is a plain mean over samples: without partners and batch statistics."""
        return not (config.mixing.active or config.normalize)

    def check(self, batch_size: int) -> None:
        if self.config.normalize and batch_size < 2:
            raise ValueError("a batch of one sample has no statistics to normalize with; batch_size must be at least 2")

    def train(self, mode: bool = True) -> Self:
        """A frozen encoder stays in evaluation mode."""
        super().train(mode)
        if self.config.frozen:
            self.backbone.eval()
        return self

    def prepare(self, batch: Batch, clock: Clock, random: Random) -> Inputs:
        """``view``: one view (B, C, S, S) of each image, in [0, 1], mixed with its partner's where that is asked for,
        then with ``partner_label`` (B,) and ``share`` (B,), that of the own label; ``label`` (B,); with drop path
        ``keep`` (B, branches), the factors of the residual branches, on the CPU.

        Raises:
            ValueError: partners or statistics of the whole batch are needed, and only a part of it is here.
        """
        c, view, label = self.config, self.config.augmentation(batch["image"], random.within("view")), batch["label"]
        if not self.is_separable(c) and len(label) * world_size() != clock.batch_size:
            raise ValueError("mixing and normalize look at the whole batch; it cannot be split (accumulate)")
        inputs = {"view": view, "label": label}
        if c.mixing.active:
            mixed = c.mixing(view, label, random.within("mixing"), clock.batch_size)
            inputs |= {"view": mixed.images, "partner_label": mixed.partner_label, "share": mixed.share}
        if self.drop_rates:
            inputs["keep"] = draw_keep(random.within("drop_path"), self.drop_rates, "sample")
        return inputs

    def forward(self, inputs: Inputs, clock: Clock) -> Step:
        """Cross-entropy; of two labels by their shares where samples are mixed. ``top1`` counts the own label alone."""
        feature, seen = self._encode(self.backbone, inputs["view"], inputs.get("keep"))
        logits = _exact(self.head(seen))
        with torch.autocast(logits.device.type, enabled=False):
            losses = self._cross_entropy(logits, inputs["label"])
            if "share" in inputs:
                share = inputs["share"].to(logits.dtype)
                losses = share * losses + (1 - share) * self._cross_entropy(logits, inputs["partner_label"])
            loss = losses.mean()
        right = logits.detach().argmax(dim=1) == inputs["label"]
        return Step(loss, {"top1": right.to(logits.dtype).mean(), "feature_std": spread(feature)})

    def _encode(self, backbone: VisionTransformer, views: Tensor, keep: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The features (B, D), and what the head looks at: these, or all tokens (B, N, D), among them CLS where the
        feature is it."""
        if self.head.pool is None:
            feature = backbone(views, keep)
            return feature, feature
        tokens = backbone.tokens(views, keep=keep)
        first = [tokens.feature.unsqueeze(1)] if backbone.pool == "cls" else []
        return tokens.feature, torch.cat([*first, tokens.patches], dim=1)

    def _cross_entropy(self, logits: Tensor, label: Tensor) -> Tensor:
        """(B,)."""
        return F.cross_entropy(logits, label, reduction="none", label_smoothing=self.config.label_smoothing)

    def after_step(self, clock: Clock) -> None:
        """The average follows the weights that have just moved; batch statistics are taken over as they are."""
        for average, network in self._averages():
            follow(average, network, cast("float", self.config.ema))
            for mine, theirs in zip(average.buffers(), network.buffers(), strict=True):
                mine.copy_(theirs)

    def _averages(self) -> Iterator[tuple[nn.Module, nn.Module]]:
        """Each average and what it averages; none without ``ema``."""
        if self.average_backbone is not None:
            yield self.average_backbone, self.backbone
        if self.average_head is not None:
            yield self.average_head, self.head

    def encoder(self) -> VisionTransformer:
        """The backbone, or where there is one its average."""
        return self.backbone if self.average_backbone is None else self.average_backbone

    def evaluated_head(self) -> Head:
        """The head, or where there is one its average."""
        return self.head if self.average_head is None else self.average_head

    def whole(self, images: Tensor) -> Tensor:
        """(B, C, H, W) uint8 -> the whole images at the size of the views, in [0, 1]."""
        return self.config.augmentation.whole(images)

    def class_scores(self, images: Tensor) -> Tensor:
        """(B, C, H, W) uint8 -> logits (B, classes) of the whole images."""
        logits: Tensor = self.evaluated_head()(self._encode(self.encoder(), self.whole(images))[1])
        return logits

    def other_features(self) -> Mapping[str, Callable[[Tensor], Tensor]]:
        """``raw``: the features of the weights that train, where an average of them is judged."""
        if self.average_backbone is None:
            return {}
        return {"raw": lambda images: cast("Tensor", self.backbone(self.whole(images)))}

    def parameter_groups(self) -> list[ParameterGroup]:
        """Learning rates that fall from block to block towards the input; the final norm and the head have the full
        one. Biases, norms, LayerScale, positions and the encoder's own tokens are not regularised, as in MAE's code."""
        found: dict[tuple[bool, float], list[nn.Parameter]] = {}
        for name, parameter in self.named_parameters():
            if not parameter.requires_grad:
                continue
            part, _, rest = name.partition(".")
            regularized, scale = parameter.ndim > 1, 1.0
            if part == "backbone":
                scale = self.config.layer_decay ** (self.backbone.depth + 1 - self.backbone.depth_of(rest))
                regularized = regularized and rest not in _UNREGULARIZED
            found.setdefault((regularized, scale), []).append(parameter)
        return [
            ParameterGroup(
                f"{'weights' if regularized else 'bias_norm_and_tokens'}_{scale:.4g}", here, regularized, scale
            )
            for (regularized, scale), here in found.items()
        ]

    def begin_from(self, other: Algorithm) -> None:
        """Take over the encoder that ``other`` is judged by: a Vision Transformer of the same shape, trained by any
        method, at any resolution. Positions of another grid are resampled as that network does it for images of this
        size, so that its outputs stay the same; fixed ones may begin learned ones. A mask token is left behind.

        Of another ViT classifier with the same kind of head and as many classes, the head is taken over as well; with
        other classes all of it but the classifier, which then begins anew, like the head in all other cases. An average
        begins where the weights do.

        Raises:
            ValueError: the other has no such encoder; says what differs.
        """
        encoder = other.encoder()
        if not isinstance(encoder, VisionTransformer):
            has = "no encoder" if encoder is None else f"a {type(encoder).__name__}"
            raise ValueError(f"this begins from a Vision Transformer, and {type(other).__name__} has {has}")
        _take(self.backbone, encoder)
        if isinstance(other, ViTClassifier):
            kinds = [(each.head, each.pre_logits, each.normalize) for each in (self.config, other.config)]
            if kinds[0] == kinds[1]:
                state = other.evaluated_head().state_dict()
                if other.classes != self.classes:
                    state |= {f"classifier.{name}": x for name, x in self.head.classifier.state_dict().items()}
                self.head.load_state_dict(state)
        for average, network in self._averages():
            average.load_state_dict(network.state_dict())

    def diagnose(self, metrics: Mapping[str, float]) -> str | None:
        """As all methods; None where the encoder is frozen, which training cannot make worse."""
        return None if self.config.frozen else super().diagnose(metrics)


def _take(new: VisionTransformer, old: VisionTransformer) -> None:
    """Copy an encoder's weights, and its positions on the new one's grid."""
    here, there = _facts(new), _facts(old)
    differences = [f"{name} is {here[name]} here and {there[name]} there" for name in here if here[name] != there[name]]
    if new.fixed_positions and not old.fixed_positions:
        differences.append("positions are sincos here and learned there")
    if differences:
        raise ValueError(f"the encoders differ: {'; '.join(differences)}")
    state = dict(old.state_dict())
    state.pop("mask_token", None)
    if not new.fixed_positions:
        fixed = sincos_positions(new.position_grid, new.feature_dim)[:, 1 - new.first :]
        state["pos_embed"] = fixed if old.fixed_positions else new.positions_of(old)
    try:
        new.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(f"the encoders differ in mlp_ratio, feed_forward, layer_scale or qkv_bias: {error}") from None


def _facts(encoder: VisionTransformer) -> dict[str, int | bool | list[float]]:
    """What of an encoder's shape and of what it is shown has a name in its config."""
    shown = encoder.patch_embed.standardize
    return {
        "patch_size": encoder.patch_size,
        "width": encoder.feature_dim,
        "depth": encoder.depth,
        "heads": cast("Block", encoder.blocks[0]).attn.heads,
        "registers": encoder.registers,
        "class_token": encoder.cls_token is not None,
        "channels of an image": encoder.patch_embed.proj.in_channels,
        "pixel_mean": shown.mean.flatten().tolist(),
        "pixel_std": shown.std.flatten().tolist(),
    }


def _exact(x: Tensor) -> Tensor:
    """In float32 at least."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
