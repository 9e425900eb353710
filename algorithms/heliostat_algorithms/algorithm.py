"""The contract between an algorithm and the loop that trains it.

An algorithm is a ``torch.nn.Module`` with four more duties: turn stored samples into what the network sees
(``prepare``), compute the loss (``forward``), keep its other state in step (``before_step``, ``after_backward``,
``after_step``), and show to probes what it learned (``encoder``, ``whole``). The loop owns everything else: devices,
workers, precision, optimiser, clock, checkpoints. In each step it calls, in this order,

    before_step - prepare - forward - (backward) - after_backward - (clip, update) - after_step

A step may have several players with losses of their own, as a GAN's has. Then all between ``before_step`` and
``after_step`` is done once for each of the step's ``turns``, and in each turn only the parameters of its player move.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol, TypeAlias

import torch
from torch import Tensor, nn

from heliostat_algorithms.encoder import Encoder
from heliostat_algorithms.randomness import Random

COLLAPSED_SPREAD = 0.02
"""``feature_std`` below which all samples look alike: a mean cosine similarity above 0.999 where the variance is spread
evenly over the dimensions. Untrained ResNets stay above it. Untrained Vision Transformers may begin below, so whoever
looks for a collapse gives a training some time."""

Batch: TypeAlias = Mapping[str, Tensor]
"""This worker's rows of a global batch. Images: ``image`` (B, C, H, W) uint8; clips, for algorithms with ``video``:
``video`` (B, T, C, H, W) uint8; points: ``point`` (B, D) float32. Tokens: ``tokens`` (B, L) int64, what is read, and
``targets`` (B, L) int64, what is to be said after each, ``IGNORED`` where nothing is asked. Pairs: ``source`` (B, S)
and ``target`` (B, T) int64, each target from BEGIN to END. Shorter sequences are filled up with PAD; L, S and T are the
longest of the **global** batch. ``label`` (B,) int64 where the data has labels; ``index`` (B,) int64, the sample's
position in the data set."""

PAD, BEGIN, END, UNKNOWN = 0, 1, 2, 3
"""Tokens that stand for something else than text or symbols, in vocabularies that have them."""
IGNORED = -100
"""A target that is not asked for; torch's own number for it."""

Kind: TypeAlias = Literal["images", "points", "tokens", "pairs"]
"""What samples are: images or clips; points, that is a few real numbers; sequences of tokens; sequences of tokens with
another sequence as their source."""

Inputs: TypeAlias = Mapping[str, Tensor]
"""What ``prepare`` makes of a batch: views, masks, noise; on the training device, but for what decides how much is
computed (drop path), which stays on the CPU so that nobody waits for the device to know it."""


class OneOf:
    """Marks a union of configs that are told apart by their ``type``: ``Annotated[ResNet18 | ResNet50, OneOf()]``."""


@dataclass(frozen=True, kw_only=True)
class TokenSpec:
    """What an algorithm may know of sequences before it sees one."""

    vocabulary: int
    """How many tokens there are: they are numbers from 0 to ``vocabulary`` - 1."""
    length: int
    """Tokens of the longest sample; of pairs, of the longest target without its BEGIN."""
    source_length: int | None = None
    """Tokens of the longest source of a pair; None where samples are single sequences."""
    characters_per_token: float | None = None
    """Of a text, on average; None where tokens are symbols without a spelling."""


@dataclass(frozen=True, kw_only=True)
class DataSpec:
    """What an algorithm may know of the data before it sees a batch."""

    image_shape: tuple[int, int, int] = (0, 0, 0)
    """(C, H, W) of a stored image, or of a frame; zeros where samples are no pictures."""
    classes: int | None
    """How many classes; None where the data has no labels."""
    frames: int | None = None
    """T, the frames of a clip; None for images."""
    points: bool = False
    """Whether samples are points (D,) of real numbers, and no pictures; ``image_shape`` is (1, 1, D) then."""
    tokens: TokenSpec | None = None
    """Of sequences of tokens; None for images, clips and points."""

    @property
    def kind(self) -> Kind:
        """What samples are."""
        if self.tokens is None:
            return "points" if self.points else "images"
        return "tokens" if self.tokens.source_length is None else "pairs"


@dataclass(frozen=True)
class Turn:
    """One update within a step."""

    player: str = ""
    """Whose parameters move; the others are held still. Empty where a step has one player."""
    minibatch: int = 0
    """Which of the step's minibatches it sees, from 0."""


@dataclass(frozen=True, kw_only=True)
class Clock:
    """Where training stands; all that a schedule may depend on."""

    step: int
    """Optimiser steps done before this one, from 0."""
    total_steps: int
    steps_per_epoch: int
    batch_size: int
    """Samples in one minibatch over all workers; of these a step has one, unless ``Algorithm.minibatches`` says
    otherwise."""
    turn: Turn = Turn()
    """Whose update is being made."""

    @property
    def epoch(self) -> float:
        """Epochs done, with the fraction of the current one."""
        return self.step / self.steps_per_epoch

    @property
    def progress(self) -> float:
        """Share of the training that is done, from 0 at the first step to (total - 1) / total at the last."""
        return self.step / self.total_steps


@dataclass
class Step:
    """What one forward pass gives back.

    ``loss`` is the mean over **this worker's** samples; workers hold equally many, so that the average over workers,
    which is what data-parallel training differentiates, is the loss of the global batch. ``metrics`` are scalars
    without gradient, averaged over workers in the same way.
    """

    loss: Tensor
    metrics: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters that the optimiser treats alike."""

    name: str
    parameters: list[nn.Parameter]
    regularized: bool
    """Whether weight decay and, for LARS, layer-wise adaptation apply."""
    learning_rate_scale: float = 1.0
    """Factor on the learning rate: layer-wise decay, slower patch embeddings."""
    learning_rate: float | None = None
    """A peak learning rate of its own, in place of the job's: gates, the dynamics of state spaces. It follows the same
    schedule, and the factor applies to it, too."""
    player: str = ""
    """In whose turns these parameters move; see ``Algorithm.turns``."""


@dataclass(frozen=True)
class Panels:
    """Pictures of some samples, for people: a row for each sample, a column for each title."""

    titles: tuple[str, ...]
    images: Tensor
    """(N, columns, C, H, W) in [0, 1]."""

    @staticmethod
    def grid(images: Tensor, columns: int = 8) -> Panels:
        """Pictures (N, C, H, W) that have no order, as rows without titles; white ones fill the last row."""
        columns = min(columns, len(images))
        missing = -len(images) % columns
        filled = torch.cat([images, images.new_ones(missing, *images.shape[1:])])
        return Panels(("",) * columns, filled.view(-1, columns, *images.shape[1:]))


@dataclass(frozen=True)
class Clips:
    """Moving pictures, for people."""

    videos: Tensor
    """(N, T, C, H, W) in [0, 1]."""
    frames_per_second: float = 8.0


@dataclass(frozen=True)
class Scatter:
    """Points in the plane, for people."""

    points: Tensor
    """(N, 2): what was made."""
    truth: Tensor
    """(M, 2): samples of the data, to compare with."""


@dataclass(frozen=True)
class Texts:
    """Written by the method, one for each sample."""

    texts: tuple[str, ...]
    given: tuple[str, ...] = ()
    """What each was made from: its beginning, its source; empty where they were made from nothing."""


class Codec(Protocol):
    """Between texts and tokens."""

    def encode(self, text: str) -> list[int]:
        """Raises ValueError where something in the text has no token."""

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of tokens."""


Sampled: TypeAlias = Panels | Clips | Scatter | Texts
"""What a generative method can make."""


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What is asked of a generative method."""

    count: int
    """How many samples; of pictures that go from one sample to another, how many rows."""
    given: Batch
    """Some stored samples, ``count`` at least where the data has so many, to complete or to compare with."""
    prompts: tuple[str, ...] = ()
    """Beginnings or sources of texts, for methods that continue or translate them; ``count`` samples of each where
    they are drawn. Empty: stored ones."""
    codec: Codec | None = None
    """The data's, where samples are tokens."""
    length: int = 200
    """Tokens by which a text is continued."""
    temperature: float = 1.0
    """Logits are divided by it before a token is drawn."""
    top_k: int | None = None
    """Only so many of the most likely tokens can be drawn; None: all."""


class Algorithm(nn.Module, ABC):
    """One paper. Subclasses hold a frozen dataclass ``Config`` and are built as ``cls(config, data)``."""

    Config: ClassVar[type[Any]]

    needs_origin: ClassVar[bool] = False
    """Whether training makes sense only from what another training learned (``begin_from``)."""
    separable: ClassVar[bool] = False
    """Whether the loss is a plain mean over samples, so that a batch may be split and its gradients summed. False for
    losses that compare the samples of a batch (see ``comparing``) and for networks with batch normalisation."""
    learns_from: ClassVar[frozenset[Kind]] = frozenset({"images"})
    """Which samples it can be shown."""
    video: ClassVar[bool] = False
    """Whether the clips of video data come whole. Other algorithms are given one random frame of each clip as an image,
    and judged by the mean of their features of all frames."""

    def __init__(self, config: Any, data: DataSpec) -> None:
        super().__init__()
        if data.kind not in self.learns_from:
            kinds = " or ".join(sorted(self.learns_from))
            raise ValueError(f"{type(self).__name__} learns from {kinds}, and the samples are {data.kind}")

    @classmethod
    def is_separable(cls, config: Any) -> bool:
        """``separable`` for this config; differs where an option makes the loss compare samples."""
        return cls.separable

    @classmethod
    def turns(cls, config: Any) -> tuple[Turn, ...]:
        """The updates of one step, in order; several where there are several players, or one has several updates. What
        ``prepare`` draws in one turn is independent of what it draws in another."""
        return (Turn(),)

    def check(self, batch_size: int) -> None:
        """Whether this algorithm can train with a global batch of this size; called before anything is started.

        Raises:
            ValueError: it cannot; says what would be right.
        """

    def before_step(self, clock: Clock) -> None:
        """Update what has to be in step before the forward pass: MoCo moves its key encoder here. Without gradient."""

    @abstractmethod
    def prepare(self, batch: Batch, clock: Clock, random: Random) -> Inputs:
        """Turn stored samples into the network's inputs. Runs in float32, without gradient, outside autocast."""

    @abstractmethod
    def forward(self, inputs: Inputs, clock: Clock) -> Step:
        """The loss of this worker's rows. Runs under data parallelism and autocast."""

    def after_backward(self, clock: Clock) -> None:
        """Change gradients, which are averaged over workers by now, before they are clipped and used: DINO takes those
        of its frozen last layer away."""

    def after_step(self, clock: Clock) -> None:
        """Update what the optimiser does not: teachers, queues, centres. Without gradient."""

    def encoder(self) -> Encoder | None:
        """The network that the method is judged by, and that others may begin from; None where there is none."""
        return None

    def whole(self, images: Tensor) -> Tensor:
        """(B, C, H, W) uint8, clips (B, T, C, H, W) -> what the encoder is shown of whole samples, without chance; by
        default the pixels as they are, from 0 to 1."""
        return images.float() / 255

    def features(self, images: Tensor) -> Tensor:
        """(B, C, H, W) uint8, or clips (B, T, C, H, W) -> (B, D): what probes judge. Called in evaluation mode, without
        gradient but for fine-tuning.

        Raises:
            TypeError: this method has no encoder, and so no features.
        """
        encoder = self.encoder()
        if encoder is None:
            raise TypeError(f"{type(self).__name__} has no encoder, so there are no features to judge")
        h: Tensor = encoder(self.whole(images))
        return h

    @property
    def has_features(self) -> bool:
        """Whether ``features`` gives some: by an encoder, or in a way of its own."""
        return type(self).features is not Algorithm.features or self.encoder() is not None

    def token_features(self, images: Tensor) -> Tensor:
        """(B, C, H, W) uint8, or clips (B, T, C, H, W) -> (B, N, D): what attentive probes judge."""
        encoder = self.encoder()
        return self.features(images).unsqueeze(1) if encoder is None else encoder.sequence(self.whole(images))

    def other_features(self) -> Mapping[str, Callable[[Tensor], Tensor]]:
        """Networks that are judged beside ``features``, by name: the student beside the teacher, or the other way
        round."""
        return {}

    def view_pair(self, batch: Batch, random: Random) -> tuple[Tensor, Tensor] | None:
        """Features (B, D) of two random views of each sample, for alignment; None where the method has no views."""
        return None

    def class_scores(self, images: Tensor) -> Tensor | None:
        """(B, C, H, W) uint8 -> (B, classes): scores of a method that classifies, the highest wins; None for others."""
        return None

    def attention_maps(self, images: Tensor) -> Tensor | None:
        """(B, C, H, W) uint8 -> (B, heads, h, w): where each head of the last layer looks; None without attention."""
        encoder = self.encoder()
        return None if encoder is None or self.video else encoder.attention(self.whole(images))

    def pictures(self, batch: Batch, random: Random) -> Mapping[str, Panels]:
        """Pictures of what the method does with some samples, by name: reconstructions, masks. Called in evaluation
        mode, without gradient."""
        return {}

    def sample(self, wish: Wish, random: Random) -> Mapping[str, Sampled]:
        """What the method can make, by name: samples, completions, walks through its latent space. Empty for methods
        that are not generative. Called in evaluation mode, without gradient, with ``count`` rows of random draws.

        Raises:
            ValueError: it cannot be made; says what would be right.
        """
        return {}

    def begin_from(self, other: Algorithm) -> None:
        """Take over what a finished training of ``other`` learned. By default ``other`` is of the same kind and shape,
        and everything is taken: heads, teachers and queues too.

        Raises:
            ValueError: this algorithm cannot begin from ``other``; says why.
        """
        if type(other) is not type(self):
            raise ValueError(f"{type(self).__name__} continues a {type(self).__name__}, not a {type(other).__name__}")
        try:
            self.load_state_dict(other.state_dict())
        except RuntimeError as error:
            raise ValueError(str(error)) from None

    def diagnose(self, metrics: Mapping[str, float]) -> str | None:
        """What a step's metrics (``Step.metrics``, averaged over workers) say of a collapse: a sentence that names the
        likely cause; None where they show none. Here by ``feature_std`` alone, which all methods give that have
        features; see ``objectives.spread``."""
        spread = metrics.get("feature_std", math.nan)
        if spread < COLLAPSED_SPREAD:
            return (
                f"the features of all samples are nearly alike (feature_std {spread:.3g}, healthy above "
                f"{COLLAPSED_SPREAD}); likely causes: a learning rate that is too high and, depending on the method, "
                "too few negatives or a teacher that follows too quickly"
            )
        return None

    def parameter_groups(self) -> list[ParameterGroup]:
        """All trainable parameters, those of normalisation layers and all biases apart: they are not regularised."""
        regularized: list[nn.Parameter] = []
        free: list[nn.Parameter] = []
        for parameter in self.trainable():
            (regularized if parameter.ndim > 1 else free).append(parameter)
        groups = [ParameterGroup("weights", regularized, True), ParameterGroup("bias_and_norm", free, False)]
        return [group for group in groups if group.parameters]

    def trainable(self) -> Iterator[nn.Parameter]:
        """The parameters that the optimiser moves."""
        return (parameter for parameter in self.parameters() if parameter.requires_grad)
