"""What can go wrong, sorted by whose turn it is: the user's (exit code 2) or the run's (1, or 75 where it pays to try
again)."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with the input."""

    what: str
    """A sentence: what is wrong and what would be right."""
    where: str = ""
    """File and line, command-line argument or key."""

    def __str__(self) -> str:
        return f"{self.where}: {self.what}" if self.where else self.what


class InputError(Exception):
    """The input is wrong; holds every problem that was found. Raised before any resource is taken."""

    def __init__(self, problems: Problem | str | Sequence[Problem]) -> None:
        if isinstance(problems, str):
            problems = Problem(problems)
        self.problems: tuple[Problem, ...] = (problems,) if isinstance(problems, Problem) else tuple(problems)
        super().__init__(self.problems)  # the one argument from which it is rebuilt when it crosses processes

    def __str__(self) -> str:
        return "\n".join(map(str, self.problems))


def require(problems: Sequence[Problem]) -> None:
    """Raise all problems at once, if there are any.

    Raises:
        InputError: there are some.
    """
    if problems:
        raise InputError(problems)


class RunError(Exception):
    """The run failed for a reason that is known; the message says what happened and what to do."""


class PartLost(RunError):  # noqa: N818 - what has happened, not whose mistake it was
    """A part of the run died that cannot be replaced while it runs; another attempt goes on from its checkpoint."""


class Interrupted(Exception):  # noqa: N818 - not an error: somebody asked for it
    """The run was asked to stop and did, with a checkpoint."""


def nearest(name: str, valid: Iterable[str]) -> str:
    """A hint for an unknown name: `` Did you mean 'x'?`` or the valid names."""
    names = sorted(valid)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    return f" Did you mean '{close[0]}'?" if close else f" Valid: {', '.join(names)}."
