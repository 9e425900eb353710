"""A run of reinforcement learning as both ways of working see it: the crew, the counts, the curves, the checkpoints.

Steps of the environment are counted once, when a rollout hands them in, and are the run's time: curves, evaluations and
checkpoints go by them.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from heliostat.errors import InputError, RunError
from heliostat.reinforcement.crew import Crew, Member, MemberLost, Resources
from heliostat.reinforcement.curves import Curves
from heliostat.reinforcement.environments.spec import EnvironmentSpec
from heliostat.reinforcement.judge import Judge, Verdict
from heliostat.reinforcement.learner import Learner, LearnerReport, Shares
from heliostat.reinforcement.rollout import Episode, RolloutReport, RolloutWorker
from heliostat.reinforcement.shard import ReplayShard, ShardReport
from heliostat.training.monitor import Progress
from heliostat_algorithms.evaluation.interval import half_width
from heliostat_algorithms.randomness import Random
from heliostat_algorithms.reinforcement.replay.limiter import SamplesPerInsert
from heliostat_algorithms.reinforcement.replay.sampling import allocate, stratified

if TYPE_CHECKING:
    from heliostat.config.reinforcement import ReinforcementJob
    from heliostat.training.run_folder import RunFolder
    from heliostat.training.runtime import Runtime

ANSWER_SECONDS = 600.0
"""How long shards, learners and judges may take to answer; rollouts are bounded by their environments' own limit."""
_START_SECONDS = 120.0
"""Time for an actor to start."""
_PROGRESS_SECONDS = 0.3
_STOP_SECONDS = 0.5


@dataclass
class Flight:
    """Updates that were asked for and are not done."""

    first: int
    """Number of the first of them, from 1."""
    count: int
    learners: list[Member]
    shards: list[Member]
    """Who was asked, as they were then."""
    reports: list[Any]
    """Of each learner."""
    feedback: list[list[Any]]
    """Of each learner, for each shard."""
    since: float
    """When they were asked for."""


class Session:
    """What a run has and counts.

    Args:
        job: the run's job.
        spec: its environment's.
        folder: where checkpoints go.
        runtime: whom it tells.
        crew: who does the work.
        pause_at: end, with a checkpoint, as soon as this many steps of the environment are played.
    """

    def __init__(
        self,
        job: ReinforcementJob,
        spec: EnvironmentSpec,
        folder: RunFolder,
        runtime: Runtime,
        crew: Crew,
        pause_at: int | None = None,
    ) -> None:
        self.job, self.spec, self.folder, self.runtime, self.crew = job, spec, folder, runtime, crew
        self._pause_at = pause_at
        resources = job.resources
        self.checkpoints = folder.checkpoints(job.checkpoint.keep)
        self.rollouts = [Member("rollout", i, 0) for i in range(resources.actors)]
        self.shards = [Member("shard", i, 0) for i in range(resources.shards)]
        self.learners = [Member("learner", i, 0) for i in range(resources.learners)]
        self.judge = Member("evaluator", 0, 0)
        batch = job.optimization.batch_size
        tolerance = job.replay.tolerance
        if tolerance is None:
            tolerance = max(
                10 * batch / job.replay.samples_per_insert, float(job.rollout.environments * job.rollout.calls)
            )
        self.limiter = SamplesPerInsert(
            job.replay.samples_per_insert, job.replay.minimum, None if resources.lockstep else tolerance
        )
        self.played = 0
        """Steps of the environment."""
        self.updates = 0
        """Updates that are done."""
        self.issued = 0
        """Updates that were asked for."""
        self.failures = 0
        self.stands = [ShardReport(0.0, 0, 0, 0, 0.0, 0, 0)] * resources.shards
        """How each shard stood when it was last heard of."""
        self.curves = Curves(spec)
        self.results: dict[str, float] = {}
        self._logged = self._saved = self._judged = 0  # steps at the last point, checkpoint, evaluation
        self._verdict = 0  # steps at the last evaluation whose verdict is there
        self._saved_updates = 0
        self._shown = self._asked = 0.0
        self._stop = False
        self._gate = 0  # steps at which learning goes on, after a memory was lost
        self._weights: Any = None
        self._weights_version = -1
        self._given: dict[Member, int] = {}  # updates behind the weights that each rollout was given

    # The crew

    def lanes(self, actor: int) -> range:
        """The environments that an actor plays; neighbours, shared out as evenly as possible."""
        count, actors = self.job.rollout.environments, self.job.resources.actors
        return range(actor * count // actors, (actor + 1) * count // actors)

    def begin(self) -> None:
        """Hire everybody and go on from the newest checkpoint, if there is one."""
        saved = self._newest()
        if saved is not None:
            self.played, self.updates = saved["played"], saved["updates"]
            self.issued = self._saved_updates = self.updates
            self._logged = self._saved = self.played
            self._judged = self._verdict = saved["judged"]
            self.results = dict(saved["results"])
            self.curves.restore(saved["curves"], self.played, self.updates)
            for crew in (self.rollouts, self.shards, self.learners):
                crew[:] = [Member(m.role, m.index, saved["lives"] + 1) for m in crew]
        for number in range(len(self.shards)):
            self._hire_shard(number)
        self._bring_learners_up_to(saved)
        for number in range(len(self.rollouts)):
            self._hire_rollout(number)
        self._hire_judge()
        if saved is not None:
            self._restore_replay(saved)

    def _newest(self) -> dict[str, Any] | None:
        for step in reversed(self.checkpoints.steps()):
            try:
                return self.checkpoints.load(step)
            except InputError as error:
                self.runtime.notice(f"checkpoint of step {step} is passed over: {error}")
        return None

    def _restore_replay(self, saved: dict[str, Any]) -> None:
        if self.job.checkpoint.replay:
            asked = [self.crew.ask(shard, "restore", self.played) for shard in self.shards]
            found = [self.get(future, shard) for future, shard in zip(asked, self.shards, strict=True)]
            self._hear(self._ask_all_shards("report"))
            if any(step is not None for step in found):
                self.limiter.restore(saved["limiter"])
                late = [step for step in found if step is not None and step != self.played]
                if late:
                    self.runtime.notice(f"the replay memory is that of step {min(late)}; the weights are newer")
                for shard, step in zip(self.shards, found, strict=True):
                    if step is None:
                        self.runtime.notice(f"{shard} begins empty: there is no sound snapshot of it")
                self._wait_for_memory()
                return
            self.runtime.notice("no whole snapshot of the replay memory was found")
        self.runtime.notice(
            f"the replay memory begins empty; learning goes on when {self.job.replay.minimum} steps are in it"
        )

    def _hire_shard(self, number: int) -> None:
        make = partial(ReplayShard, self.job, self.spec, number, self.folder.storage)
        self.crew.hire(self.shards[number], make, Resources(cpus=0))

    def _hire_learners(self, saved: dict[str, Any] | None) -> None:
        resources = self.job.resources
        for member in self.learners:
            make = partial(Learner, self.job, self.spec, member.index)
            self.crew.hire(member, make, Resources(resources.cpus_per_learner, resources.gpus_per_learner))
        if len(self.learners) > 1:
            address = self.get(self.crew.ask(self.learners[0], "address"), self.learners[0])
            joined = [self.crew.ask(member, "join", address) for member in self.learners]
            for member, future in zip(self.learners, joined, strict=True):
                self.get(future, member)
        if saved is not None:
            state = self.crew.share(saved["learner"])
            for future, member in [(self.crew.ask(member, "load", state), member) for member in self.learners]:
                self.get(future, member)
        self._weights_version = -1
        self._given.clear()  # what players were given belongs to updates that are made again

    def _bring_learners_up_to(self, saved: dict[str, Any] | None) -> None:
        """Hire learners until they have the weights of a checkpoint, or the initial ones.

        Raises:
            RunError: too many were lost, or they cannot be brought there.
        """
        while True:
            try:
                self._hire_learners(saved)
            except MemberLost as lost:
                if not self.crew.dead(self.learners):
                    raise RunError(f"{self.learners[0]} failed: {lost.reason}") from None
                self._count_failure(self.learners[0], lost.reason)
                self.runtime.notice(f"{self.learners[0]} was replaced ({lost.reason}) before it had begun")
                self._succeed_learners()
            else:
                return

    def _succeed_learners(self) -> None:
        self.learners[:] = [Member(m.role, m.index, m.life + 1) for m in self.learners]

    def _hire_rollout(self, number: int) -> None:
        resources, member = self.job.resources, self.rollouts[number]
        make = partial(
            RolloutWorker,
            self.job,
            self.spec,
            self.lanes(number),
            life=member.life,
            played=self.played,
            threads=max(1, int(resources.cpus_per_actor)),
        )
        self.crew.hire(member, make, Resources(resources.cpus_per_actor, resources.gpus_per_actor))

    def _hire_judge(self) -> None:
        self.crew.hire(self.judge, partial(Judge, self.job, self.spec), Resources(cpus=0))

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

    def replace(self, member: Member, reason: str) -> None:
        """Put another in the place of a lost member, and say what was lost with it.

        Raises:
            RunError: too many were lost.
        """
        self._count_failure(member, reason)
        successor = Member(member.role, member.index, member.life + 1)
        if member.role == "rollout":
            self.rollouts[member.index] = successor
            self._hire_rollout(member.index)
            lost = "the steps it had not handed in are lost, and its episodes begin anew"
        elif member.role == "shard":
            held = self.stands[member.index].items
            self.shards[member.index] = successor
            self.stands[member.index] = ShardReport(0.0, 0, 0, 0, 0.0, 0, 0)
            self._hire_shard(member.index)
            self._wait_for_memory()
            lost = f"{held:,} transitions are lost, and its lanes fill it again"
        elif member.role == "learner":
            saved = self._newest()
            before = self.issued
            self._succeed_learners()
            self._bring_learners_up_to(saved)
            self.updates = self.issued = saved["updates"] if saved is not None else 0
            self.limiter.sampled(-(before - self.updates) * self.job.optimization.batch_size)
            lost = f"it goes on from update {self.updates:,}; {before - self.updates:,} updates are made again"
        else:
            self.judge = successor
            self._hire_judge()
            lost = "its evaluation is made again"
        self.runtime.notice(f"{member} was replaced ({reason}): {lost}")

    def _count_failure(self, member: Member, reason: str) -> None:
        self.failures += 1
        self.curves.count("failures")
        allowed = self.job.resources.max_failures
        if self.failures > allowed:
            raise RunError(f"{member} failed: {reason}; more than max_failures ({allowed}) were replaced before")

    def _wait_for_memory(self) -> None:
        """Where less than a batch is left, learning waits for as many steps as at the beginning."""
        if sum(stand.items for stand in self.stands) < self.job.optimization.batch_size:
            self._gate = self.played + self.job.replay.minimum

    def mend(self, owner: Member, lost: MemberLost, others: Sequence[Member] = ()) -> list[Member]:
        """Find out who failed when ``owner`` could not do what it was asked, and replace them.

        Args:
            others: whose work it needed, as they were when it was asked.

        Returns:
            Those that were replaced, as they were; none where one of them was replaced before, which explains it: what
            was to be done has only to be asked for again.

        Raises:
            RunError: all are alive and ``owner`` is no player, so that it would fail again; or too many were lost.
        """
        concerned = list(dict.fromkeys([owner, *others]))
        if not set(concerned) <= {*self.rollouts, *self.shards, *self.learners, self.judge}:
            return []
        gone = self.crew.dead(concerned)
        if not gone:
            if owner.role not in ("rollout", "evaluator"):
                raise RunError(f"{owner} failed: {lost.reason}")
            gone = [owner]
        replaced_learners = False
        for member in gone:
            if member.role != "learner" or not replaced_learners:
                self.replace(member, lost.reason if member == owner or len(gone) == 1 else "it died")
            replaced_learners = replaced_learners or member.role == "learner"
        return gone

    # Weights

    def weights(self) -> tuple[Any, int]:
        """The newest weights that are handed out, and the updates behind them."""
        every = self.job.rollout.broadcast_updates
        due = self.updates // every * every
        if self._weights_version < 0 or due > self._weights_version:
            self._weights = self.crew.ask(self.learners[0], "acting_state")
            self._weights_version = self.issued  # it comes to that when it has made all that it was asked for before
        return self._weights, self._weights_version

    # Playing

    def ask_to_play(self, member: Member) -> tuple[Any, ...]:
        """Futures of a rollout's report, and of the steps for each shard."""
        weights, version = self.weights()
        given = self._given.get(member)
        self._given[member] = version
        return tuple(
            self.crew.ask(member, "play", None if given == version else weights, version, returns=1 + len(self.shards))
        )

    def account(self, report: RolloutReport) -> None:
        """Count what a rollout handed in."""
        self.played += report.steps
        self.limiter.inserted(report.steps)
        self.curves.rollout(report, self.updates)

    def _ask_all_shards(self, method: str, *arguments: Any) -> list[Any]:
        return [self.crew.ask(shard, method, *arguments) for shard in self.shards]

    def _hear(self, futures: Sequence[Any]) -> None:
        """Take in how the shards stand."""
        for number, future in enumerate(futures):
            self.hear(number, self.get(future, self.shards[number]))

    def hear(self, shard: int, stand: ShardReport) -> None:
        """Take in how a shard stands."""
        if stand.snapshot_error is not None and self.stands[shard].snapshot_error != stand.snapshot_error:
            self.runtime.notice(f"the replay memory of shard {shard}: {stand.snapshot_error}")
        self.stands[shard] = stand

    # Learning

    @property
    def refilling(self) -> bool:
        """Whether a lost memory has still to be filled; not at the end of the run, where what there is must do."""
        return self.played < self._gate and not self.over

    def may_learn(self) -> bool:
        """Whether there is enough to learn from."""
        return not self.refilling and any(stand.items for stand in self.stands)

    @property
    def updates_due(self) -> int:
        """How many updates the ratio asks for that can be made now."""
        return self.limiter.updates_due(self.job.optimization.batch_size) if self.may_learn() else 0

    def issue(self, count: int) -> Flight:
        """Ask shards for samples and learners for ``count`` updates with them."""
        job, first = self.job, self.issued + 1
        batch = job.optimization.batch_size
        masses = [stand.mass for stand in self.stands]
        points: list[list[Any]] = [[] for _ in self.shards]
        for number in range(first, first + count):
            draws = Random(job.seed, number, range(batch), scope="replay/").uniform("item").numpy()
            if job.algorithm.prioritization is None:
                # Independent draws; the low digits make them finer than the 2^24 steps of one draw.
                fine = Random(job.seed, number, range(batch), scope="replay/").uniform("digits").numpy()
                drawn = np.minimum(draws.astype(np.float64) + fine.astype(np.float64) * 2.0**-24, 1 - 2.0**-53)
            else:
                drawn = stratified(draws)
            for shard, part in enumerate(allocate(masses, drawn)):
                points[shard].append(part)
        sampled = [
            self.crew.ask(shard, "sample", np.concatenate(part), tuple(map(len, part)))
            for shard, part in zip(self.shards, points, strict=True)
        ]
        total = sum(masses)
        shares = Shares(mass=tuple(mass / total for mass in masses), items=sum(stand.items for stand in self.stands))
        progress = min(1.0, self.played / job.optimization.steps)
        reports, feedback = [], []
        for member in self.learners:
            report, *rest = self.crew.ask(
                member, "update", first, count, progress, shares, *sampled, returns=1 + len(self.shards)
            )
            reports.append(report)
            feedback.append(rest)
        self.issued += count
        self.limiter.sampled(count * batch)
        return Flight(first, count, list(self.learners), list(self.shards), reports, feedback, time.monotonic())

    def land(self, flight: Flight) -> list[tuple[Member, Any]]:
        """Take in what learners report of updates that are done, and tell shards the new priorities; the shards with
        futures of how they stand then, none where there are no priorities."""
        found: list[LearnerReport] = [
            self.get(future, member) for member, future in zip(flight.learners, flight.reports, strict=True)
        ]
        self.curves.learner(found[0])
        diverged = [report.diverged for report in found if report.diverged is not None]
        if diverged:
            raise RunError(
                f"the loss of update {min(diverged):,} is not finite; likely causes: a learning rate that is too high, "
                "or rewards that are too large for the loss"
            )
        self.updates += flight.count
        if self.job.algorithm.prioritization is None:
            return []
        return [
            (shard, self.crew.ask(shard, "update_priorities", *(of_learner[number] for of_learner in flight.feedback)))
            for number, shard in enumerate(flight.shards)
            if self.shards[number] == shard  # slots of a memory that was lost mean nothing to the one in its place
        ]

    def abandon(self, flight: Flight) -> None:
        """Forget updates that could not be made, the newest first; they are asked for again."""
        if flight.learners != self.learners:
            return  # a learner was replaced since, and everything after its checkpoint is made again
        self.issued -= flight.count
        self.limiter.sampled(-flight.count * self.job.optimization.batch_size)

    # Evaluation

    def evaluation_due(self) -> bool:
        """Whether steps have passed the next evaluation."""
        every = self.job.evaluation.every_steps
        return every is not None and self.played // every > self._judged // every

    def ask_judge(self) -> tuple[Any, int, Member]:
        """Ask for an evaluation of the present weights; its future, the steps that it stands for, and whose weights
        they are."""
        learner = self.learners[0]
        weights = self.crew.ask(learner, "acting_state")
        self._judged = self.played
        return self.crew.ask(self.judge, "evaluate", weights, self.played), self.played, learner

    def judged(self, verdict: Verdict, step: int) -> dict[str, float]:
        """Record an evaluation."""
        results = {f"eval/{name}": value for name, value in scores(verdict.episodes, self.spec).items()}
        if verdict.largest_q is not None:
            results["eval/mean_max_q"] = verdict.largest_q
        self.runtime.log(results, step)
        self._verdict = step
        return results

    def baseline(self, episodes: Sequence[Episode]) -> None:
        """Record what random play scores."""
        self.results |= {f"baseline/random/{name}": value for name, value in scores(episodes, self.spec).items()}

    # Time passes

    def checkpoint_due(self) -> bool:
        """Whether steps have passed the next checkpoint."""
        every = self.job.checkpoint.every_steps
        return every is not None and self.played // every > self._saved // every

    def save(self, *, wait: bool) -> None:
        """Write a checkpoint of learner, counts and, if the job says so, the replay memory.

        Args:
            wait: until the replay memory is written too.
        """
        began = time.perf_counter()
        asked = self._ask_all_shards("snapshot", self.played, wait) if self.job.checkpoint.replay else []
        learner = self.get(self.crew.ask(self.learners[0], "state"), self.learners[0])
        held = [self.crew.get(future) for future in asked]  # a large memory may take its time to be written
        lives = max(member.life for crew in (self.rollouts, self.shards, self.learners) for member in crew)
        state = {
            "learner": learner,
            "played": self.played,
            "updates": self.issued,  # the learner has made all that was asked for before its state
            "limiter": self.limiter.state(),
            "lives": lives,
            "judged": self._verdict,
            "curves": self.curves.state(),
            "results": self.results,
        }
        # Updates may have been made since a checkpoint of the same step.
        again = self.issued != self._saved_updates
        self.checkpoints.save(self.played, state, {"seed": self.job.seed, "updates": self.issued}, replace=again)
        self._saved, self._saved_updates = self.played, self.issued
        self.runtime.checkpoint_saved()
        self.runtime.log(
            {"checkpoint/seconds": time.perf_counter() - began, "checkpoint/replay_seconds": max(held, default=0.0)},
            self.played,
        )

    def tell(self, activity: str = "training", *, at_once: bool = False) -> None:
        """Show progress, now and then or ``at_once``, and record a point of the curves where one is due."""
        now = time.monotonic()
        every = self.job.tracking.every_steps
        if self.played // every > self._logged // every and not self.over:  # the last point is the end's
            self._logged = self.played
            self.runtime.log(self.curves.point(self), self.played)
        if at_once or now - self._shown > _PROGRESS_SECONDS:
            self._shown = now
            total = self.job.optimization.steps
            facts = self.curves.facts(self.updates)
            self.runtime.progress(Progress(min(self.played, total), total, activity=activity, facts=facts))

    def stop_requested(self) -> bool:
        """Whether somebody asked the run to stop."""
        now = time.monotonic()
        if now - self._asked > _STOP_SECONDS:
            self._asked = now
            self._stop = self._stop or self.runtime.stop_requested()
        return self._stop

    @property
    def pause_due(self) -> bool:
        """Whether the run has come to where it was to pause."""
        return self._pause_at is not None and self.played >= self._pause_at and not self.over

    def conclude(self) -> None:
        """Record the last point of the curves, and say what could not be done."""
        self.runtime.log(self.curves.point(self), self.played)
        left = self.limiter.updates_due(self.job.optimization.batch_size)
        if left:
            self.runtime.notice(f"{left:,} updates were not made: the replay memory was lost at the very end")

    @property
    def over(self) -> bool:
        """Whether all steps are played."""
        return self.played >= self.job.optimization.steps


def scores(episodes: Sequence[Episode], spec: EnvironmentSpec) -> dict[str, float]:
    """What is reported of some episodes."""
    returns = [episode.score for episode in episodes]
    mean = float(np.mean(returns))
    found = {"return": mean, "episode_length": float(np.mean([episode.length for episode in episodes]))}
    if len(returns) > 1:
        found["return_interval"] = half_width(returns)
    if spec.reference is not None:
        found["human_normalized"] = spec.reference.normalized(mean)
    return found
