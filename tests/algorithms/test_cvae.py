"""The CVAE: its objective by hand, its two estimates of one likelihood, and an answer with two modes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Bernoulli, Independent, Normal, kl_divergence

from heliostat_algorithms.algorithm import Clock, DataSpec
from heliostat_algorithms.evaluation.likelihood import log_mean_exp
from heliostat_algorithms.generative.cvae import CVAE, ConditionalNetworks, visible_values
from heliostat_algorithms.generative.likelihoods import Gaussian
from heliostat_algorithms.generative.likelihoods import Normal as NormalConfig
from heliostat_algorithms.randomness import Random

CLOCK = Clock(step=0, total_steps=10, steps_per_epoch=5, batch_size=4)


def draws(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def built(**config: Any) -> CVAE:
    torch.manual_seed(0)
    settings = CVAE.Config(hidden=(6,), latent=3, **config)
    return CVAE(settings, DataSpec(image_shape=(1, 4, 4), classes=None)).double()


def inputs(draw: int = 1) -> dict[str, Tensor]:
    x, y = (draws(4, 4, seed=1) > 0).double(), (draws(4, 12, seed=2) > 0).double()
    return {"x": x, "y": y, "noise": draws(4, draw, 3, seed=3), "prior_noise": draws(4, draw, 3, seed=4)}


def distribution(parameters: Tensor) -> Independent:
    mean, log_variance = parameters.chunk(2, dim=-1)
    return Independent(Normal(mean, (0.5 * log_variance).exp()), 1)


@pytest.mark.parametrize("alpha", [1.0, 0.3, 0.0])
def test_the_objective_is_that_of_the_formula(alpha: float) -> None:
    model, given = built(hybrid=alpha), inputs()
    n, x, y = model.networks, given["x"], given["y"]
    guess = n.baseline(x)
    q = distribution(n.recognition(torch.cat([x, y], 1)))
    p = distribution(n.prior_network(torch.cat([x, guess.sigmoid().detach()], 1)))

    def answered(z: Tensor) -> Tensor:
        return Independent(Bernoulli(logits=n.generation(torch.cat([x, z], 1))), 1).log_prob(y)

    z_q = q.base_dist.loc + q.base_dist.scale * given["noise"][:, 0]
    z_p = p.base_dist.loc + p.base_dist.scale * given["prior_noise"][:, 0]
    bound = answered(z_q) - kl_divergence(q, p)
    baseline = Independent(Bernoulli(logits=guess), 1).log_prob(y)
    expected = -(alpha * bound + (1 - alpha) * answered(z_p) + baseline).mean()
    loss = model(given, CLOCK).loss
    torch.testing.assert_close(loss, expected)
    parameters = list(model.parameters())
    pairs = zip(torch.autograd.grad(loss, parameters), torch.autograd.grad(expected, parameters), strict=True)
    for ours, other in pairs:
        torch.testing.assert_close(ours, other)
    model(given, CLOCK).loss.backward()
    still = all(float(parameter.grad.abs().max()) == 0 for parameter in n.recognition.parameters())
    assert still == (alpha == 0)


def test_the_baseline_learns_from_its_own_loss_alone() -> None:
    model, given = built(), inputs()
    model(given, CLOCK).loss.backward()
    own = model.networks.terms(given["x"], given["y"], given["noise"], None).baseline
    expected = torch.autograd.grad(-own.mean(), list(model.networks.baseline.parameters()))
    for parameter, gradient in zip(model.networks.baseline.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)


def test_without_divergence_where_recognition_says_what_the_prior_says(monkeypatch: pytest.MonkeyPatch) -> None:
    networks, given = built().networks, inputs()
    prior = networks.prior(given["x"], networks.guess(given["x"]))
    copy = Gaussian(prior.mean.clone(), prior.log_variance.clone())
    monkeypatch.setattr(networks, "posterior", lambda x, y: copy)
    terms = networks.terms(given["x"], given["y"], given["noise"], given["noise"])
    assert torch.equal(terms.kl, torch.zeros_like(terms.kl))
    torch.testing.assert_close(terms.log_likelihood, terms.stochastic)  # CVAE and GSNN are one then
    weights = [networks.log_weights(given["x"], given["y"], given["noise"], importance=kind) for kind in (True, False)]
    torch.testing.assert_close(*weights)


@torch.no_grad()
def test_both_estimates_are_of_one_likelihood() -> None:
    networks, given = built().networks, inputs()
    noise = draws(4, 100_000, 3, seed=8)
    estimates = [
        log_mean_exp(networks.log_weights(given["x"], given["y"], noise, importance=kind)) for kind in (True, False)
    ]
    torch.testing.assert_close(*estimates, rtol=0, atol=0.01)
    single = networks.log_weights(given["x"], given["y"], noise[:, :1], importance=True)[:, 0]
    assert float((estimates[0] - single).abs().max()) > 0.01  # it is not the same for every draw


def test_an_answer_with_two_modes_is_found_where_the_baseline_gives_their_mean() -> None:
    torch.manual_seed(1)
    likelihood = NormalConfig(scale="learned", deviation=0.3)
    networks = ConditionalNetworks(1, 1, 2, (32,), "tanh", likelihood)
    optimizer = torch.optim.Adam(networks.parameters(), lr=5e-3)
    for step in range(1500):
        random = Random(0, step, range(128))
        x = random.uniform("x", 1, low=1.0, high=2.0)
        y = x * (2.0 * random.bernoulli("sign", 0.5, 1) - 1) + 0.05 * random.normal("y", 1)
        terms = networks.terms(x, y, random.normal("noise", 1, 2), None)
        optimizer.zero_grad()
        (terms.kl - terms.log_likelihood - terms.baseline).mean().backward()
        optimizer.step()
    with torch.no_grad():
        x = torch.tensor([[1.2], [1.6]])
        z = networks.prior(x, networks.guess(x)).unsqueeze().sample(draws(2, 500, 2).float())
        answers = networks.generate(x, z)[..., 0]
        for value, found in zip(x[:, 0], answers, strict=True):
            shares = [float(((found - sign * value).abs() < 0.25).double().mean()) for sign in (1, -1)]
            assert min(shares) > 0.25
            assert sum(shares) > 0.8
        assert float(networks.guess(x).abs().max()) < 0.35


def test_which_quadrants_are_seen() -> None:
    maps = [visible_values((1, 3, 4), quadrants).view(3, 4).int().tolist() for quadrants in (1, 2, 3)]
    assert maps[0] == [[0, 0, 0, 0], [1, 1, 0, 0], [1, 1, 0, 0]]
    assert maps[1] == [[1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 0, 0]]
    assert maps[2] == [[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 0, 0]]
    with pytest.raises(ValueError, match="quadrants"):
        visible_values((1, 1, 4), 1)


def test_what_is_seen_stays_in_the_completions() -> None:
    model = built(likelihood=NormalConfig()).float().eval()
    images = torch.randint(0, 256, (3, 1, 4, 4), dtype=torch.uint8)
    panels = model.pictures({"image": images}, Random(0, -1, range(3)))["completions"]
    assert panels.images.shape == (3, 8, 1, 4, 4)
    torch.testing.assert_close(panels.images[:, 1], images / 255)
    for column in panels.images.unbind(1):
        torch.testing.assert_close(column[:, :, 2:, :2], images[:, :, 2:, :2] / 255)
    assert not torch.equal(panels.images[:, 3], panels.images[:, 4])
    hidden = torch.randint(0, 256, (3, 1, 4, 4), dtype=torch.uint8)
    hidden[:, :, 2:, :2] = images[:, :, 2:, :2]
    other = model.pictures({"image": hidden}, Random(0, -1, range(3)))["completions"]
    assert torch.equal(other.images[:, 2:], panels.images[:, 2:])  # nothing of what is hidden is known


@pytest.mark.parametrize(("config", "says"), [({"hybrid": 1.5}, "hybrid"), ({"draws": 0}, "draws")])
def test_wrong_settings_are_refused(config: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        CVAE.Config(**config)
