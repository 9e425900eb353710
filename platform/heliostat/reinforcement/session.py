"""What a run of reinforcement learning counts: steps and updates, the ratio of both, curves, evaluations, checkpoints.

Steps of the environment are counted once, when a rollout hands them in, and are the run's time: curves, evaluations and
checkpoints go by them. Who does the work is the roster's affair.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from heliostat.errors import InputError, RunError
from heliostat.reinforcement.crew import Crew, Member, MemberLost
from heliostat.reinforcement.curves import Curves, scores
from heliostat.reinforcement.environments.spec import EnvironmentSpec
from heliostat.reinforcement.flight import Flight, set_out
from heliostat.reinforcement.judge import Verdict
from heliostat.reinforcement.learner import LearnerReport
from heliostat.reinforcement.rollout import Episode, RolloutReport
from heliostat.reinforcement.roster import Roster
from heliostat.reinforcement.shard import ShardReport
from heliostat.training.monitor import Progress
from heliostat_algorithms.reinforcement.replay.limiter import SamplesPerInsert

if TYPE_CHECKING:
    from heliostat.config.reinforcement import ReinforcementJob
    from heliostat.training.run_folder import RunFolder
    from heliostat.training.runtime import Runtime

_PROGRESS_SECONDS = 0.3
_STOP_SECONDS = 0.5
_EMPTY = ShardReport(0.0, 0, 0, 0, 0.0, 0, 0)


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
        self.job, self.spec, self.runtime, self._pause_at = job, spec, runtime, pause_at
        self.checkpoints = folder.checkpoints(job.checkpoint.keep)
        self.curves = Curves(spec)
        self.roster = Roster(job, spec, folder.storage, crew, runtime, self.curves)
        self.limiter = _limiter(job)
        self.played = 0
        """Steps of the environment."""
        self.updates = 0
        """Updates that are done."""
        self.issued = 0
        """Updates that were asked for."""
        self.stands = [_EMPTY] * job.resources.shards
        """How each shard stood when it was last heard of."""
        self.results: dict[str, float] = {}
        self._logged = self._saved = self._judged = 0  # steps at the last point, checkpoint, evaluation
        self._verdict = 0  # steps at the last evaluation whose verdict is there
        self._saved_updates = 0
        self._shown = self._asked = 0.0
        self._stop = False
        self._gate = 0  # steps at which learning goes on, after a memory was lost

    # The beginning

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
            self.roster.come_after(saved["lives"] + 1)
        self.roster.hire(self.played, saved["learner"] if saved is not None else None)
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
            shards = self.roster.shards
            asked = self.roster.ask_shards("restore", self.played)
            found = [self.roster.get(future, shard) for future, shard in zip(asked, shards, strict=True)]
            for shard, future in zip(shards, self.roster.ask_shards("report"), strict=True):
                self.hear(shard, self.roster.get(future, shard))
            if any(step is not None for step in found):
                self.limiter.restore(saved["limiter"])
                late = [step for step in found if step is not None and step != self.played]
                if late:
                    self.runtime.notice(f"the replay memory is that of step {min(late)}; the weights are newer")
                for shard, step in zip(shards, found, strict=True):
                    if step is None:
                        self.runtime.notice(f"{shard} begins empty: there is no sound snapshot of it")
                self._wait_for_memory()
                return
            self.runtime.notice("no whole snapshot of the replay memory was found")
        self.runtime.notice(
            f"the replay memory begins empty; learning goes on when {self.job.replay.minimum} steps are in it"
        )

    # Losses

    def mend(self, owner: Member, lost: MemberLost, needed: Sequence[Member] = ()) -> list[Member]:
        """Find out who failed when ``owner`` could not do what it was asked, and replace them.

        Args:
            owner: who was asked, as it was then.
            lost: what its crew said.
            needed: whose work it needed, as they were when it was asked.

        Returns:
            Those that were replaced, as they were; none where one of them was replaced before, which explains it: what
            was to be done has only to be asked for again.

        Raises:
            RunError: all are alive and ``owner`` is no player, so that it would fail again; or too many were lost.
        """
        gone = self.roster.gone(owner, lost.reason, needed)
        replaced_learners = False
        for member in gone:
            if member.role != "learner" or not replaced_learners:
                self.replace(member, lost.reason if member == owner or len(gone) == 1 else "it died")
            replaced_learners = replaced_learners or member.role == "learner"
        return gone

    def replace(self, member: Member, reason: str) -> None:
        """Put another in the place of a lost member, and say what was lost with it.

        Raises:
            RunError: too many were lost.
        """
        roster = self.roster
        roster.count_failure(member, reason)
        successor = roster.succeed(member)
        if member.role == "rollout":
            roster.hire_rollout(successor, self.played)
            lost = "the steps it had not handed in are lost, and its episodes begin anew"
        elif member.role == "shard":
            lost = f"{self.stands[member.index].items:,} transitions are lost, and its lanes fill it again"
            self.stands[member.index] = _EMPTY
            roster.hire_shard(successor)
            self._wait_for_memory()
        elif member.role == "learner":
            saved, before = self._newest(), self.issued
            roster.bring_learners_to(saved["learner"] if saved is not None else None)
            self.updates = self.issued = saved["updates"] if saved is not None else 0
            self.limiter.sampled(-(before - self.updates) * self.job.optimization.batch_size)
            lost = f"it goes on from update {self.updates:,}; {before - self.updates:,} updates are made again"
        else:
            roster.hire_judge()
            lost = "its evaluation is made again"
        self.runtime.notice(f"{member} was replaced ({reason}): {lost}")

    def _wait_for_memory(self) -> None:
        """Where less than a batch is left, learning waits for as many steps as at the beginning."""
        if sum(stand.items for stand in self.stands) < self.job.optimization.batch_size:
            self._gate = self.played + self.job.replay.minimum

    # Playing

    def ask_to_play(self, member: Member) -> tuple[Any, ...]:
        """Futures of a rollout's report, and of the steps for each shard."""
        return self.roster.ask_to_play(member, self.updates, self.issued)

    def account(self, report: RolloutReport) -> None:
        """Count what a rollout handed in."""
        self.played += report.steps
        self.limiter.inserted(report.steps)
        self.curves.rollout(report, self.updates)

    def hear(self, shard: Member, stand: ShardReport) -> None:
        """Take in how a shard stands."""
        error = stand.snapshot_error
        if error is not None and self.stands[shard.index].snapshot_error != error:
            self.runtime.notice(f"the replay memory of {shard}: {error}")
        self.stands[shard.index] = stand

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
        progress = min(1.0, self.played / self.job.optimization.steps)
        flight = set_out(self.roster, self.stands, self.issued + 1, count, progress)
        self.issued += count
        self.limiter.sampled(count * self.job.optimization.batch_size)
        return flight

    def land(self, flight: Flight) -> list[tuple[Member, Any]]:
        """Take in what learners report of updates that are done, and tell shards the new priorities; the shards with
        futures of how they stand then, none where there are no priorities."""
        found: list[LearnerReport] = [
            self.roster.get(future, member) for member, future in zip(flight.learners, flight.reports, strict=True)
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
        # Slots of a memory that was lost mean nothing to the one in its place.
        return [
            (
                shard,
                self.roster.ask(shard, "update_priorities", *(of_learner[number] for of_learner in flight.feedback)),
            )
            for number, shard in enumerate(flight.shards)
            if self.roster.shards[number] == shard
        ]

    def abandon(self, flight: Flight) -> None:
        """Forget updates that could not be made, the newest first; they are asked for again."""
        if flight.learners != self.roster.learners:
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
        roster, learner = self.roster, self.roster.learners[0]
        weights = roster.ask(learner, "acting_state")
        self._judged = self.played
        return roster.ask(roster.judge, "evaluate", weights, self.played), self.played, learner

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
        roster = self.roster
        asked = roster.ask_shards("snapshot", self.played, wait) if self.job.checkpoint.replay else []
        learned = roster.get(roster.ask(roster.learners[0], "state"), roster.learners[0])
        held = [roster.crew.get(future) for future in asked]  # a large memory may take its time to be written
        state = {
            "learner": learned,
            "played": self.played,
            "updates": self.issued,  # the learner has made all that was asked for before its state
            "limiter": self.limiter.state(),
            "lives": roster.lives,
            "judged": self._verdict,
            "curves": self.curves.state(),
            "results": self.results,
        }
        # Updates may have been made since a checkpoint of the same step.
        again = self.issued != self._saved_updates
        self.runtime.before_checkpoint()
        self.checkpoints.save(self.played, state, {"seed": self.job.seed, "updates": self.issued}, replace=again)
        self._saved, self._saved_updates = self.played, self.issued
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


def _limiter(job: ReinforcementJob) -> SamplesPerInsert:
    """The ratio of the job; in lock-step neither side is ever ahead."""
    replay, rollout = job.replay, job.rollout
    tolerance = replay.tolerance
    if tolerance is None:
        tolerance = max(
            10 * job.optimization.batch_size / replay.samples_per_insert, float(rollout.environments * rollout.calls)
        )
    return SamplesPerInsert(replay.samples_per_insert, replay.minimum, None if job.resources.lockstep else tolerance)
