"""What turns features into the values of actions: one stream, or two (dueling); with noisy layers or plain ones.

For each action a head gives N numbers (``distributions`` says what they mean): one value, or the logits of atoms, or
quantiles.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heliostat_algorithms.randomness import Random
from heliostat_algorithms.reinforcement.noisy import NoisyLinear, scaled_noise


class Stream(nn.Module):
    """(B, features) -> (B, outputs): a hidden layer with a ReLU, and the last layer.

    Args:
        sigma: where set, both layers are noisy and their noise begins with this (see ``NoisyLinear``).
    """

    def __init__(self, feature_dim: int, width: int, outputs: int, sigma: float | None) -> None:
        super().__init__()
        self.hidden, self.last = _linear(feature_dim, width, sigma), _linear(width, outputs, sigma)
        self.noise_sizes = [sum(getattr(layer, "noise_sizes", [])) for layer in (self.hidden, self.last)]
        """How many numbers of noise each layer takes; 0 where it is plain."""

    def forward(self, features: Tensor, noise: Tensor | None) -> Tensor:
        first, second = (None, None) if noise is None else torch.split(noise, self.noise_sizes, dim=1)
        hidden = F.relu(_through(self.hidden, features, first), inplace=True)
        return _through(self.last, hidden, second)


def _linear(in_dim: int, out_dim: int, sigma: float | None) -> nn.Linear | NoisyLinear:
    return nn.Linear(in_dim, out_dim) if sigma is None else NoisyLinear(in_dim, out_dim, sigma)


def _through(layer: nn.Module, x: Tensor, noise: Tensor | None) -> Tensor:
    y: Tensor = layer(x, noise) if isinstance(layer, NoisyLinear) else layer(x)
    return y


class Head(nn.Module):
    """One stream that gives all actions' values.

    Args:
        feature_dim: width of the features.
        width: units of the hidden layer.
        actions: A.
        outputs: N, numbers for each action.
        sigma: where set, layers are noisy.
    """

    def __init__(self, feature_dim: int, width: int, actions: int, outputs: int, sigma: float | None = None) -> None:
        super().__init__()
        self.shape = (actions, outputs)
        self.values = Stream(feature_dim, width, actions * outputs, sigma)

    @property
    def streams(self) -> list[Stream]:
        """In the order in which they take their noise."""
        return [self.values]

    def draw(self, random: Random) -> Tensor | None:
        """(rows, n): noise for the whole head, one draw for each row of ``random``; None where layers are plain."""
        size = sum(sum(stream.noise_sizes) for stream in self.streams)
        return scaled_noise(random, size) if size else None

    def forward(self, features: Tensor, noise: Tensor | None) -> Tensor:
        """(B, features) -> (B, A, N).

        Args:
            noise: what ``draw`` gave, one row for all or one for each; None: the mean parameters.
        """
        values: Tensor = self.values(features, noise)
        return values.view(-1, *self.shape)


class DuelingHead(Head):
    """Two streams, value and advantage: Dueling Network Architectures, Wang et al. 2015 (arXiv 1511.06581), equation 9:

        Q = V + A - mean of A over actions

    Of a distribution each of the N numbers is combined by itself, as in Rainbow (section 3 there).

    Args:
        feature_dim: width of the features.
        width: units of each stream's hidden layer.
        actions: A.
        outputs: N, numbers for each action.
        sigma: where set, layers are noisy.
        gradient_scale: factor on the gradient that the two streams together send into the trunk; 1 / sqrt(2) in the
            paper (section 4.2).
    """

    def __init__(
        self,
        feature_dim: int,
        width: int,
        actions: int,
        outputs: int,
        sigma: float | None = None,
        gradient_scale: float = math.sqrt(0.5),
    ) -> None:
        super().__init__(feature_dim, width, actions, outputs, sigma)
        self.gradient_scale = gradient_scale
        self.state_value = Stream(feature_dim, width, outputs, sigma)

    @property
    def streams(self) -> list[Stream]:
        """Advantage, then value."""
        return [self.values, self.state_value]

    def forward(self, features: Tensor, noise: Tensor | None) -> Tensor:
        """(B, features) -> (B, A, N); see ``Head``."""
        if self.gradient_scale != 1:
            features = features.detach().lerp(features, self.gradient_scale)
        first, second = None, None
        if noise is not None:
            first, second = torch.split(noise, [sum(stream.noise_sizes) for stream in self.streams], dim=1)
        advantage = self.values(features, first).view(-1, *self.shape)
        value = self.state_value(features, second).unsqueeze(1)
        combined: Tensor = value - advantage.mean(dim=1, keepdim=True) + advantage
        return combined
