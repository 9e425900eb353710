from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from heliostat_algorithms import randomness
from heliostat_algorithms.randomness import Random

ROWS = range(8)
# With fixed seeds a test gives the same p-value each time; one this small would be a defect and not bad luck.
UNLIKELY = 1e-4

DRAWS: dict[str, Callable[[Random], torch.Tensor]] = {
    "bits": lambda r: r.bits("s", 3),
    "scalar": lambda r: r.uniform("s"),
    "uniform": lambda r: r.uniform("s", 2, 3, low=-1, high=4),
    "bernoulli": lambda r: r.bernoulli("s", 0.3, 5),
    "integers": lambda r: r.integers("s", 1000, 4),
    "normal": lambda r: r.normal("s", 3, 2, 2),
    "normal_odd": lambda r: r.normal("s", 37),  # rows that end within a vector register
    "permutation": lambda r: r.permutation("s", 9),
}


def word(key: str, position: int) -> int:
    """One 64-bit word in Python's integers: SplitMix64's finaliser twice, keyed by a 128-bit digest."""
    mask = 2**64 - 1

    def mix(z: int) -> int:
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        return z ^ (z >> 31)

    digest = hashlib.blake2b(key.encode(), digest_size=16).digest()
    low, high = int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:], "little")
    return mix(mix(((position + 1) * 0x9E3779B97F4A7C15 + low) & mask) ^ high)


def test_words_are_those_of_splitmix64() -> None:
    for key, first, count in (("", 0, 5), ("3:17:first/crop", 123_456, 50), ("7:-2:x", 2**40, 50)):
        found = [value % 2**64 for value in randomness.bits(key, first, count).tolist()]
        assert found == [word(key, position) for position in range(first, first + count)]


def test_draws_follow_from_words() -> None:
    random = Random(5, 9, range(2, 4), scope="a/")
    words = [[word("5:9:a/s", row * 3 + k) for k in range(3)] for row in (2, 3)]
    assert [[value % 2**64 for value in row] for row in random.bits("s", 3).tolist()] == words
    assert random.uniform("s", 3).double().tolist() == [[(w >> 40) / 2**24 for w in row] for row in words]
    assert random.integers("s", 1000, 3).tolist() == [[(w >> 1) % 1000 for w in row] for row in words]
    normal = [
        [
            math.sqrt(-2 * math.log(((w >> 40) + 1) / 2**24)) * math.cos(2 * math.pi * (w & 0xFFFFFF) / 2**24)
            for w in row
        ]
        for row in words
    ]
    np.testing.assert_allclose(random.normal("s", 3).numpy(), normal, rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize("name", DRAWS)
def test_rows_do_not_depend_on_who_draws_them(name: str) -> None:
    def draw(rows: range) -> torch.Tensor:
        return DRAWS[name](Random(1, 2, rows))

    whole = draw(ROWS)
    for cuts in ([4], [2, 4, 6], [1, 2, 3, 4, 5, 6, 7], [3], [0, 8]):
        edges = [0, *cuts, 8]
        parts = [draw(range(a, b)) for a, b in itertools.pairwise(edges)]
        assert torch.equal(torch.cat(parts), whole)


@pytest.mark.parametrize("name", DRAWS)
def test_draws_are_the_same_each_time_and_differ_between_coordinates(name: str) -> None:
    def draw(seed: int = 1, step: int = 2, scope: str = "") -> torch.Tensor:
        return DRAWS[name](Random(seed, step, range(64), scope=scope))

    assert torch.equal(draw(), draw())
    for other in (draw(seed=2), draw(step=3), draw(step=-2), draw(scope="x/"), draw(seed=12, step=2)):
        assert not torch.equal(draw(), other)
    assert not torch.equal(draw(seed=1, step=23), draw(seed=12, step=3))  # "1" and "23" are not "12" and "3"


def test_scopes_name_streams_of_their_own() -> None:
    random = Random(1, 2, ROWS)
    first, second = random.within("first"), random.within("second")
    assert not torch.equal(first.uniform("crop"), second.uniform("crop"))
    assert torch.equal(first.uniform("crop"), random.within("first").uniform("crop"))
    assert torch.equal(first.within("a").uniform("x"), Random(1, 2, ROWS, scope="first/a/").uniform("x"))
    assert first.rows == ROWS


def test_shared_draws_are_alike_on_all_workers() -> None:
    draws = [Random(1, 2, rows).within("a").shared().uniform("size", 3) for rows in (range(4), range(4, 8))]
    assert draws[0].shape == (1, 3)
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], Random(1, 2, range(1)).within("a").uniform("size", 3))


def test_uniform_numbers() -> None:
    x = Random(0, 0, range(1000)).uniform("x", 200)
    assert x.dtype == torch.float32
    assert float(x.min()) >= 0
    assert float(x.max()) < 1
    assert stats.kstest(x.flatten().double().numpy(), "uniform").pvalue > UNLIKELY
    y = Random(0, 1, range(1000)).uniform("x", 200, low=-2, high=3).double().numpy().ravel()
    assert stats.kstest(y, "uniform", (-2, 5)).pvalue > UNLIKELY
    assert -2 <= y.min() < y.max() <= 3


def test_normal_numbers() -> None:
    x = Random(0, 0, range(1000)).normal("x", 200)
    assert x.dtype == torch.float32
    assert x.isfinite().all()
    assert stats.kstest(x.flatten().double().numpy(), "norm").pvalue > UNLIKELY
    assert 4 < float(x.abs().max()) < 5.8


@pytest.mark.parametrize("high", [2, 7, 64, 1000])
def test_integers(high: int) -> None:
    x = Random(0, 0, range(1000)).integers("x", high, 100)
    assert x.dtype == torch.int64
    assert (int(x.min()), int(x.max())) == (0, high - 1)
    assert stats.chisquare(np.bincount(x.flatten().numpy(), minlength=high)).pvalue > UNLIKELY


def test_bernoulli_numbers() -> None:
    random = Random(0, 0, range(1000))
    assert not random.bernoulli("x", 0.0, 100).any()
    assert random.bernoulli("x", 1.0, 100).all()
    hits = int(random.bernoulli("x", 0.3, 100).sum())
    assert stats.binomtest(hits, 100_000, 0.3).pvalue > UNLIKELY


@pytest.mark.parametrize(("word", "unit"), [(0, 0.0), (-1, 1 - 2**-24)], ids=["all bits 0", "all bits 1"])
def test_extreme_words(word: int, unit: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Too rare to be met by chance: one draw in 16 million."""

    def words(key: str, first: int, count: int, device: Any) -> torch.Tensor:
        return torch.full((count,), word)

    monkeypatch.setattr(randomness, "bits", words)
    random = Random(0, 0, range(1))
    assert random.uniform("x").item() == unit
    assert not random.bernoulli("x", 0.0).item()
    assert random.bernoulli("x", 1.0).item()
    assert random.normal("x").item() == pytest.approx(math.sqrt(48 * math.log(2)) if word == 0 else 0, abs=1e-6)
    assert random.integers("x", 10).item() == (0 if word == 0 else (2**63 - 1) % 10)


def test_permutations() -> None:
    x = Random(0, 0, range(6000)).permutation("x", 4)
    orders = dict.fromkeys(itertools.permutations(range(4)), 0)
    for row in x.tolist():
        orders[tuple(row)] += 1  # a KeyError here would be no permutation
    assert stats.chisquare(list(orders.values())).pvalue > UNLIKELY
    whole = randomness.permutation("0:order", 1000)
    assert sorted(whole.tolist()) == list(range(1000))
    assert abs(stats.spearmanr(whole.numpy(), np.arange(1000)).statistic) < 0.15


def test_every_bit_is_fair_and_independent_of_the_others() -> None:
    count = 20_000
    words = randomness.bits("0:0:x", 0, count).numpy().view(np.uint64)
    planes = ((words[:, None] >> np.arange(64, dtype=np.uint64)) & np.uint64(1)).astype(np.float64)
    assert abs(planes.mean(axis=0) - 0.5).max() < 5 * 0.5 / math.sqrt(count)
    correlation = np.corrcoef(planes.T) - np.eye(64)
    assert abs(correlation).max() < 6 / math.sqrt(count)


SIZE = 50_000


def stream(rows: int = SIZE, step: int = 0, seed: int = 0, name: str = "x", first: int = 0) -> Any:
    return Random(seed, step, range(first, first + rows)).uniform(name).double().numpy()


@pytest.mark.parametrize(
    "other",
    [
        {"step": 1},
        {"step": 2**20},
        {"step": -1},
        {"seed": 1},
        {"seed": 2**32},
        {"name": "y"},
        {"name": "x/x"},
        {"first": 1},
        {"first": 64},
        {"first": SIZE},
    ],
    ids=str,
)
def test_streams_steps_seeds_and_rows_are_independent(other: dict[str, Any]) -> None:
    a, b = stream(), stream(**other)
    assert stats.pearsonr(a, b).pvalue > UNLIKELY
    cells = np.histogram2d(a, b, bins=16, range=[[0, 1], [0, 1]])[0]
    assert stats.chisquare(cells.ravel()).pvalue > UNLIKELY


def test_the_first_row_over_many_steps_is_random_too() -> None:
    x = np.array([float(Random(0, step, range(1)).uniform("x")) for step in range(3000)])
    assert stats.kstest(x, "uniform").pvalue > UNLIKELY
    assert stats.pearsonr(x[:-1], x[1:]).pvalue > UNLIKELY


@pytest.mark.parametrize("first", [0, 7, 10_000_000_000])
def test_few_words_are_those_of_many(first: int) -> None:
    """Up to 1,024 words come from numpy, more from torch."""
    many = randomness.bits("0:3:stream", first, 1025)
    assert torch.equal(randomness.bits("0:3:stream", first, 1024), many[:1024])
    assert torch.equal(randomness.bits("0:3:stream", first + 1020, 5), many[1020:])
