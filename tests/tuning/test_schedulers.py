"""Who goes on: the rungs of ASHA, the median rule, the decisions of a resumed sweep, and populations."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

from heliostat.config.sweep import Choice, Integers, LogUniform, PopulationBased, Sweep
from heliostat.tuning.population import explore, generation
from heliostat.tuning.schedulers import Population, Pruning, rule
from heliostat.tuning.space import Space

RATE = {"rate": {"type": "uniform", "low": 0.0, "high": 1.0}}


@dataclass
class Runner:
    """A trial of Ray's, as far as schedulers look at it."""

    name: str
    status: str = "RUNNING"
    config: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.config = {"order": {"name": self.name}}

    def set_config(self, config: dict[str, Any]) -> None:
        self.config = config


def pruning(
    scheduler: dict[str, Any], past: list[tuple[str, float, float]] | None = None, mode: str = "max"
) -> tuple[Pruning, list[tuple[str, float]]]:
    block = {"parameters": RATE, "metric": "eval/x", "mode": mode, "samples": 9, "scheduler": scheduler}
    chosen = rule(Sweep.model_validate(block))
    assert chosen is not None
    ended: list[tuple[str, float]] = []
    return Pruning(chosen, lambda name: "-s1" not in name, lambda n, s: ended.append((n, s)), past or []), ended


def feed(scheduler: Pruning, points: list[tuple[str, float, float]]) -> None:
    for name, share, value in points:
        decision = scheduler.on_trial_result(None, Runner(name), {"final": False, "share": share, "value": value})
        assert decision == "CONTINUE"  # the trial ends by itself, so that its record is closed


ASHA = {"type": "asha", "grace": 0.25, "reduction": 2}


def test_asha_lets_the_best_half_of_those_that_came_so_far_pass_each_rung() -> None:
    scheduler, ended = pruning(ASHA)
    feed(scheduler, [("a", 0.25, 0.5), ("b", 0.25, 0.6), ("c", 0.25, 0.4), ("d", 0.25, 0.55)])
    assert ended == [("c", 0.25)]  # the first has nobody to be compared with; d is the median of what came before
    feed(scheduler, [("c", 0.3, 0.9), ("a", 0.3, 0.0), ("b", 0.5, 0.6), ("a", 0.5, 0.59), ("d", 1.0, 0.1)])
    assert ended == [("c", 0.25), ("a", 0.5)]  # between rungs nobody is judged, nor at the end


def test_asha_for_less_is_better() -> None:
    scheduler, ended = pruning(ASHA, mode="min")
    feed(scheduler, [("a", 0.25, 0.5), ("b", 0.25, 0.6), ("c", 0.25, 0.4)])
    assert ended == [("b", 0.25)]


def test_the_median_rule_waits_for_enough_others() -> None:
    scheduler, ended = pruning({"type": "median", "grace": 0.2, "min_trials": 2})
    feed(scheduler, [("a", 0.1, 0.0), ("a", 0.3, 0.5), ("b", 0.3, 0.1)])
    assert not ended  # b is worse than a alone
    feed(scheduler, [("c", 0.3, 0.2)])
    assert ended == [("c", 0.3)]  # the median of 0.5 and 0.1 is 0.3
    feed(scheduler, [("c", 0.4, 0.9), ("d", 0.3, 0.4)])
    assert ended == [("c", 0.3)]  # it was asked once; d is above the median of 0.5, 0.1, 0.2


@pytest.mark.parametrize("kind", [ASHA, {"type": "median", "grace": 0.2, "min_trials": 2}])
def test_after_a_resume_the_same_trials_are_ended(kind: dict[str, Any]) -> None:
    points = [("a", 0.25, 0.5), ("b", 0.25, 0.6), ("c", 0.25, 0.4), ("c", 0.3, 0.5), ("d", 0.25, 0.1)]
    points += [("a", 0.5, 0.5), ("b", 0.5, 0.6), ("e-s1", 0.25, 0.0)]
    whole, expected = pruning(kind)
    feed(whole, points)
    assert expected
    for cut in range(len(points)):
        resumed, ended = pruning(kind, points[:cut])
        feed(resumed, points[cut:])
        assert ended == expected


def test_further_seeds_are_not_compared() -> None:
    scheduler, ended = pruning(ASHA)
    feed(scheduler, [("a-s0", 0.25, 0.5), ("a-s1", 0.25, 0.0), ("b-s0", 0.25, 0.6)])
    assert not ended


# Populations

SPACE = Space(
    {
        "rate": LogUniform(type="log-uniform", low=1e-3, high=1.0),
        "width": Integers(type="integers", low=4, high=16, step=4),
        "kind": Choice(type="choice", values=["a", "b", "c"]),
    }
)
SETTINGS = PopulationBased(type="pbt", quantile=0.25, resample=0.0)
VALUES = {k: {"rate": 0.1, "width": 8, "kind": "b"} for k in range(8)}
SCORES = {k: float(k) for k in range(8)}


def test_the_worst_go_on_from_the_best_with_other_values() -> None:
    changes = generation(SPACE, SETTINGS, 0, 100, SCORES, VALUES)
    assert set(changes) == {0, 1}
    for exploit in changes.values():
        assert exploit.donor in (6, 7)
        assert exploit.assigned["rate"] in (pytest.approx(0.08), pytest.approx(0.12))
        assert exploit.assigned["width"] in (4, 8, 12)
        assert exploit.assigned["kind"] in ("a", "c")
    assert generation(SPACE, SETTINGS, 0, 100, SCORES, VALUES) == changes
    later = [generation(SPACE, SETTINGS, 0, step, SCORES, VALUES)[0] for step in range(40)]
    assert {exploit.donor for exploit in later} == {6, 7}
    assert len({exploit.assigned["rate"] for exploit in later}) == 2


def test_small_populations_copy_too_and_one_alone_does_not() -> None:
    assert set(generation(SPACE, SETTINGS, 0, 1, {0: 1.0, 1: 2.0}, VALUES)) == {0}
    assert generation(SPACE, SETTINGS, 0, 1, {0: 1.0}, VALUES) == {}


def test_changed_values_stay_in_their_ranges() -> None:
    for step in range(50):
        low = explore(SPACE, SETTINGS, "k", step, {"rate": 1e-3, "width": 4, "kind": "a"})
        high = explore(SPACE, SETTINGS, "k", step, {"rate": 1.0, "width": 16, "kind": "c"})
        for values in (low, high):
            assert 1e-3 <= values["rate"] <= 1
            assert values["width"] in (4, 8, 12, 16)
            assert values["kind"] in ("a", "b", "c")
    anew = PopulationBased(type="pbt", resample=1.0)
    rates = [explore(SPACE, anew, "k", step, VALUES[0])["rate"] for step in range(50)]
    assert min(rates) < 0.01
    assert max(rates) > 0.1


class Controller:
    """Ray's controller, as far as a population needs it."""

    def __init__(self, trials: list[Runner]) -> None:
        self.trials = trials

    def get_live_trials(self) -> list[Runner]:
        return [trial for trial in self.trials if trial.status != "TERMINATED"]

    def get_trials(self) -> list[Runner]:
        return self.trials

    def pause_trial(self, trial: Runner, should_checkpoint: bool) -> None:
        assert not should_checkpoint
        trial.status = "PAUSED"


def test_a_population_waits_for_the_last_and_not_for_those_that_ended() -> None:
    turns: list[dict[str, tuple[int, float]]] = []

    def turn(standing: dict[str, tuple[int, float]]) -> dict[str, dict[str, Any]]:
        turns.append(dict(standing))
        return {name: {"name": name, "pause_at": 20} for name in standing}

    a, b, c = trials = [Runner(name) for name in "abc"]
    controller, scheduler = Controller(trials), Population(turn)
    for trial, value in ((a, 0.1), (b, 0.2)):
        told = {"final": False, "step": 10, "value": value}
        assert scheduler.on_trial_result(controller, trial, told) == "NOOP"
    assert (a.status, b.status) == ("PAUSED", "PAUSED")
    assert not turns
    assert scheduler.choose_trial_to_run(controller) is None  # nobody overtakes
    c.status = "TERMINATED"
    scheduler.on_trial_complete(controller, c, {})
    assert turns == [{"a": (10, 0.1), "b": (10, 0.2)}]
    assert a.config["order"]["pause_at"] == 20
    assert scheduler.choose_trial_to_run(controller) is a
