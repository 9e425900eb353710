"""What varies in a sweep: the possible values of each parameter, how they are drawn, and in which order.

Draws are a function of (seed, number of the configuration, path): neither another parameter nor a resumed sweep changes
them.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeAlias

import yaml

from heliostat.config.sweep import Choice, Conditional, Grid, Integers, LogUniform, Parameter, Simple, Uniform
from heliostat.errors import Problem, nearest
from heliostat_algorithms.randomness import bits

Assignment: TypeAlias = dict[str, Any]
"""A value for each path that is present."""


def unit(key: str, number: int) -> float:
    """A number in [0, 1), by the stream that ``key`` names and a position in it."""
    return (int(bits(key, number, 1).item()) >> 11 & (2**53 - 1)) / 2**53


def options(parameter: Simple) -> list[Any] | None:
    """All values of a parameter that has few enough to be listed; None for a range of real numbers."""
    match parameter:
        case Choice() | Grid():
            values = parameter.values
            return list(values.values()) if isinstance(values, dict) else list(values)
        case Integers():
            return list(range(parameter.low, parameter.high + 1, parameter.step))
    return None


def ends(parameter: Simple) -> list[Any]:
    """The values that stand for all: each of a list, both ends of a range."""
    match parameter:
        case Choice() | Grid():
            return options(parameter) or []
        case Integers():
            return [parameter.low, range(parameter.low, parameter.high + 1, parameter.step)[-1]]
    return [parameter.low, parameter.high]


def at(parameter: Simple, share: float) -> Any:
    """The value at a share in [0, 1) of a parameter's range."""
    match parameter:
        case Choice() | Grid():
            found = options(parameter) or []
            return found[int(share * len(found))]
        case Integers() if parameter.log:
            low, high = math.log(parameter.low - 0.5), math.log(parameter.high + 0.5)
            return min(parameter.high, max(parameter.low, round(math.exp(low + share * (high - low)))))
        case Integers():
            steps = range(parameter.low, parameter.high + 1, parameter.step)
            return steps[int(share * len(steps))]
        case LogUniform():
            low, high = math.log(parameter.low), math.log(parameter.high)
            return min(parameter.high, max(parameter.low, math.exp(low + share * (high - low))))
        case Uniform():
            return parameter.low + share * (parameter.high - parameter.low)


def label(parameter: Parameter, value: Any) -> str:
    """What tables and conditions call a value: its name where it has one, else as YAML writes it."""
    values = getattr(parameter, "values", None)
    if isinstance(values, dict):
        return next((name for name, known in values.items() if known == value), json.dumps(value))
    if isinstance(value, float):
        return f"{value:.4g}"
    return value if isinstance(value, str) else json.dumps(value)


class Space:
    """The parameters of a sweep, each after the one that it depends on.

    Args:
        parameters: as the job file gives them.
    """

    def __init__(self, parameters: Mapping[str, Parameter]) -> None:
        self.parameters = dict(parameters)
        self.problems: list[Problem] = []
        """What is wrong with conditions; ``where`` is the path."""
        self.order = self._ordered()

    def _ordered(self) -> list[str]:
        """Parents before children: a value inside a mapping is set after the mapping, a condition is known before what
        depends on it."""
        done: list[str] = []
        left = sorted(self.parameters, key=lambda path: (path.count("."), list(self.parameters).index(path)))
        while left:
            ready = next((path for path in left if self._on(path) in (None, *done)), None)
            if ready is None:
                break
            left.remove(ready)
            done.append(ready)
        for path in left:
            on = self._on(path) or ""
            if on not in self.parameters:
                what = f"{path} depends on '{on}', which is no parameter of the sweep.{nearest(on, self.parameters)}"
            else:
                what = f"{path} depends on {on}, which depends on it in turn"
            self.problems.append(Problem(what, path))
        for path in done:
            parameter = self.parameters[path]
            if isinstance(parameter, Conditional):
                self.problems += self._unmet(path, parameter)
        return done

    def _on(self, path: str) -> str | None:
        parameter = self.parameters[path]
        return parameter.on if isinstance(parameter, Conditional) else None

    def _unmet(self, path: str, parameter: Conditional) -> list[Problem]:
        """Cases for values that the other parameter never has."""
        other = self.parameters[parameter.on]
        possible: list[Any] = []
        for simple in other.cases.values() if isinstance(other, Conditional) else [other]:
            listed = options(simple)
            if listed is None:
                return [Problem(f"{path} depends on {parameter.on}, which has no list of values to tell apart", path)]
            possible += [(label(simple, value), value) for value in listed]
        return [
            Problem(f"{parameter.on} is never '{case}'.{nearest(case, {name for name, _ in possible})}", path)
            for case in parameter.cases
            if not any(_is_case(case, name, value) for name, value in possible)
        ]

    def simple(self, path: str, assigned: Mapping[str, Any]) -> Simple | None:
        """How a parameter varies where those before it have these values; None where it is absent."""
        parameter = self.parameters[path]
        if not isinstance(parameter, Conditional):
            return parameter
        if parameter.on not in assigned:
            return None
        other = self.simple(parameter.on, assigned)
        value = assigned[parameter.on]
        name = label(other, value) if other is not None else ""
        return next((inner for case, inner in parameter.cases.items() if _is_case(case, name, value)), None)

    def case(self, path: str, assigned: Mapping[str, Any]) -> str:
        """Which of a parameter's cases holds; empty for an unconditional one."""
        parameter, chosen = self.parameters[path], self.simple(path, assigned)
        cases = parameter.cases if isinstance(parameter, Conditional) else {}
        return next((case for case, inner in cases.items() if inner is chosen), "")

    def draw(self, seed: int, number: int, fixed: Mapping[str, Any] | None = None) -> Assignment:
        """A random configuration, with some values given."""
        return self.assigned(lambda path: unit(f"{seed}:sweep/{path}", number), fixed)

    def assigned(self, share: Callable[[str], float], fixed: Mapping[str, Any] | None = None) -> Assignment:
        """The configuration at a place in the space: a share in [0, 1) of each parameter's range, by path; with some
        values given."""
        found: Assignment = {}
        given = fixed or {}
        for path in self.order:
            simple = self.simple(path, found)
            if simple is not None:
                found[path] = given[path] if path in given else at(simple, share(path))
        return found

    def grid(self, *, everything: bool = False) -> list[Assignment]:
        """All combinations of the grid parameters, or of all parameters."""
        found: list[Assignment] = [{}]
        for path in self.order:
            grown: list[Assignment] = []
            for assigned in found:
                simple = self.simple(path, assigned)
                listed = options(simple) if simple is not None and (everything or isinstance(simple, Grid)) else None
                grown += [assigned | {path: value} for value in listed] if listed is not None else [assigned]
            found = grown
        return found

    def trials(self) -> Iterator[tuple[str, Any, Assignment]]:
        """Each path with each of the values that stand for all, and what has to be assigned for it to be present."""
        for path in self.order:
            for needed, simple in self._ways(path):
                for value in ends(simple):
                    yield path, value, needed

    def _ways(self, path: str) -> Iterator[tuple[Assignment, Simple]]:
        parameter = self.parameters[path]
        if not isinstance(parameter, Conditional):
            yield {}, parameter
            return
        for (needed, other), (case, inner) in itertools.product(self._ways(parameter.on), parameter.cases.items()):
            for value in options(other) or []:
                if _is_case(case, label(other, value), value):
                    yield needed | {parameter.on: value}, inner
                    break

    def labels(self, assigned: Mapping[str, Any]) -> dict[str, str]:
        """A configuration as tables show it."""
        shown = {}
        for path, value in assigned.items():
            simple = self.simple(path, assigned) if path in self.parameters else None
            shown[path] = label(simple, value) if simple is not None else json.dumps(value)
        return shown


def _is_case(case: str, name: str, value: Any) -> bool:
    """Keys of a mapping are text in a job file: 0.10 stands for 0.1, true for a truth value."""
    if case == name:
        return True
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    read = yaml.safe_load(case)
    return not isinstance(read, bool) and isinstance(read, int | float) and read == value
