from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from heliostat_algorithms.reinforcement.distributions import C51, Quantile, Scalar
from heliostat_algorithms.reinforcement.losses import categorical_divergence, huber, projected, quantile_huber


def tensor(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def huber_reference(error: float, delta: float) -> float:
    return error**2 / 2 if abs(error) <= delta else delta * (abs(error) - delta / 2)


ERRORS = [-30.0, -1.5, -1.0, -0.3, 0.0, 0.2, 1.0, 1.0001, 7.0]


@pytest.mark.parametrize("delta", [0.5, 1.0, 3.0, math.inf])
def test_huber_and_half_the_square_with_their_slopes(delta: float) -> None:
    error = tensor(ERRORS).requires_grad_()
    loss = huber(error, delta)
    loss.sum().backward()
    assert error.grad is not None
    for e, found, slope in zip(ERRORS, loss.tolist(), error.grad.tolist(), strict=True):
        assert found == pytest.approx(huber_reference(e, delta), rel=1e-12)
        assert slope == pytest.approx(max(-delta, min(delta, e)))  # the clipped error


@pytest.mark.parametrize(("kind", "delta"), [("huber", 1.0), ("huber", 2.5), ("mse", 1.0)])
def test_scalar_losses_and_priorities(kind: Any, delta: float) -> None:
    generator = np.random.default_rng(0)
    q, following, reward = generator.normal(size=(3, 6)) * 3
    bootstrap = np.array([0.99, 0.0, 0.99**3, 0.99**2, 0.0, 1.0])  # one step, ends, three steps, two at a truncation
    output = tensor(q).unsqueeze(1).requires_grad_()
    losses, priority = Scalar(loss=kind, delta=delta).losses(
        output, tensor(following).unsqueeze(1), tensor(reward), tensor(bootstrap)
    )
    losses.sum().backward()
    assert output.grad is not None
    assert not priority.requires_grad
    for k in range(6):
        error = reward[k] + bootstrap[k] * following[k] - q[k]
        bound = delta if kind == "huber" else math.inf
        assert losses[k].item() == pytest.approx(huber_reference(error, bound))
        assert priority[k].item() == pytest.approx(abs(error))
        assert output.grad[k, 0].item() == pytest.approx(-max(-bound, min(bound, error)))


def projection_reference(
    p: list[float], reward: float, bootstrap: float, atoms: list[float], low: float, high: float
) -> list[float]:
    """Algorithm 1 of the paper, atom by atom; where T z is itself an atom, that one takes everything."""
    spacing = (high - low) / (len(atoms) - 1)
    m = [0.0] * len(atoms)
    for j, z in enumerate(atoms):
        moved = min(max(reward + bootstrap * z, low), high)
        b = (moved - low) / spacing
        if abs(b - round(b)) < 1e-9:
            m[round(b)] += p[j]
            continue
        lower, upper = math.floor(b), math.ceil(b)
        m[lower] += p[j] * (upper - b)
        m[upper] += p[j] * (b - lower)
    return m


@pytest.mark.parametrize("count", [2, 3, 11, 51])
@pytest.mark.parametrize(
    ("reward", "bootstrap"),
    [
        (0.0, 1.0),  # every atom stays where it is
        (0.3, 0.99),
        (-1.0, 0.99**3),
        (0.7, 0.0),  # an end: all the mass around the reward
        (4.0, 0.0),  # an end whose reward is an atom, or the upper end of the atoms
        (-4.0, 0.0),
        (0.0, 0.0),
        (50.0, 0.99),  # all above the range
        (-50.0, 0.5),  # all below
        (3.0, 1.0),  # some above, the others on atoms or between them
    ],
)
def test_the_projection_follows_algorithm_1(count: int, reward: float, bootstrap: float) -> None:
    low, high = -4.0, 4.0
    atoms = [low + k * (high - low) / (count - 1) for k in range(count)]
    p = np.random.default_rng(count).dirichlet(np.ones(count), size=3)
    found = projected(tensor(p), tensor([reward] * 3), tensor([bootstrap] * 3), tensor(atoms))
    assert found.shape == (3, count)
    for k in range(3):
        expected = projection_reference(p[k].tolist(), reward, bootstrap, atoms, low, high)
        np.testing.assert_allclose(found[k].numpy(), expected, rtol=0, atol=1e-12)


@given(
    reward=st.floats(-30, 30),
    bootstrap=st.floats(0, 1),
    count=st.integers(2, 60),
    low=st.floats(-20, 5),
    width=st.floats(0.1, 30),
    seed=st.integers(0, 1000),
)
@settings(max_examples=200, deadline=None)
def test_the_projection_keeps_mass_and_within_the_range_the_mean(
    reward: float, bootstrap: float, count: int, low: float, width: float, seed: int
) -> None:
    config = C51(atoms=count, low=low, high=low + width)
    atoms = config.support(torch.empty(0, dtype=torch.float64))
    p = tensor(np.random.default_rng(seed).dirichlet(np.ones(count), size=1))
    found = projected(p, tensor([reward]), tensor([bootstrap]), atoms)[0]
    assert (found >= 0).all()
    assert found.sum().item() == pytest.approx(1, abs=1e-9)
    moved = (reward + bootstrap * atoms).clamp(low, low + width)
    assert (found * atoms).sum().item() == pytest.approx((p[0] * moved).sum().item(), abs=1e-8 * (1 + abs(low) + width))


def test_float32_loses_no_mass_on_atoms() -> None:
    config = C51()
    atoms = config.support(torch.empty(0))
    p = torch.from_numpy(np.random.default_rng(0).dirichlet(np.ones(51), size=21).astype(np.float32))
    reward = torch.arange(-10, 11).float() * 0.4  # each moves every atom onto another one
    found = projected(p, reward, torch.ones(21), atoms)
    torch.testing.assert_close(found.sum(dim=1), torch.ones(21), rtol=0, atol=1e-5)
    torch.testing.assert_close(found[10], p[10], rtol=0, atol=1e-6)


def softmax(logits: np.ndarray) -> np.ndarray:
    e = np.exp(logits - logits.max())
    return e / e.sum()


def test_the_divergence_and_its_gradient() -> None:
    generator = np.random.default_rng(3)
    target = generator.dirichlet(np.ones(6), size=4)
    target[0] = [0, 0, 1, 0, 0, 0]  # no 0 * log 0
    logits = generator.normal(size=(4, 6)) * 3
    output = tensor(logits).requires_grad_()
    found = categorical_divergence(tensor(target), output)
    found.sum().backward()
    assert output.grad is not None
    for k in range(4):
        p = softmax(logits[k])
        expected = sum(m * (math.log(m) - math.log(q)) for m, q in zip(target[k], p, strict=True) if m > 0)
        assert found[k].item() == pytest.approx(expected, rel=1e-10)
        np.testing.assert_allclose(output.grad[k].numpy(), p - target[k], atol=1e-12)  # that of the cross-entropy
    right = categorical_divergence(tensor(softmax(logits[0])[None]), tensor(logits[:1]))
    assert right.item() == pytest.approx(0, abs=1e-12)


def test_c51_trains_towards_the_projected_target() -> None:
    config = C51(atoms=5, low=-2, high=2)
    generator = np.random.default_rng(4)
    logits, following = generator.normal(size=(2, 3, 5))
    reward, bootstrap = np.array([0.3, 1.0, -5.0]), np.array([0.99, 0.0, 0.9])
    output = tensor(logits).requires_grad_()
    losses, priority = config.losses(output, tensor(following), tensor(reward), tensor(bootstrap))
    atoms = [-2.0, -1.0, 0.0, 1.0, 2.0]
    for k in range(3):
        m = projection_reference(softmax(following[k]).tolist(), reward[k], bootstrap[k], atoms, -2, 2)
        expected = sum(a * (math.log(a) - math.log(b)) for a, b in zip(m, softmax(logits[k]), strict=True) if a > 0)
        assert losses[k].item() == pytest.approx(expected, rel=1e-9)
    assert torch.equal(priority, losses.detach())
    assert not priority.requires_grad
    assert (priority > 0).all()


def quantile_reference(target: np.ndarray, quantiles: np.ndarray, kappa: float) -> float:
    total = 0.0
    for i, q in enumerate(quantiles):
        midpoint = (2 * (i + 1) - 1) / (2 * len(quantiles))
        pairs = []
        for t in target:
            u = t - q
            size = huber_reference(u, kappa) / kappa if kappa else abs(u)
            pairs.append(abs(midpoint - (1 if u < 0 else 0)) * size)
        total += sum(pairs) / len(pairs)
    return total


@pytest.mark.parametrize("kappa", [0.0, 0.5, 1.0, 3.0])
@pytest.mark.parametrize(("count", "targets"), [(1, 1), (4, 4), (5, 3)])
def test_quantile_huber_is_algorithm_1_of_its_paper(kappa: float, count: int, targets: int) -> None:
    generator = np.random.default_rng(6)
    target, quantiles = generator.normal(size=(3, targets)) * 2, generator.normal(size=(3, count)) * 2
    found = quantile_huber(tensor(target), tensor(quantiles), kappa)
    expected = [quantile_reference(t, q, kappa) for t, q in zip(target, quantiles, strict=True)]
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-12)
    for row in range(3):  # the loss weighs the errors of an equal pair alike, wherever it stands
        same = quantile_huber(tensor(quantiles[row : row + 1]), tensor(quantiles[row : row + 1]), kappa).item()
        assert same == pytest.approx(quantile_reference(quantiles[row], quantiles[row], kappa))


@pytest.mark.parametrize("kappa", [0.0, 1.0])
def test_gradients_of_quantiles_are_those_of_finite_differences(kappa: float) -> None:
    generator = torch.Generator().manual_seed(0)
    target = torch.randn(2, 4, generator=generator, dtype=torch.float64) * 2
    quantiles = (torch.randn(2, 3, generator=generator, dtype=torch.float64) * 2).requires_grad_()
    assert torch.autograd.gradcheck(lambda q: quantile_huber(target, q, kappa), (quantiles,))


def test_the_quantile_loss_without_smoothing_is_least_at_the_quantiles() -> None:
    samples = np.sort(np.random.default_rng(8).normal(size=201))
    best = np.quantile(samples, [(2 * i - 1) / 10 for i in range(1, 6)], method="inverted_cdf")

    def loss(q: np.ndarray) -> float:
        return float(quantile_huber(tensor(samples[None]), tensor(q[None]), 0.0))

    for i in range(5):
        for shift in (-0.3, -0.05, 0.05, 0.3):
            moved = best.copy()
            moved[i] += shift
            assert loss(moved) > loss(best)


def test_quantile_targets_are_moved_by_return_and_bootstrap() -> None:
    generator = np.random.default_rng(9)
    quantiles, following = generator.normal(size=(2, 3, 4))
    reward, bootstrap = np.array([0.3, 1.0, -2.0]), np.array([0.99**3, 0.0, 0.9])
    losses, priority = Quantile(quantiles=4).losses(
        tensor(quantiles), tensor(following), tensor(reward), tensor(bootstrap)
    )
    for k in range(3):
        target = reward[k] + bootstrap[k] * following[k]
        assert losses[k].item() == pytest.approx(quantile_reference(target, quantiles[k], 1.0))
    assert torch.equal(priority, losses)


def test_expectations() -> None:
    output = tensor(np.random.default_rng(10).normal(size=(2, 3, 4)))
    torch.testing.assert_close(Quantile(quantiles=4).expectation(output), output.sum(dim=-1) / 4)
    found = C51(atoms=4, low=-1, high=5).expectation(output)
    for k in range(2):
        for action in range(3):
            p = softmax(output[k, action].numpy())
            expected = sum(share * z for share, z in zip(p, [-1, 1, 3, 5], strict=True))
            assert found[k, action].item() == pytest.approx(expected)
    assert torch.equal(Scalar().expectation(output[..., :1]), output[..., 0])
    assert [Scalar().outputs, C51().outputs, Quantile().outputs] == [1, 51, 200]
    assert C51().support(output).tolist() == pytest.approx([-10 + 0.4 * k for k in range(51)])


@pytest.mark.parametrize(
    ("kind", "bad", "message"),
    [
        (Scalar, {"delta": 0.0}, "delta is 0.0"),
        (Scalar, {"delta": math.inf}, "delta is inf"),
        (C51, {"atoms": 1}, "atoms is 1"),
        (C51, {"low": 1.0, "high": 1.0}, "low below high"),
        (C51, {"high": math.inf}, "finite"),
        (C51, {"low": math.nan}, "low is nan"),
        (Quantile, {"quantiles": 0}, "quantiles is 0"),
        (Quantile, {"kappa": -1.0}, "kappa is -1.0"),
    ],
)
def test_numbers_out_of_range_are_refused(kind: Any, bad: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kind(**bad)
