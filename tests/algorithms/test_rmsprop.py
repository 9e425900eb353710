from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from heliostat_algorithms.algorithm import ParameterGroup
from heliostat_algorithms.optimizers import Adam, RMSProp, RmsProp

SHAPES = [(4, 3, 2, 2), (5, 7), (6,)]
STEPS = 7


def gradients(step: int) -> list[np.ndarray]:
    """Of sizes from far above to far below the root of epsilon, with zeros."""
    generator = np.random.default_rng(step)
    found = [generator.normal(size=shape) * 10.0 ** (1 - 2 * k) for k, shape in enumerate(SHAPES)]
    found[0][0] = 0
    if step == 2:
        found[1][:] = 0
    return found


def leaves(dtype: torch.dtype = torch.float64) -> list[nn.Parameter]:
    generator = np.random.default_rng(99)
    return [nn.Parameter(torch.from_numpy(generator.normal(size=shape)).to(dtype)) for shape in SHAPES]


def reference(lr: float, decay: float, eps: float, centered: bool, weight_decay: float) -> list[list[np.ndarray]]:
    """The weights after each step, number by number."""
    weights = [parameter.detach().numpy().copy() for parameter in leaves()]
    square, mean = ([np.zeros(shape) for shape in SHAPES] for _ in range(2))
    history = []
    for step in range(STEPS):
        for k, gradient in enumerate(gradients(step)):
            for place in np.ndindex(*SHAPES[k]):
                g = gradient[place] + weight_decay * weights[k][place]
                square[k][place] = decay * square[k][place] + (1 - decay) * g * g
                mean[k][place] = decay * mean[k][place] + (1 - decay) * g
                variance = square[k][place] - (mean[k][place] ** 2 if centered else 0.0)
                weights[k][place] -= lr * g / math.sqrt(variance + eps)
        history.append([weight.copy() for weight in weights])
    return history


def train(optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter], steps: range) -> list[list[Tensor]]:
    history = []
    for step in steps:
        for parameter, gradient in zip(parameters, gradients(step), strict=True):
            parameter.grad = torch.from_numpy(gradient).to(parameter.dtype)
        optimizer.step()
        history.append([parameter.detach().clone() for parameter in parameters])
    return history


@pytest.mark.parametrize("centered", [True, False])
@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
@pytest.mark.parametrize(("decay", "eps"), [(0.95, 0.01), (0.9, 1e-5), (0.0, 1.0)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_rmsprop_follows_its_formula(
    centered: bool, weight_decay: float, decay: float, eps: float, dtype: torch.dtype
) -> None:
    weights = leaves(dtype)
    optimizer = RMSProp(weights, lr=0.02, decay=decay, eps=eps, centered=centered, weight_decay=weight_decay)
    tolerance = 1e-11 if dtype == torch.float64 else 1e-4
    history = train(optimizer, weights, range(STEPS))
    for found, expected in zip(history, reference(0.02, decay, eps, centered, weight_decay), strict=True):
        for tensor, array in zip(found, expected, strict=True):
            np.testing.assert_allclose(tensor.numpy(), array, rtol=tolerance, atol=tolerance)


def test_the_first_step_is_that_of_the_reference_code() -> None:
    """m = 0.05 g, v = 0.05 g^2, divisor sqrt(v - m^2 + 0.01), for one number."""
    weight = nn.Parameter(torch.tensor([1.0], dtype=torch.float64))
    weight.grad = torch.tensor([2.0], dtype=torch.float64)
    RMSProp([weight], lr=0.00025).step()
    assert weight.item() == pytest.approx(1 - 0.00025 * 2 / math.sqrt(0.05 * 4 - 0.1**2 + 0.01), rel=1e-12)


def test_epsilon_inside_the_root_is_not_torchs() -> None:
    ours, torchs = leaves(), leaves()
    found = train(RMSProp(ours, lr=0.02, decay=0.95, eps=0.01), ours, range(STEPS))
    other = train(torch.optim.RMSprop(torchs, lr=0.02, alpha=0.95, eps=0.01, centered=True), torchs, range(STEPS))
    small = [abs(a[2] - b[2]).max().item() for a, b in zip(found, other, strict=True)]
    assert min(small) > 0.001  # gradients below sqrt(eps) = 0.1, but not below eps


def test_mean_gradients_take_the_papers_steps_with_epsilon_over_the_square_of_the_batch() -> None:
    added, mean = leaves(), leaves()
    one = RMSProp(added, lr=0.00025, eps=0.01)
    other = RmsProp().build([ParameterGroup("all", list(mean), True)], 32)
    for step in range(STEPS):
        for a, b, gradient in zip(added, mean, gradients(step), strict=True):
            a.grad, b.grad = torch.from_numpy(gradient), torch.from_numpy(gradient / 32)
        one.step()
        other.step()
    for a, b in zip(added, mean, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("centered", [True, False])
def test_it_continues_from_its_state(centered: bool) -> None:
    weights = leaves()
    whole = train(RMSProp(weights, lr=0.02, centered=centered), weights, range(STEPS))
    first = leaves()
    optimizer = RMSProp(first, lr=0.02, centered=centered)
    train(optimizer, first, range(3))
    second = [nn.Parameter(parameter.detach().clone()) for parameter in first]
    resumed = RMSProp(second, lr=0.5, decay=0.1, centered=not centered)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    torch.testing.assert_close(train(resumed, second, range(3, STEPS)), whole[3:], rtol=0, atol=0)


def test_gradients_and_parameters_without_one_are_left_alone() -> None:
    still, moving = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    moving.grad = torch.ones(3)
    optimizer = RMSProp([still, moving], lr=0.1, weight_decay=0.1)
    optimizer.step()
    assert torch.equal(still, torch.ones(3))
    assert torch.equal(moving.grad, torch.ones(3))
    assert not torch.equal(moving, torch.ones(3))
    assert list(optimizer.state) == [moving]


def test_a_closure_is_evaluated_with_gradient() -> None:
    weight = nn.Parameter(torch.ones(3))
    optimizer = RMSProp([weight], lr=0.1)

    def closure() -> Any:
        optimizer.zero_grad()
        loss = (weight**2).sum()
        loss.backward()
        return loss

    assert optimizer.step(closure) == 3.0
    assert (weight < 1).all()


@pytest.mark.parametrize("bad", [{"lr": -1.0}, {"decay": 1.0}, {"eps": 0.0}, {"weight_decay": math.nan}])
def test_numbers_out_of_range_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        RMSProp([nn.Parameter(torch.ones(1))], **{"lr": 0.1, **bad})  # type: ignore[arg-type]


def built(config: Any, batch_size: int = 256) -> torch.optim.Optimizer:
    weight, bias = nn.Parameter(torch.full((2, 2), 2.0)), nn.Parameter(torch.full((2,), 2.0))
    groups = [ParameterGroup("weights", [weight], True), ParameterGroup("bias_and_norm", [bias], False)]
    optimizer: torch.optim.Optimizer = config.build(groups, batch_size)
    return optimizer


def test_options_reach_the_optimisers() -> None:
    rmsprop = built(RmsProp(learning_rate=0.3, weight_decay=0.1, decay=0.8, eps=0.5, centered=False))
    assert isinstance(rmsprop, RMSProp)
    names = ("name", "lr", "weight_decay", "decay", "eps", "centered")
    assert [tuple(group[name] for name in names) for group in rmsprop.param_groups] == [
        ("weights", 0.3, 0.1, 0.8, 0.5, False),
        ("bias_and_norm", 0.3, 0.0, 0.8, 0.5, False),
    ]
    adam = built(Adam(learning_rate=0.3, weight_decay=0.1, betas=(0.8, 0.95), eps=1e-5))
    assert type(adam) is torch.optim.Adam
    assert [(g["name"], g["lr"], g["weight_decay"], g["betas"], g["eps"]) for g in adam.param_groups] == [
        ("weights", 0.3, 0.1, (0.8, 0.95), 1e-5),
        ("bias_and_norm", 0.3, 0.0, (0.8, 0.95), 1e-5),
    ]


def test_learning_rates_of_reinforcement_learning_are_taken_as_they_are_unless_told() -> None:
    for kind in (Adam, RmsProp):
        assert kind(learning_rate=1e-3).peak_learning_rate(32) == 1e-3
        assert kind(learning_rate=1e-3, per=32).peak_learning_rate(512) == pytest.approx(16e-3)


def test_adam_follows_its_formula() -> None:
    config = Adam(learning_rate=0.02, betas=(0.8, 0.95), eps=1e-3)
    weights = leaves()
    history = train(config.build([ParameterGroup("all", list(weights), True)], 32), weights, range(STEPS))
    w = [parameter.detach().numpy().copy() for parameter in leaves()]
    m, v = ([np.zeros(shape) for shape in SHAPES] for _ in range(2))
    for step in range(STEPS):
        for k, g in enumerate(gradients(step)):
            m[k], v[k] = 0.8 * m[k] + 0.2 * g, 0.95 * v[k] + 0.05 * g**2
            corrected = m[k] / (1 - 0.8 ** (step + 1)), v[k] / (1 - 0.95 ** (step + 1))
            w[k] = w[k] - 0.02 * corrected[0] / (np.sqrt(corrected[1]) + 1e-3)
            np.testing.assert_allclose(history[step][k].numpy(), w[k], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("kind", "bad", "message"),
    [
        (RmsProp, {"decay": 1.0}, "decay is 1.0"),
        (RmsProp, {"eps": 0.0}, "eps is 0.0"),
        (RmsProp, {"learning_rate": 0.0}, "learning_rate is 0.0"),
        (Adam, {"betas": (1.0, 0.9)}, "betas are"),
        (Adam, {"eps": -1e-8}, "eps is -1e-08"),
    ],
)
def test_configs_refuse_numbers_out_of_range(kind: Any, bad: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kind(**{"learning_rate": 0.1, **bad})
