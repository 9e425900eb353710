"""Who does the work: plain objects in this process, or actors of Ray, behind one small interface.

The coordinator asks a member to do something and gets futures. Futures are handed on to other members as they are, so
that what they stand for travels from actor to actor and never through the coordinator. In one process a future is the
value itself: everything happens at once, in the order in which it was asked for, and no Ray is imported.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch

Role = Literal["rollout", "shard", "learner", "evaluator"]


class MemberLost(Exception):  # noqa: N818 - an event that the coordinator deals with
    """A member died, hangs, or could not do what it was asked; replace it."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True)
class Member:
    """One of the crew; what it is asked goes through the crew that made it."""

    role: Role
    index: int
    """Its number among those of its role."""
    life: int
    """How many were in its place before it."""

    def __str__(self) -> str:
        return f"{self.role} {self.index}"


@dataclass(frozen=True)
class Resources:
    """What a member needs."""

    cpus: float = 1
    gpus: float = 0

    @property
    def threads(self) -> int:
        """With which it computes."""
        return max(1, int(self.cpus))


class Crew(Protocol):
    """Makes members, passes on what they are asked, and waits."""

    def hire(self, member: Member, make: Callable[[], Any], resources: Resources) -> None:
        """Make a member with ``make``; a former one in its place is dismissed."""

    def ask(self, member: Member, method: str, *arguments: Any, returns: int = 1) -> Any:
        """Call a method; a future, or a tuple of ``returns`` futures where that is not 1. Arguments may be futures."""

    def ready(self, futures: Sequence[Any], seconds: float) -> list[Any]:
        """Those of the futures that are done, after at most so long."""

    def get(self, future: Any, seconds: float | None = None) -> Any:
        """What a future stands for; ``seconds``: how long to wait, None for ever.

        Raises:
            MemberLost: whoever should have made it is gone or failed.
        """

    def dismiss(self, member: Member) -> None:
        """Let a member go."""

    def dead(self, members: Sequence[Member]) -> list[Member]:
        """Those who will never answer again, as far as can be told without waiting for their work."""

    def share(self, value: Any) -> Any:
        """A future that stands for a value that many members will be given."""

    def close(self) -> None:
        """Dismiss everybody."""


class LocalCrew:
    """Everybody in this process and this thread. Each computes with as many threads as it would have as an actor, since
    the last digits of a convolution depend on how many there are."""

    def __init__(self) -> None:
        self._members: dict[tuple[Role, int], Any] = {}
        self._threads: dict[tuple[Role, int], int] = {}
        self._threads_before = torch.get_num_threads()

    def hire(self, member: Member, make: Callable[[], Any], resources: Resources) -> None:
        """Make the object; nothing but its threads is taken from ``resources``."""
        self._threads[member.role, member.index] = resources.threads
        torch.set_num_threads(1)  # as actors are made
        self._members[member.role, member.index] = make()

    def ask(self, member: Member, method: str, *arguments: Any, returns: int = 1) -> Any:
        """Do it now. What goes wrong is raised here as it is: there is nobody else to do it."""
        self._use_threads_of(member)
        return getattr(self._members[member.role, member.index], method)(*arguments)

    def _use_threads_of(self, member: Member) -> None:
        threads = self._threads[member.role, member.index]
        if threads != torch.get_num_threads():
            torch.set_num_threads(threads)

    def ready(self, futures: Sequence[Any], seconds: float) -> list[Any]:
        """All of them."""
        return list(futures)

    def get(self, future: Any, seconds: float | None = None) -> Any:
        """The value itself."""
        return future

    def dismiss(self, member: Member) -> None:
        """Close the object, if it can be closed."""
        close = getattr(self._members.pop((member.role, member.index), None), "close", None)
        if close is not None:
            close()

    def dead(self, members: Sequence[Member]) -> list[Member]:
        """Those who were not made."""
        return [member for member in members if (member.role, member.index) not in self._members]

    def share(self, value: Any) -> Any:
        """The value itself."""
        return value

    def close(self) -> None:
        """Close all objects that can be closed."""
        for role, index in list(self._members):
            self.dismiss(Member(role, index, 0))
        torch.set_num_threads(self._threads_before)
