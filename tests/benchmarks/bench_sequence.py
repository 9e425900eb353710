"""State spaces: Mamba's scan over the loop it replaces, its memory, S4's kernels over their plain forms, and decoding.

Times are of this process's own work (CPU time), medians of calls in turn, on one thread: forward and backward where
nothing else is said.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from heliostat_algorithms.sequence.mamba import Mamba
from heliostat_algorithms.sequence.state_space import diagonal_plus_low_rank as dplr
from heliostat_algorithms.sequence.state_space import hippo
from heliostat_algorithms.sequence.state_space.selective_scan import selective_scan
from heliostat_algorithms.sequence.state_space.vandermonde import weighted_powers

SIZES = {"B4 L512 D128": (4, 512, 128), "B1 L1024 D64": (1, 1024, 64), "B8 L256 D256": (8, 256, 256)}
STATES = 16
FEATURES, SYSTEM_STATES, LENGTH = 128, 64, 1024


def scan_inputs(batch: int, length: int, channels: int) -> list[Tensor]:
    """u, step, A, B, C with gradient."""
    torch.manual_seed(0)
    u, step = torch.randn(batch, length, channels), 0.001 + 0.1 * torch.rand(batch, length, channels)
    A = -torch.arange(1.0, STATES + 1).repeat(channels, 1)
    B, C = torch.randn(batch, length, STATES), torch.randn(batch, length, STATES)
    return [x.requires_grad_() for x in (u, step, A, B, C)]


def coefficients(u: Tensor, step: Tensor, A: Tensor, B: Tensor) -> tuple[Tensor, Tensor]:
    """What each state is multiplied by, and what is added to it: (B, L, D, N) each."""
    return (step.unsqueeze(3) * A).exp(), (step * u).unsqueeze(3) * B.unsqueeze(2)


def chunked(u: Tensor, step: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    return selective_scan(u, step, A, B, C)[0]


def unbound(u: Tensor, step: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """The fair plain loop: over unbound views, all outputs read in one product."""
    decay, drive = coefficients(u, step, A, B)
    h, states = torch.zeros_like(drive[:, 0]), []
    for a, b in zip(decay.unbind(1), drive.unbind(1), strict=True):
        h = a * h + b
        states.append(h)
    return torch.einsum("bldn,bln->bld", torch.stack(states, dim=1), C)


def associative(u: Tensor, step: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """PyTorch's own, in the mode that CPUs have."""
    from torch._higher_order_ops.associative_scan import associative_scan

    def join(left: tuple[Tensor, Tensor], right: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return left[0] * right[0], right[0] * left[1] + right[1]

    _, states = associative_scan(join, coefficients(u, step, A, B), dim=1, combine_mode="generic")
    return torch.einsum("bldn,bln->bld", states, C)


def plain_cauchy(eigenvalues: Tensor, P: Tensor, B: Tensor, C: Tensor, step: Tensor) -> Tensor:
    """Four complex Cauchy products at all roots of unity, the two of a pair added up; an odd length has no z = -1."""
    angle = -2 * torch.pi / (LENGTH - 1) * torch.arange(LENGTH - 1, dtype=torch.float64)
    z = torch.polar(torch.ones_like(angle), angle)
    ratio, outside = ((1 - z) / (1 + z)).to(C.dtype), (2 / (1 + z)).to(C.dtype)
    g = (2 / step.unsqueeze(1) * ratio).unsqueeze(1)
    values = eigenvalues.unsqueeze(2)

    def k(v: Tensor) -> Tensor:
        v = v.unsqueeze(2)
        return (v / (g - values) + v.conj() / (g - values.conj())).sum(dim=1)

    spectrum = outside * (k(C * B) - k(C * P) * k(P.conj() * B) / (1 + k(P.conj() * P)))
    return torch.fft.ifft(spectrum).real


def plain_vandermonde(v: Tensor, x: Tensor) -> Tensor:
    powers = (x.unsqueeze(2) * torch.arange(LENGTH)).exp()
    return 2 * (v.unsqueeze(2) * powers).sum(dim=1).real


def milliseconds(
    ours: Callable[..., Tensor],
    other: Callable[..., Tensor],
    inputs: Sequence[Tensor],
    calls: int,
    backward: bool = True,
) -> tuple[float, float]:
    """Medians of both, in turn."""
    seconds: dict[Callable[..., Tensor], list[float]] = {ours: [], other: []}
    for call in range(calls + 1):
        for work in (ours, other):
            start = time.process_time()
            with torch.set_grad_enabled(backward):
                y = work(*inputs)
            if backward:
                torch.autograd.grad(y.square().sum(), inputs)
            if call:
                seconds[work].append(1000 * (time.process_time() - start))
    return statistics.median(seconds[ours]), statistics.median(seconds[other])


def held_megabytes(work: Callable[..., Tensor], inputs: Sequence[Tensor]) -> float:
    """What is kept for the backward pass, each memory counted once."""
    kept: dict[int, int] = {}

    def note(x: Tensor) -> Tensor:
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
        y = work(*inputs)
    del y
    return sum(kept.values()) / 1e6


def speed(name: str, ours: float, other: float, unit: str = "ms") -> dict[str, Any]:
    """A row whose ratio says how many times as fast, or as small."""
    return {"name": name, "ours": ours, "other": other, "ratio": other / ours, "unit": unit, "higher_is_better": True}


def decoding(contexts: Sequence[int], tokens: int) -> list[dict[str, Any]]:
    """Tokens a second of a small Mamba after contexts of several lengths; the shortest is the other side."""
    network = Mamba(width=128, depth=4).build().eval()
    token = torch.randn(1, 1, 128)
    found: list[float] = []
    with torch.no_grad():
        for context in contexts:
            _, state = network.advance(torch.randn(1, context, 128), network.initial_state(token))
            seconds = []
            for _ in range(tokens):
                start = time.process_time()
                _, state = network.advance(token, state)
                seconds.append(time.process_time() - start)
            found.append(1 / statistics.median(seconds))
    return [
        {
            "name": f"mamba: decoding after {context} tokens over after {contexts[0]}",
            "ours": rate,
            "other": found[0],
            "ratio": rate / found[0],
            "unit": "tokens/s",
            "higher_is_better": True,
        }
        for context, rate in zip(contexts[1:], found[1:], strict=True)
    ]


def rows(quick: bool = False) -> list[dict[str, Any]]:
    calls, threads = (1 if quick else 9), torch.get_num_threads()
    torch.set_num_threads(1)
    found = []
    for name, size in SIZES.items():
        inputs = scan_inputs(*size)
        found.append(
            speed(f"selective scan over the unbind loop, {name} N16", *milliseconds(chunked, unbound, inputs, calls))
        )
        memory = held_megabytes(chunked, inputs), held_megabytes(unbound, inputs)
        found.append(speed(f"memory kept for backward, the same, {name}", *memory, "MB"))
        forward = milliseconds(chunked, associative, inputs, calls, backward=False)
        found.append(speed(f"selective scan over associative_scan, forward alone, {name}", *forward))
    torch.manual_seed(0)
    start = [x.to(torch.complex64).repeat(FEATURES, 1) for x in hippo.diagonal_plus_low_rank(SYSTEM_STATES)]
    C, step = torch.randn(FEATURES, SYSTEM_STATES // 2, dtype=torch.complex64), 0.001 + 0.1 * torch.rand(FEATURES)
    system = [x.requires_grad_() for x in (*start, C, step)]
    cauchy = milliseconds(lambda *x: dplr.kernel(*x, LENGTH), plain_cauchy, system, calls)
    found.append(speed("s4: DPLR kernel over plain Cauchy products, H128 N64 L1024", *cauchy))
    powers = [C.detach().requires_grad_(), (start[0].detach() * step.detach().unsqueeze(1)).requires_grad_()]
    vandermonde = milliseconds(lambda v, x: weighted_powers(v, x, LENGTH), plain_vandermonde, powers, calls)
    found.append(speed("s4d: kernel over a plain Vandermonde product, H128 N64 L1024", *vandermonde))
    found += decoding((64, 512, 4096), 10 if quick else 200)
    torch.set_num_threads(threads)
    return found
