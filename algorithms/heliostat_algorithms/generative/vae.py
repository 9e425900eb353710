"""VAE: Auto-Encoding Variational Bayes, Kingma and Welling 2013 (arXiv 1312.6114).

A latent variable z ~ N(0, I) makes a picture x ~ p(x|z) through a decoder. An encoder guesses which z made a picture,
q(z|x) = N(mu(x), s(x)^2), and both learn by raising a lower bound of log p(x) (equation 10),

    ELBO(x) = E_q[log p(x|z)] - KL(q(z|x) || N(0, I)),      z = mu + s * noise,

with the first term from a few draws of z and the second in closed form (appendix B).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from heliostat_algorithms.algorithm import Algorithm, Batch, Clock, DataSpec, Inputs, Panels, Sampled, Step, Wish
from heliostat_algorithms.encoder import Encoder
from heliostat_algorithms.generative.likelihoods import (
    AnyLikelihood,
    Bernoulli,
    Gaussian,
    kl_from_standard,
    split,
    standard,
)
from heliostat_algorithms.generative.networks import FullyConnected, NetworkConfig, Shape, walk
from heliostat_algorithms.objectives.spread import spread
from heliostat_algorithms.randomness import Random

_WALK = 9
"""Pictures on a way through the latent space."""


class Recognition(Encoder):
    """q(z|x). As a representation it is the mean of z."""

    def __init__(self, network: nn.Module, latent: int) -> None:
        super().__init__()
        self.network, self.feature_dim = network, latent

    def posterior(self, x: Tensor) -> Gaussian:
        """(B, C, H, W) -> q(z|x) of each."""
        return split(self.network(x))

    def forward(self, images: Tensor) -> Tensor:
        return self.posterior(images).mean

    def sequence(self, images: Tensor) -> Tensor:
        return self.posterior(images).mean.unsqueeze(1)


class VAE(Algorithm):
    """VAE (Kingma and Welling 2013): encoder and decoder raise a lower bound of the likelihood together."""

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """The paper's choices for MNIST: one hidden layer of 500 units."""

        type: Literal["vae"] = "vae"
        network: NetworkConfig = field(default_factory=FullyConnected)
        """Encoder and decoder."""
        latent: int = 20
        """Z, the dimensions of z. The paper shows 3 to 200 for MNIST; superfluous ones do not overfit (figure 2)."""
        likelihood: AnyLikelihood = field(default_factory=Bernoulli)
        """p(x|z)."""
        draws: int = 1
        """L, draws of z for each picture in a step; 1 is enough with batches of 100 (section 2.3)."""

        def __post_init__(self) -> None:
            for name in ("latent", "draws"):
                if getattr(self, name) < 1:
                    raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")

    def __init__(self, config: Config, data: DataSpec) -> None:
        super().__init__(config, data)
        self.config = config
        self.shape: Shape = data.image_shape
        channels, *size = data.image_shape
        self.likelihood = config.likelihood.build()
        self.recognition = Recognition(config.network.encoder(self.shape, 2 * config.latent), config.latent)
        self.decoder = config.network.decoder(config.latent, (self.likelihood.outputs * channels, size[0], size[1]))

    @classmethod
    def is_separable(cls, config: Config) -> bool:
        """The bound is a mean over pictures, unless batch normalisation mixes them."""
        return not getattr(config.network, "batch_norm", False)

    def prepare(self, batch: Batch, clock: Clock, random: Random) -> Inputs:
        """``x`` (B, C, H, W), as the likelihood takes pictures, and ``noise`` (B, L, Z) standard normal."""
        x = self.likelihood.observed(self.whole(batch["image"]), random)
        return {"x": x, "noise": random.normal("noise", self.config.draws, self.config.latent)}

    def forward(self, inputs: Inputs, clock: Clock) -> Step:
        """Minus the mean ELBO of the rows, in nats."""
        q = self.recognition.posterior(inputs["x"])
        log_likelihood, kl = self._terms(q, inputs["x"], inputs["noise"])
        loss = (kl - log_likelihood).mean()
        metrics = {"reconstruction": -log_likelihood.mean(), "kl": kl.mean(), "feature_std": spread(q.mean)}
        return Step(loss, {name: value.detach() for name, value in metrics.items()})

    def _terms(self, q: Gaussian, x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """(B,) E_q[log p(x|z)] by the draws ``noise`` (B, L, Z), and (B,) KL(q || prior)."""
        z = q.unsqueeze().sample(noise)
        return self._log_likelihood(z, x).mean(dim=1), kl_from_standard(q)

    def _log_likelihood(self, z: Tensor, x: Tensor) -> Tensor:
        """log p(x|z), (B, L): z (B, L, Z), x (B, C, H, W)."""
        return self.likelihood.log_density(self.decode(z), x.unsqueeze(1), dims=3)

    def decode(self, z: Tensor) -> Tensor:
        """(..., Z) -> (..., outputs * C, H, W): what the decoder says."""
        outputs: Tensor = self.decoder(z.flatten(end_dim=-2))
        return outputs.reshape(*z.shape[:-1], *outputs.shape[1:])

    def encoder(self) -> Encoder:
        return self.recognition

    # What evaluators of likelihoods ask

    def elbo(self, batch: Batch, random: Random) -> Tensor:
        """(B,) the bound of each stored sample, with one draw of z."""
        x = self.likelihood.observed(self.whole(batch["image"]), random)
        log_likelihood, kl = self._terms(
            self.recognition.posterior(x), x, random.normal("noise", 1, self.config.latent)
        )
        return log_likelihood - kl

    def log_weights(self, batch: Batch, draws: int, random: Random) -> Tensor:
        """(B, draws): log p(x, z) - log q(z|x) of draws of z from q, whose log-mean-exp bounds log p(x) ever tighter
        (Burda et al. 2015, arXiv 1509.00519)."""
        x = self.likelihood.observed(self.whole(batch["image"]), random)
        q = self.recognition.posterior(x).unsqueeze()
        z = q.sample(random.normal("noise", draws, self.config.latent))
        return self._log_likelihood(z, x) + standard(z).log_density(z) - q.log_density(z)

    def generate(self, random: Random) -> Tensor:
        """(rows, C, H, W) in [0, 1]: the means of p(x|z) for z from the prior."""
        return self._mean(random.normal("prior", self.config.latent))

    def _mean(self, z: Tensor) -> Tensor:
        return self.likelihood.mean(self.decode(z), dims=3).clamp(0, 1)

    # What people are shown

    def pictures(self, batch: Batch, random: Random) -> Mapping[str, Panels]:
        """The first pictures as they are seen, and what comes back from the mean of q."""
        x = self.likelihood.observed(self.whole(batch["image"]), random)
        back = self._mean(self.recognition.posterior(x).mean)
        return {"reconstructions": Panels(("seen", "reconstructed"), torch.stack([x, back], dim=1))}

    def sample(self, wish: Wish, random: Random) -> Mapping[str, Sampled]:
        """``samples`` from the prior, and ``walk``, straight ways between two draws from it."""
        ways = walk(random.normal("from", self.config.latent), random.normal("to", self.config.latent), _WALK)
        return {
            "samples": Panels.grid(self.generate(random)),
            "walk": Panels(("",) * _WALK, self._mean(ways)),
        }
