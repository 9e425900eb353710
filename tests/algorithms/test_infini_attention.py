"""Infini-attention against its equations, and what the memory must and must not know."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from heliostat_algorithms.sequence.infini_attention import (
    InfiniAttention,
    InfiniMixer,
    Rule,
    read,
    rotated,
    sigma,
    write,
)

WIDTH, HEADS = 16, 2


def mixer(segment: int, rule: Rule = "linear", memory: bool = True) -> InfiniMixer:
    torch.manual_seed(0)
    made = InfiniMixer(WIDTH, HEADS, segment, rule, memory, 0.01).double()
    if made.gate is not None:
        made.gate.data = torch.tensor([0.4, -0.7], dtype=torch.float64)
    return made


def inputs(length: int = 12) -> Tensor:
    return torch.randn(2, length, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def by_hand(m: InfiniMixer, x: Tensor) -> Tensor:
    """The equations, token by token and head by head."""
    a, inner = m.attention, WIDTH // HEADS
    out = torch.zeros_like(x)
    for b in range(len(x)):
        heads = []
        for h in range(HEADS):
            part = slice(h * inner, (h + 1) * inner)
            q, k, v = (x[b] @ w.weight[part].T for w in (a.q, a.k, a.v))
            memory, z = torch.zeros(inner, inner).double(), torch.zeros(inner).double()
            rows = []
            for start in range(0, len(q), m.segment):
                end = min(start + m.segment, len(q))
                for t in range(start, end):
                    s = F.elu(q[t]) + 1
                    recalled = (s @ memory) / (s @ z) if z.abs().sum() > 0 else torch.zeros(inner).double()
                    turned = [rotated(y[None, None, start:end], 0)[0, 0] for y in (q, k)]
                    scores = turned[1][: t - start + 1] @ turned[0][t - start] / inner**0.5
                    local = scores.softmax(dim=0) @ v[start : t + 1]
                    assert m.gate is not None
                    g = torch.sigmoid(m.gate[h])
                    rows.append(g * recalled + (1 - g) * local)
                new_m, new_z = memory.clone(), z.clone()
                for t in range(start, end):
                    s = F.elu(k[t]) + 1
                    old = (s @ memory) / (s @ z) if m.rule == "delta" and z.abs().sum() > 0 else 0.0
                    new_m += torch.outer(s, v[t] - old)
                    new_z += s
                memory, z = new_m, new_z
            heads.append(torch.stack(rows))
        out[b] = torch.cat(heads, dim=1) @ a.out.weight.T
    return out


@pytest.mark.parametrize("rule", ["linear", "delta"])
@pytest.mark.parametrize(("segment", "length"), [(4, 12), (4, 10), (5, 5)])
def test_it_is_the_equations(rule: Rule, segment: int, length: int) -> None:
    m, x = mixer(segment, rule), inputs(length)
    assert torch.allclose(m(x), by_hand(m, x), atol=1e-12)


def test_the_memory_is_the_sum_over_all_earlier_tokens_however_they_are_cut() -> None:
    k, v = (torch.randn(2, 2, 12, 8, dtype=torch.float64) for _ in range(2))
    sk = sigma(k)
    expected = torch.einsum("bhtk,bhtv->bhkv", sk, v)
    for size in (1, 3, 4, 12):
        m, z = torch.zeros(2, 2, 8, 8).double(), torch.zeros(2, 2, 8).double()
        for start in range(0, 12, size):
            part = slice(start, start + size)
            m, z = write(m, z, sk[:, :, part], v[:, :, part], "linear")
        assert torch.allclose(m, expected, atol=1e-12)
        assert torch.allclose(z, sk.sum(dim=2), atol=1e-12)


def test_the_delta_rule_writes_nothing_that_is_recalled_already() -> None:
    k, v = torch.randn(1, 1, 1, 8, dtype=torch.float64), torch.randn(1, 1, 1, 8, dtype=torch.float64)
    m, z = write(torch.zeros(1, 1, 8, 8).double(), torch.zeros(1, 1, 8).double(), sigma(k), v, "delta")
    assert torch.allclose(read(m, z, sigma(k)), v, atol=1e-12)
    again, _ = write(m, z, sigma(k), v, "delta")
    assert torch.allclose(again, m, atol=1e-12)
    twice, _ = write(m, z, sigma(k), v, "linear")
    assert not torch.allclose(twice, m, atol=1e-2)


def test_an_empty_memory_recalls_nothing() -> None:
    found = read(torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 4), sigma(torch.randn(1, 1, 3, 4)))
    assert torch.equal(found, torch.zeros(1, 1, 3, 4))


def test_a_closed_gate_is_local_attention() -> None:
    open_, local, x = mixer(4), mixer(4, memory=False), inputs()
    assert not torch.allclose(open_(x), local(x), atol=1e-3)
    assert open_.gate is not None
    open_.gate.data.fill_(-100.0)
    assert torch.allclose(open_(x), local(x), atol=1e-12)


def test_one_segment_is_causal_attention() -> None:
    m, x = mixer(12, memory=False), inputs()
    a = m.attention
    q, k, v = (a.split(x, p) for p in (a.q, a.k, a.v))
    scores = rotated(q, 0) @ rotated(k, 0).transpose(2, 3) / (WIDTH / HEADS) ** 0.5
    scores = scores.masked_fill(torch.ones(12, 12, dtype=torch.bool).triu(1), -torch.inf)
    assert torch.allclose(m(x), a.join(scores.softmax(dim=3) @ v), atol=1e-12)


def test_rotated_scores_depend_on_distances_alone() -> None:
    q, k = (torch.randn(1, 1, 1, 8, dtype=torch.float64) for _ in range(2))
    scores = [float((rotated(q, p + 3) * rotated(k, p)).sum()) for p in range(5)]
    assert scores == pytest.approx([scores[0]] * 5, abs=1e-12)
    assert float((rotated(q, 9) * rotated(k, 0)).sum()) != pytest.approx(scores[0], abs=1e-3)


@pytest.mark.parametrize("rule", ["linear", "delta"])
def test_the_gradient_reaches_the_first_segment(rule: Rule) -> None:
    m, x = mixer(4, rule), inputs().requires_grad_()
    (gradient,) = torch.autograd.grad(m(x)[:, -1].square().sum(), x)
    assert gradient[:, :4].abs().amax(dim=(0, 2)).min() > 1e-6
    (without,) = torch.autograd.grad(mixer(4, rule, memory=False)(x)[:, -1].square().sum(), x)
    assert without[:, :8].abs().max() == 0


def test_the_state_never_grows() -> None:
    network = InfiniAttention(width=WIDTH, depth=2, heads=HEADS, hidden=8, segment=4).build().eval()
    state = network.initial_state(torch.zeros(1, 1))
    sizes = {state.bytes}
    for _ in range(20):
        _, state = network.advance(torch.randn(1, 3, WIDTH), state)
        sizes.add(state.bytes)
    assert len(sizes) == 1


def test_gates_have_a_learning_rate_of_their_own_and_no_decay() -> None:
    (group,) = mixer(4).own_groups()
    assert (group.learning_rate, group.regularized) == (0.01, False)
    assert mixer(4, memory=False).own_groups() == []
