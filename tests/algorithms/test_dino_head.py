from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from heliostat_algorithms.heads.dino import DINOHead


def head(**options: int | bool) -> DINOHead:
    torch.manual_seed(0)
    return DINOHead(5, 7, **{"hidden_dim": 6, "bottleneck_dim": 4, **options}).double()  # type: ignore[arg-type]


def rows(count: int = 3, dim: int = 5) -> Tensor:
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def reference(head: DINOHead, x: list[float]) -> list[float]:
    """The formula for one row, in plain floats."""
    linears = [module for module in head.mlp if isinstance(module, nn.Linear)]
    for number, linear in enumerate(linears):
        weight, bias = linear.weight.tolist(), linear.bias.tolist()
        x = [sum(w * v for w, v in zip(row, x, strict=True)) + b for row, b in zip(weight, bias, strict=True)]
        if number < len(linears) - 1:
            x = [v * 0.5 * (1 + math.erf(v / math.sqrt(2))) for v in x]
    length = math.hypot(*x)
    x = [v / length for v in x]
    out = []
    for direction, (gain,) in zip(head.last_layer.weight_v.tolist(), head.last_layer.weight_g.tolist(), strict=True):
        out.append(gain * sum(d * v for d, v in zip(direction, x, strict=True)) / math.hypot(*direction))
    return out


@pytest.mark.parametrize("layers", [1, 2, 3, 4])
def test_logits_follow_the_formula(layers: int) -> None:
    made = head(layers=layers, frozen_gain=False)
    with torch.no_grad():
        for parameter in made.parameters():  # biases and gains that are not trivial
            parameter.add_(torch.randn(parameter.shape, dtype=torch.float64) * 0.3)
    found = made(rows())
    assert found.shape == (3, 7)
    expected = torch.tensor([reference(made, row) for row in rows().tolist()], dtype=torch.float64)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_with_gains_of_1_logits_are_cosines() -> None:
    made = head()
    z = made.mlp(rows())
    found = made(rows())
    for row in range(3):
        for prototype in range(7):
            u, v = z[row], made.last_layer.weight_v[prototype]
            assert found[row, prototype].item() == pytest.approx((u @ v / (u.norm() * v.norm())).item(), rel=1e-12)


def test_gradients_are_those_of_torchs_weight_normalisation() -> None:
    made = head(frozen_gain=False)
    linear = nn.Linear(4, 7, bias=False).double()
    linear.weight.data.copy_(made.last_layer.weight_v.detach())
    theirs = parametrizations.weight_norm(linear)  # gain |v|, so scale ours to the same weights
    with torch.no_grad():
        made.last_layer.weight_g.copy_(made.last_layer.weight_v.norm(dim=1, keepdim=True))
    x = rows(dim=4)
    out = torch.randn(3, 7, dtype=torch.float64)
    (made.last_layer(x) * out).sum().backward()
    (theirs(x) * out).sum().backward()
    original = theirs.parametrizations.weight
    torch.testing.assert_close(made.last_layer.weight_g.grad, original.original0.grad, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(made.last_layer.weight_v.grad, original.original1.grad, rtol=1e-10, atol=1e-12)


def test_directions_learn_and_gains_only_where_they_are_free() -> None:
    for frozen in (True, False):
        made = head(frozen_gain=frozen)
        made(rows()).square().sum().backward()
        assert made.last_layer.weight_v.grad is not None
        assert made.last_layer.weight_v.grad.abs().max() > 1e-3
        assert (made.last_layer.weight_g.grad is None) == frozen
        # A direction has no length to learn: the gradient stands upright on it.
        along = (made.last_layer.weight_v.grad * made.last_layer.weight_v).sum(dim=1)
        assert along.abs().max() < 1e-12


def test_weights_begin_as_in_the_official_code() -> None:
    torch.manual_seed(0)
    made = DINOHead(64, 4096, hidden_dim=256, bottleneck_dim=64)
    for module in made.mlp:
        if isinstance(module, nn.Linear):
            assert module.weight.std().item() == pytest.approx(0.02, rel=0.05)
            assert not module.bias.any()
    assert (made.last_layer.weight_g == 1).all()
    directions = made.last_layer.weight_v
    assert directions.abs().max() <= 1 / 8
    assert directions.std().item() == pytest.approx(1 / 8 / math.sqrt(3), rel=0.02)  # uniform from -1/8 to 1/8


def test_the_default_head_is_the_papers() -> None:
    with torch.device("meta"):
        made = DINOHead(384, 65536)
    kinds = [type(module).__name__ for module in made.mlp]
    assert kinds == ["Linear", "GELU", "Linear", "GELU", "Linear"]
    shapes = {name: tuple(parameter.shape) for name, parameter in made.named_parameters()}
    assert {name: shape for name, shape in shapes.items() if "bias" not in name} == {
        "mlp.0.weight": (2048, 384),
        "mlp.2.weight": (2048, 2048),
        "mlp.4.weight": (256, 2048),
        "last_layer.weight_g": (65536, 1),
        "last_layer.weight_v": (65536, 256),
    }
    assert not made.last_layer.weight_g.requires_grad


def test_batch_normalisation_follows_the_hidden_layers() -> None:
    made = head(batch_norm=True)
    kinds = [type(module).__name__ for module in made.mlp]
    assert kinds == ["Linear", "BatchNorm1d", "GELU", "Linear", "BatchNorm1d", "GELU", "Linear"]
    assert [type(module).__name__ for module in head(batch_norm=True, layers=1).mlp] == ["Linear"]


def test_a_copy_is_a_head_of_its_own_and_the_state_can_be_loaded() -> None:
    made = head()
    copied = copy.deepcopy(made)
    before = copied(rows())
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.1)
    assert torch.equal(copied(rows()), before)
    copied.load_state_dict(made.state_dict())
    assert torch.equal(copied(rows()), made(rows()))
    assert {"last_layer.weight_v", "last_layer.weight_g"} < set(made.state_dict())


def test_the_last_layer_is_named_for_freezing() -> None:
    made = head()
    assert {id(p) for p in made.last_layer_parameters()} == {id(p) for p in made.last_layer.parameters()}


def test_cosines_are_float32_under_autocast() -> None:
    made = head().float()
    x = rows().float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = made(x)
        z = made.mlp(x)
    assert z.dtype == torch.bfloat16
    assert found.dtype == torch.float32
    z64, v64 = z.double(), made.last_layer.weight_v.double()
    exact = (z64 / z64.norm(dim=1, keepdim=True)) @ (v64 / v64.norm(dim=1, keepdim=True)).T
    torch.testing.assert_close(found.double(), exact, rtol=0, atol=1e-6)  # bfloat16 would be off by 1e-3


def test_a_head_has_a_layer_at_least() -> None:
    with pytest.raises(ValueError, match="a head of 0 layers"):
        head(layers=0)
