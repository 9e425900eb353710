"""GAN: Generative Adversarial Networks, Goodfellow et al. 2014 (arXiv 1406.2661).

A generator G makes samples from noise, a discriminator D says how likely a sample is one of the data. In one step
(algorithm 1) D moves k times, each time with a minibatch of the data and one of noise of its own, to minimise

    -E_x[log D(x)] - E_z[log(1 - D(G(z)))],

and then G once, with new noise, to minimise -E_z[log D(G(z))] or, as the game is written in equation 1,
E_z[log(1 - D(G(z)))]. Both have the same fixed point; the first gives G gradients while D still rejects all it makes
(section 3).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from heliostat_algorithms.algorithm import (
    Algorithm,
    Batch,
    Clock,
    DataSpec,
    Inputs,
    Kind,
    Panels,
    ParameterGroup,
    Sampled,
    Scatter,
    Step,
    Turn,
    Wish,
)
from heliostat_algorithms.generative.networks import FullyConnected, NetworkConfig, Shape, walk
from heliostat_algorithms.randomness import Random

DISCRIMINATOR, GENERATOR = "discriminator", "generator"
_POINTS = 1000
"""So many points are made for a picture at least."""
_WALK = 9
"""Pictures on a way through the space of noise."""


def discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """-log D(x) - log(1 - D(G(z))), each a mean, from logits (B,) of D."""
    return F.softplus(-real).mean() + F.softplus(fake).mean()


def generator_loss(fake: Tensor, saturating: bool) -> Tensor:
    """-log D(G(z)) or, saturating, log(1 - D(G(z))); a mean, from logits (B,) of D."""
    return -F.softplus(fake).mean() if saturating else F.softplus(-fake).mean()


class GAN(Algorithm):
    """GAN (Goodfellow et al. 2014): a generator and a discriminator, two players of one step."""

    learns_from: ClassVar[frozenset[Kind]] = frozenset({"images", "points"})

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """Fully connected networks as in the paper, with ReLU in place of its maxout and without its dropout."""

        type: Literal["gan"] = "gan"
        generator: NetworkConfig = field(default_factory=lambda: FullyConnected(hidden=(1200, 1200), activation="relu"))
        """G; of the pair of networks it is the decoder. DCGAN: conv with batch_norm and initialization dcgan."""
        discriminator: NetworkConfig = field(
            default_factory=lambda: FullyConnected(hidden=(240, 240), activation="leaky-relu")
        )
        """D; of the pair of networks it is the encoder. DCGAN: as the generator, with encoder_activation leaky-relu."""
        noise: Literal["uniform", "normal"] = "uniform"
        """Of what G makes its samples: from -1 to 1, or standard normal."""
        noise_dim: int = 100
        """Numbers of noise for each sample."""
        discriminator_steps: int = 1
        """k, updates of D for each one of G; the paper has 1, "the least expensive option"."""
        saturating: bool = False
        """Whether G minimises log(1 - D(G(z))), as in equation 1."""
        discriminator_rate: float = 1.0
        """D's learning rate relative to G's, which is the optimiser's."""

        def __post_init__(self) -> None:
            for name in ("noise_dim", "discriminator_steps"):
                if getattr(self, name) < 1:
                    raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
            if not 0 < self.discriminator_rate < float("inf"):
                raise ValueError(f"discriminator_rate is {self.discriminator_rate}; it must be above 0 and finite")

    def __init__(self, config: Config, data: DataSpec) -> None:
        super().__init__(config, data)
        self.config, self.of_points = config, data.points
        self.shape: Shape = data.image_shape
        self.generator: nn.Module = config.generator.decoder(config.noise_dim, self.shape)
        self.discriminator: nn.Module = config.discriminator.encoder(self.shape, 1)

    @classmethod
    def turns(cls, config: Config) -> tuple[Turn, ...]:
        """D k times, each time with a minibatch of its own; then G, which sees none of the data."""
        k = config.discriminator_steps
        return (*(Turn(DISCRIMINATOR, minibatch) for minibatch in range(k)), Turn(GENERATOR, k - 1))

    @classmethod
    def is_separable(cls, config: Config) -> bool:
        """Both losses are means over samples, unless batch normalisation mixes them."""
        return not any(getattr(network, "batch_norm", False) for network in (config.generator, config.discriminator))

    def parameter_groups(self) -> list[ParameterGroup]:
        """Weights and biases of each player."""
        rates = {GENERATOR: 1.0, DISCRIMINATOR: self.config.discriminator_rate}
        return [
            ParameterGroup(f"{player}_{kind}", parameters, kind == "weights", rates[player], player=player)
            for player in (DISCRIMINATOR, GENERATOR)
            for kind in ("weights", "bias_and_norm")
            if (
                parameters := [
                    p for p in self.get_submodule(player).parameters() if (p.ndim > 1) == (kind == "weights")
                ]
            )
        ]

    def prepare(self, batch: Batch, clock: Clock, random: Random) -> Inputs:
        """``noise`` (B, noise_dim) and, in D's turns, ``real`` (B, C, H, W): pixels from -1 to 1, or points."""
        noise = self._noise("noise", random)
        if clock.turn.player == GENERATOR:
            return {"noise": noise}
        return {"noise": noise, "real": self._real(batch)}

    def forward(self, inputs: Inputs, clock: Clock) -> Step:
        """The loss of the player whose turn it is."""
        made = self.make(inputs["noise"])
        fake = self.logits(made)
        if clock.turn.player == GENERATOR:
            return Step(generator_loss(fake, self.config.saturating))
        real = self.logits(inputs["real"])
        believes = {"on_data": real.sigmoid().mean().detach(), "on_samples": fake.sigmoid().mean().detach()}
        return Step(discriminator_loss(real, fake), believes)

    def make(self, noise: Tensor) -> Tensor:
        """(B, noise_dim) -> (B, C, H, W): G(z), as D sees samples."""
        outputs: Tensor = self.generator(noise)
        return outputs if self.of_points else outputs.tanh()

    def logits(self, samples: Tensor) -> Tensor:
        """(B, C, H, W) -> (B,): the logit of D."""
        said: Tensor = self.discriminator(samples)
        return said.squeeze(1)

    def _real(self, batch: Batch) -> Tensor:
        return batch["point"].view(-1, *self.shape) if self.of_points else 2 * self.whole(batch["image"]) - 1

    def _noise(self, stream: str, random: Random) -> Tensor:
        if self.config.noise == "normal":
            return random.normal(stream, self.config.noise_dim)
        return random.uniform(stream, self.config.noise_dim, low=-1.0, high=1.0)

    def generate(self, random: Random) -> Tensor:
        """(rows, C, H, W) in [0, 1], or points (rows, D)."""
        return self._shown(self.make(self._noise("samples", random)))

    def _shown(self, made: Tensor) -> Tensor:
        return made.flatten(1) if self.of_points else (made + 1) / 2

    def sample(self, wish: Wish, random: Random) -> Mapping[str, Sampled]:
        """``samples`` and, of pictures, ``walk``: straight ways from the noise of one to that of another. Points can be
        shown in the plane only."""
        if self.of_points:
            if self.shape[-1] != 2:
                return {}
            points = self.generate(random.whole(max(wish.count, _POINTS)))
            return {"samples": Scatter(points, wish.given["point"])}
        made = self.generate(random)
        ways = walk(self._noise("from", random), self._noise("to", random), _WALK)
        pictures = self._shown(self.make(ways.flatten(0, 1))).reshape(*ways.shape[:2], *self.shape)
        return {"samples": Panels.grid(made), "walk": Panels(("",) * _WALK, pictures)}
