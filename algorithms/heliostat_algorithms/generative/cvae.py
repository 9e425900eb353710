"""CVAE: Learning Structured Output Representation using Deep Conditional Generative Models, Sohn, Lee and Yan, NIPS
2015.

What is missing of a sample, y, is predicted from what is there, x, where one x has many right answers. A latent
variable chooses between them (equation 4),

    log p(y|x) >= E_q[log p(y|x, z)] - KL(q(z|x, y) || p(z|x)),

with a recognition network q, a prior network p(z|x) and a generation network p(y|x, z). A deterministic network, the
baseline, makes a first guess of y, which the prior network is shown beside x ("recurrent connection", section 3.2).

Samples come from the prior network, and training sees those of q. To bring the two together, the hybrid objective
(equation 7) adds E_p(z|x)[log p(y|x, z)], that of a Gaussian stochastic network.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from heliostat_algorithms.algorithm import Algorithm, Batch, Clock, DataSpec, Inputs, Panels, Sampled, Step, Wish
from heliostat_algorithms.generative.likelihoods import (
    AnyLikelihood,
    Bernoulli,
    Gaussian,
    LikelihoodConfig,
    kl_between,
    split,
)
from heliostat_algorithms.generative.networks import Activation, layers
from heliostat_algorithms.randomness import Random

_GREY = 0.5
"""What stands in pictures where nothing is seen."""
_COMPLETIONS = 5
"""Different answers for each picture that is shown."""


@dataclass(frozen=True)
class Terms:
    """Of each sample (B,), in nats."""

    log_likelihood: Tensor
    """E_q[log p(y|x, z)]."""
    kl: Tensor
    """KL(q(z|x, y) || p(z|x))."""
    stochastic: Tensor
    """E_p(z|x)[log p(y|x, z)]: the objective of a Gaussian stochastic network."""
    baseline: Tensor
    """log p(y|x) of the baseline."""


class ConditionalNetworks(nn.Module):
    """The four networks, on vectors x (B, X) and y (B, Y).

    Args:
        x_dim, y_dim, latent: X, Y and Z.
        hidden: units of the hidden layers of each network.
        likelihood: p(y|x, z), and that of the baseline, whose scale is its own where it is learned.
        baseline_guess: whether the prior network is shown the baseline's guess.
    """

    def __init__(
        self,
        x_dim: int,
        y_dim: int,
        latent: int,
        hidden: tuple[int, ...],
        activation: Activation,
        likelihood: LikelihoodConfig,
        baseline_guess: bool = True,
    ) -> None:
        super().__init__()

        def network(inputs: int, outputs: int) -> nn.Module:
            return nn.Sequential(*layers([inputs, *hidden, outputs], activation))

        self.latent, self.baseline_guess = latent, baseline_guess
        self.likelihood, self.baseline_likelihood = likelihood.build(), likelihood.build()
        self.baseline = network(x_dim, self.likelihood.outputs * y_dim)
        self.prior_network = network(x_dim + (y_dim if baseline_guess else 0), 2 * latent)
        self.recognition = network(x_dim + y_dim, 2 * latent)
        self.generation = network(x_dim + latent, self.likelihood.outputs * y_dim)

    def guess(self, x: Tensor) -> Tensor:
        """(B, outputs * Y): what the baseline says."""
        said: Tensor = self.baseline(x)
        return said

    def prior(self, x: Tensor, guess: Tensor) -> Gaussian:
        """p(z|x). The baseline learns from its own loss alone: no gradient goes back through its guess."""
        shown = self.likelihood.mean(guess, dims=1).detach()
        return split(self.prior_network(torch.cat([x, shown], dim=1) if self.baseline_guess else x))

    def posterior(self, x: Tensor, y: Tensor) -> Gaussian:
        """q(z|x, y)."""
        return split(self.recognition(torch.cat([x, y], dim=1)))

    def generate(self, x: Tensor, z: Tensor) -> Tensor:
        """x (B, X), z (B, S, Z) -> (B, S, outputs * Y): what the generation network says."""
        rows = x.unsqueeze(1).expand(-1, z.shape[1], -1)
        said: Tensor = self.generation(torch.cat([rows, z], dim=2))
        return said

    def log_likelihood(self, x: Tensor, y: Tensor, z: Tensor) -> Tensor:
        """log p(y|x, z), (B, S)."""
        return self.likelihood.log_density(self.generate(x, z), y.unsqueeze(1), dims=1)

    def terms(self, x: Tensor, y: Tensor, noise: Tensor, prior_noise: Tensor | None) -> Terms:
        """All that the objective is made of; noise (B, S, Z), and other noise for the draws from the prior network,
        where those are wanted."""
        guess = self.guess(x)
        q, p = self.posterior(x, y), self.prior(x, guess)
        baseline = self.baseline_likelihood.log_density(guess, y, dims=1)
        stochastic = torch.zeros_like(baseline)
        if prior_noise is not None:
            stochastic = self.log_likelihood(x, y, p.unsqueeze().sample(prior_noise)).mean(dim=1)
        log_likelihood = self.log_likelihood(x, y, q.unsqueeze().sample(noise)).mean(dim=1)
        return Terms(log_likelihood, kl_between(q, p), stochastic, baseline)

    def log_weights(self, x: Tensor, y: Tensor, noise: Tensor, *, importance: bool) -> Tensor:
        """(B, S), whose log-mean-exp estimates log p(y|x): with draws from p(z|x) the likelihoods alone, with draws
        from q(z|x, y) weighed by p(z|x) / q(z|x, y)."""
        p = self.prior(x, self.guess(x)).unsqueeze()
        if not importance:
            return self.log_likelihood(x, y, p.sample(noise))
        q = self.posterior(x, y).unsqueeze()
        z = q.sample(noise)
        return self.log_likelihood(x, y, z) + p.log_density(z) - q.log_density(z)


class CVAE(Algorithm):
    """CVAE (Sohn et al. 2015): completes pictures of which one, two or three quadrants are seen."""

    separable = True

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """The experiment of section 5.1: MNIST in quadrants, fully connected networks."""

        type: Literal["cvae"] = "cvae"
        visible: Literal[1, 2, 3] = 1
        """Quadrants that are seen: the lower left one, the left half, or all but the lower right one."""
        hidden: tuple[int, ...] = (500, 500)
        """Units of the hidden layers of each of the four networks."""
        activation: Activation = "relu"
        """Between layers."""
        latent: int = 50
        """Z, the dimensions of z."""
        likelihood: AnyLikelihood = field(default_factory=Bernoulli)
        """p(y|x, z), and that of the baseline."""
        hybrid: float = 1.0
        """alpha: the objective is alpha CVAE + (1 - alpha) GSNN. 1: the plain bound; 0: a Gaussian stochastic network,
        whose recognition network learns nothing."""
        draws: int = 1
        """L, draws of z for each picture in a step."""
        baseline_guess: bool = True
        """Show the prior network the baseline's guess."""

        def __post_init__(self) -> None:
            for name in ("latent", "draws"):
                if getattr(self, name) < 1:
                    raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
            if any(units < 1 for units in self.hidden):
                raise ValueError(f"hidden layers have units, so {list(self.hidden)} cannot be")
            if not 0 <= self.hybrid <= 1:
                raise ValueError(f"hybrid is {self.hybrid}; it must be a share from 0 to 1")

    def __init__(self, config: Config, data: DataSpec) -> None:
        super().__init__(config, data)
        self.config = config
        self.seen: Tensor
        self.register_buffer("seen", visible_values(data.image_shape, config.visible), persistent=False)
        seen = int(self.seen.sum())
        self.networks = ConditionalNetworks(
            seen,
            self.seen.numel() - seen,
            config.latent,
            config.hidden,
            config.activation,
            config.likelihood,
            config.baseline_guess,
        )

    def prepare(self, batch: Batch, clock: Clock, random: Random) -> Inputs:
        """``x`` (B, X) and ``y`` (B, Y), what is seen and what is not, and ``noise`` (B, L, Z) standard normal;
        ``prior_noise`` for the draws of a hybrid objective."""
        x, y = self._parts(batch, random)
        noise = {"noise": random.normal("noise", self.config.draws, self.config.latent)}
        if self.config.hybrid < 1:
            noise["prior_noise"] = random.normal("prior", self.config.draws, self.config.latent)
        return {"x": x, "y": y, **noise}

    def forward(self, inputs: Inputs, clock: Clock) -> Step:
        """Minus the mean objective of the rows, and the baseline's loss, which has parameters of its own."""
        terms = self.networks.terms(inputs["x"], inputs["y"], inputs["noise"], inputs.get("prior_noise"))
        alpha = self.config.hybrid
        objective = alpha * (terms.log_likelihood - terms.kl) + (1 - alpha) * terms.stochastic
        metrics = {
            "reconstruction": -terms.log_likelihood.mean(),
            "kl": terms.kl.mean(),
            "baseline": -terms.baseline.mean(),
        }
        if alpha < 1:
            metrics["stochastic"] = -terms.stochastic.mean()
        loss = -(objective + terms.baseline).mean()
        return Step(loss, {name: value.detach() for name, value in metrics.items()})

    def _parts(self, batch: Batch, random: Random) -> tuple[Tensor, Tensor]:
        """Of pictures, as the likelihood takes them: the values that are seen and those that are not."""
        values = self.networks.likelihood.observed(self.whole(batch["image"]), random).flatten(1)
        return values[:, self.seen], values[:, ~self.seen]

    # What evaluators of likelihoods ask

    def conditional_log_weights(self, batch: Batch, draws: int, random: Random, *, importance: bool) -> Tensor:
        """(B, draws); see ``ConditionalNetworks.log_weights``."""
        x, y = self._parts(batch, random)
        noise = random.normal("noise", draws, self.config.latent)
        return self.networks.log_weights(x, y, noise, importance=importance)

    def baseline_log_likelihood(self, batch: Batch, random: Random) -> Tensor:
        """(B,): log p(y|x) of the baseline."""
        x, y = self._parts(batch, random)
        return self.networks.baseline_likelihood.log_density(self.networks.guess(x), y, dims=1)

    # What people are shown

    def pictures(self, batch: Batch, random: Random) -> Mapping[str, Panels]:
        """``completions``: what is seen, the whole picture, the baseline's guess and several completions."""
        x, y = self._parts(batch, random)
        networks, shape = self.networks, batch["image"].shape[1:]
        prior = networks.prior(x, networks.guess(x)).unsqueeze()
        z = prior.sample(random.normal("completions", _COMPLETIONS, self.config.latent))
        answers = networks.likelihood.mean(networks.generate(x, z), dims=1)
        guess = networks.likelihood.mean(networks.guess(x), dims=1)
        shown = [torch.full_like(y, _GREY), y, guess, *answers.unbind(dim=1)]
        titles = ("seen", "whole", "baseline", *(f"sample {number + 1}" for number in range(_COMPLETIONS)))
        columns = [self._joined(x, values).view(-1, *shape) for values in shown]
        return {"completions": Panels(titles, torch.stack(columns, dim=1).clamp(0, 1))}

    def sample(self, wish: Wish, random: Random) -> Mapping[str, Sampled]:
        """Completions of the given pictures."""
        some = {name: values[: wish.count] for name, values in wish.given.items()}
        return self.pictures(some, random.whole(len(some["image"])))

    def _joined(self, x: Tensor, y: Tensor) -> Tensor:
        """(B, X + Y): the values in their places again."""
        values = x.new_empty(len(x), self.seen.numel())
        values[:, self.seen], values[:, ~self.seen] = x, y
        return values


def visible_values(shape: tuple[int, int, int], quadrants: int) -> Tensor:
    """(C * H * W,) bool: which values of a flattened picture are seen, with the first quadrants of: lower left, upper
    left, upper right.

    Raises:
        ValueError: the picture is too small to have quadrants.
    """
    _, height, width = shape
    if min(height, width) < 2:
        raise ValueError(f"pictures of {height} x {width} have no quadrants")
    seen = torch.zeros(shape, dtype=torch.bool)
    upper, lower = slice(height // 2), slice(height // 2, None)
    left, right = slice(width // 2), slice(width // 2, None)
    for rows, columns in [(lower, left), (upper, left), (upper, right)][:quadrants]:
        seen[:, rows, columns] = True
    return seen.flatten()
