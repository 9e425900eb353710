"""What varies in a sweep: order, draws, grids, conditions."""

from __future__ import annotations

import math

import pytest

from heliostat.config.sweep import Choice, Conditional, Grid, Integers, LogUniform, Uniform
from heliostat.tuning.space import Space, at, ends, label

KIND = Choice(type="choice", values=["sgd", "adam"])
RATE = Conditional(type="conditional", on="kind", cases={"adam": LogUniform(type="log-uniform", low=1e-4, high=1e-2)})


def test_a_conditional_parameter_is_there_only_in_its_cases_and_inside_its_range() -> None:
    space = Space({"rate": RATE, "kind": KIND})
    assert space.order == ["kind", "rate"]
    drawn = [space.draw(0, number) for number in range(50)]
    assert {("rate" in values) for values in drawn} == {True, False}
    for values in drawn:
        assert ("rate" in values) == (values["kind"] == "adam")
        assert 1e-4 <= values.get("rate", 1e-3) <= 1e-2


def test_draws_of_one_parameter_do_not_depend_on_the_others() -> None:
    alone, more = Space({"kind": KIND}), Space({"kind": KIND, "other": Integers(type="integers", low=0, high=9)})
    assert [alone.draw(1, n)["kind"] for n in range(20)] == [more.draw(1, n)["kind"] for n in range(20)]


def test_conditions_that_cannot_hold_are_told_with_the_nearest_name() -> None:
    case = {"adma": LogUniform(type="log-uniform", low=1e-4, high=1e-2)}
    space = Space({"kind": KIND, "rate": Conditional(type="conditional", on="kind", cases=case)})
    assert "never 'adma'. Did you mean 'adam'?" in space.problems[0].what
    space = Space({"kind": KIND, "rate": RATE.model_copy(update={"on": "knid"})})
    assert "Did you mean 'kind'?" in space.problems[0].what


def test_the_grid_is_the_product_of_what_is_listed() -> None:
    space = Space({"a": Grid(type="grid", values=[1, 2]), "b": Integers(type="integers", low=0, high=4, step=2)})
    assert space.grid() == [{"a": 1}, {"a": 2}]
    assert len(space.grid(everything=True)) == 6


def test_integers_reach_both_ends_and_keep_their_step() -> None:
    stepped = Integers(type="integers", low=2, high=11, step=4)
    assert {at(stepped, share / 100) for share in range(100)} == {2, 6, 10}
    assert ends(stepped) == [2, 10]
    whole = Integers(type="integers", low=1, high=3, log=True)
    assert {at(whole, share / 100) for share in range(100)} == {1, 2, 3}


def test_ranges_are_filled_evenly_and_never_left() -> None:
    space = Space(
        {
            "u": Uniform(type="uniform", low=-1.0, high=3.0),
            "l": LogUniform(type="log-uniform", low=1e-4, high=1.0),
            "c": Choice(type="choice", values=["a", "b", "c"]),
        }
    )
    drawn = [space.draw(0, number) for number in range(3000)]
    assert all(-1 <= values["u"] <= 3 and 1e-4 <= values["l"] <= 1 for values in drawn)
    quarters = [sum(-1 + k <= values["u"] < k for values in drawn) for k in range(4)]
    decades = [sum(-4 + k <= math.log10(values["l"]) < -3 + k for values in drawn) for k in range(4)]
    thirds = [sum(values["c"] == name for values in drawn) for name in "abc"]
    for counts in (quarters, decades, thirds):  # five standard deviations of a binomial are below 130
        assert all(abs(count - 3000 / len(counts)) < 130 for count in counts)
    assert len({values["u"] for values in drawn}) == 3000


def test_draws_are_a_function_of_seed_and_number() -> None:
    space = Space({"kind": KIND, "rate": RATE})
    again = Space({"kind": KIND, "rate": RATE})
    first = [space.draw(5, number) for number in range(30)]
    assert first == [again.draw(5, number) for number in reversed(range(30))][::-1]
    assert first != [space.draw(6, number) for number in range(30)]


def test_conditions_nest() -> None:
    depth = Conditional(type="conditional", on="rate", cases={"0.1": Choice(type="choice", values=[1, 2])})
    rate = Conditional(type="conditional", on="kind", cases={"adam": Choice(type="choice", values=[0.1, 0.2])})
    space = Space({"depth": depth, "rate": rate, "kind": KIND})
    assert not space.problems
    assert space.order == ["kind", "rate", "depth"]
    assert [sorted(values.items()) for values in space.grid(everything=True)] == [
        [("kind", "sgd")],
        [("depth", 1), ("kind", "adam"), ("rate", 0.1)],
        [("depth", 2), ("kind", "adam"), ("rate", 0.1)],
        [("kind", "adam"), ("rate", 0.2)],
    ]
    assert ("depth", 2, {"kind": "adam", "rate": 0.1}) in list(space.trials())


def test_circles_of_conditions_are_told() -> None:
    one = Conditional(type="conditional", on="b", cases={"1": Choice(type="choice", values=[1])})
    other = Conditional(type="conditional", on="a", cases={"1": Choice(type="choice", values=[1])})
    assert [problem.where for problem in Space({"a": one, "b": other}).problems] == ["a", "b"]


def test_values_may_have_names() -> None:
    optimizers = {"slow": {"type": "sgd", "momentum": 0.9}, "fast": {"type": "adam"}}
    kind = Choice(type="choice", values=optimizers)
    space = Space({"o": kind, "r": Conditional(type="conditional", on="o", cases={"fast": RATE.cases["adam"]})})
    assert not space.problems
    for number in range(20):
        drawn = space.draw(0, number)
        assert drawn["o"] in optimizers.values()
        assert ("r" in drawn) == (drawn["o"] == {"type": "adam"})
        assert space.labels(drawn)["o"] in optimizers
    assert label(kind, {"type": "adam"}) == "fast"


@pytest.mark.parametrize("share", [0.0, 0.5, 1 - 2**-53])
def test_every_share_of_a_range_is_a_value_of_it(share: float) -> None:
    assert 1 <= at(Integers(type="integers", low=1, high=1000, log=True), share) <= 1000
    assert 0.3 <= at(LogUniform(type="log-uniform", low=0.3, high=0.7), share) <= 0.7
    assert at(Choice(type="choice", values=[1, 2, 3]), share) in (1, 2, 3)
