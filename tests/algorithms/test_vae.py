"""The VAE against densities of torch.distributions in float64, and against probabilistic PCA, whose likelihood is known
exactly."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, distributions
from torch.distributions import Independent, MultivariateNormal, Normal, kl_divergence

from heliostat_algorithms.algorithm import Clock, DataSpec, Wish
from heliostat_algorithms.evaluation.likelihood import log_mean_exp
from heliostat_algorithms.generative.likelihoods import Bernoulli, Gaussian, kl_between, kl_from_standard, standard
from heliostat_algorithms.generative.likelihoods import Normal as NormalConfig
from heliostat_algorithms.generative.networks import Convolutional, FullyConnected
from heliostat_algorithms.generative.vae import VAE
from heliostat_algorithms.randomness import Random

CLOCK = Clock(step=0, total_steps=10, steps_per_epoch=5, batch_size=4)


def draws(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def built(shape: tuple[int, int, int] = (1, 4, 4), **config: Any) -> VAE:
    torch.manual_seed(0)
    return VAE(VAE.Config(**config), DataSpec(image_shape=shape, classes=None)).double()


def gaussian(*shape: int, seed: int) -> Gaussian:
    return Gaussian(draws(*shape, seed=seed), 0.5 * draws(*shape, seed=seed + 1))


def reference(g: Gaussian) -> Independent:
    return Independent(Normal(g.mean, (0.5 * g.log_variance).exp()), 1)


def test_divergences_and_densities_are_those_of_torch_distributions() -> None:
    q, p = gaussian(5, 3, seed=1), gaussian(5, 3, seed=3)
    torch.testing.assert_close(kl_between(q, p), kl_divergence(reference(q), reference(p)))
    torch.testing.assert_close(kl_from_standard(q), kl_divergence(reference(q), reference(standard(q.mean))))
    torch.testing.assert_close(q.log_density(p.mean), reference(q).log_prob(p.mean))
    assert torch.equal(kl_between(q, q), torch.zeros(5, dtype=torch.float64))


def test_the_closed_form_of_the_divergence_is_what_draws_say() -> None:
    q = gaussian(1, 2, seed=5)
    z = q.sample(draws(400_000, 2, seed=7))
    terms = q.log_density(z) - standard(z).log_density(z)
    error = float(terms.std()) / math.sqrt(len(terms))
    assert abs(float(terms.mean() - kl_from_standard(q))) < 4 * error
    assert error < 0.01


def by_hand(model: VAE, x: Tensor, noise: Tensor) -> Tensor:
    """Minus the ELBO of one sample after another, from distributions."""
    losses = []
    for row in range(len(x)):
        mean, log_variance = model.recognition.network(x[row : row + 1])[0].chunk(2)
        q = Independent(Normal(mean, (0.5 * log_variance).exp()), 1)
        log_likelihood = 0.0
        for z in mean + noise[row] * (0.5 * log_variance).exp():
            said = model.decoder(z[None])[0]
            if model.likelihood.outputs == 2:
                p: Any = Normal(said[: len(said) // 2], (0.5 * said[len(said) // 2 :]).exp())
            elif isinstance(model.config.likelihood, Bernoulli):
                p = distributions.Bernoulli(logits=said)
            else:
                p = Normal(said, (0.5 * model.likelihood.log_variance).exp())
            log_likelihood = log_likelihood + p.log_prob(x[row]).sum() / len(noise[row])
        prior = Independent(Normal(torch.zeros_like(mean), torch.ones_like(mean)), 1)
        losses.append(kl_divergence(q, prior) - log_likelihood)
    return torch.stack(losses).mean()


@pytest.mark.parametrize(
    ("network", "likelihood"),
    [
        (FullyConnected(hidden=(7,)), Bernoulli()),
        (FullyConnected(hidden=(7, 5), activation="relu"), NormalConfig()),
        (FullyConnected(hidden=()), NormalConfig(scale="learned", deviation=0.3)),
        (Convolutional(channels=(3, 5)), NormalConfig(scale="fixed", deviation=0.5)),
        (Convolutional(channels=(3,)), NormalConfig()),
    ],
)
def test_loss_and_gradients_are_those_of_the_formula(network: Any, likelihood: Any) -> None:
    model = built((2, 4, 4), network=network, latent=3, likelihood=likelihood, draws=2)
    x = (draws(4, 2, 4, 4, seed=9) > 0).double()
    noise = draws(4, 2, 3, seed=10)
    loss = model({"x": x, "noise": noise}, CLOCK).loss
    expected = by_hand(model, x, noise)
    torch.testing.assert_close(loss, expected)
    parameters = list(model.parameters())
    for ours, other in zip(
        torch.autograd.grad(loss, parameters), torch.autograd.grad(expected, parameters), strict=True
    ):
        torch.testing.assert_close(ours, other)


def pca(exact: bool) -> tuple[VAE, MultivariateNormal, Tensor]:
    """A linear VAE with orthogonal directions, p(x), and some x. Its encoder is the exact posterior, or a wrong one."""
    model = built(
        (1, 1, 4),
        network=FullyConnected(hidden=()),
        latent=2,
        likelihood=NormalConfig(scale="fixed", deviation=0.5),
    )
    model.whole = lambda images: images / 255  # type: ignore[method-assign]  # in float64
    w = torch.linalg.qr(draws(4, 4, seed=11)).Q[:, :2] * torch.tensor([1.5, 0.7], dtype=torch.float64)
    offset, variance = draws(4, seed=12), 0.25
    precision = w.T @ w / variance + torch.eye(2, dtype=torch.float64)  # diagonal, as q has to be
    decoder, encoder = model.decoder[0], model.recognition.network[1]  # type: ignore[index]
    back = precision.inverse() @ w.T / variance
    with torch.no_grad():
        decoder.weight.copy_(w)
        decoder.bias.copy_(offset)
        encoder.weight.zero_()
        encoder.weight[:2] = back if exact else 0.8 * back
        encoder.bias[:2] = -encoder.weight[:2] @ offset + (0.0 if exact else 0.3)
        encoder.bias[2:] = -precision.diagonal().log() + (0.0 if exact else 0.4)
    p = MultivariateNormal(offset, w @ w.T + variance * torch.eye(4, dtype=torch.float64))
    return model, p, p.mean + draws(6, 4, seed=13) @ torch.linalg.cholesky(p.covariance_matrix).T


def posterior_of(model: VAE, x: Tensor) -> MultivariateNormal:
    w, offset, variance = model.decoder[0].weight, model.decoder[0].bias, 0.25  # type: ignore[index]
    covariance = (w.T @ w / variance + torch.eye(2, dtype=torch.float64)).inverse()
    return MultivariateNormal((x - offset) @ w @ covariance / variance, covariance)


@torch.no_grad()
def test_at_the_exact_posterior_of_a_linear_decoder_every_draw_gives_the_likelihood() -> None:
    model, p, x = pca(exact=True)
    expected = p.log_prob(x)
    weights = model.log_weights({"image": 255 * x.view(6, 1, 1, 4)}, 50, Double(range(6)))
    torch.testing.assert_close(weights, expected[:, None].expand(-1, 50), rtol=0, atol=1e-6)
    q = model.recognition.posterior(x.view(6, 1, 1, 4))
    noise = draws(6, 100_000, 2, seed=14)
    log_likelihood, kl = model._terms(q, x.view(6, 1, 1, 4), noise)
    torch.testing.assert_close(log_likelihood - kl, expected, rtol=0, atol=0.03)


@torch.no_grad()
def test_the_gap_of_the_bound_is_the_divergence_from_the_posterior() -> None:
    model, p, x = pca(exact=False)
    pictures = x.view(6, 1, 1, 4)
    q = model.recognition.posterior(pictures)
    log_likelihood, kl = model._terms(q, pictures, draws(6, 200_000, 2, seed=15))
    gap = p.log_prob(x) - (log_likelihood - kl)
    q_full = MultivariateNormal(q.mean, torch.diag_embed(q.log_variance.exp()))
    expected = kl_divergence(q_full, posterior_of(model, x))
    assert (expected > 0.1).all()
    torch.testing.assert_close(gap, expected, rtol=0.02, atol=0.02)


class Double(Random):
    """Draws in float64."""

    def __init__(self, rows: range, seed: int = 0) -> None:
        super().__init__(seed, 0, rows)

    def normal(self, stream: str, *shape: int) -> Tensor:
        return super().normal(stream, *shape).double()


@torch.no_grad()
def test_bounds_of_more_samples_are_tighter_and_reach_the_likelihood() -> None:
    model, p, x = pca(exact=False)
    weights = model.log_weights({"image": 255 * x.view(6, 1, 1, 4)}, 1 << 15, Double(range(6)))
    bounds = [float(log_mean_exp(weights.view(6, -1, k)).mean()) for k in (1, 2, 8, 64, 1 << 15)]
    assert bounds == sorted(bounds)
    assert bounds[1] > bounds[0] + 0.05
    exact = float(p.log_prob(x).mean())
    assert bounds[-1] <= exact + 0.01
    assert bounds[-1] == pytest.approx(exact, abs=0.02)
    singles = [model.elbo({"image": 255 * x.view(6, 1, 1, 4)}, Double(range(6), seed)) for seed in range(400)]
    assert float(torch.stack(singles).mean()) == pytest.approx(bounds[0], abs=0.05)


def test_pixels_become_bits_with_their_own_probability() -> None:
    pixels = torch.tensor([0.0, 0.25, 0.5, 1.0]).expand(20_000, 4)
    random = Random(0, 0, range(20_000))
    drawn = Bernoulli().build().observed(pixels, random)
    assert set(drawn.unique().tolist()) == {0.0, 1.0}
    torch.testing.assert_close(drawn.mean(0), pixels[0], rtol=0, atol=0.02)
    assert torch.equal(
        Bernoulli(binarize="threshold").build().observed(pixels, random)[0], torch.tensor([0, 0, 1, 1.0])
    )
    assert torch.equal(Bernoulli(binarize="none").build().observed(pixels, random), pixels)


def test_what_probes_and_people_see() -> None:
    model = VAE(VAE.Config(latent=3), DataSpec(image_shape=(1, 4, 4), classes=None)).eval()
    images = torch.randint(0, 256, (5, 1, 4, 4), dtype=torch.uint8)
    torch.testing.assert_close(model.features(images), model.recognition.posterior(images / 255).mean)
    assert model.token_features(images).shape == (5, 1, 3)
    random = Random(0, -1, range(5))
    made = model.sample(Wish(count=5, given={"image": images}), random)
    assert made["samples"].images.shape == (1, 5, 1, 4, 4)  # type: ignore[union-attr]
    walk = made["walk"].images  # type: ignore[union-attr]
    ends = model._mean(torch.stack([random.normal("from", 3), random.normal("to", 3)], dim=1))
    torch.testing.assert_close(walk[:, [0, -1]], ends)
    assert model.pictures({"image": images}, random)["reconstructions"].images.shape == (5, 2, 1, 4, 4)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: VAE.Config(latent=0), "latent is 0"),
        (lambda: NormalConfig(scale="fixed"), "needs a deviation"),
        (lambda: NormalConfig(deviation=1.0), "leave deviation out"),
        (lambda: FullyConnected(hidden=(0,)), "units"),
        (lambda: built((1, 6, 6), network=Convolutional(channels=(4, 4))), "multiples of 4"),
    ],
)
def test_wrong_settings_are_refused(make: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        make()
