from __future__ import annotations

import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heliostat_algorithms.reinforcement.replay import SamplesPerInsert

RATIOS = st.one_of(st.sampled_from([0.25, 1.0, 8.0]), st.floats(0.01, 100))
TOLERANCES = st.one_of(st.none(), st.floats(0, 1000))


@settings(max_examples=200, deadline=None)
@given(
    ratio=RATIOS,
    minimum=st.integers(0, 300),
    tolerance=TOLERANCES,
    batch=st.integers(1, 512),
    inserts=st.lists(st.integers(1, 400), min_size=1, max_size=5),
    eager=st.lists(st.booleans(), min_size=1, max_size=20),
)
def test_one_side_can_always_go_on_and_the_ratio_is_kept(
    ratio: float, minimum: int, tolerance: float | None, batch: int, inserts: list[int], eager: list[bool]
) -> None:
    limiter = SamplesPerInsert(ratio, minimum, tolerance)
    slack = ratio * (tolerance or 0.0)
    inserted = sampled = 0
    for turn in range(200):
        count = inserts[turn % len(inserts)]
        may_insert, may_sample = limiter.may_insert(count, batch), limiter.may_sample(batch)
        assert may_insert or may_sample
        if may_insert and (eager[turn % len(eager)] or not may_sample):
            limiter.inserted(count)
            inserted += count
        else:
            limiter.sampled(batch)
            sampled += batch
        assert sampled == 0 or inserted >= max(1, minimum)
        due = ratio * (inserted - minimum) - sampled
        # Never ahead by more than allowed; behind by as much, or by what one insert adds to less than a batch.
        rounding = 1e-9 * (1 + abs(ratio * inserted))
        assert sampled == 0 or due >= -slack - rounding
        one = ratio * max(inserts)
        assert due <= max(slack, batch - slack + one, one) + rounding


@settings(max_examples=100, deadline=None)
@given(ratio=RATIOS, minimum=st.integers(0, 100), batch=st.integers(1, 64), inserts=st.integers(1, 100))
def test_strict_sides_take_turns_in_one_order(ratio: float, minimum: int, batch: int, inserts: int) -> None:
    limiter = SamplesPerInsert(ratio, minimum)
    inserted = updates = 0
    for _ in range(50):
        assert limiter.may_insert(inserts, batch)
        limiter.inserted(inserts)
        inserted += inserts
        due = limiter.updates_due(batch)
        assert due == max(0, math.floor((ratio * (inserted - minimum) - updates * batch) / batch))
        for _ in range(due):
            assert limiter.may_sample(batch)
            assert not limiter.may_insert(inserts, batch)
            limiter.sampled(batch)
        updates += due
        assert not limiter.may_sample(batch)


def test_dqn_2015_updates_every_four_steps_once_it_has_begun() -> None:
    limiter = SamplesPerInsert(8.0, 50_000)
    limiter.inserted(50_000)
    assert limiter.updates_due(32) == 0
    done = []
    for _ in range(12):
        limiter.inserted(1)
        due = limiter.updates_due(32)
        limiter.sampled(32 * due)
        done.append(due)
    assert done == [0, 0, 0, 1] * 3


def test_tolerance_lets_either_side_run_ahead_by_so_many_inserts() -> None:
    limiter = SamplesPerInsert(2.0, 100, tolerance=50)
    limiter.inserted(99)
    assert not limiter.may_sample(10)
    limiter.inserted(1)
    for _ in range(10):
        assert limiter.may_sample(10)
        limiter.sampled(10)
    assert limiter.due == -100
    assert not limiter.may_sample(10)
    for _ in range(10):
        assert limiter.may_insert(10, 10)
        limiter.inserted(10)
    assert limiter.due == 100
    assert not limiter.may_insert(1, 10)


def test_counts_are_saved_and_restored() -> None:
    limiter, other = SamplesPerInsert(1.5, 10, 3.0), SamplesPerInsert(1.5, 10, 3.0)
    limiter.inserted(40)
    limiter.sampled(32)
    other.restore(json.loads(json.dumps(limiter.state())))
    assert other.due == limiter.due == 13
    assert other.may_sample(17)
    assert not other.may_sample(18)


@pytest.mark.parametrize(
    ("ratio", "minimum", "tolerance"),
    [
        (0.0, 0, None),
        (-1.0, 0, None),
        (math.inf, 0, None),
        (math.nan, 0, None),
        (1.0, -1, None),
        (1.0, 0, -1.0),
        (1.0, 0, math.inf),
        (1.0, 0, math.nan),
    ],
)
def test_arguments_out_of_range_are_refused(ratio: float, minimum: int, tolerance: float | None) -> None:
    with pytest.raises(ValueError, match=" is "):
        SamplesPerInsert(ratio, minimum, tolerance)
