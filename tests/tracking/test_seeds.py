"""Folding seeds, and what may be said of the difference of groups, against scipy and by hand."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest
from scipy import stats

from heliostat.errors import InputError
from heliostat.reinforcement.environments.atari_scores import ATARI_SCORES
from heliostat.tracking.comparison import compare
from heliostat.tracking.conclusions import conclusions
from heliostat.tracking.conditions import Condition, parse_conditions
from heliostat.tracking.costs import cost
from heliostat.tracking.curves import curve
from heliostat.tracking.export import to_csv, to_json
from heliostat.tracking.grouping import Group, fold_seeds, group_by
from heliostat.tracking.importance import importance
from heliostat.tracking.page import render
from heliostat.tracking.returns import returns, unequal
from heliostat.tracking.run_record import RunRecord
from heliostat.tracking.statistics import Sample, against_best, holm, welch
from heliostat.tracking.sweeps import as_sweep


def run(name: str, value: float | None = None, *, seed: int | None = 0, **changes: Any) -> RunRecord:
    parameters = {"algorithm.temperature": "0.5", "name": name, **changes.pop("parameters", {})}
    if seed is not None:
        parameters["seed"] = str(seed)
    facts: dict[str, Any] = {"experiment": "e", "status": "FINISHED", "start": 1.0, "duration": 3600.0, "tags": {}}
    metrics = {} if value is None else {"eval/knn_top1": value}
    return RunRecord(name=name, id=name, **{"metrics": metrics, **facts, **changes}, parameters=parameters)


def test_runs_that_differ_in_the_seed_alone_are_one() -> None:
    runs = [run(f"a-00000{seed}", 0.1 * seed, seed=seed) for seed in (2, 0, 1)]
    other = run("b-000000", 0.5, parameters={"algorithm.temperature": "1"})
    first, second = fold_seeds([*runs, other])
    assert first.seeds == ("0", "1", "2")
    assert first.label == "a"
    assert second.runs == (other,)
    cell = compare([first, second]).metrics[0].cells[0]
    assert cell is not None
    low, high = stats.t.interval(0.95, 2, 0.1, stats.sem([0.0, 0.1, 0.2]))
    assert (cell.value, cell.interval, cell.count) == (pytest.approx(0.1), pytest.approx((high - low) / 2), 3)


def test_where_a_run_is_written_does_not_set_it_apart_and_everything_else_does() -> None:
    moved = run("a", seed=1, parameters={"output": "s3://x", "tracking.experiment": "y"})
    assert len(fold_seeds([run("a"), moved])) == 1
    assert len(fold_seeds([run("a"), run("b", seed=1, parameters={"resources.workers": "2"})])) == 2
    assert len(fold_seeds([run("a", seed=None), run("b", seed=None)])) == 2


def test_a_seed_counts_once_and_only_when_it_is_finished() -> None:
    runs = [
        run("old", 0.1, seed=0, start=1.0),
        run("new", 0.2, seed=0, start=2.0),
        run("one", 0.4, seed=1),
        run("dead", 0.9, seed=2, status="FAILED"),
    ]
    (group,) = fold_seeds(runs)
    assert [each.name for each in group.runs] == ["new", "one"]
    assert {each.name for each in group.left_out} == {"old", "dead"}
    told = " ".join(conclusions(compare([group]), None))
    assert "dead (failed)" in told
    assert "not: old" in told


def test_groups_by_parameter_and_its_wrong_name() -> None:
    runs = [
        run(str(i), i / 10, seed=i, parameters={"optimization.batch_size": str(64 * (1 + i % 2))}) for i in range(4)
    ]
    small, large = group_by(runs, ["optimization.batch_size"])
    assert (small.label, len(small.runs), large.label) == ("batch_size=64", 2, "batch_size=128")
    with pytest.raises(InputError, match=r"Did you mean 'optimization\.batch_size'"):
        group_by(runs, ["optimization.batchsize"])


def test_welch_and_holm_are_the_textbook_ones() -> None:
    dice = random.Random(0)
    for _ in range(20):
        first = [dice.gauss(0, 1) for _ in range(dice.randint(2, 9))]
        second = [dice.gauss(0.7, 3) for _ in range(dice.randint(2, 9))]
        expected = stats.ttest_ind(first, second, equal_var=False).pvalue
        assert welch(Sample.of(first), Sample.of(second)) == pytest.approx(expected, rel=1e-9)
    assert welch(Sample.of([1.0]), Sample.of([1.0, 2.0])) is None
    assert welch(Sample.of([1.0, 1.0]), Sample.of([1.0, 1.0])) == 1.0
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]


def test_verdicts() -> None:
    def findings(*groups: list[float] | None, better: Any = "higher") -> list[str | None]:
        return [each and each.finding for each in against_best(groups, better)]

    assert findings([1.0, 1.1, 0.9], [5.0, 5.1, 4.9], [4.9, 5.2, 4.8]) == ["worse", "best", "within noise"]
    assert findings([1.0, 1.1, 0.9], [5.0, 5.1, 4.9], better="lower") == ["best", "worse"]
    assert findings([1.0], [2.0, 2.1]) == ["unknown", "best"]
    assert findings([1.0], [2.0]) == ["unknown", "best"]
    assert findings([math.nan, 1.0], [2.0], None) == [None, None, None]
    assert findings([3.0, 3.0], [3.0]) == [None, None]


def test_false_alarms_are_as_rare_as_promised() -> None:
    dice = random.Random(1)
    alarms = sum(
        any(
            each and each.finding == "worse"
            for each in against_best([[dice.gauss(0, 1) for _ in range(4)] for _ in range(6)], "higher")
        )
        for _ in range(400)
    )
    assert alarms <= 0.05 * 400 + 3 * math.sqrt(0.05 * 0.95 * 400)


def test_one_run_is_said_to_have_no_interval_over_seeds() -> None:
    comparison = compare([run("a", 0.1), run("b", 0.2, parameters={"x": "1"})])
    cells = comparison.metrics[0].cells
    assert [cell.interval for cell in cells if cell] == [None, None]
    assert any("Run several seeds" in each for each in conclusions(comparison, comparison.metrics[0]))


def test_selection_is_on_validation_never_on_test() -> None:
    histories = {
        "validation/top1": [(1, 0.5), (2, 0.7), (3, 0.6)],
        "eval/top1": [(1, 0.9), (2, 0.4), (3, 0.6)],  # the best test value is at step 1
    }
    metrics = {"validation/top1": 0.6, "eval/top1": 0.6}
    comparison = compare([run("a", metrics=metrics, histories=histories)])
    found = {row.name: row.cells[0].value for row in comparison.selected if row.cells[0]}
    assert found == {"validation/top1": 0.7, "eval/top1": 0.4}
    assert compare([run("a", 0.1, histories={"eval/knn_top1": [(1, 0.9), (2, 0.1)]})]).selected == ()


def test_bands_are_student_t_at_each_step() -> None:
    runs = [run(str(seed), histories={"x": [(0, float(seed)), (10, 2.0 * seed)]}, seed=seed) for seed in range(3)]
    found = curve(Group("g", tuple(runs)), "x")
    assert found is not None
    assert list(found.mean) == [(0, 1.0), (10, 2.0)]
    low, high = stats.t.interval(0.95, 2, 1.0, stats.sem([0.0, 1.0, 2.0]))
    assert (found.low[0][1], found.high[0][1]) == pytest.approx((low, high))
    assert not found.interpolated
    other = run("o", histories={"x": [(0, 0.0), (5, 5.0), (10, 10.0)]}, seed=9)
    mixed = curve(Group("g", (runs[0], other)), "x")
    assert mixed is not None
    assert mixed.interpolated
    assert [step for step, _ in mixed.mean] == [0, 5, 10]


def test_conditions() -> None:
    (same, above, name) = parse_conditions(["lr = 0.10", "eval/top1>=0.5", "name!=simclr-*"])
    assert same.holds("1e-1")
    assert not same.holds("0.2")
    assert not same.holds(None)
    assert above.holds(0.5)
    assert not above.holds(math.nan)
    assert not name.holds("SimCLR-3")
    assert name.holds("mae")
    assert Condition("x", "=", "true").holds("True")
    with pytest.raises(InputError) as caught:
        parse_conditions(["batch_size", "x>much", "status=finishd", "=3"])
    assert len(caught.value.problems) == 4
    assert "Did you mean 'FINISHED'" in str(caught.value)


def played(game: str, seed: int, score: float) -> RunRecord:
    parameters = {"environment.type": "atari", "environment.game": game}
    return run(f"{game}-{seed}", seed=seed, metrics={"eval/return": score}, parameters=parameters)


def test_returns_over_seeds_and_games() -> None:
    scores = {"pong": (0.0, 10.0, 20.0, -5.0), "breakout": (20.0, 40.0, 60.0, 10.0)}
    runs = [played(game, seed, score) for game, each in scores.items() for seed, score in enumerate(each)]
    pong, breakout, both = returns(compare(runs))
    assert pong.middle is not None
    assert pong.middle.value == pytest.approx(5.0)  # of -5, 0, 10, 20 the middle half
    assert pong.middle.low < 5 < pong.middle.high
    reference = ATARI_SCORES["breakout"]
    assert breakout.human is not None
    assert breakout.human.value == pytest.approx(reference.normalized(30.0))
    assert both.games == 2
    normalized = sorted(ATARI_SCORES[g].normalized(s) for g, each in scores.items() for s in each)
    assert both.human is not None
    assert both.human.value == pytest.approx(sum(normalized[2:6]) / 4)
    assert "different numbers of seeds" in unequal(compare(runs[:-1]))[0]


def test_what_is_unknown_of_a_cost_is_said_to_be() -> None:
    parameters = {"resources.runtime": "ray", "resources.workers": "4", "resources.cpus_per_worker": "2"}
    known = cost(Group("g", (run("a", parameters={**parameters, "resources.gpus_per_worker": "0.5"}),)))
    assert (known.seconds, known.cpu_hours, known.gpu_hours, known.watt_hours) == (3600.0, 8.0, 2.0, None)
    assert cost(Group("g", (run("a"),))).cpu_hours is None
    watts = {"system/gpu_0_power_usage_watts": [(0, 100.0), (1, 300.0)]}
    assert cost(Group("g", (run("a", histories=watts),))).watt_hours == pytest.approx(200.0)


def many(count: int) -> list[RunRecord]:
    dice = random.Random(0)
    runs = []
    for index in range(count):
        rate, other = dice.random(), dice.choice(["adam", "lars"])
        value = rate + 0.01 * dice.random()
        histories = {"eval/knn_top1": [(0, 0.0), (10, value)]}
        parameters = {"optimizer.learning_rate": str(rate), "optimizer.type": other}
        runs.append(run(f"r-{index:06x}", value, histories=histories, parameters=parameters))
    return runs


def test_importance_finds_what_decides() -> None:
    sweep = as_sweep(compare(many(40)))
    assert sweep is not None
    found = importance(sweep.parameters, sweep.results)
    assert found is not None
    assert found.explained > 0.8
    assert next(iter(found.shares)) == "optimizer.learning_rate"
    assert found.shares["optimizer.learning_rate"] > 10 * abs(found.shares["optimizer.type"])
    assert importance(sweep.parameters, sweep.results[:9] + [math.nan] * 31) is None


@pytest.mark.parametrize("count", [1, 2, 50])
def test_page_and_data_of_any_number_of_runs(count: int) -> None:
    comparison = compare(many(count))
    text = render(comparison, sweep=as_sweep(comparison))
    assert text.count("<polyline") >= count
    assert ("Parallel coordinates" in text) == (count == 50)
    assert ('class="numbers rows"' in text) == (count == 50)
    assert len(to_csv(comparison).splitlines()) == 1 + count
    assert len(to_json(comparison)["groups"]) == count
