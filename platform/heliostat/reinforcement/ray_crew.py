"""The crew as actors of Ray. Dead ones are not restarted by Ray but replaced by the coordinator, which knows what was
lost with them, says so, and counts how often."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from typing import Any, cast

import ray
from ray.exceptions import GetTimeoutError, RayError, RayTaskError
from ray.util import get_current_placement_group

from heliostat.errors import InputError
from heliostat.reinforcement.crew import Member, MemberLost, Resources, Role
from heliostat.training.allocation import keep_freed_memory
from heliostat.training.denormals import flush_denormals

_GRACE_SECONDS = 1.0
"""A death may be known by its consequences a moment before it is known itself."""


@ray.remote(concurrency_groups={"life": 1})  # type: ignore[call-overload]
class _Post:
    """Holds one member's object."""

    def __init__(self, make: Callable[[], Any], threads: int, name: str) -> None:
        import torch

        self._name, self._threads = name, threads
        keep_freed_memory()
        # Ray calls this in another thread than the methods. Had that one several threads of OpenMP too, there would be
        # more than cores, so that GNU's OpenMP would let threads sleep between operations: an update would take a
        # third longer.
        torch.set_num_threads(1)
        self._object = make()
        self._ready = False

    def __repr__(self) -> str:
        return self._name  # with which Ray marks its lines in logs, and shows it in its dashboard

    def do(self, method: str, *arguments: Any) -> Any:
        if not self._ready:
            import torch

            flush_denormals()  # in the thread that computes, before it has others help
            torch.set_num_threads(self._threads)
            self._ready = True
        return getattr(self._object, method)(*arguments)

    @ray.method(concurrency_group="life")
    def live(self) -> None:
        """Ends only with the actor, which everybody who waits for it then learns at once."""
        threading.Event().wait()


class RayCrew:
    """Members as actors, in the cluster that this process has joined."""

    def __init__(self) -> None:
        # Steps of a rollout that failed are never asked for; Ray would print its error once for each shard.
        os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")
        self._actors: dict[tuple[Role, int], Any] = {}
        self._lives: dict[tuple[Role, int], Any] = {}  # futures that are done when an actor dies

    def hire(self, member: Member, make: Callable[[], Any], resources: Resources) -> None:
        """Start an actor; returns before it has started."""
        self.dismiss(member)
        # Memory and environments are shared out over the nodes; learners, who talk to one another, stay together. Any
        # strategy, "DEFAULT" as well, would take the actor out of what a sweep has reserved for its trial, where it
        # waits for ever if nothing else is free.
        reserved = get_current_placement_group() is not None
        strategy = "SPREAD" if member.role in ("shard", "rollout") and not reserved else None
        post = cast("Any", _Post).options(
            num_cpus=resources.cpus,
            num_gpus=resources.gpus,
            max_restarts=0,
            scheduling_strategy=strategy,
        )
        actor = post.remote(make, resources.threads, str(member))
        self._actors[member.role, member.index], self._lives[member.role, member.index] = actor, actor.live.remote()

    def ask(self, member: Member, method: str, *arguments: Any, returns: int = 1) -> Any:
        """Queue a call; what goes wrong is raised by :meth:`get`."""
        actor = self._actors[member.role, member.index]
        futures = actor.do.options(num_returns=returns).remote(method, *arguments)
        return futures if returns == 1 else tuple(futures)

    def ready(self, futures: Sequence[Any], seconds: float) -> list[Any]:
        """Those that are done; waits for one at least."""
        if not futures:
            return []
        done, _ = ray.wait(list(futures), num_returns=1, timeout=seconds, fetch_local=False)
        if len(done) < len(futures):
            more, _ = ray.wait(list(futures), num_returns=len(futures), timeout=0, fetch_local=False)
            done = more or done
        return cast("list[Any]", done)

    def get(self, future: Any, seconds: float | None = None) -> Any:
        """Raises what the user can mend as it is, and everything else as a lost member."""
        try:
            return ray.get(future, timeout=seconds)
        except GetTimeoutError:
            raise MemberLost(f"no answer within {seconds:g} s") from None
        except RayTaskError as error:
            cause = error.cause
            if isinstance(cause, InputError):
                raise cause from None
            raise MemberLost(_last_line(cause) if cause is not None else _last_line(error)) from None
        except RayError as error:
            raise MemberLost(_last_line(error)) from None

    def dismiss(self, member: Member) -> None:
        """Kill the actor at once, whatever it does."""
        self._lives.pop((member.role, member.index), None)
        actor = self._actors.pop((member.role, member.index), None)
        if actor is not None:
            ray.kill(actor)

    def dead(self, members: Sequence[Member]) -> list[Member]:
        """Those whose actors are; what they work on does not matter. Waits a moment where all are alive."""
        lives = {member: self._lives.get((member.role, member.index)) for member in members}
        known = [life for life in lives.values() if life is not None]
        done: list[Any] = []
        if known:
            wait = _GRACE_SECONDS if len(known) == len(lives) else 0.0
            done, _ = ray.wait(known, num_returns=1, timeout=wait, fetch_local=False)
            done, _ = ray.wait(known, num_returns=len(known), timeout=0, fetch_local=False) if done else ([], known)
        return [member for member, life in lives.items() if life is None or life in done]

    def share(self, value: Any) -> Any:
        """Put it into the object store."""
        return ray.put(value)

    def close(self) -> None:
        """Kill all that are left."""
        for actor in self._actors.values():
            ray.kill(actor)
        self._actors.clear()
        self._lives.clear()


def _last_line(error: BaseException) -> str:
    """What went wrong, without Ray's list of what may have been the cause."""
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    text = lines[-1].partition(" Some common causes include:")[0] if lines else ""
    kind = type(error).__name__
    return text if text.startswith(kind) else f"{kind}: {text}" if text else kind
