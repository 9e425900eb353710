"""S4: Efficiently Modeling Long Sequences with Structured State Spaces, Gu, Goel and Re 2021 (arXiv 2111.00396), and
S4D: On the Parameterization and Initialization of Diagonal State Space Models, Gu et al. 2022 (arXiv 2206.11893).

Each of H features passes a linear system of its own, x' = A x + B u and y = C x + D u, in steps of a learned size. To
train, the whole sequence is convolved with the system's kernel; to generate, the system is a recurrence with a state of
fixed size. A begins as HiPPO-LegS, which remembers. S4 keeps it whole, diagonal plus low-rank; S4D drops the low-rank
term. Around the systems: GELU, a gated linear layer that mixes features, a residual branch.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heliostat_algorithms.algorithm import ParameterGroup
from heliostat_algorithms.sequence.network import Block, Mixer, MixerState, NetworkConfig, Stack, layer_norm
from heliostat_algorithms.sequence.state_space import diagonal_plus_low_rank as dplr
from heliostat_algorithms.sequence.state_space import hippo
from heliostat_algorithms.sequence.state_space.convolution import causal_convolution
from heliostat_algorithms.sequence.state_space.systems import DiagonalSystem, System
from heliostat_algorithms.sequence.state_space.vandermonde import weighted_powers

SLOWEST_DECAY = 1e-4
"""The real parts of eigenvalues stay below minus this, so that no state grows."""

Discretization = Literal["bilinear", "zoh"]
"""Tustin's rule, or zero-order hold: inputs that stay constant within a step."""


class StateSpace(nn.Module, ABC):
    """H continuous systems with N states each, in complex pairs, and their step sizes.

    Complex parameters are stored as pairs of real numbers, (..., 2). ``C`` mixes; all others are the dynamics.

    Args:
        start: eigenvalues, P and B that all systems begin with.
        features: H.
        steps: range from which step sizes are drawn, uniformly in their logarithm.
    """

    def __init__(self, start: hippo.Start, features: int, steps: tuple[float, float]) -> None:
        super().__init__()
        low, high = map(math.log, steps)
        self.log_step = nn.Parameter(torch.rand(features) * (high - low) + low)
        decay = -start.eigenvalues.real - SLOWEST_DECAY
        self.log_decay = nn.Parameter(decay.log().float().repeat(features, 1))
        self.frequency = nn.Parameter(start.eigenvalues.imag.float().repeat(features, 1))
        self.B = nn.Parameter(_pairs(start.B.repeat(features, 1)))
        C = torch.randn(features, len(start.B), dtype=torch.complex64)
        self.C = nn.Parameter(_pairs(C))
        self._cached: tuple[list[Tensor], System] | None = None

    @property
    def states(self) -> int:
        """N."""
        return 2 * self.frequency.shape[1]

    def step(self) -> Tensor:
        """(H,)."""
        return self.log_step.exp()

    def eigenvalues(self) -> Tensor:
        """(H, N / 2) complex."""
        return torch.complex(-(SLOWEST_DECAY + self.log_decay.exp()), self.frequency)

    @abstractmethod
    def kernel(self, length: int) -> Tensor:
        """(H, L): the response to a single 1."""

    @abstractmethod
    def discrete(self) -> System:
        """The recurrence with that kernel, with gradient."""

    def recurrence(self) -> System:
        """``discrete``; without gradient it is computed once for the parameters as they are, and kept."""
        if torch.is_grad_enabled():
            return self.discrete()
        now = list(self.parameters())
        if self._cached is None or not all(map(_same, self._cached[0], now)):
            self._cached = [parameter.detach().clone() for parameter in now], self.discrete()
        return self._cached[1]

    def dynamics(self) -> list[nn.Parameter]:
        """A, B and the step sizes."""
        return [parameter for name, parameter in self.named_parameters() if name != "C"]


class DiagonalStateSpace(StateSpace):
    """S4D: A = diag(lambda)."""

    def __init__(
        self, start: hippo.Start, features: int, steps: tuple[float, float], discretization: Discretization
    ) -> None:
        super().__init__(start, features, steps)
        self.discretization = discretization

    def kernel(self, length: int) -> Tensor:
        system = self.discrete()
        return weighted_powers(system.C * system.B, system.log_a, length)

    def discrete(self) -> DiagonalSystem:
        """Zero-order hold: A_ = exp(step A), B_ = A^-1 (A_ - I) B. Bilinear: A_ = (1 + step A / 2) / (1 - step A / 2),
        B_ = step B / (1 - step A / 2)."""
        eigenvalues, step = self.eigenvalues(), self.step().unsqueeze(1)
        B, C = torch.view_as_complex(self.B), torch.view_as_complex(self.C)
        if self.discretization == "zoh":
            log_A = step * eigenvalues
            return DiagonalSystem(log_A, B * (log_A.exp() - 1) / eigenvalues, C)
        ahead, behind = 1 + step * eigenvalues / 2, 1 - step * eigenvalues / 2
        return DiagonalSystem((ahead / behind).log(), step * B / behind, C)


class DiagonalPlusLowRankStateSpace(StateSpace):
    """S4: A = diag(lambda) - P P^*, by the bilinear rule.

    The parameter ``C`` is the paper's C~ = C (I - A_^L) for one length L, as in the authors' code: C itself would need
    a power of a matrix in every step of training. Shorter sequences take the beginning of this kernel. Longer ones take
    C~ of twice the length, or four times, ..., which is computed each time and stored nowhere.

    Args:
        length: L.
    """

    def __init__(self, start: hippo.Start, features: int, steps: tuple[float, float], length: int) -> None:
        super().__init__(start, features, steps)
        self.length = length
        self.P = nn.Parameter(_pairs(start.P.repeat(features, 1)))
        with torch.no_grad():
            A, _ = self._double_discrete()
            C = torch.view_as_complex(self.C.double())
            self.C.copy_(_pairs(dplr.truncate(A, C, length)))

    def kernel(self, length: int) -> Tensor:
        C, reach = torch.view_as_complex(self.C), self.length
        if length > reach:
            A, _ = self._double_discrete()
            longer = C.to(torch.complex128)
            while reach < length:
                longer, reach = dplr.lengthen(A, longer, reach), 2 * reach
            C = longer.to(C.dtype)
        P, B = torch.view_as_complex(self.P), torch.view_as_complex(self.B)
        return dplr.kernel(self.eigenvalues(), P, B, C, self.step(), reach)[:, :length]

    def discrete(self) -> System:
        A, B = self._double_discrete()
        exact = dplr.system(A, B, torch.view_as_complex(self.C.double()), self.length)
        return type(exact)(*(part.to(self.C.dtype) for part in (exact.A, exact.B, exact.C)))

    def _double_discrete(self) -> tuple[Tensor, Tensor]:
        """In float64: powers of the matrix are taken."""
        P, B = torch.view_as_complex(self.P.double()), torch.view_as_complex(self.B.double())
        decay = SLOWEST_DECAY + self.log_decay.double().exp()
        eigenvalues = torch.complex(-decay, self.frequency.double())
        return dplr.discretize(eigenvalues, P, B, self.log_step.double().exp())


class S4Mixer(Mixer):
    """Systems, GELU, and a gated linear layer over the features: what S4's blocks hold (section 3.4, appendix D).

    Args:
        dynamics_learning_rate: peak learning rate of A, B and step sizes.
    """

    def __init__(self, space: StateSpace, width: int, dynamics_learning_rate: float) -> None:
        super().__init__()
        self.space = space
        self.D = nn.Parameter(torch.randn(width))
        self.out = nn.Linear(width, 2 * width)
        self.dynamics_learning_rate = dynamics_learning_rate

    def forward(self, x: Tensor, keys: Tensor | None = None) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            u = self._features_first(x)
            y = causal_convolution(u, self.space.kernel(u.shape[2]))
            y = (y + self.D.unsqueeze(1) * u).transpose(1, 2)
        return self._mixed(y, x)

    def initial_state(self, like: Tensor) -> MixerState:
        shape = like.shape[0], len(self.D), self.space.states
        return (like.new_zeros(shape, dtype=torch.promote_types(like.dtype, torch.float32)),)

    def advance(self, x: Tensor, state: MixerState) -> tuple[Tensor, MixerState]:
        (before,) = state
        with torch.autocast(x.device.type, enabled=False):
            u, system = self._features_first(x), self.space.recurrence()
            length = u.shape[2]
            if length == 1:
                y, after = system.step(u.squeeze(2), before)
                y = y.unsqueeze(2)
            else:
                y = causal_convolution(u, self.space.kernel(length)) + system.response(before, length)
                after = system.last(u, before)
            y = (y + self.D.unsqueeze(1) * u).transpose(1, 2)
        return self._mixed(y, x), (after,)

    def own_groups(self) -> list[ParameterGroup]:
        return [ParameterGroup("dynamics", self.space.dynamics(), False, learning_rate=self.dynamics_learning_rate)]

    def _features_first(self, x: Tensor) -> Tensor:
        """(B, L, D) -> (B, D, L), in float32 at least: Fourier transforms of long sequences want it."""
        return x.transpose(1, 2).to(torch.promote_types(x.dtype, torch.float32))

    def _mixed(self, y: Tensor, like: Tensor) -> Tensor:
        return F.glu(self.out(F.gelu(y).to(like.dtype)), dim=2)


@dataclass(frozen=True, kw_only=True)
class StateSpaceConfig(NetworkConfig):
    """What S4 and S4D have in common; the values are those of the papers' image tasks, of moderate size."""

    width: int = 128
    """H, of embeddings, and how many systems there are in a block."""
    depth: int = 4
    states: int = 64
    """N, of each system; even."""
    steps: tuple[float, float] = (0.001, 0.1)
    """Range of the step sizes at the beginning. About 1 / L to 100 / L lets some systems see the whole sequence."""
    dynamics_learning_rate: float = 0.001
    """Peak learning rate of A, B and step sizes, whatever the optimiser's is for all else; they have no weight decay.
    0.001 or lower in all of the papers' experiments."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.states < 2 or self.states % 2:
            raise ValueError(f"states is {self.states}; they come in pairs: an even number from 2")
        if not 0 < self.steps[0] <= self.steps[1] < math.inf:
            raise ValueError(f"steps are {list(self.steps)}; two numbers above 0, the smaller one first")
        if not 0 < self.dynamics_learning_rate < math.inf:
            raise ValueError(f"dynamics_learning_rate is {self.dynamics_learning_rate}; it must be above 0 and finite")

    @abstractmethod
    def _space(self) -> StateSpace:
        """The systems of one block."""

    def build(self) -> Stack:
        norm = layer_norm(self.width)
        return Stack(
            [
                Block(S4Mixer(self._space(), self.width, self.dynamics_learning_rate), None, norm, "pre", self.dropout)
                for _ in range(self.depth)
            ],
            width=self.width,
            norm=norm(),
            embedding_std=1.0,
        )


@dataclass(frozen=True, kw_only=True)
class S4(StateSpaceConfig):
    """Structured state spaces (Gu et al. 2021): HiPPO-LegS, diagonal plus low-rank."""

    type: Literal["s4"] = "s4"
    length: int
    """L for which the kernel is parametrised, best that of the sequences. Longer sequences are computed exactly, too,
    but slowly; shorter ones at the cost of this length."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.length < 1:
            raise ValueError(f"length is {self.length}; it must be at least 1")

    def _space(self) -> StateSpace:
        return DiagonalPlusLowRankStateSpace(
            hippo.diagonal_plus_low_rank(self.states), self.width, self.steps, self.length
        )


@dataclass(frozen=True, kw_only=True)
class S4D(StateSpaceConfig):
    """Diagonal state spaces (Gu et al. 2022)."""

    type: Literal["s4d"] = "s4d"
    initialization: Literal["legs", "linear"] = "legs"
    """Eigenvalues of HiPPO-LegS without its low-rank term (S4D-LegS), or -1/2 + i pi n (S4D-Lin)."""
    discretization: Discretization = "zoh"
    """Zero-order hold, or the bilinear rule of S4."""

    def _space(self) -> StateSpace:
        start = hippo.diagonal_plus_low_rank if self.initialization == "legs" else hippo.linear
        return DiagonalStateSpace(start(self.states), self.width, self.steps, self.discretization)


def _pairs(values: Tensor) -> Tensor:
    """(...) complex -> (..., 2) real, float32."""
    return torch.view_as_real(values.to(torch.complex64)).clone()


def _same(mine: Tensor, theirs: Tensor) -> bool:
    return mine.dtype == theirs.dtype and mine.device == theirs.device and torch.equal(mine, theirs)
