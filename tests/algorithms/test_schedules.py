from __future__ import annotations

import math
from typing import Any

import pytest

from heliostat_algorithms.algorithm import Clock
from heliostat_algorithms.schedules import Constant, Cosine, MultiStep, cosine_ramp, linear_ramp


def clock(step: int, total: int = 100, per_epoch: int = 5) -> Clock:
    return Clock(step=step, total_steps=total, steps_per_epoch=per_epoch, batch_size=8)


def test_cosine_follows_the_official_schedule() -> None:
    for step in range(101):
        # step / warm-up steps, then half a cosine over the other 80.
        expected = step / 20 if step < 20 else (1 + math.cos(math.pi * (step - 20) / 80)) / 2
        assert Cosine(warmup_epochs=4).multiplier(clock(step)) == pytest.approx(expected, abs=1e-15)
    assert Cosine(warmup_epochs=4).multiplier(clock(0)) == 0.0
    assert Cosine(warmup_epochs=4).multiplier(clock(20)) == 1.0


def test_cosine_ends_at_its_final_share() -> None:
    schedule = Cosine(warmup_epochs=4, final=0.1)
    assert schedule.multiplier(clock(20)) == 1.0
    assert schedule.multiplier(clock(60)) == pytest.approx(0.55)
    assert schedule.multiplier(clock(100)) == pytest.approx(0.1)
    assert schedule.multiplier(clock(99)) > 0.1
    assert schedule.multiplier(clock(10)) == 0.5  # the warm-up rises to the peak, not to a share of it


def test_warmup_may_end_within_an_epoch_or_be_absent() -> None:
    assert Cosine(warmup_epochs=0).multiplier(clock(0)) == 1.0
    half = Constant(warmup_epochs=0.5)  # 2.5 steps
    assert [half.multiplier(clock(step)) for step in range(5)] == pytest.approx([0, 0.4, 0.8, 1, 1])


def test_constant_stays_at_the_peak() -> None:
    assert {Constant().multiplier(clock(step)) for step in range(101)} == {1.0}


def test_multi_step_falls_at_each_milestone() -> None:
    schedule = MultiStep(milestones=(6, 10.4), factor=0.2, warmup_epochs=2)
    for step in range(101):
        expected = step / 10 if step < 10 else 1.0 if step < 30 else 0.2 if step < 52 else 0.04
        assert schedule.multiplier(clock(step)) == pytest.approx(expected)


def test_defaults_are_those_of_the_papers() -> None:
    assert (Cosine().warmup_epochs, Cosine().final) == (10, 0)
    assert Constant().warmup_epochs == MultiStep(milestones=(120, 160)).warmup_epochs == 0
    assert MultiStep(milestones=(120, 160)).factor == 0.1
    assert [Cosine().type, Constant().type, MultiStep(milestones=(1,)).type] == ["cosine", "constant", "multi-step"]


@pytest.mark.parametrize(("start", "end"), [(0.996, 1.0), (0.4, 0.04)])
def test_ramps_go_from_start_to_end(start: float, end: float) -> None:
    for ramp in (linear_ramp, cosine_ramp):
        assert ramp(start, end, 0.0) == pytest.approx(start)
        assert ramp(start, end, 0.5) == pytest.approx((start + end) / 2)
        assert ramp(start, end, 1.0) == pytest.approx(end)
    assert linear_ramp(start, end, 0.25) == pytest.approx(0.75 * start + 0.25 * end)
    # BYOL: 1 - (1 - base) (cos(pi k / K) + 1) / 2, for an end of 1
    assert cosine_ramp(start, end, 0.25) == pytest.approx(end - (end - start) * (math.cos(math.pi / 4) + 1) / 2)


def test_a_schedule_that_does_not_fit_the_training_says_so() -> None:
    assert Cosine().check(100) is None
    assert "10 epochs is not shorter than the training of 10" in str(Cosine().check(10))
    assert Constant().check(0.5) is None
    assert MultiStep(milestones=(120, 160)).check(200) is None
    assert "milestone at epoch 160 is not before the end of the training, 150 epochs" in str(
        MultiStep(milestones=(120, 160)).check(150)
    )
    assert "warm-up" in str(MultiStep(milestones=(1,), warmup_epochs=9).check(5))


@pytest.mark.parametrize(
    ("kind", "bad", "message"),
    [
        (Cosine, {"warmup_epochs": -1.0}, "warmup_epochs is -1.0"),
        (Constant, {"warmup_epochs": math.nan}, "warmup_epochs is nan"),
        (Constant, {"warmup_epochs": math.inf}, "warmup_epochs is inf"),
        (Cosine, {"final": 1.5}, "final is 1.5"),
        (MultiStep, {"milestones": ()}, "milestones are"),
        (MultiStep, {"milestones": (3.0, 2.0)}, "milestones are"),
        (MultiStep, {"milestones": (2.0, 2.0)}, "milestones are"),
        (MultiStep, {"milestones": (0.0, 2.0)}, "milestones are"),
        (MultiStep, {"milestones": (2.0, math.nan)}, "milestones are"),
        (MultiStep, {"milestones": (1.0,), "factor": 0.0}, "factor is 0.0"),
    ],
)
def test_numbers_out_of_range_are_refused(kind: Any, bad: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kind(**bad)
