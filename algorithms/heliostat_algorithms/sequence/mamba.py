"""Mamba: Linear-Time Sequence Modeling with Selective State Spaces, Gu and Dao 2023 (arXiv 2312.00752).

A block is one mixer (figure 3): the input is doubled in width and split into x and a gate z; x passes a short causal
convolution, SiLU and a state space whose step, B and C are computed from x itself (algorithm 2, S6), so that each token
decides what is kept and what is forgotten; SiLU(z) gates the result. There is no attention and no MLP.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heliostat_algorithms.algorithm import ParameterGroup
from heliostat_algorithms.sequence.network import Block, Mixer, MixerState, NetworkConfig, Stack, rms_norm
from heliostat_algorithms.sequence.state_space.selective_scan import Implementation, selective_scan, selective_step

_SMALLEST_STEP = 1e-4
"""Step sizes begin at this or above."""


class MambaMixer(Mixer):
    """The block without its norm and residual branch. Parameters are named as in the authors' code.

    Args:
        width: D.
        states: N, of each inner channel.
        expansion: inner channels E for each of D.
        convolution: width of the causal convolution.
        step_rank: numbers from which each position's step sizes are computed.
        steps: range from which the first step sizes are drawn, uniformly in their logarithm.
        exact: zero-order hold of B, the paper's equation 4, in place of step * B.
        scan: what computes whole sequences.
        layers: how many blocks the network has; the last matrix of each begins smaller by the root of it.
    """

    def __init__(
        self,
        width: int,
        states: int,
        expansion: int,
        convolution: int,
        step_rank: int,
        steps: tuple[float, float],
        exact: bool,
        scan: Implementation,
        layers: int,
    ) -> None:
        super().__init__()
        inner = expansion * width
        self.exact, self.scan, self.sizes = exact, scan, (step_rank, states, states)
        self.in_proj = nn.Linear(width, 2 * inner, bias=False)
        self.conv1d = nn.Conv1d(inner, inner, convolution, groups=inner)
        self.x_proj = nn.Linear(inner, sum(self.sizes), bias=False)
        self.dt_proj = nn.Linear(step_rank, inner)
        self.A_log = nn.Parameter(torch.arange(1, states + 1).float().log().repeat(inner, 1))  # S4D-Real
        self.D = nn.Parameter(torch.ones(inner))
        self.out_proj = nn.Linear(inner, width, bias=False)
        self._initialize(steps, layers)

    @torch.no_grad()
    def _initialize(self, steps: tuple[float, float], layers: int) -> None:
        """All else begins as torch's layers do, as in the authors' code."""
        nn.init.uniform_(self.dt_proj.weight, -(self.sizes[0] ** -0.5), self.sizes[0] ** -0.5)
        low, high = map(math.log, steps)
        step = (torch.rand(len(self.D)) * (high - low) + low).exp().clamp(min=_SMALLEST_STEP)
        self.dt_proj.bias.copy_(step + torch.log(-torch.expm1(-step)))  # softplus gives the step back
        self.out_proj.weight /= math.sqrt(layers)

    def forward(self, x: Tensor, keys: Tensor | None = None) -> Tensor:
        return self.advance(x, self.initial_state(x))[0]

    def initial_state(self, like: Tensor) -> MixerState:
        """The last inputs of the convolution (B, W - 1, E), and the states (B, E, N)."""
        batch, (inner, states) = like.shape[0], self.A_log.shape
        recent = like.new_zeros(batch, self.conv1d.kernel_size[0] - 1, inner)
        return recent, like.new_zeros(batch, inner, states, dtype=torch.promote_types(like.dtype, torch.float32))

    def advance(self, x: Tensor, state: MixerState) -> tuple[Tensor, MixerState]:
        recent, before = state
        u, z = self.in_proj(x).chunk(2, dim=2)
        u, recent = self._convolved(u, recent)
        u = F.silu(u)
        step, B, C = self.x_proj(u).split(self.sizes, dim=2)
        step = F.softplus(_exact(self.dt_proj(step)))
        A = -_exact(self.A_log).exp()
        if x.shape[1] == 1:
            y, after = selective_step(u[:, 0], step[:, 0], A, B[:, 0], C[:, 0], before, self.exact)
            y = y.unsqueeze(1)
        else:
            y, after = selective_scan(u, step, A, B, C, before, self.exact, self.scan)
        mixed: Tensor = self.out_proj((y + self.D * u).to(z.dtype) * F.silu(z))
        return mixed, (recent, after)

    def _convolved(self, u: Tensor, recent: Tensor) -> tuple[Tensor, Tensor]:
        """u (B, L, E) after the ``recent`` inputs (B, W - 1, E) -> the convolution (B, L, E), and what is recent now.

        A sum of W shifted products: channels stay last, and on CPUs it is faster than a grouped convolution.
        """
        length = u.shape[1]
        inputs = torch.cat([recent.to(u.dtype), u], dim=1)
        taps = self.conv1d.weight.squeeze(1).unbind(1)
        assert self.conv1d.bias is not None  # it has one
        y = self.conv1d.bias + inputs[:, :length] * taps[0]
        for lag, tap in enumerate(taps[1:], start=1):
            y = torch.addcmul(y, inputs[:, lag : lag + length], tap)
        return y, inputs[:, length:]

    def own_groups(self) -> list[ParameterGroup]:
        """Neither A nor D is drawn to 0."""
        return [ParameterGroup("dynamics", [self.A_log, self.D], False)]


@dataclass(frozen=True, kw_only=True)
class Mamba(NetworkConfig):
    """Selective state spaces (Gu and Dao 2023); the shape is that of the paper's smallest language model."""

    type: Literal["mamba"] = "mamba"
    width: int = 768
    depth: int = 24
    dropout: float = 0.0
    """Rate, on the embeddings and at the end of each residual branch; the paper has none."""
    states: int = 16
    """N, of each inner channel."""
    expansion: int = 2
    """Inner channels for each of ``width``."""
    convolution: int = 4
    """Width of the causal convolution, in positions."""
    step_rank: int | None = None
    """Numbers from which each position's step sizes are computed; null: width / 16, rounded up."""
    steps: tuple[float, float] = (0.001, 0.1)
    """Range of the step sizes at the beginning."""
    exact: bool = False
    """Discretise B by zero-order hold, as the paper writes (equation 4). The authors' code, with which its results were
    made, takes step * B; exact costs 3.5 to 5.5 times as much time in the scan."""
    scan: Implementation = "auto"
    """``auto``: Triton's kernels on CUDA devices where Triton is installed, plain PyTorch elsewhere; ``torch``: plain
    PyTorch always."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("states", "expansion", "convolution", "step_rank"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1")
        if not 0 < self.steps[0] <= self.steps[1] < math.inf:
            raise ValueError(f"steps are {list(self.steps)}; two numbers above 0, the smaller one first")

    def build(self) -> Stack:
        norm = rms_norm(self.width)
        rank = self.step_rank or -(-self.width // 16)
        return Stack(
            [
                Block(
                    MambaMixer(
                        self.width,
                        self.states,
                        self.expansion,
                        self.convolution,
                        rank,
                        self.steps,
                        self.exact,
                        self.scan,
                        self.depth,
                    ),
                    None,
                    norm,
                    "pre",
                    self.dropout,
                )
                for _ in range(self.depth)
            ],
            width=self.width,
            norm=norm(),
        )


def _exact(x: Tensor) -> Tensor:
    """In float32 at least."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
