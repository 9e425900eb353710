from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from heliostat_algorithms.algorithm import ParameterGroup
from heliostat_algorithms.backbones import ResNet50
from heliostat_algorithms.optimizers import LARS, AdamW, Lars, Sgd

SHAPES = [(4, 3, 2, 2), (5, 7), (6,), (3, 3)]
STEPS = 6


def gradients(step: int) -> list[np.ndarray]:
    """Gradients of SHAPES; those of the second tensor are 0 in step 2."""
    generator = np.random.default_rng(step)
    found = [generator.normal(size=shape) * 10.0 ** (-k) for k, shape in enumerate(SHAPES)]
    if step == 2:
        found[1][:] = 0
    return found


def starts() -> list[np.ndarray]:
    """The last tensor begins at 0, where its norm cannot scale its step."""
    generator = np.random.default_rng(99)
    weights = [generator.normal(size=shape) for shape in SHAPES]
    weights[-1][:] = 0
    return weights


def learning_rate(step: int) -> float:
    return 0.8 * (step + 1) / STEPS


def reference(momentum: float, weight_decay: float, trust: float, adapt: list[bool]) -> list[list[np.ndarray]]:
    """The weights after each step, one tensor after the other in numpy."""
    weights = starts()
    velocities = [np.zeros(shape) for shape in SHAPES]
    history = []
    for step in range(STEPS):
        for k, g in enumerate(gradients(step)):
            ratio = 1.0
            if adapt[k]:
                g = g + weight_decay * weights[k]
                w_norm, g_norm = math.sqrt(float((weights[k] ** 2).sum())), math.sqrt(float((g**2).sum()))
                if w_norm > 0 and g_norm > 0:
                    ratio = trust * w_norm / g_norm
            velocities[k] = momentum * velocities[k] + learning_rate(step) * ratio * g
            weights[k] = weights[k] - velocities[k]
        history.append([weight.copy() for weight in weights])
    return history


def train(optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter], steps: range) -> list[list[Tensor]]:
    history = []
    for step in steps:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step)
        for parameter, gradient in zip(parameters, gradients(step), strict=True):
            parameter.grad = torch.from_numpy(gradient).to(parameter.dtype)
        optimizer.step()
        history.append([parameter.detach().clone() for parameter in parameters])
    return history


def leaves(dtype: torch.dtype = torch.float64) -> list[nn.Parameter]:
    return [nn.Parameter(torch.from_numpy(start).to(dtype)) for start in starts()]


@pytest.mark.parametrize("weight_decay", [0.0, 1e-6, 0.3])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_lars_follows_its_formula(weight_decay: float, momentum: float, dtype: torch.dtype) -> None:
    adapt = [True, True, False, True]
    weights = leaves(dtype)
    optimizer = LARS(
        [
            {"params": [weights[0], weights[1], weights[3]], "weight_decay": weight_decay},
            {"params": [weights[2]], "adapt": False},
        ],
        lr=1.0,
        momentum=momentum,
        trust_coefficient=0.02,
    )
    tolerance = 1e-12 if dtype == torch.float64 else 2e-6
    history = train(optimizer, weights, range(STEPS))
    for found, expected in zip(history, reference(momentum, weight_decay, 0.02, adapt), strict=True):
        for tensor, array in zip(found, expected, strict=True):
            np.testing.assert_allclose(tensor.numpy(), array, rtol=tolerance, atol=tolerance)


def test_lars_adapts_without_weight_decay_too() -> None:
    weight = nn.Parameter(torch.full((4,), 3.0))
    weight.grad = torch.tensor([1e6, 0.0, 0.0, 0.0])
    LARS([weight], lr=0.5, momentum=0.0, weight_decay=0.0).step()
    assert (3.0 - weight[0]).item() == pytest.approx(0.5 * 0.001 * 6.0, rel=1e-3)  # |w| = 6


def test_lars_takes_the_norm_of_gradient_and_decay_together() -> None:
    weight = nn.Parameter(torch.tensor([1.0, 0.0]))
    weight.grad = torch.tensor([-1.0, 0.001])  # decay cancels most of it: |g + w| = 0.001, where |g| + |w| = 2
    LARS([weight], lr=1.0, momentum=0.0, weight_decay=1.0, trust_coefficient=0.5).step()
    torch.testing.assert_close(weight.detach(), torch.tensor([1.0, -0.5]), rtol=1e-5, atol=1e-6)


def test_lars_continues_from_its_state() -> None:
    weights = leaves()
    whole = train(LARS(weights, lr=1.0, weight_decay=0.1), weights, range(STEPS))

    first = leaves()
    optimizer = LARS(first, lr=1.0, weight_decay=0.1)
    train(optimizer, first, range(3))
    second = [nn.Parameter(parameter.detach().clone()) for parameter in first]
    resumed = LARS(second, lr=0.123, momentum=0.5)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    rest = train(resumed, second, range(3, STEPS))
    torch.testing.assert_close(rest, whole[3:], rtol=0, atol=0)


def test_lars_leaves_gradients_and_parameters_without_one_alone() -> None:
    still, moving = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    moving.grad = torch.ones(3)
    optimizer = LARS([still, moving], lr=1.0, weight_decay=0.1)
    optimizer.step()
    assert torch.equal(still, torch.ones(3))
    assert torch.equal(moving.grad, torch.ones(3))
    assert not torch.equal(moving, torch.ones(3))
    assert list(optimizer.state) == [moving]


def test_lars_evaluates_a_closure_with_gradient() -> None:
    weight = nn.Parameter(torch.ones(3))
    optimizer = LARS([weight], lr=1.0)

    def closure() -> Any:
        optimizer.zero_grad()
        loss = (weight**2).sum()
        loss.backward()
        return loss

    assert optimizer.step(closure) == 3.0
    assert (weight < 1).all()


@pytest.mark.parametrize(
    "bad", [{"lr": -1.0}, {"momentum": 1.0}, {"weight_decay": math.nan}, {"trust_coefficient": -1.0}]
)
def test_lars_refuses_numbers_out_of_range(bad: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        LARS([nn.Parameter(torch.ones(1))], **{"lr": 0.1, **bad})


def test_learning_rates_grow_with_the_batch() -> None:
    assert Lars(learning_rate=0.3).peak_learning_rate(4096) == pytest.approx(4.8)  # 0.3 * B / 256
    assert Lars(learning_rate=0.075, per=1, scaling="sqrt").peak_learning_rate(4096) == pytest.approx(0.075 * 64)
    assert AdamW(learning_rate=4e-3, per=1024, scaling="sqrt").peak_learning_rate(256) == pytest.approx(2e-3)
    assert Sgd(learning_rate=0.03, per=None).peak_learning_rate(17) == 0.03
    for config in (Lars(learning_rate=0.3), Sgd(learning_rate=0.3), AdamW(learning_rate=0.3)):
        groups = [ParameterGroup("weights", [nn.Parameter(torch.ones(2, 2))], True)]
        assert config.build(groups, 512).param_groups[0]["lr"] == pytest.approx(0.6)


def built(config: Any) -> torch.optim.Optimizer:
    weight, bias = nn.Parameter(torch.full((2, 2), 2.0)), nn.Parameter(torch.full((2,), 2.0))
    groups = [ParameterGroup("weights", [weight], True), ParameterGroup("bias_and_norm", [bias], False)]
    optimizer: torch.optim.Optimizer = config.build(groups, 256)
    return optimizer


def test_options_reach_the_optimisers() -> None:
    lars = built(Lars(learning_rate=0.3, weight_decay=0.1, momentum=0.8, trust_coefficient=0.02))
    assert isinstance(lars, LARS)
    assert [(g["name"], g["weight_decay"], g["adapt"], g["momentum"]) for g in lars.param_groups] == [
        ("weights", 0.1, True, 0.8),
        ("bias_and_norm", 0.0, False, 0.8),
    ]
    assert lars.param_groups[0]["trust_coefficient"] == 0.02
    sgd = built(Sgd(learning_rate=0.3, weight_decay=0.1, momentum=0.8, nesterov=True))
    assert isinstance(sgd, torch.optim.SGD)
    assert [(g["name"], g["weight_decay"], g["nesterov"], g["momentum"]) for g in sgd.param_groups] == [
        ("weights", 0.1, True, 0.8),
        ("bias_and_norm", 0.0, True, 0.8),
    ]
    adamw = built(AdamW(learning_rate=0.3, weight_decay=0.1, betas=(0.8, 0.95), eps=1e-5))
    assert isinstance(adamw, torch.optim.AdamW)
    assert [(g["name"], g["weight_decay"], g["betas"], g["eps"]) for g in adamw.param_groups] == [
        ("weights", 0.1, (0.8, 0.95), 1e-5),
        ("bias_and_norm", 0.0, (0.8, 0.95), 1e-5),
    ]


@pytest.mark.parametrize("kind", [Lars, Sgd, AdamW])
def test_only_regularised_parameters_decay(kind: Any) -> None:
    optimizer = built(kind(learning_rate=0.1, weight_decay=0.5))
    weight, bias = (group["params"][0] for group in optimizer.param_groups)
    weight.grad, bias.grad = torch.zeros_like(weight), torch.zeros_like(bias)
    optimizer.step()
    assert (weight < 2).all()
    assert torch.equal(bias, torch.full_like(bias, 2.0))


@pytest.mark.parametrize(
    ("kind", "bad", "message"),
    [
        (Lars, {"learning_rate": 0.0}, "learning_rate is 0.0"),
        (Lars, {"learning_rate": math.inf}, "finite"),
        (Lars, {"learning_rate": math.nan}, "learning_rate is nan"),
        (Lars, {"trust_coefficient": 0.0}, "trust_coefficient is 0.0"),
        (Sgd, {"per": 0}, "per is 0"),
        (Sgd, {"weight_decay": -1e-4}, "weight_decay is -0.0001"),
        (Sgd, {"momentum": 1.0}, "momentum is 1.0"),
        (Sgd, {"momentum": 0.0, "nesterov": True}, "nesterov needs"),
        (AdamW, {"betas": (0.9, 1.0)}, "betas are"),
        (AdamW, {"eps": 0.0}, "eps is 0.0"),
    ],
)
def test_configs_refuse_numbers_out_of_range(kind: Any, bad: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kind(**{"learning_rate": 0.1, **bad})


def loop_over_tensors(weights: list[Tensor], velocities: list[Tensor], adapt: list[bool], decay: float) -> None:
    """One step of LARS, one tensor after the other."""
    for weight, velocity, adapts in zip(weights, velocities, adapt, strict=True):
        gradient, ratio = weight.grad, torch.ones(())
        assert gradient is not None
        if adapts:
            gradient = gradient + decay * weight
            weight_norm, norm = torch.linalg.vector_norm(weight), torch.linalg.vector_norm(gradient)
            if weight_norm > 0 and norm > 0:
                ratio = 0.001 * weight_norm / norm
        velocity.mul_(0.9).add_(0.3 * ratio * gradient)
        weight.sub_(velocity)


@torch.no_grad()
def test_lars_over_all_tensors_at_once_is_lars_over_each() -> None:
    """ResNet-50's tensors, narrow, in float32."""
    torch.manual_seed(0)
    ours = list(ResNet50(width=8).build(3, (32, 32)).parameters())  # some begin at 0: zero_init_residual
    other = [nn.Parameter(parameter.detach().clone()) for parameter in ours]
    adapt = [parameter.ndim > 1 for parameter in ours]
    groups = [
        {"params": [p for p, a in zip(ours, adapt, strict=True) if a], "weight_decay": 1e-2},
        {"params": [p for p, a in zip(ours, adapt, strict=True) if not a], "adapt": False},
    ]
    optimizer = LARS(groups, lr=0.3)
    velocities: list[Tensor] = [torch.zeros_like(parameter) for parameter in other]
    for _ in range(4):
        for mine, its in zip(ours, other, strict=True):
            mine.grad = torch.randn_like(mine)
            its.grad = mine.grad.clone()
        optimizer.step()
        loop_over_tensors(list(other), velocities, adapt, 1e-2)
        for mine, its in zip(ours, other, strict=True):
            torch.testing.assert_close(mine, its, rtol=1e-6, atol=1e-6)
            assert torch.equal(mine.grad, its.grad)  # type: ignore[arg-type]
    assert len(ours) == 159


@pytest.mark.parametrize(
    "config",
    [
        AdamW(learning_rate=0.01, weight_decay=0.1),
        Sgd(learning_rate=0.01, weight_decay=0.1),
        Sgd(learning_rate=0.01, momentum=0.8, nesterov=True),
        Sgd(learning_rate=0.01, momentum=0.0),
    ],
)
def test_fused_kernels_are_torchs_loop(config: Any) -> None:
    histories = []
    for fused in (True, False):
        weights = leaves()
        optimizer = config.build([ParameterGroup("all", list(weights), True)], 256)
        assert optimizer.param_groups[0]["fused"]
        optimizer.param_groups[0].update(fused=fused, foreach=False)
        histories.append(train(optimizer, weights, range(STEPS)))
    torch.testing.assert_close(histories[0], histories[1], rtol=1e-12, atol=1e-12)
