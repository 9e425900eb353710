"""S4, S4D and Mamba as networks: what they compute at once is what they compute step by step."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from heliostat_algorithms.sequence.mamba import Mamba, MambaMixer
from heliostat_algorithms.sequence.network import NetworkConfig, Stack, grouped
from heliostat_algorithms.sequence.s4 import S4, S4D, S4Mixer

NETWORKS: dict[str, NetworkConfig] = {
    "s4": S4(width=6, depth=2, states=8, length=16, dropout=0.0),
    "s4d": S4D(width=6, depth=2, states=8, dropout=0.0),
    "s4d-lin": S4D(width=6, depth=2, states=8, dropout=0.0, initialization="linear", discretization="bilinear"),
    "mamba": Mamba(width=6, depth=2, states=4),
    "mamba-exact": Mamba(width=6, depth=2, states=4, exact=True),
}


@pytest.fixture(params=NETWORKS)
def network(request: pytest.FixtureRequest) -> Stack:
    torch.manual_seed(0)
    return NETWORKS[request.param].build().double().eval()


def sequence(length: int) -> Tensor:
    return torch.randn(2, length, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(length))


# 1 and 3 are shorter than Mamba's convolution; 16 is the length of S4's kernel, 17 and 40 are beyond it.
@pytest.mark.parametrize("length", [1, 3, 16, 17, 40])
@pytest.mark.parametrize("split", [0.0, 0.3, 0.9])
def test_a_beginning_at_once_then_step_by_step_is_the_whole(network: Stack, length: int, split: float) -> None:
    x = sequence(length)
    whole = network(x)
    beginning = int(split * length)
    with torch.no_grad():
        state, said = network.initial_state(x), []
        if beginning:
            y, state = network.advance(x[:, :beginning], state)
            said.append(y)
        for t in range(beginning, length):
            y, state = network.advance(x[:, t : t + 1], state)
            said.append(y)
    torch.testing.assert_close(torch.cat(said, dim=1), whole, rtol=1e-9, atol=1e-9)


def test_split_with_carried_state_is_the_whole_with_gradient(network: Stack) -> None:
    x = sequence(40).requires_grad_()
    whole = network(x)
    state, said = network.initial_state(x), []
    for part in x.split([7, 20, 13], dim=1):
        y, state = network.advance(part, state)
        said.append(y)
    parts = torch.cat(said, dim=1)
    torch.testing.assert_close(parts, whole, rtol=1e-9, atol=1e-9)
    weight = torch.randn_like(whole)
    named = dict(network.named_parameters())
    first, second = (torch.autograd.grad((y * weight).sum(), [x, *named.values()]) for y in (whole, parts))
    for name, mine, theirs in zip(["x", *named], first, second, strict=True):
        assert torch.allclose(mine, theirs, rtol=1e-7, atol=1e-8), name


def test_causality(network: Stack) -> None:
    x = sequence(20).requires_grad_()
    said = network(x)[:, 11]
    (gradient,) = torch.autograd.grad((said * torch.arange(6)).sum(), x)  # a plain sum of a layer norm is constant
    assert gradient[:, 12:].abs().max() < 1e-12  # Fourier transforms leave rounding
    assert gradient[:, :12].abs().amax(dim=(0, 2)).min() > 1e-9


def test_a_forward_pass_changes_no_parameter(network: Stack) -> None:
    before = copy.deepcopy(network.state_dict())
    network(sequence(40))
    assert network.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_generation_follows_parameters_that_change(network: Stack) -> None:
    """S4 keeps its discretised system between steps, and must notice that it is out of date."""
    x = sequence(4)
    with torch.no_grad():
        network.advance(x[:, :1], network.initial_state(x))
        for parameter in network.parameters():
            parameter.mul_(0.9)
        y, _ = network.advance(x[:, :1], network.initial_state(x))
        torch.testing.assert_close(y, network(x[:, :1]), rtol=1e-9, atol=1e-9)


def test_the_state_has_a_fixed_size(network: Stack) -> None:
    x = sequence(40)
    sizes = [network.advance(x[:, :length], network.initial_state(x))[1].bytes for length in (1, 2, 40)]
    assert len(set(sizes)) == 1


def test_rows_of_a_state_can_be_chosen(network: Stack) -> None:
    x = sequence(9)
    _, state = network.advance(x[:, :5], network.initial_state(x))
    rows = torch.tensor([1, 1, 0])
    chosen, _ = network.advance(x[rows, 5:], state.select(rows))
    torch.testing.assert_close(chosen, network(x)[rows, 5:], rtol=1e-9, atol=1e-9)


def test_all_parameters_learn_and_dynamics_do_not_decay(network: Stack) -> None:
    network(sequence(12)).square().sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name
    groups = {group.name: group for group in grouped(network)}
    assert sum(len(group.parameters) for group in groups.values()) == len(list(network.parameters()))
    dynamics = {id(parameter) for parameter in groups["dynamics"].parameters}
    assert not groups["dynamics"].regularized
    kept = {name.rsplit(".", 1)[-1] for name, p in network.named_parameters() if id(p) in dynamics}
    if isinstance(network.blocks[0].mixer, MambaMixer):
        assert kept == {"A_log", "D"}
        assert groups["dynamics"].learning_rate is None
    else:
        assert kept - {"P"} == {"log_step", "log_decay", "frequency", "B"}
        assert groups["dynamics"].learning_rate == 0.001


def test_mamba_begins_as_published() -> None:
    torch.manual_seed(0)
    network = Mamba(width=64, depth=4).build()
    mixer = network.blocks[0].mixer
    assert isinstance(mixer, MambaMixer)
    steps = torch.nn.functional.softplus(mixer.dt_proj.bias)
    assert steps.min() > 0.00099
    assert steps.max() < 0.101
    assert steps.log().mean().item() == pytest.approx(-4.6, abs=0.4)  # the middle of log 0.001 and log 0.1
    torch.testing.assert_close(mixer.A_log.exp(), torch.arange(1.0, 17).repeat(128, 1))
    assert (mixer.D == 1).all()
    assert mixer.dt_proj.in_features == 4
    assert mixer.dt_proj.weight.abs().max() <= 0.5
    assert mixer.out_proj.weight.abs().max() <= 128**-0.5 / 2
    assert network.embedding_std == 0.02


def test_mambas_convolution_is_torchs() -> None:
    torch.manual_seed(0)
    mixer = Mamba(width=6, depth=1).build().double().blocks[0].mixer
    assert isinstance(mixer, MambaMixer)
    u = torch.randn(2, 9, 12, dtype=torch.float64)
    y, recent = mixer._convolved(u, torch.zeros(2, 3, 12, dtype=torch.float64))
    expected = mixer.conv1d(torch.nn.functional.pad(u.transpose(1, 2), (3, 0))).transpose(1, 2)
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(recent, u[:, -3:])


def test_mamba_is_its_formula() -> None:
    """The whole mixer, written from algorithm 2 and figure 3 one position at a time."""
    torch.manual_seed(0)
    mixer = Mamba(width=6, depth=1, states=4).build().double().blocks[0].mixer
    assert isinstance(mixer, MambaMixer)
    x = sequence(10)
    inner, said = mixer.in_proj(x), []
    u, z = inner[..., :12], inner[..., 12:]
    h = torch.zeros(2, 12, 4, dtype=torch.float64)
    for t in range(10):
        window = [u[:, t - lag] * mixer.conv1d.weight[:, 0, 3 - lag] for lag in range(4) if t >= lag]
        c = torch.nn.functional.silu(mixer.conv1d.bias + sum(window))
        made = mixer.x_proj(c)
        step, B, C = made[:, :1], made[:, 1:5], made[:, 5:]
        step = torch.log1p(torch.exp(mixer.dt_proj(step)))
        h = torch.exp(-step[:, :, None] * mixer.A_log.exp()) * h + (step * c)[:, :, None] * B[:, None]
        y = (h * C[:, None]).sum(dim=2) + mixer.D * c
        said.append(mixer.out_proj(y * z[:, t] * torch.sigmoid(z[:, t])))
    torch.testing.assert_close(mixer(x), torch.stack(said, dim=1))


def test_half_precision_keeps_states_in_float32() -> None:
    torch.manual_seed(0)
    for config in NETWORKS.values():
        network = config.build().eval()
        x = sequence(20).float()
        with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
            y, state = network.advance(x, network.initial_state(x))
        assert state.layers[0][-1].dtype == torch.float32
        torch.testing.assert_close(y, network(x).detach(), rtol=0.1, atol=0.1)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (lambda: S4(length=0), "length"),
        (lambda: S4(length=8, states=7), "even"),
        (lambda: S4D(steps=(0.1, 0.01)), "steps"),
        (lambda: S4D(dynamics_learning_rate=0.0), "dynamics_learning_rate"),
        (lambda: Mamba(states=0), "states"),
        (lambda: Mamba(steps=(0.0, 0.1)), "steps"),
    ],
)
def test_wrong_configs_are_refused(config: object, message: str) -> None:
    assert callable(config)
    with pytest.raises(ValueError, match=message):
        config()


def test_s4s_layer_is_convolution_gelu_and_a_gate() -> None:
    torch.manual_seed(0)
    mixer = S4D(width=6, depth=1, states=8).build().double().blocks[0].mixer
    assert isinstance(mixer, S4Mixer)
    x, kernel = sequence(10), mixer.space.kernel(10)
    y = torch.stack(
        [sum(kernel[:, lag] * x[:, t - lag] for lag in range(t + 1)) + mixer.D * x[:, t] for t in range(10)]
    )
    value, gate = mixer.out(torch.nn.functional.gelu(y.transpose(0, 1))).chunk(2, dim=2)
    torch.testing.assert_close(mixer(x), value * torch.sigmoid(gate))
