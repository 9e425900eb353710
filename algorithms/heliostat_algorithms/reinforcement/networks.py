"""The networks of DQN up to their last hidden layer, and the choice of one for a kind of observation.

A network is a trunk, here, and a head (``heads``), which holds the last hidden layer: where value and advantage are two
streams, each has one of its own. Weights and biases begin as torch's own layers do, uniform within +-1 / sqrt(inputs),
which is also what the reference code of 2015 does.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, TypeAlias

from torch import Tensor, nn

from heliostat_algorithms.algorithm import OneOf


class Trunk(nn.Module):
    """Observations (B, ...) -> features (B, ``feature_dim``)."""

    def __init__(self, layers: nn.Sequential, feature_dim: int) -> None:
        super().__init__()
        self.layers = layers
        self.feature_dim = feature_dim

    def forward(self, x: Tensor) -> Tensor:
        features: Tensor = self.layers(x)
        return features


class Network(ABC):
    """What the configs of all networks give."""

    type: str

    @property
    @abstractmethod
    def width(self) -> int:
        """Units of the last hidden layer, in each stream of the head."""

    @abstractmethod
    def build(self, observation_shape: tuple[int, ...]) -> Trunk:
        """The trunk for stacked observations of this shape.

        Raises:
            ValueError: it cannot see such observations.
        """


@dataclass(frozen=True, kw_only=True)
class Convolutional(Network):
    """Convolutions over pictures without padding, each followed by a ReLU."""

    layers: ClassVar[tuple[tuple[int, int, int], ...]]
    """Filters, side of a filter and stride of each layer."""
    type: str
    """Which network this is."""
    hidden_units: int
    """Units of the layer behind the convolutions, in each stream where there are two."""

    def __post_init__(self) -> None:
        if self.hidden_units < 1:
            raise ValueError(f"hidden_units is {self.hidden_units}; it must be at least 1")

    @property
    def width(self) -> int:
        return self.hidden_units

    def build(self, observation_shape: tuple[int, ...]) -> Trunk:
        smallest = 1
        for _, side, stride in reversed(self.layers):
            smallest = (smallest - 1) * stride + side
        if len(observation_shape) != 3 or min(observation_shape[1:]) < smallest:
            raise ValueError(
                f"network {self.type} sees pictures (channels, height, width) of at least {smallest} x {smallest}, but "
                f"observations have the shape {observation_shape}; networks for others: minatar for small pictures, "
                "mlp for anything"
            )
        channels, height, width = observation_shape
        layers: list[nn.Module] = []
        for filters, side, stride in self.layers:
            layers += [nn.Conv2d(channels, filters, side, stride), nn.ReLU(inplace=True)]
            channels, height, width = filters, (height - side) // stride + 1, (width - side) // stride + 1
        return Trunk(nn.Sequential(*layers, nn.Flatten()), channels * height * width)


@dataclass(frozen=True, kw_only=True)
class Dqn2013(Convolutional):
    """Playing Atari with Deep Reinforcement Learning, Mnih et al. 2013 (arXiv 1312.5602), section 4.1."""

    layers: ClassVar[tuple[tuple[int, int, int], ...]] = ((16, 8, 4), (32, 4, 2))
    type: Literal["dqn-2013"] = "dqn-2013"
    hidden_units: int = 256
    """Units of the layer behind the convolutions, in each stream where there are two."""


@dataclass(frozen=True, kw_only=True)
class Dqn2015(Convolutional):
    """Human-level control through deep reinforcement learning, Mnih et al. 2015 (Nature 518), Methods."""

    layers: ClassVar[tuple[tuple[int, int, int], ...]] = ((32, 8, 4), (64, 4, 2), (64, 3, 1))
    type: Literal["dqn-2015"] = "dqn-2015"
    hidden_units: int = 512
    """Units of the layer behind the convolutions, in each stream where there are two; 512 in Rainbow too."""


@dataclass(frozen=True, kw_only=True)
class MinAtar(Convolutional):
    """For pictures of 10 x 10: MinAtar, Young and Tian 2019 (arXiv 1903.03176), section 4."""

    layers: ClassVar[tuple[tuple[int, int, int], ...]] = ((16, 3, 1),)
    type: Literal["minatar"] = "minatar"
    hidden_units: int = 128
    """Units of the layer behind the convolution, in each stream where there are two."""


@dataclass(frozen=True, kw_only=True)
class Mlp(Network):
    """Linear layers, each followed by a ReLU, for vectors; other observations are flattened."""

    type: Literal["mlp"] = "mlp"
    hidden_units: tuple[int, ...] = (256, 256)
    """Units of each hidden layer; the last one belongs to the head, once in each stream where there are two."""

    def __post_init__(self) -> None:
        if not self.hidden_units or min(self.hidden_units) < 1:
            raise ValueError(f"hidden_units is {list(self.hidden_units)}; it must be one or more numbers of at least 1")

    @property
    def width(self) -> int:
        return self.hidden_units[-1]

    def build(self, observation_shape: tuple[int, ...]) -> Trunk:
        units = math.prod(observation_shape)
        layers: list[nn.Module] = [nn.Flatten()]
        for wider in self.hidden_units[:-1]:
            layers += [nn.Linear(units, wider), nn.ReLU(inplace=True)]
            units = wider
        return Trunk(nn.Sequential(*layers), units)


NetworkConfig: TypeAlias = Annotated[Dqn2013 | Dqn2015 | MinAtar | Mlp, OneOf()]
"""Any network, told apart by ``type``: dqn-2013, dqn-2015, minatar, mlp."""
