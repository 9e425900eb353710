from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare, kstest

from heliostat_algorithms.randomness import Random
from heliostat_algorithms.reinforcement.replay import (
    ImportanceExponent,
    SumTree,
    allocate,
    importance_weights,
    stratified,
)


@settings(max_examples=100, deadline=None)
@given(
    # Whole masses and points in 1024ths, so that all arithmetic is exact but for the last division.
    masses=st.lists(st.integers(0, 8), min_size=1, max_size=6).filter(any),
    points=st.lists(st.integers(0, 1023), max_size=20),
)
def test_points_fall_to_the_shard_whose_mass_they_lie_in(masses: list[int], points: list[int]) -> None:
    shares = allocate([float(mass) for mass in masses], np.array(points, np.float64) / 1024)
    expected: list[list[float]] = [[] for _ in masses]
    for point in points:
        position = point * sum(masses)  # in 1024ths of a unit of mass
        for shard, mass in enumerate(masses):
            if position < mass * 1024:
                expected[shard].append(position / (mass * 1024))
                break
            position -= mass * 1024
    assert len(shares) == len(masses)
    for share, values in zip(shares, expected, strict=True):
        assert share.tolist() == pytest.approx(values, abs=1e-15)


@settings(max_examples=100, deadline=None)
@given(
    masses=st.lists(st.floats(0, 1e9), min_size=1, max_size=6).filter(any),
    points=st.lists(st.floats(0, 1, exclude_max=True), max_size=20),
)
def test_shares_are_points_again_and_none_is_lost(masses: list[float], points: list[float]) -> None:
    ends = [0.0, float(np.nextafter(1.0, 0.0))]
    shares = allocate(masses, np.array([*points, *ends]))
    assert sum(len(share) for share in shares) == len(points) + 2
    for mass, share in zip(masses, shares, strict=True):
        assert ((share >= 0) & (share < 1)).all()
        assert mass > 0 or not len(share)


def test_two_levels_sample_as_one_would() -> None:
    rng = np.random.default_rng(0)
    parts = [rng.exponential(size=size) for size in (5, 13, 1, 7)]
    trees = []
    for part in parts:
        trees.append(SumTree(len(part)))
        trees[-1].update(np.arange(len(part)), part)
    shares = allocate([tree.total for tree in trees], rng.random(300_000))
    counts = [
        np.bincount(tree.find(share * tree.total), minlength=len(part))
        for tree, share, part in zip(trees, shares, parts, strict=True)
    ]
    whole = np.concatenate(parts)
    assert chisquare(np.concatenate(counts), 300_000 * whole / whole.sum()).pvalue > 1e-3


def test_wrong_masses_and_points_are_refused() -> None:
    for masses in ([], [0.0, 0.0], [-1.0, 2.0], [math.nan], [math.inf]):
        with pytest.raises(ValueError, match="masses are"):
            allocate(masses, np.array([0.5]))
    for points in ([1.0], [-0.1], [math.nan], [[0.5]]):
        with pytest.raises(ValueError, match="points must"):
            allocate([1.0], np.array(points))
        with pytest.raises(ValueError, match="draws must"):
            stratified(np.array(points))


def test_each_stratum_has_one_point_anywhere_in_it() -> None:
    draws = np.concatenate([Random(0, step, range(1)).uniform("replay", 32).numpy() for step in range(500)])
    points = np.stack([stratified(row) for row in draws])
    assert points.dtype == np.float64
    assert (np.floor(points * 32) == np.arange(32)).all()
    assert kstest((points * 32 % 1).ravel(), "uniform").pvalue > 1e-3
    largest = stratified(np.full(7, np.nextafter(1.0, 0.0)))
    assert (largest < 1).all()
    assert len(stratified(np.array([]))) == 0


def test_weights_follow_section_3_4() -> None:
    rng = np.random.default_rng(1)
    probability = rng.exponential(size=20)
    probability /= probability.sum() * 3
    for beta in (0.0, 0.4, 1.0):
        expected = [(50 * p) ** -beta for p in probability.tolist()]
        expected = [weight / max(expected) for weight in expected]
        assert importance_weights(probability, 50, beta).tolist() == pytest.approx(expected, rel=1e-12)
    assert importance_weights(np.full(4, 0.01), 100, 0.7).tolist() == [1.0] * 4
    assert len(importance_weights(np.array([]), 1, 1.0)) == 0


def test_full_weights_make_the_mean_unbiased() -> None:
    probability, values = np.array([0.5, 0.25, 0.125, 0.125]), np.array([1.0, 2.0, 3.0, 4.0])
    weights = importance_weights(probability, 4, 1.0)
    # Each item's share in an expected sum of weighted samples is the same.
    shares = probability * weights
    assert (shares * values).sum() / shares.sum() == pytest.approx(values.mean())


@pytest.mark.parametrize(
    ("probability", "items", "beta"),
    [(0.0, 10, 0.5), (-0.1, 10, 0.5), (math.nan, 10, 0.5), (0.1, 0, 0.5), (0.1, 10, 1.5), (0.1, 10, -0.5)],
)
def test_wrong_arguments_of_weights_are_refused(probability: float, items: int, beta: float) -> None:
    with pytest.raises(ValueError, match="must be"):
        importance_weights(np.array([0.5, probability]), items, beta)


def test_beta_rises_in_a_straight_line_and_stays_at_its_end() -> None:
    beta = ImportanceExponent()
    assert [beta.at(progress) for progress in (0.0, 0.5, 1.0, 2.0)] == pytest.approx([0.4, 0.7, 1.0, 1.0])
    for options in ({"start": -0.1}, {"end": 1.1}):
        with pytest.raises(ValueError, match="from 0 to 1"):
            ImportanceExponent(**options)
