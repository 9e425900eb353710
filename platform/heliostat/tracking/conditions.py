"""Conditions on runs as people write them: ``optimization.batch_size=256``, ``eval/knn_top1>0.9``."""

from __future__ import annotations

import fnmatch
import operator
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from heliostat.errors import InputError, Problem, nearest, require

_PATTERN = re.compile(r"\s*([^\s=!<>]+)\s*(!=|<=|>=|=|<|>)\s*(.*?)\s*")
_ORDER: dict[str, Callable[[float, float], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
STATUSES = ("RUNNING", "FINISHED", "FAILED", "KILLED", "SCHEDULED")


@dataclass(frozen=True)
class Condition:
    """One comparison; a run passes if it has the value and the comparison is true of it."""

    name: str
    """Of a parameter, a metric, a tag, or ``name``, ``status``, ``experiment``, ``duration``, ``algorithm``."""
    sign: str
    """``=``, ``!=``, ``<``, ``<=``, ``>`` or ``>=``."""
    value: str
    """What to compare with. With ``=`` and ``!=``, ``*`` and ``?`` stand for any letters and any letter."""

    def __str__(self) -> str:
        return f"{self.name}{self.sign}{self.value}"

    def holds(self, found: str | float | None) -> bool:
        """Whether it is true of a value: of numbers as numbers, so that 0.10 is 0.1; a missing value passes only
        ``!=``."""
        if found is None:
            return self.sign == "!="
        number, wanted = _number(found), _number(self.value)
        if self.sign in _ORDER:
            return number is not None and wanted is not None and _ORDER[self.sign](number, wanted)
        if number is not None and wanted is not None:
            equal = number == wanted
        else:
            equal = fnmatch.fnmatchcase(str(found).lower(), self.value.lower())
        return equal == (self.sign == "=")


def parse_conditions(texts: Sequence[str], where: str = "--where") -> list[Condition]:
    """Conditions from the command line.

    Raises:
        InputError: some cannot be read; all of them are named.
    """
    conditions, problems = [], []
    for text in texts:
        match = _PATTERN.fullmatch(text)
        if match is None or not match[3]:
            what = (
                f"'{text}' is no condition. Right: NAME=VALUE, or !=, <, <=, >, >= in place of =, as in "
                "'optimization.batch_size=256' or 'eval/knn_top1>0.9'."
            )
            problems.append(Problem(what, where))
            continue
        name, sign, value = match.groups()
        if sign in _ORDER and _number(value) is None:
            problems.append(Problem(f"'{text}': {sign} compares numbers, and '{value}' is none.", where))
        elif name == "status" and not any(fnmatch.fnmatchcase(status, value.upper()) for status in STATUSES):
            problems.append(Problem(f"'{text}': there is no such status.{nearest(value.upper(), STATUSES)}", where))
        else:
            conditions.append(Condition(name, sign, value))
    require(problems)
    return conditions


def unknown_name(name: str, known: set[str], where: str) -> InputError:
    """What to say of a name that no run has."""
    return InputError(Problem(f"No run has '{name}'.{hint(name, known)}", where))


def hint(name: str, known: set[str]) -> str:
    """The nearest of many names, by letters or by a part that they share; never a list of hundreds."""
    close = nearest(name, known)
    if "Did you mean" in close or len(known) <= 12:
        return close
    last = re.split(r"[./]", name)[-1]
    akin = sorted(key for key in known if last and last in key)
    return f" Is it one of {', '.join(akin[:6])}?" if akin else " `heliostat runs --json -n 1` shows what runs have."


def _number(value: str | float) -> float | None:
    try:
        return float(value)
    except ValueError:
        return None
