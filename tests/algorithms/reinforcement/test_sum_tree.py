from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heliostat_algorithms.reinforcement.replay import SumTree


def naive_find(leaves: list[float], position: float) -> int:
    upper = 0.0
    for leaf, mass in enumerate(leaves):
        upper += mass
        if position < upper:
            return leaf
    raise AssertionError(f"{position} is not below the total {upper}")


@settings(max_examples=60, deadline=None)
@given(
    size=st.one_of(st.integers(1, 40), st.sampled_from([255, 256, 257, 4095, 4096, 4097, 5000])),
    seed=st.integers(0, 2**32 - 1),
    updates=st.lists(st.integers(0, 50), min_size=1, max_size=6),
)
def test_it_finds_what_a_linear_search_finds(size: int, seed: int, updates: list[int]) -> None:
    tree, leaves, rng = SumTree(size), [0.0] * size, np.random.default_rng(seed)
    for count in updates:
        # Whole numbers, so that sums are exact whatever their order. Repeated indices: the last counts.
        indices, values = rng.integers(0, size, count), rng.integers(0, 5, count).astype(np.float64)
        tree.update(indices, values)
        for index, value in zip(indices.tolist(), values.tolist(), strict=True):
            leaves[index] = value
        assert tree.leaves.tolist() == leaves
        assert tree.total == sum(leaves)
        if tree.total:
            positions = np.concatenate([rng.random(20) * tree.total, rng.integers(0, int(tree.total), 20)])
            assert tree.find(positions).tolist() == [naive_find(leaves, position) for position in positions]


@settings(max_examples=60, deadline=None)
@given(
    size=st.integers(1, 700),
    seed=st.integers(0, 2**32 - 1),
    spread=st.sampled_from([0.1, 10.0, 100.0]),
    empty=st.sampled_from([0.0, 0.5, 0.99]),
)
def test_rounding_never_finds_an_empty_leaf(size: int, seed: int, spread: float, empty: float) -> None:
    tree, rng = SumTree(size), np.random.default_rng(seed)
    values = np.exp(rng.normal(size=size) * spread) * (rng.random(size) >= empty)
    values[rng.integers(size)] = 1.0
    tree.update(np.arange(size), values)
    assert tree.total == pytest.approx(math.fsum(values), rel=1e-12)
    edges = np.cumsum(values)
    positions = np.concatenate([[0.0, tree.total], edges, np.nextafter(edges, 0.0), rng.random(100) * tree.total])
    found = tree.find(np.minimum(positions, tree.total))
    assert (values[found] > 0).all()
    # Up to rounding it is the right one.
    inside = positions[-100:]
    slack = 1e-12 * tree.total
    assert (edges[found[-100:]] >= inside - slack).all()
    assert (edges[found[-100:]] - values[found[-100:]] <= inside + slack).all()


@settings(max_examples=30, deadline=None)
@given(size=st.integers(1, 5000), seed=st.integers(0, 2**32 - 1), rounds=st.integers(1, 30))
def test_it_is_a_function_of_its_leaves_to_the_last_bit(size: int, seed: int, rounds: int) -> None:
    changed, rebuilt, rng = SumTree(size), SumTree(size), np.random.default_rng(seed)
    for _ in range(rounds):
        count = int(rng.integers(1, 40))
        changed.update(rng.integers(0, size, count), rng.exponential(size=count))
    rebuilt.leaves[:] = changed.leaves
    rebuilt.rebuild()
    assert rebuilt.total == changed.total
    points = rng.random(200) * changed.total
    assert rebuilt.find(points).tolist() == changed.find(points).tolist()


def test_errors_do_not_pile_up() -> None:
    tree, rng = SumTree(300), np.random.default_rng(0)
    for scale in (1e12, 1e-12):
        for _ in range(200):
            tree.update(rng.integers(0, 300, 64), rng.random(64) * scale)
    tree.update(np.arange(300), np.full(300, 1e-12))
    assert tree.total == pytest.approx(3e-10, rel=1e-12)


def test_an_empty_tree_has_nothing_to_find() -> None:
    tree = SumTree(20)
    with pytest.raises(ValueError, match="all leaves"):
        tree.find(np.array([0.0]))
    tree.update(np.array([3]), np.array([2.0]))
    tree.update(np.array([3]), np.array([0.0]))
    tree.update(np.array([], np.int64), np.array([]))
    with pytest.raises(ValueError, match="all leaves"):
        tree.find(np.array([0.0]))
    with pytest.raises(ValueError, match="at least 1 leaf"):
        SumTree(0)


@pytest.mark.parametrize("size", [1, 17, 1000, 100_001])
def test_inner_nodes_take_a_fifteenth_of_the_leaves(size: int) -> None:
    tree = SumTree(size)
    assert 8 * size <= tree.nbytes <= 8 * (size * 16 / 15 + 2 * 16 * 6)
