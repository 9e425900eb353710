"""What varies in a sweep: order, draws, grids, conditions."""

from __future__ import annotations

from heliostat.config.sweep import Choice, Conditional, Grid, Integers, LogUniform
from heliostat.tuning.space import Space, at, ends

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
