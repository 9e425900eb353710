"""The diffusion process, its samplers and conditions, on Gaussians for which everything is known exactly."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import Tensor

from heliostat_algorithms.diffusion import DDIM, Ancestral, CosineSchedule
from heliostat_algorithms.diffusion.conditioning import classifier_free, reconstruction_guided, replacement
from heliostat_algorithms.diffusion.process import (
    Space,
    alpha_sigma,
    diffuse,
    loss_weight,
    posterior,
    squared_error,
    target,
    to_eps,
    to_x,
    transition_variance,
)
from heliostat_algorithms.diffusion.samplers import Denoiser, Sampler, generate
from heliostat_algorithms.randomness import Random

SCHEDULE = CosineSchedule()
SPACES: tuple[Space, ...] = get_args(Space)
LEVELS = torch.linspace(-18, 18, 13, dtype=torch.float64)
N = 40_000
MEAN, STD = 0.7, 0.4
RHO, SEEN = 0.8, 1.5


def draws(*shape: int, seed: int = 0) -> Tensor:
    return Random(seed, 0, range(shape[0])).normal("x", *shape[1:]).double()


def test_the_schedule_is_the_cosine_between_its_bounds() -> None:
    t = torch.linspace(0, 1, 101, dtype=torch.float64)
    log_snr = SCHEDULE.log_snr(t)
    assert float(log_snr[0]) == pytest.approx(20)
    assert float(log_snr[-1]) == pytest.approx(-20)
    assert (log_snr.diff() < 0).all()
    alpha, sigma = alpha_sigma(log_snr, log_snr)
    torch.testing.assert_close(alpha, torch.cos(0.5 * math.pi * t), rtol=0, atol=1e-4)
    torch.testing.assert_close(alpha.square() + sigma.square(), torch.ones_like(t))
    torch.testing.assert_close((alpha / sigma).log() * 2, log_snr)
    torch.testing.assert_close(SCHEDULE.time(log_snr), t)
    with pytest.raises(ValueError, match="first must be below"):
        CosineSchedule(min_log_snr=3, max_log_snr=2)


@pytest.mark.parametrize("space", SPACES)
def test_conversions_come_back(space: Space) -> None:
    x, eps = draws(13, 3, 2), draws(13, 3, 2, seed=1)
    z = diffuse(x, eps, LEVELS)
    said = target(space, x, eps, LEVELS)
    moderate = LEVELS.abs() < 13  # beyond, dividing by alpha or sigma costs the digits that are compared
    torch.testing.assert_close(to_x(space, said, z, LEVELS)[moderate], x[moderate])
    torch.testing.assert_close(to_eps(space, said, z, LEVELS)[moderate], eps[moderate])


def test_velocity_against_its_definition() -> None:
    """v is dz / dphi for the angle phi with z = cos(phi) x + sin(phi) eps."""
    x, eps, phi, h = 0.3, -1.2, 0.8, 1e-6
    slope = ((math.cos(phi + h) - math.cos(phi - h)) * x + (math.sin(phi + h) - math.sin(phi - h)) * eps) / (2 * h)
    level = torch.tensor([2 * math.log(1 / math.tan(phi))], dtype=torch.float64)
    found = target("v", torch.tensor([x], dtype=level.dtype), torch.tensor([eps], dtype=level.dtype), level)
    assert float(found) == pytest.approx(slope, abs=1e-8)


def test_noisy_unit_data_has_unit_variance() -> None:
    for level in (-8.0, 0.0, 5.0):
        z = diffuse(draws(N), draws(N, seed=1), torch.tensor(level))
        assert float(z.var()) == pytest.approx(1, abs=5 * math.sqrt(2 / N))


@pytest.mark.parametrize("loss", SPACES)
@pytest.mark.parametrize("space", SPACES)
def test_the_error_is_that_of_what_was_converted(space: Space, loss: Space) -> None:
    """Against numpy: convert the prediction into the loss's space first, then square."""
    levels = torch.linspace(-4, 4, 6, dtype=torch.float64).view(2, 3)
    x, eps, made = (draws(2, 3, 4, 5, seed=n) for n in range(3))
    found = squared_error(made, x, eps, levels, space, loss)
    expected = np.empty((2, 3))
    for i in range(2):
        for j in range(3):
            snr = math.exp(float(levels[i, j]))
            a, s = math.sqrt(snr / (1 + snr)), math.sqrt(1 / (1 + snr))
            data, noise, said = (each[i, j].numpy() for each in (x, eps, made))
            z = a * data + s * noise
            guess = {"x": said, "eps": (z - s * said) / a, "v": a * z - s * said}[space]
            implied = (z - a * guess) / s
            wrong = {"x": guess - data, "eps": implied - noise, "v": (a * implied - s * guess) - (a * noise - s * data)}
            expected[i, j] = np.mean(wrong[loss] ** 2)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-9)


def test_weights_of_the_losses() -> None:
    snr = LEVELS.exp()
    torch.testing.assert_close(loss_weight("eps", LEVELS), snr)
    torch.testing.assert_close(loss_weight("v", LEVELS), snr + 1)


@pytest.mark.parametrize(("low", "high"), [(-3.0, -1.0), (-0.5, 2.0), (4.0, 9.0)])
def test_the_posterior_is_that_of_two_gaussians(low: float, high: float) -> None:
    """Bayes in float64: the prior of z_s given x, times the likelihood of z_t given z_s."""
    x, z = -0.4, 1.1
    (at, st), (as_, ss) = (
        (math.sqrt(1 / (1 + math.exp(-level))), math.sqrt(1 / (1 + math.exp(level)))) for level in (low, high)
    )
    ratio = at / as_
    step = st**2 - ratio**2 * ss**2
    variance = 1 / (1 / ss**2 + ratio**2 / step)
    mean = variance * (as_ * x / ss**2 + ratio * z / step)
    here, there = (torch.tensor(level, dtype=torch.float64) for level in (low, high))
    found = posterior(torch.tensor([z]).double(), torch.tensor([x]).double(), here, there)
    assert float(found[0]) == pytest.approx(mean)
    assert float(found[1]) == pytest.approx(variance)
    assert float(transition_variance(here, there, found[0])) == pytest.approx(step)


def gaussian(mean: Tensor, covariance: Tensor) -> Denoiser:
    """E[x | z] for x ~ N(mean, covariance), (D,) and (D, D)."""

    def denoise(z: Tensor, log_snr: Tensor) -> Tensor:
        a, s = (float(each) for each in alpha_sigma(log_snr, log_snr))
        gain = a * covariance @ torch.linalg.inv(a**2 * covariance + s**2 * torch.eye(len(mean), dtype=z.dtype))
        return mean + (z - a * mean) @ gain.T

    return denoise


ONE = gaussian(torch.tensor([MEAN], dtype=torch.float64), torch.tensor([[STD**2]], dtype=torch.float64))
PAIR = gaussian(torch.zeros(2, dtype=torch.float64), torch.tensor([[1.0, RHO], [RHO, 1.0]], dtype=torch.float64))


def sampled(denoise: Denoiser, sampler: Sampler, width: int, fix: Any = None, count: int = N, seed: int = 0) -> Tensor:
    random = Random(seed, 5, range(count))
    return generate(denoise, random.normal("z", width).double(), sampler, SCHEDULE, random, fix)


@pytest.mark.parametrize(
    "sampler",
    [
        Ancestral(steps=200),
        Ancestral(steps=200, gamma=1.0),
        DDIM(steps=60),
        DDIM(steps=200, eta=0.7),
        DDIM(steps=60, corrections=1),
    ],
    ids=["ddpm, lower", "ddpm, upper", "ddim", "ddim, eta", "ddim, corrected"],
)
def test_samplers_recover_a_gaussian(sampler: Sampler) -> None:
    found = sampled(ONE, sampler, 1)
    assert float(found.mean()) == pytest.approx(MEAN, abs=4 * STD / math.sqrt(N) + 0.004)
    assert float(found.std()) == pytest.approx(STD, abs=0.012)


def test_few_steps_of_ddim_are_nearer_than_few_of_ddpm() -> None:
    wrong = [abs(float(sampled(ONE, sampler, 1).std()) - STD) for sampler in (DDIM(steps=16), Ancestral(steps=16))]
    assert wrong[0] < 0.7 * wrong[1]


def test_ddim_with_eta_1_is_ddpm() -> None:
    class Same(Random):
        def normal(self, stream: str, *shape: int) -> Tensor:
            return super().normal("any", *shape)

    z, x, random = draws(50, 3), draws(50, 3, seed=1), Same(0, 0, range(50))
    here, there = (torch.tensor(level, dtype=torch.float64) for level in (-1.0, 0.5))
    one, other = (s.step(z, x, here, there, random) for s in (DDIM(eta=1.0), Ancestral()))
    torch.testing.assert_close(one, other)


def test_ddim_without_eta_is_a_function_of_its_noise() -> None:
    z = draws(20, 1)
    first, second = (generate(ONE, z, DDIM(steps=8), SCHEDULE, Random(seed, 0, range(20))) for seed in (1, 2))
    assert torch.equal(first, second)
    first, second = (generate(ONE, z, DDIM(steps=8, eta=0.5), SCHEDULE, Random(seed, 0, range(20))) for seed in (1, 2))
    assert (first - second).abs().max() > 0.1


def test_samples_are_each_workers_own() -> None:
    together = sampled(ONE, Ancestral(steps=5, corrections=1), 1, count=10)
    random = Random(0, 5, range(4, 10))
    part = generate(ONE, random.normal("z", 1).double(), Ancestral(steps=5, corrections=1), SCHEDULE, random)
    torch.testing.assert_close(part, together[4:], rtol=0, atol=1e-12)


def test_the_corrector_moves_a_wrong_distribution_to_the_right_one() -> None:
    """At one level of noise, Langevin steps lead from a wrong start to the marginal of z, up to their own size: the
    variance of z' = (1 - delta s^2 / (2 V)) z + sqrt(delta) s n is V / (1 - delta s^2 / (4 V))."""
    from heliostat_algorithms.diffusion.samplers import langevin

    level, size = torch.tensor(0.5, dtype=torch.float64), 0.1
    a, s = (float(each) for each in alpha_sigma(level, level))
    variance = a**2 * STD**2 + s**2
    z = 3 + 0.1 * draws(N, 1)
    for n in range(200):
        z = langevin(z, ONE(z, level), level, size, Random(0, n, range(N)))
    assert float(z.mean()) == pytest.approx(a * MEAN, abs=0.02)
    assert float(z.var()) == pytest.approx(variance / (1 - size * s**2 / (4 * variance)), rel=0.03)


def test_classifier_free_guidance() -> None:
    calls: list[str] = []

    def conditional(z: Tensor, log_snr: Tensor) -> Tensor:
        return 0.5 * z

    def unconditional(z: Tensor, log_snr: Tensor) -> Tensor:
        calls.append("asked")
        return 0.2 * z

    z, level = draws(4, 2), torch.tensor(0.3, dtype=torch.float64)
    assert torch.equal(classifier_free(conditional, unconditional, 0.0)(z, level), conditional(z, level))
    assert not calls
    w = 1.7
    x = classifier_free(conditional, unconditional, w)(z, level)
    eps_c, eps_0 = (to_eps("x", f(z, level), z, level) for f in (conditional, unconditional))
    torch.testing.assert_close(to_eps("x", x, z, level), (1 + w) * eps_c - w * eps_0)
    torch.testing.assert_close(classifier_free(conditional, unconditional, -1.0)(z, level), unconditional(z, level))


# Extension: of two numbers with correlation RHO the first one, a, is known to be SEEN. Then b ~ N(RHO a, 1 - RHO^2).

KNOWN = torch.tensor([True, False])


def observe(x: Tensor) -> Tensor:
    return torch.where(KNOWN, x, 0.0)


def observed(count: int) -> Tensor:
    return torch.tensor([SEEN, 0.0], dtype=torch.float64).expand(count, 2)


def exact_weight(log_snr: Tensor) -> Tensor:
    """sigma^2 / (alpha^2 c), c the variance of a given z."""
    snr = float(log_snr.exp())
    precision = torch.linalg.inv(torch.tensor([[1.0, RHO], [RHO, 1.0]], dtype=torch.float64)) + snr * torch.eye(2)
    return torch.tensor(1 / (snr * float(torch.linalg.inv(precision)[0, 0])))


@pytest.mark.parametrize("level", [-6.0, -1.0, 0.0, 2.0, 6.0])
def test_guidance_is_the_gradient_of_equation_7(level: float) -> None:
    """With the paper's weight, for a linear denoiser: - alpha / 2 * 2 (a^ - a) da^/dz_b. With the weight of the true
    covariance, equation 5 is exact: E[b | z, a]."""
    log_snr = torch.tensor(level, dtype=torch.float64)
    z, a = draws(30, 2), float(alpha_sigma(log_snr, log_snr)[0])
    x, slope = PAIR(z, log_snr), PAIR(torch.tensor([[0.0, 1.0]]).double(), log_snr)[0, 0]
    guided = reconstruction_guided(PAIR, observe, observed(30))(z, log_snr)
    torch.testing.assert_close(guided[:, 1], x[:, 1] - a * (x[:, 0] - SEEN) * slope)
    exact = reconstruction_guided(PAIR, observe, observed(30), exact_weight)(z, log_snr)
    s2 = 1 - a**2  # b given a: N(RHO a, 1 - RHO^2); z_b tells of it, z_a no more
    gain = a * (1 - RHO**2) / (a**2 * (1 - RHO**2) + s2)
    torch.testing.assert_close(exact[:, 1], RHO * SEEN + gain * (z[:, 1] - a * RHO * SEEN), rtol=1e-6, atol=1e-6)


def replaced_moments(steps: int) -> tuple[float, float]:
    """Mean and variance of b by replacement and DDIM, in float64: z_b stays a linear function of Gaussian draws."""
    levels = SCHEDULE.log_snr(torch.linspace(1, 0, steps + 1, dtype=torch.float64)).tolist()
    mean, variance = 0.0, 1.0
    for here, there in pairwise(levels):
        a, s = math.sqrt(1 / (1 + math.exp(-here))), math.sqrt(1 / (1 + math.exp(here)))
        a_, s_ = math.sqrt(1 / (1 + math.exp(-there))), math.sqrt(1 / (1 + math.exp(there)))
        c = np.array([[1, RHO], [RHO, 1]])
        gain = (a * c @ np.linalg.inv(a * a * c + s * s * np.eye(2)))[1]
        own = a_ * gain[1] + s_ * (1 - a * gain[1]) / s
        other = a_ * gain[0] - s_ * a * gain[0] / s
        mean = own * mean + other * a * SEEN
        variance = own**2 * variance + other**2 * s**2
    return mean, variance


EXTENSIONS: dict[str, Callable[[], Denoiser]] = {
    "exact": lambda: reconstruction_guided(PAIR, observe, observed(N), exact_weight),
    "paper": lambda: reconstruction_guided(PAIR, observe, observed(N)),
    "replaced": lambda: PAIR,
}


def extended(method: str, steps: int = 60) -> tuple[float, float]:
    b = sampled(EXTENSIONS[method](), DDIM(steps=steps), 2, replacement(observed(N), KNOWN))[:, 1]
    return float(b.mean()), float(b.var())


def test_guided_extension_matches_the_exact_conditional() -> None:
    mean, variance = extended("exact")
    assert mean == pytest.approx(RHO * SEEN, abs=0.02)
    assert variance == pytest.approx(1 - RHO**2, abs=0.03)


def test_replacement_is_wrong_by_what_it_should_be() -> None:
    mean, variance = extended("replaced")
    expected = replaced_moments(60)
    assert mean == pytest.approx(expected[0], abs=0.02)
    assert variance == pytest.approx(expected[1], abs=0.03)
    assert abs(expected[0] - RHO * SEEN) > 0.1


def test_the_papers_guidance_is_nearer_than_replacement() -> None:
    """sigma^2 / alpha^2 is more than the variance of a given z, so the paper's weight of 1 corrects too little here."""
    wrong = {method: abs(extended(method)[0] - RHO * SEEN) for method in ("paper", "replaced")}
    assert wrong["paper"] < 0.8 * wrong["replaced"]


@pytest.mark.parametrize(
    ("sampler", "fields"),
    [
        (Ancestral, {"steps": 0}),
        (Ancestral, {"gamma": 1.5}),
        (DDIM, {"eta": -0.1}),
        (DDIM, {"corrections": -1}),
        (DDIM, {"correction_size": 0.0}),
    ],
)
def test_wrong_samplers_are_refused(sampler: type[Sampler], fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(fields))):
        sampler(**fields)


def test_draws_of_other_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="3 rows, but there are 4"):
        generate(ONE, draws(4, 1), DDIM(), SCHEDULE, Random(0, 0, range(3)))
