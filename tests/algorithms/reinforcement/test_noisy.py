from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from heliostat_algorithms.randomness import Random
from heliostat_algorithms.reinforcement.noisy import NoisyLinear, scaled_noise


def layer(in_dim: int = 5, out_dim: int = 3, sigma: float = 0.5) -> NoisyLinear:
    """With sigmas that differ, so that a transposed or forgotten one shows."""
    torch.manual_seed(0)
    made = NoisyLinear(in_dim, out_dim, sigma).double()
    with torch.no_grad():
        for parameter in (made.weight_sigma, made.bias_sigma):
            parameter.mul_(torch.rand_like(parameter) + 0.5)
    return made


def reference(made: NoisyLinear, x: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """Equations 9 to 11 for one row: the noisy weights are made, then used."""
    w, b, s, t = (p.detach().numpy() for p in (made.weight, made.bias, made.weight_sigma, made.bias_sigma))
    q, p = w.shape
    y = np.zeros(q)
    for j in range(q):
        y[j] = b[j] + t[j] * noise[p + j]
        for i in range(p):
            y[j] += (w[j, i] + s[j, i] * noise[i] * noise[p + j]) * x[i]
    return y


def inputs(rows: int, noises: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(rows, 5, generator=generator, dtype=torch.float64)
    return x, torch.randn(noises, 8, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("noises", [1, 4])
def test_outputs_follow_equations_9_to_11_for_shared_and_for_own_noise(noises: int) -> None:
    made = layer()
    x, noise = inputs(4, noises)
    found = made(x, noise).detach().numpy()
    for k in range(4):
        row = noise[min(k, noises - 1)].numpy()
        np.testing.assert_allclose(found[k], reference(made, x[k].numpy(), row), rtol=1e-12)


def test_gradients_are_those_of_noisy_weights() -> None:
    made = layer()
    x, noise = inputs(4, 1)
    made(x, noise).square().sum().backward()
    w, b, s, t = (p.detach().clone().requires_grad_() for p in made.parameters())
    assert [p.shape for p in (w, b, s, t)] == [(3, 5), (3,), (3, 5), (3,)]
    before, behind = noise[0, :5], noise[0, 5:]
    y = x @ (w + s * torch.outer(behind, before)).T + b + t * behind
    y.square().sum().backward()
    for parameter, expected in zip(made.parameters(), (w, b, s, t), strict=True):
        torch.testing.assert_close(parameter.grad, expected.grad)


def test_without_noise_the_mean_parameters_count() -> None:
    made = layer()
    x, _ = inputs(4, 1)
    torch.testing.assert_close(made(x, None), x @ made.weight.T + made.bias)


def test_initial_ranges_are_those_of_section_3_2() -> None:
    torch.manual_seed(5)
    made = NoisyLinear(400, 100, sigma=0.4)
    for parameter in (made.weight, made.bias):
        draws = parameter.detach().reshape(-1).numpy()
        assert stats.kstest(draws, stats.uniform(-0.05, 0.1).cdf).pvalue > 1e-3
    for parameter in (made.weight_sigma, made.bias_sigma):
        torch.testing.assert_close(parameter.detach(), torch.full_like(parameter, 0.4 / 20))


def test_noise_is_the_signed_root_of_normal_draws() -> None:
    noise = scaled_noise(Random(3, 0, range(40)), 500).double().reshape(-1).numpy()
    assert stats.kstest(np.sign(noise) * noise**2, stats.norm.cdf).pvalue > 1e-3
    # E f^2 = E |e| = sqrt(2 / pi)
    assert np.mean(noise**2) == pytest.approx(math.sqrt(2 / math.pi), abs=5 * 0.6 / math.sqrt(noise.size))


def test_over_draws_the_output_has_the_mean_and_the_variance_of_factorised_noise() -> None:
    made = layer()
    x, _ = inputs(1, 1)
    draws = 40_000
    noise = scaled_noise(Random(1, 0, range(draws)), 8).double()
    y = made(x.expand(draws, 5), noise).detach().numpy()
    mean = made(x, None).detach().numpy()[0]
    s, t = made.weight_sigma.detach().numpy(), made.bias_sigma.detach().numpy()
    # f(e_out) * (sum_i s_i x_i f(e_i) + t) with E f = 0 and E f^2 = sqrt(2 / pi)
    c = math.sqrt(2 / math.pi)
    variance = c * (c * ((s * x.numpy()) ** 2).sum(axis=1) + t**2)
    np.testing.assert_allclose(y.var(axis=0), variance, rtol=0.05)
    np.testing.assert_allclose(y.mean(axis=0), mean, atol=5 * math.sqrt(variance.max() / draws))


def test_noise_is_a_function_of_seed_step_stream_and_row() -> None:
    whole = scaled_noise(Random(7, 3, range(6)), 9)
    assert torch.equal(whole, scaled_noise(Random(7, 3, range(6)), 9))
    parts = [scaled_noise(Random(7, 3, rows), 9) for rows in (range(2), range(2, 5), range(5, 6))]
    assert torch.equal(torch.cat(parts), whole)
    for other in (Random(8, 3, range(6)), Random(7, 4, range(6)), Random(7, 3, range(6), scope="target/")):
        assert not torch.equal(scaled_noise(other, 9), whole)
    assert len({tuple(row) for row in whole.tolist()}) == 6
