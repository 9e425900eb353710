"""Who works in a run, in which place: members are hired, asked, given weights, and found to be gone.

What the loss of one means for the counts of the run is the session's affair.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from heliostat.errors import RunError
from heliostat.reinforcement.crew import Crew, Member, MemberLost, Resources
from heliostat.reinforcement.environments.spec import EnvironmentSpec
from heliostat.reinforcement.judge import Judge
from heliostat.reinforcement.learner import Learner
from heliostat.reinforcement.rollout import RolloutWorker
from heliostat.reinforcement.shard import ReplayShard

if TYPE_CHECKING:
    from heliostat.config.reinforcement import ReinforcementJob
    from heliostat.reinforcement.curves import Curves
    from heliostat.training.runtime import Runtime
    from heliostat.training.storage import Storage

ANSWER_SECONDS = 600.0
"""How long shards and learners may take to answer; rollouts and judges are bounded by their environments' own limit."""
WAIT_SECONDS = 0.2
"""For which a coordinator waits before it looks whether the run was asked to stop."""
_START_SECONDS = 120.0
"""Time for an actor to start."""


class Roster:
    """The members of a run.

    Args:
        job: the run's job.
        spec: its environment's.
        storage: the run's folder, for the shards' snapshots.
        crew: who makes members.
        runtime: whom it tells of those that were replaced before they had begun.
        curves: where failures are counted for the record.
    """

    def __init__(
        self,
        job: ReinforcementJob,
        spec: EnvironmentSpec,
        storage: Storage,
        crew: Crew,
        runtime: Runtime,
        curves: Curves,
    ) -> None:
        self.job, self.spec, self.crew = job, spec, crew
        self._storage, self._runtime, self._curves = storage, runtime, curves
        resources = job.resources
        self.rollouts = [Member("rollout", i, 0) for i in range(resources.actors)]
        self.shards = [Member("shard", i, 0) for i in range(resources.shards)]
        self.learners = [Member("learner", i, 0) for i in range(resources.learners)]
        self.judge = Member("evaluator", 0, 0)
        self.failures = 0
        """Members that were lost since this process began."""
        self._weights: Any = None
        self._weights_version = -1
        self._given: dict[Member, int] = {}  # updates behind the weights that each rollout was given

    @property
    def everybody(self) -> list[Member]:
        """Who is in each place now."""
        return [*self.shards, *self.learners, self.judge, *self.rollouts]

    @property
    def lives(self) -> int:
        """The longest line of members of whom each came after another's death, in any place whose member draws or
        keeps something."""
        return max(member.life for crew in (self.rollouts, self.shards, self.learners) for member in crew)

    def lanes(self, actor: int) -> range:
        """The environments that an actor plays; neighbours, shared out as evenly as possible."""
        count, actors = self.job.rollout.environments, self.job.resources.actors
        return range(actor * count // actors, (actor + 1) * count // actors)

    # Hiring

    def come_after(self, lives: int) -> None:
        """Before anybody is hired: each comes after so many others, who worked in an earlier process."""
        for crew in (self.rollouts, self.shards, self.learners):
            crew[:] = [Member(m.role, m.index, lives) for m in crew]

    def hire(self, played: int, learned: Any) -> None:
        """Hire everybody.

        Args:
            played: steps that were played in the whole run before.
            learned: state of the learners to go on from; None for the initial one.

        Raises:
            RunError: learners cannot be brought to that state, or too many were lost.
        """
        for shard in self.shards:
            self.hire_shard(shard)
        self.bring_learners_to(learned)
        for rollout in self.rollouts:
            self.hire_rollout(rollout, played)
        self.hire_judge()

    def hire_shard(self, member: Member) -> None:
        """An empty one."""
        make = partial(ReplayShard, self.job, self.spec, member.index, self._storage)
        self.crew.hire(member, make, Resources(cpus=0))

    def hire_rollout(self, member: Member, played: int) -> None:
        """One that goes on after so many steps of the whole run."""
        resources = self.job.resources
        make = partial(
            RolloutWorker,
            self.job,
            self.spec,
            self.lanes(member.index),
            life=member.life,
            played=played,
            threads=max(1, int(resources.cpus_per_actor)),
        )
        self.crew.hire(member, make, Resources(resources.cpus_per_actor, resources.gpus_per_actor))

    def hire_judge(self) -> None:
        """The one that evaluates."""
        self.crew.hire(self.judge, partial(Judge, self.job, self.spec), Resources(cpus=0))

    def bring_learners_to(self, learned: Any) -> None:
        """Hire learners until they have a state; None: the initial one.

        Raises:
            RunError: too many were lost, or they cannot be brought there.
        """
        while True:
            try:
                self._hire_learners(learned)
            except MemberLost as lost:
                if not self.crew.dead(self.learners):
                    raise RunError(f"{self.learners[0]} failed: {lost.reason}") from None
                self.count_failure(self.learners[0], lost.reason)
                self._runtime.notice(f"{self.learners[0]} was replaced ({lost.reason}) before it had begun")
                self.succeed(self.learners[0])
            else:
                return

    def _hire_learners(self, learned: Any) -> None:
        resources = self.job.resources
        for member in self.learners:
            make = partial(Learner, self.job, self.spec, member.index)
            self.crew.hire(member, make, Resources(resources.cpus_per_learner, resources.gpus_per_learner))
        if len(self.learners) > 1:
            address = self.get(self.ask(self.learners[0], "address"), self.learners[0])
            joined = [self.ask(member, "join", address) for member in self.learners]
            for member, future in zip(self.learners, joined, strict=True):
                self.get(future, member)
        if learned is not None:
            state = self.crew.share(learned)
            for future, member in [(self.ask(member, "load", state), member) for member in self.learners]:
                self.get(future, member)
        self._weights_version = -1
        self._given.clear()  # what players were given belongs to updates that are made again

    # Asking

    def ask(self, member: Member, method: str, *arguments: Any, returns: int = 1) -> Any:
        """Call a method of a member; a future, or a tuple of ``returns`` futures where that is not 1."""
        return self.crew.ask(member, method, *arguments, returns=returns)

    def get(self, future: Any, owner: Member) -> Any:
        """What a member was asked for.

        Raises:
            MemberLost: it is gone; nobody was replaced yet.
        """
        if owner.role == "evaluator":  # a game may be long; its environments have a limit of their own
            return self.crew.get(future)
        return self.crew.get(future, self.rollout_seconds if owner.role == "rollout" else ANSWER_SECONDS)

    @property
    def rollout_seconds(self) -> float:
        """How long a rollout may take to be made and to answer, whatever its environments' own limit does."""
        return self.job.environment.timeout_s * (self.job.rollout.calls + 2) + _START_SECONDS

    def ask_shards(self, method: str, *arguments: Any) -> list[Any]:
        """Ask all shards the same; a future of each."""
        return [self.ask(shard, method, *arguments) for shard in self.shards]

    def ask_to_play(self, member: Member, made: int, asked: int) -> tuple[Any, ...]:
        """Futures of a rollout's report, and of the steps for each shard; it plays with the newest weights that are
        handed out.

        Args:
            member: the rollout.
            made: updates that are done.
            asked: updates that were asked for.
        """
        every = self.job.rollout.broadcast_updates
        if self._weights_version < 0 or made // every * every > self._weights_version:
            self._weights = self.ask(self.learners[0], "acting_state")
            self._weights_version = asked  # it comes to that when it has made all that it was asked for before
        version = self._weights_version
        weights = None if self._given.get(member) == version else self._weights
        self._given[member] = version
        return tuple(self.ask(member, "play", weights, version, returns=1 + len(self.shards)))

    # Losing

    def gone(self, owner: Member, reason: str, needed: Sequence[Member] = ()) -> list[Member]:
        """Who is to be replaced when ``owner`` could not do what it was asked.

        Args:
            owner: who was asked, as it was then.
            reason: what its crew said.
            needed: whose work it needed, as they were.

        Returns:
            None where one of them was replaced before, which explains it: what was to be done has only to be asked for
            again.

        Raises:
            RunError: all are alive and ``owner`` is no player, so that it would fail again.
        """
        concerned = list(dict.fromkeys([owner, *needed]))
        if not set(concerned) <= set(self.everybody):
            return []
        dead = self.crew.dead(concerned)
        if dead:
            return dead
        if owner.role not in ("rollout", "evaluator"):
            raise RunError(f"{owner} failed: {reason}")
        return [owner]

    def count_failure(self, member: Member, reason: str) -> None:
        """One more was lost.

        Raises:
            RunError: one too many.
        """
        self.failures += 1
        self._curves.count("failures")
        allowed = self.job.resources.max_failures
        if self.failures > allowed:
            raise RunError(f"{member} failed: {reason}; more than max_failures ({allowed}) were replaced before")

    def succeed(self, member: Member) -> Member:
        """Put a new name in the place of a lost member, who has still to be hired. All learners go with one of them:
        the others cannot go on without it."""
        successor = Member(member.role, member.index, member.life + 1)
        if member.role == "rollout":
            self.rollouts[member.index] = successor
        elif member.role == "shard":
            self.shards[member.index] = successor
        elif member.role == "learner":
            self.learners[:] = [Member(m.role, m.index, m.life + 1) for m in self.learners]
            return self.learners[member.index]
        else:
            self.judge = successor
        return successor
