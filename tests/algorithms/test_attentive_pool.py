"""The attentive pool against its formula, one number at a time."""

from __future__ import annotations

import math
from typing import Any, TypeAlias

import numpy as np
import pytest
import torch
from torch import Tensor

from heliostat_algorithms.heads.attentive import AttentivePool

Array: TypeAlias = np.ndarray[Any, np.dtype[np.float64]]
D, HEADS, HIDDEN = 8, 2, 20


def pool() -> AttentivePool:
    """None of whose parameters is 0 or 1."""
    torch.manual_seed(0)
    made = AttentivePool(D, HEADS, mlp_ratio=HIDDEN / D).double()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.5 + (0.7 if parameter.ndim == 1 else 0.0))
    return made


def tokens(count: int = 3, length: int = 5) -> Tensor:
    return torch.randn(count, length, D, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def norm(x: Array, gain: Array, bias: Array) -> Array:
    mean = sum(x) / D
    variance = sum((v - mean) ** 2 for v in x) / D
    return np.array([(v - mean) / math.sqrt(variance + 1e-5) * g + b for v, g, b in zip(x, gain, bias, strict=True)])


def reference(state: dict[str, Array], x: Array) -> Array:
    """One sample's tokens (N, D) -> (D,)."""
    query = state["query"].reshape(D)
    q = state["q.weight"] @ query + state["q.bias"]
    normed = [norm(token, state["norm1.weight"], state["norm1.bias"]) for token in x]
    keys = [state["kv.weight"][:D] @ token + state["kv.bias"][:D] for token in normed]
    values = [state["kv.weight"][D:] @ token + state["kv.bias"][D:] for token in normed]
    gathered, d = np.zeros(D), D // HEADS
    for head in range(HEADS):
        part = slice(head * d, (head + 1) * d)
        scores = [math.exp(sum(q[part] * key[part]) / math.sqrt(d)) for key in keys]
        for score, value in zip(scores, values, strict=True):
            gathered[part] += score / sum(scores) * value[part]
    y = query + state["proj.weight"] @ gathered + state["proj.bias"]
    z = state["mlp.fc1.weight"] @ norm(y, state["norm2.weight"], state["norm2.bias"]) + state["mlp.fc1.bias"]
    z = np.array([v * 0.5 * (1 + math.erf(v / math.sqrt(2))) for v in z])
    return y + state["mlp.fc2.weight"] @ z + state["mlp.fc2.bias"]


@pytest.mark.parametrize("length", [1, 5])
def test_the_pool_follows_its_formula(length: int) -> None:
    made, x = pool(), tokens(length=length)
    state = {name: value.numpy() for name, value in made.state_dict().items()}
    found = made(x)
    assert found.shape == (3, D)
    for row, sample in zip(found.detach().numpy(), x.numpy(), strict=True):
        np.testing.assert_allclose(row, reference(state, sample), rtol=1e-12, atol=1e-13)


def test_the_order_of_tokens_does_not_matter_and_each_sample_is_by_itself() -> None:
    made, x = pool(), tokens()
    found = made(x)
    torch.testing.assert_close(made(x[:, [3, 0, 4, 2, 1]]), found, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(made(x[1:2]), found[1:2], rtol=1e-12, atol=1e-12)


def test_every_parameter_learns() -> None:
    made = pool()
    made(tokens()).square().sum().backward()
    for name, parameter in made.named_parameters():
        assert parameter.grad is not None
        if name != "kv.bias":  # a shift of all keys changes no attention; that of the values is in its second half
            assert float(parameter.grad.abs().min()) > 0, name
    assert made.kv.bias.grad is not None
    assert float(made.kv.bias.grad[D:].abs().min()) > 0


def test_it_begins_as_in_the_official_code() -> None:
    torch.manual_seed(0)
    made = AttentivePool(256, 4)
    for name, std in (
        *(("query", 0.02), ("q.weight", 0.02), ("kv.weight", 0.02), ("mlp.fc1.weight", 0.02)),
        *(("proj.weight", 0.02 / math.sqrt(2)), ("mlp.fc2.weight", 0.02 / math.sqrt(2))),
    ):
        found = made.get_parameter(name)
        assert found.std().item() == pytest.approx(std, rel=0.15 if name == "query" else 0.02), name
    assert not any(bool(p.any()) for name, p in made.named_parameters() if name.endswith("bias"))
    assert made.mlp.fc1.weight.shape == (1024, 256)


def test_heads_that_do_not_divide_the_width_are_refused() -> None:
    with pytest.raises(ValueError, match="3 heads do not divide a width of 8"):
        AttentivePool(8, 3)
