"""Networks between pictures and vectors: fully connected, and convolutional with strides in place of pooling.

A network is a function of vectors or pictures alone; what its outputs mean (means, log-variances, logits) is the
method's business.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Literal, TypeAlias

import torch
from torch import Tensor, nn

from heliostat_algorithms.algorithm import OneOf

Shape: TypeAlias = tuple[int, int, int]
"""(C, H, W)."""
Activation: TypeAlias = Literal["tanh", "relu", "leaky-relu"]

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "tanh": nn.Tanh,
    "relu": nn.ReLU,
    "leaky-relu": lambda: nn.LeakyReLU(0.2),
}


def layers(widths: list[int], activation: Activation) -> list[nn.Module]:
    """Linear layers from each width to the next, with an activation after all but the last."""
    parts: list[nn.Module] = []
    for before, after in pairwise(widths):
        parts += [nn.Linear(before, after), ACTIVATIONS[activation]()]
    return parts[:-1]


@dataclass(frozen=True, kw_only=True)
class Network(ABC):
    """A pair of networks that belong together."""

    type: str
    """Which networks these are."""

    @abstractmethod
    def encoder(self, shape: Shape, outputs: int) -> nn.Module:
        """Pictures (B, C, H, W) to vectors (B, outputs).

        Raises:
            ValueError: it cannot take pictures of this shape; says what would be right.
        """

    @abstractmethod
    def decoder(self, inputs: int, shape: Shape) -> nn.Module:
        """Vectors (B, inputs) to pictures (B, C, H, W); the last layer is linear.

        Raises:
            ValueError: it cannot make pictures of this shape; says what would be right.
        """


@dataclass(frozen=True, kw_only=True)
class FullyConnected(Network):
    """Fully connected layers, the same number of units in the encoder and, in reverse order, in the decoder."""

    type: Literal["mlp"] = "mlp"
    hidden: tuple[int, ...] = (500,)
    """Units of the encoder's hidden layers. Empty: linear maps, with which a VAE is probabilistic PCA."""
    activation: Activation = "tanh"
    """Between layers."""

    def __post_init__(self) -> None:
        if any(units < 1 for units in self.hidden):
            raise ValueError(f"hidden layers have units, so {list(self.hidden)} cannot be")

    def encoder(self, shape: Shape, outputs: int) -> nn.Module:
        return nn.Sequential(nn.Flatten(), *layers([math.prod(shape), *self.hidden, outputs], self.activation))

    def decoder(self, inputs: int, shape: Shape) -> nn.Module:
        widths = [inputs, *reversed(self.hidden), math.prod(shape)]
        return nn.Sequential(*layers(widths, self.activation), nn.Unflatten(1, shape))


@dataclass(frozen=True, kw_only=True)
class Convolutional(Network):
    """Convolutions of 4 x 4 that halve the picture, and transposed ones that double it, in the manner of DCGAN (Radford
    et al. 2015, arXiv 1511.06434): the encoder's channels grow as the map shrinks, the decoder mirrors it."""

    type: Literal["conv"] = "conv"
    channels: tuple[int, ...] = (32, 64)
    """Channels after each halving."""
    batch_norm: bool = False
    """Batch normalisation after all convolutions but the encoder's first and the decoder's last, as in DCGAN. The loss
    then compares the samples of a batch."""
    activation: Activation = "relu"
    """Of the decoder."""
    encoder_activation: Activation = "relu"
    """Of the encoder; DCGAN's discriminator: leaky-relu."""
    initialization: Literal["torch", "dcgan"] = "torch"
    """torch's own weights, or DCGAN's: normal with a standard deviation of 0.02, gains of normalisation around 1."""

    def __post_init__(self) -> None:
        if not self.channels or any(count < 1 for count in self.channels):
            raise ValueError(f"convolutions need channels, so {list(self.channels)} cannot be")

    def encoder(self, shape: Shape, outputs: int) -> nn.Module:
        parts: list[nn.Module] = []
        for before, after in pairwise([shape[0], *self.channels]):
            norm = self.batch_norm and bool(parts)
            parts.append(nn.Conv2d(before, after, 4, stride=2, padding=1, bias=not norm))
            parts += [nn.BatchNorm2d(after)] if norm else []
            parts.append(ACTIVATIONS[self.encoder_activation]())
        return self._initialized(
            nn.Sequential(*parts, nn.Flatten(), nn.Linear(math.prod(self._smallest(shape)), outputs))
        )

    def decoder(self, inputs: int, shape: Shape) -> nn.Module:
        smallest = self._smallest(shape)
        parts: list[nn.Module] = [nn.Linear(inputs, math.prod(smallest)), nn.Unflatten(1, smallest)]
        if self.batch_norm:
            parts.append(nn.BatchNorm2d(smallest[0]))
        for number, (before, after) in enumerate(pairwise([*reversed(self.channels), shape[0]])):
            last = number == len(self.channels) - 1
            norm = self.batch_norm and not last
            parts.append(ACTIVATIONS[self.activation]())
            parts.append(nn.ConvTranspose2d(before, after, 4, stride=2, padding=1, bias=not norm))
            parts += [nn.BatchNorm2d(after)] if norm else []
        return self._initialized(nn.Sequential(*parts))

    def _smallest(self, shape: Shape) -> Shape:
        """Of the last map."""
        factor = 2 ** len(self.channels)
        if shape[1] % factor or shape[2] % factor:
            raise ValueError(
                f"{len(self.channels)} halvings need pictures whose sides are multiples of {factor}, not "
                f"{shape[1]} x {shape[2]}; give fewer channels, or images of another size"
            )
        return self.channels[-1], shape[1] // factor, shape[2] // factor

    def _initialized(self, network: nn.Module) -> nn.Module:
        if self.initialization == "torch":
            return network
        for part in network.modules():
            if isinstance(part, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
                nn.init.normal_(part.weight, std=0.02)
            elif isinstance(part, nn.BatchNorm2d):
                nn.init.normal_(part.weight, 1.0, 0.02)
        return network


NetworkConfig: TypeAlias = Annotated[FullyConnected | Convolutional, OneOf()]
"""Either of them, told apart by ``type``."""


def walk(first: Tensor, second: Tensor, steps: int) -> Tensor:
    """(N, D), (N, D) -> (N, steps, D): straight ways from one to the other, both ends included."""
    share = torch.linspace(0, 1, steps, device=first.device, dtype=first.dtype).view(1, -1, 1)
    return first.unsqueeze(1).lerp(second.unsqueeze(1), share)
