"""Random numbers without state: every draw is a function of (seed, step, stream, row, element).

A generator with a state gives each worker its own sequence, so the run depends on how many workers there are, and a
resumed run needs the state of each. Here a draw is a hash of its coordinates in the *global* batch. A worker computes
its own rows and no others, bit for bit the same whether 1, 2 or 64 workers share the batch, on any device; and any
single step can be drawn again later. The hash is the finaliser of SplitMix64 (Steele, Lea and Flood 2014), applied
twice with two halves of a 128-bit key, so that streams are not shifted copies of one another.
"""

from __future__ import annotations

import hashlib
import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_GOLDEN = 0x9E3779B97F4A7C15
_MULTIPLIERS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
_FEW = 1024
"""Words up to which numpy draws them on CPUs."""
_M0, _M1, _S27, _S30, _S31 = (np.uint64(value) for value in (*_MULTIPLIERS, 27, 30, 31))


def _signed(value: int) -> int:
    """The int64 with the same 64 bits: torch has no arithmetic on uint64, and its int64 products wrap around."""
    return value - (1 << 64) if value >= 1 << 63 else value


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """Logical shift; torch's own on int64 copies the sign."""
    return (x >> bits).bitwise_and_((1 << (64 - bits)) - 1)


def _mix(x: Tensor) -> Tensor:
    """SplitMix64's finaliser, in place."""
    x.bitwise_xor_(_shift_right(x, 30)).mul_(_signed(_MULTIPLIERS[0]))
    x.bitwise_xor_(_shift_right(x, 27)).mul_(_signed(_MULTIPLIERS[1]))
    return x.bitwise_xor_(_shift_right(x, 31))


def _mix_few(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The same in numpy, whose calls cost less than torch's: a third of the time for the draws of a few lanes."""
    x = (x ^ (x >> _S30)) * _M0
    x = (x ^ (x >> _S27)) * _M1
    return x ^ (x >> _S31)


def bits(key: str, first: int, count: int, device: torch.device | str = "cpu") -> Tensor:
    """``count`` 64-bit words (int64) at positions ``first``, ``first + 1``, ... of the stream that ``key`` names."""
    digest = hashlib.blake2b(key.encode(), digest_size=16).digest()
    low, high = int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:], "little")
    if count <= _FEW and torch.device(device).type == "cpu":
        few = np.arange(first + 1, first + 1 + count, dtype=np.uint64)
        few = _mix_few(_mix_few(few * np.uint64(_GOLDEN) + np.uint64(low)) ^ np.uint64(high))
        return torch.from_numpy(few.view(np.int64))
    x = torch.arange(first + 1, first + 1 + count, dtype=torch.int64, device=device)
    x.mul_(_signed(_GOLDEN)).add_(_signed(low))
    return _mix(_mix(x).bitwise_xor_(_signed(high)))


def permutation(key: str, count: int) -> Tensor:
    """A random order of 0 .. count - 1, (count,) int64, on the CPU: sample orders and label subsets."""
    return torch.argsort(bits(key, 0, count), stable=True)


def row_bits(keys: Tensor, stream: int, count: int) -> Tensor:
    """(B, count) int64 words, all 64 bits random: in each row the words of a stream that the row's key begins.

    For draws inside networks, which know a key of each row (``Random.bits``) and no more: row b is the sequence of
    SplitMix64 whose state begins as a hash of (key, stream).

    Args:
        keys: (B,) int64, random.
        stream: tells draws with the same keys apart, from 0.
    """
    state = _mix(keys + _signed((stream + 1) * _MULTIPLIERS[0] % (1 << 64)))
    x = torch.arange(1, count + 1, dtype=torch.int64, device=keys.device).mul_(_signed(_GOLDEN))
    return _mix(state[:, None] + x)


class Random:
    """Draws for some rows of the global batch of one step.

    Args:
        seed: the run's seed.
        step: the optimiser step; evaluation uses negative ones of its own.
        rows: the global batch's rows that this worker holds.
        device: where draws are computed; the values do not depend on it, but for the last digits of ``normal``, which
            takes logarithms and cosines of the device's own.
        scope: prefix of all stream names.
    """

    def __init__(self, seed: int, step: int, rows: range, device: torch.device | str = "cpu", scope: str = "") -> None:
        self.seed, self.step, self.rows, self.device, self.scope = seed, step, rows, device, scope

    def within(self, scope: str) -> Random:
        """The same rows with stream names of their own, for a part that is used more than once in a step."""
        return Random(self.seed, self.step, self.rows, self.device, f"{self.scope}{scope}/")

    def whole(self, batch_size: int) -> Random:
        """The draws of all rows of a global batch of this size, for choices that weigh rows against one another."""
        return Random(self.seed, self.step, range(batch_size), self.device, self.scope)

    def shared(self) -> Random:
        """One row that all workers draw alike, for choices that concern the whole batch."""
        return Random(self.seed, self.step, range(1), self.device, f"{self.scope}shared/")

    def bits(self, stream: str, *shape: int) -> Tensor:
        """(rows, *shape) int64 words, all 64 bits random."""
        size = math.prod(shape)
        key = f"{self.seed}:{self.step}:{self.scope}{stream}"
        words = bits(key, self.rows.start * size, len(self.rows) * size, self.device)
        return words.view(len(self.rows), *shape)

    def uniform(self, stream: str, *shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        """(rows, *shape) float32, uniform from ``low`` to ``high`` with 24 random bits.

        1 itself is never drawn from 0 to 1; in other ranges float32 may round the largest draw to ``high``.
        """
        unit = _shift_right(self.bits(stream, *shape), 40).to(torch.float32).mul_(2.0**-24)
        return unit if (low, high) == (0.0, 1.0) else unit.mul_(high - low).add_(low)

    def bernoulli(self, stream: str, probability: float, *shape: int) -> Tensor:
        """(rows, *shape) bool, true with the given probability (exactly never at 0 and always at 1)."""
        return self.uniform(stream, *shape) < probability

    def integers(self, stream: str, high: int, *shape: int) -> Tensor:
        """(rows, *shape) int64, uniform in [0, high); high up to 2**31, where the bias of the remainder is below
        1e-9."""
        return _shift_right(self.bits(stream, *shape), 1).remainder_(high)

    def normal(self, stream: str, *shape: int) -> Tensor:
        """(rows, *shape) float32, standard normal by Box and Muller; tails end at 5.8 standard deviations."""
        words = self.bits(stream, *shape)
        radius = _shift_right(words, 40).add_(1).to(torch.float32).mul_(2.0**-24).log_().mul_(-2.0).sqrt_()
        angle = (words & 0xFFFFFF).to(torch.float32).mul_(2.0 * math.pi * 2.0**-24)
        return angle.cos_().mul_(radius)

    def permutation(self, stream: str, count: int) -> Tensor:
        """(rows, count) int64: in each row a random order of 0 .. count - 1."""
        return torch.argsort(self.bits(stream, count), dim=-1, stable=True)
