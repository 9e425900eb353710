"""Aggregates of returns and their intervals, against formulas written out."""

from __future__ import annotations

import math
import statistics

import numpy as np
import numpy.typing as npt
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from heliostat_algorithms.evaluation.returns import (
    Statistic,
    bootstrap,
    human_normalized,
    interquartile_mean,
    mean,
    mean_over_seeds,
    median,
    median_game,
)
from heliostat_algorithms.randomness import Random


def scores(runs: int, games: int, seed: int) -> npt.NDArray[np.float64]:
    return np.random.default_rng(seed).gamma(2.0, 1.5, (runs, games)) - 0.5


@given(runs=st.integers(1, 12), games=st.integers(1, 9), seed=st.integers(0, 1000))
def test_the_interquartile_mean_is_scipys_trimmed_mean(runs: int, games: int, seed: int) -> None:
    values = scores(runs, games, seed)
    expected = scipy.stats.trim_mean(values, proportiontocut=0.25, axis=None)
    assert interquartile_mean(values) == pytest.approx(expected, rel=1e-12)


def test_the_interquartile_mean_ignores_both_tails() -> None:
    values = np.arange(16.0).reshape(4, 4)
    assert interquartile_mean(values) == statistics.mean(range(4, 12))
    values[0, 0], values[3, 3] = -1e9, 1e9
    assert interquartile_mean(values) == statistics.mean(range(4, 12))


@given(runs=st.integers(1, 7), games=st.integers(1, 6), seed=st.integers(0, 1000))
def test_means_and_medians_are_the_standard_librarys(runs: int, games: int, seed: int) -> None:
    values = scores(runs, games, seed)
    rows = values.tolist()
    pooled = [value for row in rows for value in row]
    of_games = [statistics.mean(row[game] for row in rows) for game in range(games)]
    assert mean(values) == pytest.approx(statistics.mean(pooled), rel=1e-12)
    assert median(values) == pytest.approx(statistics.median(pooled), rel=1e-12)
    assert median_game(values) == pytest.approx(statistics.median(of_games), rel=1e-12)


@pytest.mark.parametrize("statistic", [interquartile_mean, mean, median, median_game])
def test_statistics_work_on_many_tables_at_once(statistic: Statistic) -> None:
    tables = scores(30, 4, 0).reshape(2, 3, 5, 4)
    found = statistic(tables)
    assert found.shape == (2, 3)
    for i in range(2):
        for j in range(3):
            assert found[i, j] == statistic(tables[i, j])


def quantile(values: list[float], share: float) -> float:
    """Linear between order statistics (Hyndman and Fan's type 7)."""
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


@pytest.mark.parametrize("confidence", [0.95, 0.5])
def test_the_bootstrap_draws_runs_of_each_game_by_itself(confidence: float) -> None:
    """The same draws, in explicit loops."""
    values, runs, games, resamples = scores(5, 3, 7), 5, 3, 200
    draws = Random(11, 0, range(resamples), scope="evaluation/returns/").integers("run", runs, runs, games).tolist()
    found = []
    for resample in range(resamples):
        drawn = sorted(values[draws[resample][row][game], game] for row in range(runs) for game in range(games))
        found.append(statistics.fmean(drawn[3:12]))  # 15 // 4 = 3 are cut at each end
    estimate = bootstrap(values, seed=11, resamples=resamples, confidence=confidence)
    assert estimate.value == pytest.approx(scipy.stats.trim_mean(values, 0.25, axis=None), rel=1e-12)
    assert estimate.low == pytest.approx(quantile(found, (1 - confidence) / 2), rel=1e-12)
    assert estimate.high == pytest.approx(quantile(found, (1 + confidence) / 2), rel=1e-12)


def test_strata_are_games() -> None:
    """Runs that are all alike leave nothing to chance, however much games differ."""
    values = np.tile(np.array([0.0, 1.0, 5.0, 100.0, 7.0]), (4, 1))
    for statistic in (interquartile_mean, mean, median, median_game):
        estimate = bootstrap(values, statistic, resamples=100)
        assert estimate.low == estimate.value == estimate.high


def test_every_run_is_drawn_as_often() -> None:
    """The mean of one game, whose resamples follow the multinomial distribution, has variance (R - 1) / R^2 s^2."""
    values = scores(6, 1, 3)
    estimate = bootstrap(values, mean, resamples=20_000, confidence=0.6827)
    deviation = float(np.std(values)) / math.sqrt(6)
    assert estimate.high - estimate.low == pytest.approx(2 * deviation, rel=0.05)
    assert (estimate.high + estimate.low) / 2 == pytest.approx(float(values.mean()), abs=0.1 * deviation)


def test_draws_depend_on_the_seed_alone() -> None:
    values = scores(10, 4, 1)
    first = bootstrap(values, seed=3, resamples=300)
    np.random.seed(0)
    assert bootstrap(values, seed=3, resamples=300) == first
    assert bootstrap(values, seed=4, resamples=300) != first


def test_a_large_table_is_resampled_in_parts_with_the_same_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    values = scores(10, 4, 1)
    whole = bootstrap(values, resamples=300)
    monkeypatch.setattr("heliostat_algorithms.evaluation.returns._MEMORY", 7 * values.size)
    assert bootstrap(values, resamples=300) == whole


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    """20 runs of 5 games whose scores are normal; by symmetry around 0, the true interquartile mean is 0."""
    trials, covered = 400, 0
    generator = np.random.default_rng(5)
    scale = np.array([0.5, 1.0, 1.0, 2.0, 3.0])
    for trial in range(trials):
        estimate = bootstrap(generator.normal(size=(20, 5)) * scale, seed=trial, resamples=300, confidence=0.9)
        covered += estimate.low <= 0 <= estimate.high
    # The percentile bootstrap's width is sqrt(19 / 20) of the right one, which covers 0.89; 0.04 is 2.6 deviations.
    assert 0.85 <= covered / trials <= 0.93


def test_one_game_may_be_given_without_its_axis() -> None:
    values = scores(8, 1, 2)
    assert bootstrap(values[:, 0], median, resamples=50) == bootstrap(values, median, resamples=50)


def test_a_mean_over_seeds_has_students_interval() -> None:
    values = [475.0, 500.0, 431.5]
    estimate = mean_over_seeds(values)
    expected = scipy.stats.t.interval(0.95, 2, loc=np.mean(values), scale=scipy.stats.sem(values))
    assert estimate.value == pytest.approx(np.mean(values))
    assert (estimate.low, estimate.high) == pytest.approx(expected)


@given(st.floats(-1e4, 1e4), st.floats(-1e4, 1e4), st.floats(-1e4, 1e4))
@settings(max_examples=50)
def test_scores_are_measured_between_random_and_human_play(score: float, random: float, human: float) -> None:
    if abs(human - random) < 1e-3:
        return
    expected = (score - random) / (human - random)
    assert human_normalized(score, random, human) == pytest.approx(expected, rel=1e-12, abs=1e-12)


def test_each_game_has_its_own_references() -> None:
    random, human = [-20.7, 1.7, 68.4], [14.6, 30.5, 1668.7]  # Pong, Breakout, Space Invaders (Mnih et al. 2015)
    raw = np.array([[-20.7, 30.5, 68.4], [14.6, 1.7, 1668.7], [21.0, 401.2, 1976.0]])
    expected = [[0.0, 1.0, 0.0], [1.0, 0.0, 1.0], [41.7 / 35.3, 399.5 / 28.8, 1907.6 / 1600.3]]
    assert np.allclose(human_normalized(raw, random, human), expected, atol=1e-12)


@pytest.mark.parametrize("human", [[10.0, 3.0], [10.0, math.nan], [10.0, math.inf]])
def test_references_that_measure_nothing_are_refused(human: list[float]) -> None:
    with pytest.raises(ValueError, match="differ from random"):
        human_normalized([1.0, 2.0], [1.0, 3.0], human)


@pytest.mark.parametrize(
    ("values", "options", "message"),
    [
        ([[1.0, 2.0]], {}, "at least 2 runs"),
        ([3.0], {}, "at least 2 runs"),
        (np.zeros((3, 0)), {}, "at least 2 runs and 1 game"),
        (np.zeros((2, 2, 2)), {}, r"\(R, G\)"),
        ([[1.0, 2.0], [3.0, math.nan]], {}, "run 1 in game 1 is nan"),
        ([[1.0, math.inf], [3.0, 1.0]], {}, "run 0 in game 1 is inf"),
        ([[1.0], [2.0]], {"resamples": 0}, "resamples >= 1"),
        ([[1.0], [2.0]], {"confidence": 1.0}, "confidence in"),
    ],
)
def test_bad_values_are_refused(values: npt.ArrayLike, options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        bootstrap(values, **options)  # type: ignore[arg-type]


def test_a_mean_over_seeds_is_of_one_game() -> None:
    with pytest.raises(ValueError, match="of one game"):
        mean_over_seeds([[1.0, 2.0], [2.0, 3.0]])
