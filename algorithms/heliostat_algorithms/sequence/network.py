"""What all sequence models share: an embedding, then a stack of blocks of any mixer, then a head.

A **mixer** moves information along the sequence: attention, a state space. It is causal, and it computes the same
numbers in two ways: all positions of a sequence at once (``forward``), or some positions after others, from a state
that says all it needs of them (``advance``). A **block** is a mixer, and mostly a feed-forward network, each in a
residual branch with its norm and dropout. A **network** is a stack of blocks: what a task (``language_model``,
``classifier``) trains between its embedding and its head.

A new paper's network is one file: a ``Mixer``, and a frozen dataclass ``NetworkConfig`` that builds a ``Stack`` of it,
named in ``networks.SequenceNetworkConfig``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

from heliostat_algorithms.algorithm import ParameterGroup
from heliostat_algorithms.backbones.dropout import Dropout

MixerState: TypeAlias = tuple[Tensor, ...]
"""What a mixer keeps of the positions that it has seen: tensors whose first dimension is the batch."""


class Mixer(nn.Module, ABC):
    """(B, L, D) -> (B, L, D), in which position t depends on the positions up to t."""

    @abstractmethod
    def forward(self, x: Tensor, keys: Tensor | None = None) -> Tensor:
        """(B, L, D) -> (B, L, D): a whole sequence from its beginning.

        ``keys`` (B,) are what dropout inside the mixer is drawn from; see ``backbones.dropout``.
        """

    @abstractmethod
    def initial_state(self, like: Tensor) -> MixerState:
        """The state before the first position, for the batch, type and device of ``like`` (B, ...)."""

    @abstractmethod
    def advance(self, x: Tensor, state: MixerState) -> tuple[Tensor, MixerState]:
        """The next T positions (B, T, D), T from 1 -> their output (B, T, D), and the state after them.

        From the initial state with all positions at once, or with any split of them, the output is that of
        ``forward``. The state that is handed in stays as it is. In evaluation mode: nothing is dropped.
        """

    def own_groups(self) -> list[ParameterGroup]:
        """Parameters that the optimiser treats in a way of their own: without decay, or at their own learning rate.
        Groups of one name are joined over all mixers; all other parameters follow the rule of ``Algorithm``."""
        return []


Norms: TypeAlias = Literal["post", "pre"]
"""Where the norm of a residual branch stands: norm(x + f(x)), or x + f(norm(x))."""


class Residual(nn.Module):
    """A residual branch: norm(x + drop(f(x))), or x + drop(f(norm(x)))."""

    def __init__(self, norm: nn.Module, placement: Norms, dropout: float) -> None:
        super().__init__()
        self.norm = norm
        self.placement = placement
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, branch: Callable[[Tensor], Tensor], keys: Tensor | None = None) -> Tensor:
        """(B, L, D) -> (B, L, D)."""
        y: Tensor
        if self.placement == "pre":
            y = x + self.dropout(branch(self.norm(x)), keys)
        else:
            y = self.norm(x + self.dropout(branch(x), keys))
        return y


class Block(nn.Module):
    """A mixer and, unless it is None, a feed-forward network (..., D) -> (..., D), each in a residual branch.

    Args:
        norm: makes the norm of a branch; called once for each.
        placement: where norms stand.
        dropout: rate, at the end of each branch.
    """

    def __init__(
        self,
        mixer: Mixer,
        feed_forward: nn.Module | None,
        norm: Callable[[], nn.Module],
        placement: Norms,
        dropout: float,
    ) -> None:
        super().__init__()
        self.mixer = mixer
        self.mixing = Residual(norm(), placement, dropout)
        self.feed_forward = feed_forward
        self.feeding = None if feed_forward is None else Residual(norm(), placement, dropout)

    def forward(self, x: Tensor, keys: Tensor | None = None) -> Tensor:
        """(B, L, D) -> (B, L, D)."""
        x = self.mixing(x, lambda rows: self.mixer(rows, keys), keys)
        return self._fed(x, keys)

    def advance(self, x: Tensor, state: MixerState) -> tuple[Tensor, MixerState]:
        """As the mixer's."""
        after: list[MixerState] = []

        def mix(rows: Tensor) -> Tensor:
            y, new = self.mixer.advance(rows, state)
            after.append(new)
            return y

        x = self.mixing(x, mix)
        return self._fed(x, None), after[0]

    def _fed(self, x: Tensor, keys: Tensor | None) -> Tensor:
        if self.feeding is None or self.feed_forward is None:
            return x
        y: Tensor = self.feeding(x, self.feed_forward, keys)
        return y


@dataclass(frozen=True)
class StackState:
    """What a network keeps of the positions that it has seen."""

    position: int
    """How many they are."""
    layers: tuple[MixerState, ...]
    """Of each block's mixer."""

    def select(self, rows: Tensor) -> StackState:
        """Some rows of the batch, in this order, any of them more than once: beams go on from the best ones."""
        kept = tuple(tuple(part.index_select(0, rows) for part in layer) for layer in self.layers)
        return StackState(self.position, kept)

    @property
    def bytes(self) -> int:
        """Memory of all tensors."""
        return sum(part.numel() * part.element_size() for layer in self.layers for part in layer)


class Stack(nn.Module):
    """Blocks one after another: embedded positions (B, L, D) -> (B, L, D), causal.

    Args:
        blocks: from the first to the last.
        width: D.
        positions: (first, count, like) -> what is added to the embeddings of ``count`` positions from ``first`` on,
            (count, D); None where the mixers need none.
        dropout: rate on the sum of embeddings and positions.
        norm: after the last block; None where the blocks end with a norm.
        embedding_std: standard deviation with which the embeddings of tokens begin.
        embedding_scale: factor on the embeddings of tokens.
    """

    def __init__(
        self,
        blocks: Sequence[Block],
        *,
        width: int,
        positions: Callable[[int, int, Tensor], Tensor] | None = None,
        dropout: float = 0.0,
        norm: nn.Module | None = None,
        embedding_std: float = 0.02,
        embedding_scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.width, self.embedding_std, self.embedding_scale = width, embedding_std, embedding_scale
        self._positions = positions
        self.dropout = Dropout(dropout)
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.Identity() if norm is None else norm

    def forward(self, x: Tensor, keys: Tensor | None = None) -> Tensor:
        """(B, L, D) -> (B, L, D): a whole sequence from its beginning. ``keys`` (B,): what dropout is drawn from."""
        x = self.dropout(self._placed(x, 0), keys)
        for block in self.blocks:
            x = block(x, keys)
        y: Tensor = self.norm(x)
        return y

    def initial_state(self, like: Tensor) -> StackState:
        """Before the first position, for the batch, type and device of ``like`` (B, ...)."""
        return StackState(0, tuple(block.mixer.initial_state(like) for block in self._blocks))

    def advance(self, x: Tensor, state: StackState) -> tuple[Tensor, StackState]:
        """The next T positions (B, T, D) -> their output (B, T, D), and the state after them. In evaluation mode."""
        length = x.shape[1]
        x = self._placed(x, state.position)
        layers: list[MixerState] = []
        for block, before in zip(self._blocks, state.layers, strict=True):
            x, after = block.advance(x, before)
            layers.append(after)
        return self.norm(x), StackState(state.position + length, tuple(layers))

    @property
    def _blocks(self) -> list[Block]:
        return [block for block in self.blocks if isinstance(block, Block)]

    def _placed(self, x: Tensor, first: int) -> Tensor:
        return x if self._positions is None else x + self._positions(first, x.shape[1], x)


@dataclass(frozen=True, kw_only=True)
class NetworkConfig(ABC):
    """What all networks have in common; a paper's own config follows it."""

    type: str
    """Which network this is."""
    width: int = 512
    """D, of embeddings and of what goes from block to block."""
    depth: int = 6
    """Blocks."""
    dropout: float = 0.1
    """Rate, on the embeddings and at the end of each residual branch."""

    def __post_init__(self) -> None:
        for name in ("width", "depth"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is {self.dropout}; it must be at least 0 and below 1")

    @abstractmethod
    def build(self) -> Stack:
        """The network, with its initial weights."""


def grouped(module: nn.Module) -> list[ParameterGroup]:
    """The parameters of a model with mixers: each mixer's own groups, joined by name, then the weights, which decay,
    and biases and norms, which do not. Whoever trains a ``Stack`` gives these as ``parameter_groups``."""
    own: dict[str, ParameterGroup] = {}
    for mixer in (part for part in module.modules() if isinstance(part, Mixer)):
        for group in mixer.own_groups():
            known = own.setdefault(
                group.name,
                ParameterGroup(group.name, [], group.regularized, group.learning_rate_scale, group.learning_rate),
            )
            known.parameters.extend(group.parameters)
    taken = {id(parameter) for group in own.values() for parameter in group.parameters}
    rest = [p for p in module.parameters() if p.requires_grad and id(p) not in taken]
    weights = ParameterGroup("weights", [p for p in rest if p.ndim > 1], True)
    free = ParameterGroup("bias_and_norm", [p for p in rest if p.ndim <= 1], False)
    return [group for group in (weights, free, *own.values()) if group.parameters]


def rms_norm(width: int) -> Callable[[], nn.Module]:
    """Makes the norms of Mamba: x / sqrt(mean(x^2)) times a learned gain."""
    return lambda: nn.RMSNorm(width, eps=1e-5)


def layer_norm(width: int) -> Callable[[], nn.Module]:
    """Makes layer norms."""
    return lambda: nn.LayerNorm(width, eps=1e-6)


@torch.no_grad()
def embedding(vocabulary: int, stack: Stack) -> nn.Embedding:
    """An embedding of tokens as a network wants it to begin."""
    made = nn.Embedding(vocabulary, stack.width)
    nn.init.normal_(made.weight, std=stack.embedding_std)
    return made
