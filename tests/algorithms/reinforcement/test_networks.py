from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from heliostat_algorithms.randomness import Random
from heliostat_algorithms.reinforcement.distributions import C51
from heliostat_algorithms.reinforcement.dqn import DQN, QNetwork
from heliostat_algorithms.reinforcement.heads import DuelingHead, Head
from heliostat_algorithms.reinforcement.networks import Dqn2013, Dqn2015, MinAtar, Mlp

PAPERS = {
    "dqn-2013": (Dqn2013(), [(16, 8, 4), (32, 4, 2)]),
    "dqn-2015": (Dqn2015(), [(32, 8, 4), (64, 4, 2), (64, 3, 1)]),
    "minatar": (MinAtar(), [(16, 3, 1)]),
}


def network(config: DQN.Config, shape: tuple[int, ...], actions: int) -> QNetwork:
    torch.manual_seed(0)
    return DQN(config, shape, actions).online.double()


def arrays(layer: Any) -> tuple[np.ndarray, np.ndarray]:
    return layer.weight.detach().double().numpy(), layer.bias.detach().double().numpy()


def convolved(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, stride: int) -> np.ndarray:
    """(C, H, W) -> (filters, h, w), one place after the other."""
    filters, _, side, _ = weight.shape
    height, width = ((n - side) // stride + 1 for n in x.shape[1:])
    y = np.zeros((filters, height, width))
    for row in range(height):
        for column in range(width):
            top, left = row * stride, column * stride
            patch = x[:, top : top + side, left : left + side]
            y[:, row, column] = (weight * patch).sum(axis=(1, 2, 3)) + bias
    return y


def relu(x: np.ndarray) -> np.ndarray:
    return np.maximum(x, 0)


def linear(x: np.ndarray, layer: Any) -> np.ndarray:
    weight, bias = arrays(layer)
    return weight @ x + bias


@pytest.mark.parametrize("name", PAPERS)
def test_networks_of_pictures_compute_what_their_papers_say(name: str) -> None:
    config, layers = PAPERS[name]
    side = 44 if name != "minatar" else 10
    model = network(DQN.Config(network=config), (3, side, side), 5)
    pictures = np.random.default_rng(0).integers(0, 256, (2, 3, side, side), dtype=np.uint8)
    found = model(torch.from_numpy(pictures), None)
    assert found.shape == (2, 5, 1)
    convolutions = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    assert [(c.out_channels, c.kernel_size[0], c.stride[0]) for c in convolutions] == layers
    for picture, values in zip(pictures, found, strict=True):
        x = picture / 255.0
        for convolution in convolutions:
            x = relu(convolved(x, *arrays(convolution), convolution.stride[0]))
        hidden = relu(linear(x.reshape(-1), model.head.values.hidden))
        expected = linear(hidden, model.head.values.last)
        np.testing.assert_allclose(values[:, 0].detach().numpy(), expected, rtol=1e-10, atol=1e-12)


def test_a_multilayer_perceptron_has_a_relu_behind_each_hidden_layer() -> None:
    model = network(DQN.Config(network=Mlp(hidden_units=(7, 6, 5))), (2, 3), 4)
    x = np.random.default_rng(1).normal(size=(3, 2, 3))
    found = model(torch.from_numpy(x), None)[:, :, 0].detach().numpy()
    linears = [module for module in model.modules() if isinstance(module, nn.Linear)]
    assert [(layer.in_features, layer.out_features) for layer in linears] == [(6, 7), (7, 6), (6, 5), (5, 4)]
    for row, values in zip(x, found, strict=True):
        h = row.reshape(-1)
        for layer in linears[:-1]:
            h = relu(linear(h, layer))
        np.testing.assert_allclose(values, linear(h, linears[-1]), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("config", "shape", "features", "parameters"),
    [
        (Dqn2013(), (4, 84, 84), 2592, 677_172),
        (Dqn2015(), (4, 84, 84), 3136, 1_686_180),
        (MinAtar(), (4, 10, 10), 1024, 592 + 131_200 + 516),
        (Mlp(), (4,), 256, 1280 + 65_792 + 1028),
    ],
)
def test_sizes_are_those_of_the_papers(config: Any, shape: tuple[int, ...], features: int, parameters: int) -> None:
    model = DQN(DQN.Config(network=config), shape, 4).online
    assert model.trunk.feature_dim == features
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters


@pytest.mark.parametrize("kind", ["plain", "noisy"])
def test_weights_and_biases_begin_uniform_within_one_over_the_root_of_the_inputs(kind: str) -> None:
    torch.manual_seed(3)
    model = DQN(DQN.Config(noisy=kind == "noisy"), (4, 84, 84), 18).online
    layers = [*(module for module in model.trunk.layers if isinstance(module, nn.Conv2d)), model.head.values.hidden]
    assert len(layers) == 4
    for layer in layers:
        bound = 1 / math.sqrt(layer.weight[0].numel())
        for tensor in (layer.weight, layer.bias):
            draws = tensor.detach().reshape(-1).numpy()[:5000]
            assert stats.kstest(draws, stats.uniform(-bound, 2 * bound).cdf).pvalue > 1e-3


def test_bytes_are_scaled_and_other_observations_are_not() -> None:
    model = network(DQN.Config(network=Mlp(hidden_units=(8,))), (5,), 2)
    x = torch.tensor([[0, 1, 100, 254, 255]], dtype=torch.uint8)
    assert torch.equal(model(x, None), model(x.double() / 255, None))
    assert x.tolist() == [[0, 1, 100, 254, 255]]
    on = torch.tensor([[True, False, True, True, False]])
    assert torch.equal(model(on, None), model(on.double(), None))
    seen = torch.full((1, 5), 7.0, dtype=torch.float64)
    kept = seen.clone()
    model(seen, None)
    assert torch.equal(seen, kept)  # nothing is done in place where the type already fits
    assert not torch.allclose(model(seen, None), model(seen / 255, None))


def test_half_precision_ends_before_the_values() -> None:
    model = DQN(DQN.Config(network=Mlp(hidden_units=(8, 8))), (5,), 2).online
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert model(torch.randn(3, 5), None).dtype == torch.float32


def dueling(outputs: int = 1, scale: float = math.sqrt(0.5), sigma: float | None = None) -> DuelingHead:
    torch.manual_seed(1)
    return DuelingHead(6, 8, 3, outputs, sigma, scale).double()


def stream(x: np.ndarray, module: Any) -> np.ndarray:
    return linear(relu(linear(x, module.hidden)), module.last)


@pytest.mark.parametrize("outputs", [1, 4])
def test_dueling_streams_are_combined_by_equation_9(outputs: int) -> None:
    head = dueling(outputs)
    features = np.random.default_rng(2).normal(size=(5, 6))
    found = head(torch.from_numpy(features), None).detach().numpy()
    assert found.shape == (5, 3, outputs)
    for row, h in zip(found, features, strict=True):
        value, advantage = stream(h, head.state_value), stream(h, head.values).reshape(3, outputs)
        for action in range(3):
            for k in range(outputs):
                expected = value[k] + advantage[action, k] - sum(advantage[a, k] for a in range(3)) / 3
                assert row[action, k] == pytest.approx(expected, rel=1e-10)


def test_value_and_advantage_are_identifiable() -> None:
    """A constant may not move from one stream to the other unnoticed: the value is the mean over actions."""
    head = dueling()
    features = torch.randn(5, 6, dtype=torch.float64)
    before = head(features, None)
    value = head.state_value(features, None)
    torch.testing.assert_close(before.mean(dim=1), value)
    with torch.no_grad():
        head.values.last.bias.add_(3.0)
    torch.testing.assert_close(head(features, None), before)
    with torch.no_grad():
        head.state_value.last.bias.add_(3.0)
    torch.testing.assert_close(head(features, None), before + 3.0)


def test_one_action_has_no_advantage() -> None:
    torch.manual_seed(0)
    head = DuelingHead(6, 8, 1, 1).double()
    features = torch.randn(4, 6, dtype=torch.float64)
    torch.testing.assert_close(head(features, None)[:, 0], head.state_value(features, None))


@pytest.mark.parametrize("scale", [math.sqrt(0.5), 0.25, 1.0])
def test_only_the_gradient_into_the_trunk_is_scaled(scale: float) -> None:
    head, plain = dueling(scale=scale), dueling(scale=1.0)
    features = torch.randn(5, 6, dtype=torch.float64)
    gradients: list[list[Tensor]] = []
    outputs = []
    for one in (head, plain):
        h = features.clone().requires_grad_()
        out = one(h, None)
        outputs.append(out.detach())
        out.square().sum().backward()
        assert h.grad is not None
        gradients.append([h.grad, *(p.grad for p in one.parameters() if p.grad is not None)])
    assert torch.equal(*outputs)
    torch.testing.assert_close(gradients[0][0], scale * gradients[1][0])
    assert len(gradients[0]) == 9
    torch.testing.assert_close(gradients[0][1:], gradients[1][1:])


def test_a_head_has_one_number_for_each_action_and_output() -> None:
    head = Head(6, 8, 3, 4).double()
    features = torch.randn(2, 6, dtype=torch.float64)
    flat = head.values(features, None)
    found = head(features, None)
    for action in range(3):
        torch.testing.assert_close(found[:, action], flat[:, 4 * action : 4 * action + 4])


def test_noise_reaches_each_noisy_layer_once() -> None:
    """Each number of a head's noise moves the output, and no two of them in the same way."""
    head = dueling(sigma=0.5)
    features = torch.rand(1, 6, dtype=torch.float64)
    size = 2 * (6 + 8) + (8 + 3) + (8 + 1)
    base = torch.ones(1, size, dtype=torch.float64)
    moved = []
    with torch.no_grad():
        torch.testing.assert_close(head(features, torch.zeros_like(base)), head(features, None))
        for parameter in head.parameters():
            parameter.uniform_(0.1, 1.0)  # no unit is switched off, and no two are alike
        for k in range(size):
            changed = base.clone()
            changed[0, k] = 0
            moved.append(head(features, changed) - head(features, base))
    assert [k for k, change in enumerate(moved) if change.abs().max() < 1e-6] == []
    assert len({tuple(round(x, 9) for x in change.flatten().tolist()) for change in moved}) == size


def test_plain_heads_take_no_noise() -> None:
    assert dueling().draw(Random(0, 0, range(1))) is None
    noise = dueling(sigma=0.5).draw(Random(0, 0, range(3)))
    assert noise is not None
    assert noise.shape == (3, 2 * (6 + 8) + (8 + 3) + (8 + 1))


def test_the_smallest_picture_is_seen_and_a_smaller_one_is_refused() -> None:
    assert Dqn2015().build((1, 36, 36)).feature_dim == 64
    with pytest.raises(ValueError, match=r"dqn-2015 sees pictures .* at least 36 x 36, but .* \(1, 36, 35\)"):
        Dqn2015().build((1, 36, 35))
    assert MinAtar().build((4, 3, 3)).feature_dim == 16
    for shape in ((4,), (84, 84), (4, 2, 10)):
        with pytest.raises(ValueError, match="minatar sees pictures"):
            MinAtar().build(shape)


@pytest.mark.parametrize(
    ("kind", "bad"),
    [(Dqn2015, {"hidden_units": 0}), (Mlp, {"hidden_units": ()}), (Mlp, {"hidden_units": (64, 0)})],
)
def test_widths_out_of_range_are_refused(kind: Any, bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="hidden_units is"):
        kind(**bad)


def test_the_output_of_a_distribution_stands_behind_the_actions() -> None:
    model = DQN(DQN.Config(network=Mlp(), distribution=C51(atoms=7), dueling=True), (4,), 3).online
    assert model(torch.randn(2, 4), None).shape == (2, 3, 7)
