"""SimCLRv2's second and third stage, fine-tuning and distillation (Chen et al. 2020, arXiv 2006.10029, section 2).

The pretrained network learns its classes from a few labelled images, from the middle of its projection head on. What it
then says of unlabelled images teaches a student, of the same size or smaller.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Literal, Self, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heliostat_algorithms.algorithm import Algorithm, Batch, Clock, DataSpec, Inputs, ParameterGroup, Step
from heliostat_algorithms.augmentation import CropAndFlip
from heliostat_algorithms.backbones import BackboneConfig, ResNet50
from heliostat_algorithms.encoder import Encoder
from heliostat_algorithms.objectives.spread import spread
from heliostat_algorithms.randomness import Random
from heliostat_algorithms.representation.simclr import SimCLR
from heliostat_algorithms.representation.simclr_v2 import SimCLRv2


class SimCLRv2FineTune(Algorithm):
    """SimCLRv2 fine-tuning (Chen et al. 2020): encoder, first layers of the head and a classifier learn from labels."""

    separable = False  # batch normalisation mixes the samples of a batch

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """The paper's choices for 1 % and 10 % of ImageNet's labels."""

        type: Literal["simclr-v2-fine-tune"] = "simclr-v2-fine-tune"
        backbone: BackboneConfig = field(default_factory=ResNet50)
        """The encoder f, as it was pretrained."""
        projection_layers_kept: int = 1
        """Layers of the pretrained head, with their normalisation and ReLU, that stay below the classifier: 1 for few
        labels, 0 when all images are labelled (section 3.1). The last layer of a head cannot stay."""
        projection_hidden: int | None = None
        """Width of those layers; null: that of the representation, as in the paper."""
        augmentation: CropAndFlip = field(default_factory=CropAndFlip)
        """How images are shown; ``class_scores`` and ``features`` see them whole."""

        def __post_init__(self) -> None:
            if self.projection_layers_kept < 0:
                raise ValueError(f"projection_layers_kept is {self.projection_layers_kept}; it cannot be negative")
            if self.projection_hidden is not None and self.projection_hidden < 1:
                raise ValueError(f"projection_hidden is {self.projection_hidden}; it must be at least 1")

    def __init__(self, config: Config, data: DataSpec) -> None:
        super().__init__(config, data)
        if data.classes is None:
            raise ValueError("fine-tuning learns from labels, and the data has none")
        self.config = config
        channels, *size = data.image_shape
        self.backbone = config.backbone.build(channels, config.augmentation.output_size((size[0], size[1])))
        width = self.backbone.feature_dim
        hidden = config.projection_hidden or width
        layers = []
        for _ in range(config.projection_layers_kept):
            layers.append(_head_layer(width, hidden))
            width = hidden
        self.projection = nn.Sequential(*layers)
        self.classifier = nn.Linear(width, data.classes)
        nn.init.zeros_(self.classifier.weight)
        nn.init.zeros_(self.classifier.bias)

    def prepare(self, batch: Batch, clock: Clock, random: Random) -> Inputs:
        """``view``: one view (B, C, S, S) of each image, in [0, 1]; ``label`` (B,) as it is."""
        return {
            "view": self.config.augmentation(batch["image"], random.within("view")),
            "label": batch["label"],
        }

    def forward(self, inputs: Inputs, clock: Clock) -> Step:
        """Cross-entropy; batch normalisation uses the batch's statistics, as in pretraining."""
        h = self.backbone(inputs["view"])
        logits = _exact(self.classifier(self.projection(h)))
        with torch.autocast(logits.device.type, enabled=False):
            loss = F.cross_entropy(logits, inputs["label"])
        right = logits.detach().argmax(dim=1) == inputs["label"]
        return Step(loss, {"top1": right.to(logits.dtype).mean(), "feature_std": spread(h)})

    def logits(self, views: Tensor) -> Tensor:
        """(B, C, S, S) -> (B, classes)."""
        return cast("Tensor", self.classifier(self.projection(self.backbone(views))))

    def class_scores(self, images: Tensor) -> Tensor:
        """(B, C, H, W) uint8 -> logits (B, classes)."""
        return self.logits(self.config.augmentation.whole(images))

    def encoder(self) -> Encoder:
        """f, as in pretraining: before the layers of the head."""
        return self.backbone

    def whole(self, images: Tensor) -> Tensor:
        """(B, C, H, W) uint8 -> the whole images at the size of the views, in [0, 1]."""
        return self.config.augmentation.whole(images)

    def begin_from(self, other: Algorithm) -> None:
        """Take the encoder and the first layers of the head of a pretraining, and leave the classifier at zero; of a
        fine-tuning take everything.

        Without it the network learns from its initial weights: the supervised comparison.
        """
        if isinstance(other, SimCLRv2FineTune):
            super().begin_from(other)
            return
        if not isinstance(other, SimCLRv2 | SimCLR):
            raise ValueError(
                f"fine-tuning begins from SimCLRv2, SimCLR or fine-tuning, not from {type(other).__name__}"
            )
        if other.config.backbone != self.config.backbone:
            raise ValueError(f"the backbone is {self.config.backbone} here and {other.config.backbone} there")
        kept, layers = self.config.projection_layers_kept, other.config.projection_layers
        if kept >= layers:
            raise ValueError(
                f"projection_layers_kept is {kept}, but the head has {layers} layers; at most {layers - 1} can stay, "
                "all but the last"
            )
        _load(self.backbone, other.backbone)
        for number in range(kept):
            mine, head = cast("nn.Sequential", self.projection[number]), other.projection
            _load(mine[0], head.linears[number])
            _load(mine[1], head.norms[number])

    def parameter_groups(self) -> list[ParameterGroup]:
        """The classifier is not regularised: LARS would scale its steps to its weights, which begin at zero. As in the
        official code."""
        return _with_free_classifier(self, self.classifier)


class SimCLRv2Distill(Algorithm):
    """SimCLRv2 distillation (Chen et al. 2020): a student learns the class probabilities of a fine-tuned network."""

    needs_origin = True
    separable = False  # batch normalisation mixes the samples of a batch

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """The paper's choices for distillation from a large into a small network."""

        type: Literal["simclr-v2-distill"] = "simclr-v2-distill"
        teacher: SimCLRv2FineTune.Config = field(default_factory=SimCLRv2FineTune.Config)
        """The fine-tuned network: a copy of its job's ``algorithm``. The run begins from that job's result."""
        backbone: BackboneConfig | None = None
        """The student's encoder, with a linear classifier on top; null: the teacher's (self-distillation)."""
        temperature: float = 1.0
        """Of both distributions: 1 for a smaller student, 0.1 for self-distillation; the paper sees less than 1 %
        between them (section 3.1)."""
        classes: int | None = None
        """How many classes the teacher knows, for data without labels; null: those of the data."""
        augmentation: CropAndFlip = field(default_factory=CropAndFlip)
        """How images are shown to teacher and student, alike."""

        def __post_init__(self) -> None:
            if not self.temperature > 0:
                raise ValueError(f"temperature is {self.temperature}; it must be above 0")
            if self.classes is not None and self.classes < 1:
                raise ValueError(f"classes is {self.classes}; it must be at least 1, or null")

        @property
        def student(self) -> BackboneConfig:
            """The student's encoder."""
            return self.teacher.backbone if self.backbone is None else self.backbone

    def __init__(self, config: Config, data: DataSpec) -> None:
        super().__init__(config, data)
        self.config = config
        classes = data.classes if config.classes is None else config.classes
        if classes is None:
            raise ValueError("the data has no labels to count; say how many classes the teacher knows: classes")
        if data.classes not in (None, classes):
            raise ValueError(f"classes is {classes}, but the data has {data.classes}")
        channels, *size = data.image_shape
        self.backbone = config.student.build(channels, config.augmentation.output_size((size[0], size[1])))
        self.classifier = nn.Linear(self.backbone.feature_dim, classes)
        nn.init.normal_(self.classifier.weight, std=0.01)
        nn.init.zeros_(self.classifier.bias)
        known = DataSpec(image_shape=data.image_shape, classes=classes)
        self.teacher = SimCLRv2FineTune(config.teacher, known).requires_grad_(False).eval()
        self.register_buffer("has_teacher", torch.zeros((), dtype=torch.int64))
        self._has_teacher = False  # once the buffer has said so: not every step waits for the device

    def train(self, mode: bool = True) -> Self:
        """The teacher stays in evaluation mode."""
        super().train(mode)
        self.teacher.eval()
        return self

    def prepare(self, batch: Batch, clock: Clock, random: Random) -> Inputs:
        """``view``: one view (B, C, S, S) of each image, in [0, 1], which teacher and student both see."""
        return {"view": self.config.augmentation(batch["image"], random.within("view"))}

    def forward(self, inputs: Inputs, clock: Clock) -> Step:
        """Equation 3, - sum_y P_T(y | x; t) log P_S(y | x; t), times t^2 as in the official code.

        Raises:
            RuntimeError: the run did not begin from a fine-tuned network.
        """
        self._require_teacher()
        view, t = inputs["view"], self.config.temperature
        with torch.no_grad():
            teaching = _exact(self.teacher.logits(view))
        h = self.backbone(view)
        logits = _exact(self.classifier(h))
        with torch.autocast(logits.device.type, enabled=False):
            probabilities = (teaching / t).softmax(dim=1)
            loss = t**2 * F.cross_entropy(logits / t, probabilities)
            entropy = torch.special.entr(probabilities).sum(dim=1).mean()
        agreement = (logits.detach().argmax(dim=1) == teaching.argmax(dim=1)).to(logits.dtype).mean()
        return Step(loss, {"agreement": agreement, "teacher_entropy": entropy, "feature_std": spread(h)})

    def class_scores(self, images: Tensor) -> Tensor:
        """(B, C, H, W) uint8 -> the student's logits (B, classes)."""
        return cast("Tensor", self.classifier(self.features(images)))

    def encoder(self) -> Encoder:
        """The student's encoder."""
        return self.backbone

    def whole(self, images: Tensor) -> Tensor:
        """(B, C, H, W) uint8 -> the whole images at the size of the views, in [0, 1]."""
        return self.config.augmentation.whole(images)

    def begin_from(self, other: Algorithm) -> None:
        """Take a fine-tuned network as teacher.

        A finished distillation between the same networks is continued. Of another one the student becomes the teacher:
        the paper distils a large network into itself before it distils it into a small one (section 3.4).
        """
        if isinstance(other, SimCLRv2FineTune):
            self._require_equal(other.config)
            _load(self.teacher, other)
        elif not isinstance(other, SimCLRv2Distill):
            raise ValueError(f"distillation begins from fine-tuning or distillation, not from {type(other).__name__}")
        elif (other.config.teacher, other.config.student) == (self.config.teacher, self.config.student):
            super().begin_from(other)
            return
        else:
            if (other.config.student, 0) != (self.config.teacher.backbone, self.config.teacher.projection_layers_kept):
                raise ValueError(
                    "the other's student cannot be this one's teacher; it would be with "
                    f"teacher.backbone = {other.config.student} and teacher.projection_layers_kept = 0"
                )
            _load(self.teacher.backbone, other.backbone)
            _load(self.teacher.classifier, other.classifier)
        cast("Tensor", self.has_teacher).fill_(1)

    def parameter_groups(self) -> list[ParameterGroup]:
        """The classifier is not regularised; see ``SimCLRv2FineTune``."""
        return _with_free_classifier(self, self.classifier)

    def _require_teacher(self) -> None:
        if not self._has_teacher:
            if not bool(self.has_teacher):
                raise RuntimeError(
                    "the teacher has random weights; a distillation begins from a fine-tuned network (begin_from)"
                )
            self._has_teacher = True

    def _require_equal(self, found: SimCLRv2FineTune.Config) -> None:
        wanted = self.config.teacher
        names = [each.name for each in fields(wanted) if getattr(wanted, each.name) != getattr(found, each.name)]
        if names:
            differences = "; ".join(f"{n} is {getattr(wanted, n)} here and {getattr(found, n)} there" for n in names)
            raise ValueError(f"the teacher is not what 'teacher' says: {differences}")


def _head_layer(in_dim: int, out_dim: int) -> nn.Sequential:
    """A layer of the projection head that is not its last one."""
    linear = nn.Linear(in_dim, out_dim, bias=False)
    nn.init.normal_(linear.weight, std=0.01)
    return nn.Sequential(linear, nn.BatchNorm1d(out_dim), nn.ReLU())


def _exact(x: Tensor) -> Tensor:
    """In float32 at least."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _load(module: nn.Module, source: nn.Module) -> None:
    try:
        module.load_state_dict(source.state_dict())
    except RuntimeError as error:
        raise ValueError(str(error)) from None


def _with_free_classifier(algorithm: Algorithm, classifier: nn.Linear) -> list[ParameterGroup]:
    """All trainable parameters; biases, normalisation layers and the classifier are not regularised."""
    regularized: list[nn.Parameter] = []
    free: list[nn.Parameter] = []
    for parameter in algorithm.trainable():
        (regularized if parameter.ndim > 1 and parameter is not classifier.weight else free).append(parameter)
    return [ParameterGroup("weights", regularized, True), ParameterGroup("bias_norm_and_classifier", free, False)]
