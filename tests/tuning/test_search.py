"""Which configurations are tried: all of a grid, the same draws of a seed, the same proposals after a resume."""

from __future__ import annotations

from typing import Any

import pytest

from heliostat.config.sweep import Sweep
from heliostat.tuning.search import Search, build
from heliostat.tuning.space import Assignment, Space

PARAMETERS = {
    "kind": {"type": "choice", "values": ["sgd", "adam"]},
    "rate": {"type": "log-uniform", "low": 1e-4, "high": 1.0},
    "depth": {"type": "integers", "low": 1, "high": 9},
    "beta": {
        "type": "conditional",
        "on": "kind",
        "cases": {"adam": {"type": "uniform", "low": 0.0, "high": 1.0}, "sgd": {"type": "choice", "values": [0, 1]}},
    },
}


def made(parameters: dict[str, Any] = PARAMETERS, **block: Any) -> tuple[Sweep, Search]:
    sweep = Sweep.model_validate({"parameters": parameters, "metric": "eval/x", "mode": "max", **block})
    return sweep, build(sweep, Space(sweep.parameters))


def score(values: Assignment) -> float:
    return float(values["kind"] == "adam") - abs(values["depth"] - 5) / 10 + values["rate"]


def told(search: Search, number: int, values: Assignment) -> None:
    """One of four is pruned, one of eight has failed."""
    if number % 8 == 7:
        search.tell(number, "failed", None, [])
    elif number % 4 == 3:
        search.tell(number, "pruned", None, [(10, score(values) / 2)])
    else:
        search.tell(number, "finished", score(values), [(10, score(values) / 2)])


def test_a_grid_search_tries_each_combination_once() -> None:
    listed = {"a": {"type": "choice", "values": [1, 2, 3]}, "b": {"type": "grid", "values": ["x", "y"]}}
    _, search = made(listed, search={"type": "grid"})
    tried = [tuple(search.propose(number).values()) for number in range(search.total)]
    assert search.total == 6
    assert set(tried) == {(a, b) for a in (1, 2, 3) for b in ("x", "y")}


def test_each_point_of_grid_parameters_gets_as_many_draws_of_the_rest() -> None:
    mixed = {"g": {"type": "grid", "values": [1, 2]}, "u": {"type": "uniform", "low": 0.0, "high": 1.0}}
    _, search = made(mixed, samples=3)
    tried = [search.propose(number) for number in range(search.total)]
    assert [values["g"] for values in tried] == [1, 2, 1, 2, 1, 2]
    assert len({values["u"] for values in tried}) == 6


@pytest.mark.parametrize("sampler", ["tpe", "gp"])
def test_optunas_samplers_propose_the_same_after_a_resume(sampler: str) -> None:
    settings = {"samples": 14, "search": {"type": "optuna", "sampler": sampler, "startup": 4}, "seed": 3}
    (_, whole), (_, again), (_, other) = made(**settings), made(**settings), made(**{**settings, "seed": 4})
    proposed = []
    for number in range(14):
        proposed.append(whole.propose(number))
        if number >= 1:  # two at a time
            told(whole, number - 1, proposed[number - 1])
    for number in range(9):  # as the journal tells it: seven have ended, one is under way, the ninth has begun
        again.recall(number, proposed[number])
        if number >= 1:
            told(again, number - 1, proposed[number - 1])
    for number in range(9, 14):
        assert again.propose(number) == proposed[number]
        told(again, number - 1, proposed[number - 1])
    assert [other.propose(0), other.propose(1)] != proposed[:2]
    for values in proposed:
        assert 1e-4 <= values["rate"] <= 1
        assert values["depth"] in range(1, 10)
        assert values["beta"] in (0, 1) if values["kind"] == "sgd" else 0 <= values["beta"] <= 1


def test_a_model_learns_where_the_best_are() -> None:
    _, search = made(samples=60, search={"type": "optuna", "sampler": "tpe", "startup": 10})
    values = []
    for number in range(60):
        values.append(search.propose(number))
        search.tell(number, "finished", score(values[-1]), [])
    early, late = values[:10], values[-20:]
    assert sum(map(score, late)) / 20 > sum(map(score, early)) / 10 + 0.3


def test_a_sobol_sequence_covers_what_random_draws_leave_open() -> None:
    plane = {name: {"type": "uniform", "low": 0.0, "high": 1.0} for name in ("a", "b")}
    _, even = made(plane, samples=16, search={"type": "sobol"})
    _, random = made(plane, samples=16)

    def cells(search: Search) -> int:
        points = [search.propose(number) for number in range(16)]
        return len({(int(4 * point["a"]), int(4 * point["b"])) for point in points})

    assert cells(even) == 16  # a net: one point in each cell of 4 x 4
    assert cells(random) < 16
    _, again = made(samples=16, search={"type": "sobol"})
    _, mixed = made(samples=16, search={"type": "sobol"})
    points = [mixed.propose(number) for number in range(16)]
    assert again.propose(11) == points[11]
    assert sum(point["kind"] == "adam" for point in points) == 8
