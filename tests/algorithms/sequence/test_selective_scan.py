"""The selective scan against the recurrence that it computes, in float64, with gradients of everything."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor

from heliostat_algorithms.sequence.mamba import Mamba
from heliostat_algorithms.sequence.state_space.selective_scan import phi, phi_slope, selective_scan, selective_step


def inputs(batch: int, length: int, channels: int, states: int) -> list[Tensor]:
    """u, step, A, B, C and a state, float64, with gradient."""
    made = torch.Generator().manual_seed(batch + 10 * length)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=made)

    step = 0.05 + 0.5 * normal(batch, length, channels).abs()
    A = -(0.1 + 2 * normal(channels, states).abs())
    u, B, C = normal(batch, length, channels), normal(batch, length, states), normal(batch, length, states)
    return [x.requires_grad_() for x in (u, step, A, B, C, normal(batch, channels, states))]


def loop(u: Tensor, step: Tensor, A: Tensor, B: Tensor, C: Tensor, state: Tensor, exact: bool) -> tuple[Tensor, Tensor]:
    """The formula, one number at a time in time, with torch's own derivatives."""
    said = []
    for t in range(u.shape[1]):
        x = step[:, t, :, None] * A
        gain = (x.exp() - 1) / A if exact else step[:, t, :, None].expand_as(x)
        state = x.exp() * state + gain * B[:, t, None, :] * u[:, t, :, None]
        said.append((state * C[:, t, None, :]).sum(dim=2))
    return torch.stack(said, dim=1), state


# 300 steps of a small state make chunks of 256 and 44; 40 of a large one make 16, 16 and 8.
@pytest.mark.parametrize("shape", [(2, 1, 3, 4), (2, 5, 3, 4), (1, 300, 2, 3), (3, 40, 64, 64)])
@pytest.mark.parametrize("exact", [False, True])
def test_output_state_and_gradients_are_those_of_the_recurrence(shape: tuple[int, int, int, int], exact: bool) -> None:
    arguments = inputs(*shape)
    ours, theirs = selective_scan(*arguments, exact), loop(*arguments, exact)
    for mine, reference in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-10, atol=1e-10)
    weights = [torch.randn_like(x) for x in theirs]
    gradients = [
        torch.autograd.grad(sum((x * w).sum() for x, w in zip(pair, weights, strict=True)), arguments)
        for pair in (ours, theirs)
    ]
    for mine, reference in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("exact", [False, True])
def test_gradcheck_with_initial_and_final_state(exact: bool) -> None:
    arguments = inputs(2, 7, 2, 3)
    assert torch.autograd.gradcheck(lambda *x: selective_scan(*x, exact), arguments)


@pytest.mark.parametrize("exact", [False, True])
def test_one_step_after_another_and_any_split_are_the_whole(exact: bool) -> None:
    u, step, A, B, C, state = (x.detach() for x in inputs(2, 50, 3, 4))
    whole, last = selective_scan(u, step, A, B, C, state, exact)
    carried, steps = state, []
    for t in range(50):
        y, carried = selective_step(u[:, t], step[:, t], A, B[:, t], C[:, t], carried, exact)
        steps.append(y)
    torch.testing.assert_close(torch.stack(steps, dim=1), whole)
    torch.testing.assert_close(carried, last)
    first, between = selective_scan(u[:, :21], step[:, :21], A, B[:, :21], C[:, :21], state, exact)
    second, end = selective_scan(u[:, 21:], step[:, 21:], A, B[:, 21:], C[:, 21:], between, exact)
    torch.testing.assert_close(torch.cat([first, second], dim=1), whole)
    torch.testing.assert_close(end, last)


@pytest.mark.parametrize("exact", [False, True])
def test_without_decay_it_is_a_cumulative_sum(exact: bool) -> None:
    u, step, A, B, _, _ = (x.detach() for x in inputs(2, 30, 3, 1))
    y, last = selective_scan(u, step, torch.zeros_like(A), B, torch.ones_like(B), exact=exact)
    sums = (step * u * B).cumsum(dim=1)
    torch.testing.assert_close(y, sums)
    torch.testing.assert_close(last.squeeze(2), sums[:, -1])


def test_with_constant_coefficients_it_is_a_convolution() -> None:
    u, _, A, B, C, _ = (x.detach() for x in inputs(1, 60, 2, 3))
    step, B, C = torch.full_like(u, 0.3), B[:, :1].expand_as(B), C[:, :1].expand_as(C)
    y, _ = selective_scan(u, step, A, B, C, exact=True)
    matrix = torch.linalg.matrix_exp(torch.diag_embed(0.3 * A))  # zero-order hold: e^(step A), A^-1 (e^(step A) - I) B
    entered = torch.linalg.solve(torch.diag_embed(A), (matrix - torch.eye(3, dtype=u.dtype)) @ B[0, 0])
    kernel = torch.stack([torch.linalg.matrix_power(matrix, lag) @ entered[..., None] for lag in range(60)])
    kernel = (C[0, 0] @ kernel).squeeze(2)  # (lags, channels)
    expected = torch.stack([(kernel[: t + 1].flip(0) * u[0, : t + 1]).sum(dim=0) for t in range(60)])
    torch.testing.assert_close(y[0], expected)


def test_an_empty_sequence_leaves_the_state_as_it_is() -> None:
    arguments = [x.detach() for x in inputs(2, 3, 3, 4)]
    u, step, A, B, C, state = arguments
    y, last = selective_scan(u[:, :0], step[:, :0], A, B[:, :0], C[:, :0], state)
    assert y.shape == (2, 0, 3)
    assert torch.equal(last, state)


def test_float32_keeps_its_accuracy_over_long_sequences() -> None:
    arguments = [x.detach() for x in inputs(1, 2000, 4, 8)]
    exact, _ = selective_scan(*arguments)
    single, _ = selective_scan(*(x.float() for x in arguments))
    assert (single.double() - exact).abs().max() < 1e-5 * exact.abs().max()


def test_autocast_leaves_the_recurrence_in_float32() -> None:
    u, step, A, B, C, state = (x.detach().float() for x in inputs(2, 20, 3, 4))
    expected, last = selective_scan(u, step, A, B, C, state)
    with torch.autocast("cpu", torch.bfloat16):
        y, cast = selective_scan(u, step, A, B, C, state)
        half, _ = selective_scan(u.bfloat16(), step, A, B, C, state)
    assert torch.equal(y, expected)
    assert torch.equal(cast, last)
    assert half.dtype == torch.bfloat16


def test_phi_and_its_slope_where_they_cancel() -> None:
    x = torch.tensor([-30.0, -1.0, -0.11, -0.09, -1e-3, -1e-9, 0.0, 1e-7, 0.5], dtype=torch.float64)
    # Integrals without cancellation: phi = integral of e^(xs), its slope that of s e^(xs), over s from 0 to 1.
    s = (torch.arange(20000, dtype=torch.float64) + 0.5) / 20000
    torch.testing.assert_close(phi(x), (x[:, None] * s).exp().mean(dim=1), rtol=1e-6, atol=0)
    torch.testing.assert_close(phi_slope(x), (s * (x[:, None] * s).exp()).mean(dim=1), rtol=1e-6, atol=0)


# Triton's kernels. Triton comes with PyTorch's builds for CUDA and is no dependency of its own; without it there is
# nothing to test. Its interpreter runs them on the CPU, in float64, in processes that ask for it before the import.

MODULE = "heliostat_algorithms.sequence.state_space.selective_scan_triton"


def test_tritons_kernels_in_its_interpreter() -> None:
    pytest.importorskip("triton", reason="Triton is not installed; it comes with PyTorch's builds for CUDA")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__, "-k", "interpreted"]
    done = subprocess.run(command, env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert " skipped" not in done.stdout


@pytest.fixture
def scan() -> Any:
    if os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("runs in the process of test_tritons_kernels_in_its_interpreter")
    return importlib.import_module(MODULE).TritonScan.apply


def _gradients(found: tuple[Tensor, Tensor], arguments: list[Tensor]) -> tuple[Tensor, ...]:
    made = torch.Generator().manual_seed(0)
    weights = [torch.randn(x.shape, dtype=x.dtype, generator=made).to(x.device) for x in found]
    total = (found[0] * weights[0]).sum() + (found[1] * weights[1]).sum()
    return torch.autograd.grad(total, arguments)


# 70 steps make chunks of 16; 40 channels are more than one program has; 5 states are no power of 2.
@pytest.mark.parametrize("shape", [(2, 1, 3, 4), (2, 5, 3, 4), (1, 70, 2, 3), (2, 20, 40, 5)])
@pytest.mark.parametrize("exact", [False, True])
def test_interpreted_kernels_are_the_recurrence(scan: Any, shape: tuple[int, int, int, int], exact: bool) -> None:
    arguments = inputs(*shape)
    ours, theirs = scan(*arguments, exact), loop(*arguments, exact)
    for mine, reference in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-9, atol=1e-9)
    for mine, reference in zip(_gradients(ours, arguments), _gradients(theirs, arguments), strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("exact", [False, True])
def test_interpreted_small_and_vanishing_exponents(scan: Any, exact: bool) -> None:
    u, step, A, B, C, state = inputs(1, 6, 2, 3)
    with torch.no_grad():
        A[0, 0] = 0.0
        A[0, 1] = -1e-6
        A[1, 2] = -0.2
    ours, theirs = (f(u, step, A, B, C, state, exact) for f in (scan, selective_scan))
    for mine, reference in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-9, atol=1e-9)
    arguments = [u, step, A, B, C, state]
    for mine, reference in zip(_gradients(ours, arguments), _gradients(theirs, arguments), strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-8, atol=1e-8)


def test_interpreted_a_network_gives_the_same_in_float32(scan: Any) -> None:
    torch.manual_seed(0)
    network = Mamba(width=8, depth=2, states=4, scan="triton").build()
    x = torch.randn(2, 33, 8)
    found = network(x)
    for block in network.modules():
        if hasattr(block, "scan"):
            block.scan = "torch"
    torch.testing.assert_close(found, network(x), rtol=1e-5, atol=1e-5)


def test_without_triton_the_plain_form_is_taken_without_a_word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)
    sys.modules.pop(MODULE, None)
    arguments = inputs(1, 5, 2, 3)
    ours = selective_scan(*arguments)
    torch.testing.assert_close(ours[0], loop(*arguments, False)[0], rtol=1e-9, atol=1e-9)
    with pytest.raises(ModuleNotFoundError, match="triton"):
        selective_scan(*arguments, implementation="triton")


@pytest.mark.accelerator
@pytest.mark.parametrize("shape", [(4, 512, 128, 16), (1, 1024, 64, 16), (8, 250, 200, 16)])
def test_compiled_kernels_are_those_of_the_plain_form(shape: tuple[int, int, int, int]) -> None:
    arguments = [x.detach().float().cuda().requires_grad_() for x in inputs(*shape)]
    ours, theirs = (selective_scan(*arguments, implementation=which) for which in ("triton", "torch"))
    for mine, reference in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-4, atol=1e-4)
    for mine, reference in zip(_gradients(ours, arguments), _gradients(theirs, arguments), strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-3, atol=1e-3)
