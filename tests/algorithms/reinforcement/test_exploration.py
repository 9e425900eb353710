from __future__ import annotations

import math
from typing import Any

import pytest

from heliostat_algorithms.reinforcement.exploration import ApeX, Constant, Linear


def test_a_constant_share() -> None:
    assert Constant(value=0.05).at(10**9, range(3, 6), 8).tolist() == pytest.approx([0.05] * 3)
    assert Constant().at(0, range(2), 2).tolist() == [0.0, 0.0]


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (0, 1.0),
        (50_000, 1.0),
        (50_001, 1.0 - 0.9e-6),
        (300_000, 1.0 - 0.9 * 0.25),
        (550_000, 0.55),
        (1_050_000, 0.1),
        (1_050_001, 0.1),
        (50_000_000, 0.1),
    ],
)
def test_the_papers_line(step: int, expected: float) -> None:
    """1 while the memory fills, then down to 0.1 within a million steps."""
    assert Linear().at(step, range(2), 4).tolist() == pytest.approx([expected] * 2, rel=1e-6)


def test_lines_may_rise_and_begin_at_once() -> None:
    line = Linear(start=0.0, end=1.0, begin=0, steps=10)
    assert [line.at(step, range(1), 1).item() for step in (0, 1, 5, 10, 11)] == pytest.approx([0, 0.1, 0.5, 1, 1])


@pytest.mark.parametrize("count", [2, 8, 360])
def test_ape_x_gives_each_lane_its_own_share(count: int) -> None:
    found = ApeX().at(0, range(count), count).tolist()
    expected = [0.4 ** (1 + 7 * i / (count - 1)) for i in range(count)]
    assert found == pytest.approx(expected, rel=1e-6)
    assert found[0] == pytest.approx(0.4)
    assert found[-1] == pytest.approx(0.00065536)
    assert ApeX().at(10**8, range(count), count).tolist() == found


def test_shares_do_not_depend_on_how_lanes_are_split() -> None:
    for schedule in (ApeX(base=0.3, exponent=5.0), Linear(), Constant(value=0.2)):
        whole = schedule.at(400_000, range(7), 7).tolist()
        parts = (schedule.at(400_000, rows, 7).tolist() for rows in (range(3), range(3, 4), range(4, 7)))
        assert [share for part in parts for share in part] == whole


def test_a_single_lane_is_the_first() -> None:
    assert ApeX().at(0, range(1), 1).tolist() == pytest.approx([0.4])


@pytest.mark.parametrize(
    ("kind", "bad", "message"),
    [
        (Constant, {"value": 1.01}, "value is 1.01"),
        (Constant, {"value": math.nan}, "value is nan"),
        (Linear, {"start": -0.1}, "start is -0.1"),
        (Linear, {"end": 2.0}, "end is 2.0"),
        (Linear, {"begin": -1}, "begin is -1"),
        (Linear, {"steps": 0}, "steps is 0"),
        (ApeX, {"base": 0.0}, "base is 0.0"),
        (ApeX, {"exponent": -1.0}, "exponent is -1.0"),
        (ApeX, {"exponent": math.inf}, "exponent is inf"),
    ],
)
def test_numbers_out_of_range_are_refused(kind: Any, bad: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kind(**bad)
