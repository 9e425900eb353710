"""Playing and learning at the same time.

The coordinator never waits for one member: it asks whoever is idle for the next thing, within what the limiter allows,
and takes in whatever is done first. Data pass from actor to actor; here only reports arrive.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from heliostat.errors import RunError
from heliostat.reinforcement.crew import Member, MemberLost
from heliostat.reinforcement.flight import Flight
from heliostat.reinforcement.roster import ANSWER_SECONDS, WAIT_SECONDS
from heliostat.reinforcement.session import Session


@dataclass(frozen=True)
class _Play:
    """What a rollout was asked to play."""

    member: Member
    lanes: range
    steps: list[Any]
    """Futures, for each shard."""
    teacher: Member
    """Whose weights it waits for."""
    since: float


@dataclass(frozen=True)
class _Storing:
    """What a shard was asked to store."""

    shard: Member
    makers: list[Member]
    """Whose work it is."""
    since: float


class Overlapped:
    """All members busy, as far as the ratio of samples to inserts lets them."""

    def __init__(self, session: Session) -> None:
        self.session, self.roster = session, session.roster
        job = session.job
        self._group = max(1, job.replay.prefetch // 2)
        """Updates that are asked for together: half of what is sampled ahead, so that one group waits while the
        other is learned from."""
        self._calls = job.rollout.calls
        self._playing: dict[Any, _Play] = {}  # by the report
        self._storing: dict[Any, _Storing] = {}
        self._learning: deque[Flight] = deque()
        self._judging: tuple[Any, int, Member] | None = None
        self._random_play: Any = None
        self._mark = time.perf_counter()

    def run(self) -> bool:
        """Work until all steps are played and learned from, and saved; False where the run was asked to stop before."""
        session = self.session
        if not session.results:
            self._random_play = self.roster.ask(self.roster.judge, "random_play")
        while True:
            if self._work():
                session.tell("evaluating", at_once=True)
                results = self._last_evaluation()
                if results is not None:
                    session.results |= results
                    if self._save(wait=True) and self._done():
                        return True
            if session.stop_requested():
                self._settle()
                while not self._save(wait=True):
                    self._settle()
                return False

    def _work(self) -> bool:
        """Play and learn until nothing is left to do; False where the run was asked to stop before."""
        session = self.session
        while not self._done():
            if session.pause_due or session.stop_requested():
                return False
            held_playing, held_learning = self._send_rollouts(), self._send_learners()
            now = time.perf_counter()
            session.curves.waited("inserting", (now - self._mark) * held_playing)
            session.curves.waited("sampling", (now - self._mark) * held_learning)
            self._mark = now
            self._take_in()
            session.tell()
            if session.evaluation_due() and self._judging is None and not session.over:
                self._judging = session.ask_judge()
            if session.checkpoint_due():
                self._save(wait=False)
        return True

    def _done(self) -> bool:
        session, busy = self.session, self._playing or self._storing or self._learning
        return session.over and not busy and not session.updates_due

    # Asking

    def _send_rollouts(self) -> bool:
        """Ask idle rollouts to play; whether the limiter held them."""
        session = self.session
        busy = {play.member.index for play in self._playing.values()}
        underway = sum(len(play.lanes) * self._calls for play in self._playing.values())
        held = False
        for member in self.roster.rollouts:
            lanes = self.roster.lanes(member.index)
            if member.index in busy or session.played + underway >= session.job.optimization.steps:
                continue
            # Where nothing can be learned from what there is, the limiter's count of it means nothing.
            starved = not underway and not self._storing and not session.may_learn()
            batch = session.job.optimization.batch_size
            if not (
                session.refilling
                or starved
                or session.limiter.may_insert(len(lanes) * self._calls, batch, underway=underway)
            ):
                held = True
                continue
            report, *steps = session.ask_to_play(member)
            self._playing[report] = _Play(member, lanes, steps, self.roster.learners[0], time.monotonic())
            underway += len(lanes) * self._calls
        return held

    def _send_learners(self) -> bool:
        """Ask the learners for more updates; whether the limiter held them."""
        session, batch = self.session, self.session.job.optimization.batch_size
        while len(self._learning) < 2:
            if not session.may_learn():
                return False
            limiter = session.limiter
            count = self._group
            if session.over:  # no insert will follow that being ahead would be for
                count = min(count, limiter.updates_due(batch))
            while count and not limiter.may_sample(count * batch):
                count -= 1
            if not count:
                return True
            self._learning.append(session.issue(count))
        return False

    # Taking in

    def _take_in(self) -> None:
        """Wait for something to be done, and take in all that is."""
        session = self.session
        waiting: list[Any] = [*self._playing, *self._storing]
        waiting += [flight.reports[0] for flight in self._learning]
        waiting += [future for future in (self._judging and self._judging[0], self._random_play) if future is not None]
        done = set(self.roster.crew.ready(waiting, WAIT_SECONDS))
        for future in [future for future in self._storing if future in done]:
            if future not in self._storing:
                continue  # its shard was found dead a moment ago
            stored = self._storing.pop(future)
            shard = stored.shard
            try:
                stand = self.roster.get(future, shard)
            except MemberLost as lost:
                self._mend(shard, lost, stored.makers)
            else:
                if self.roster.shards[shard.index] == shard:  # and not of one that was replaced since
                    session.hear(shard, stand)
        for future in [future for future in self._playing if future in done]:
            self._take_steps(future)
        while self._learning and self._learning[0].reports[0] in done:
            flight = self._learning.popleft()
            try:
                self._land(flight)
            except MemberLost as lost:
                self._learning.appendleft(flight)
                self._mend(self.roster.learners[0], lost)
        self._take_evaluations(done)
        self._look_for_hanging()

    def _take_steps(self, future: Any) -> None:
        session = self.session
        if future not in self._playing:
            return  # its rollout was found dead a moment ago
        play = self._playing.pop(future)
        try:
            report = self.roster.get(future, play.member)
        except MemberLost as lost:
            self._mend(play.member, lost, [play.teacher])
            return
        session.account(report)
        for shard, part in zip(self.roster.shards, play.steps, strict=True):
            stand = self.roster.ask(shard, "insert", part, play.lanes)
            self._storing[stand] = _Storing(shard, [play.member], time.monotonic())

    def _land(self, flight: Flight) -> None:
        for shard, stand in self.session.land(flight):
            self._storing[stand] = _Storing(shard, flight.learners, time.monotonic())

    def _take_evaluations(self, done: set[Any]) -> None:
        session = self.session
        if self._random_play is not None and self._random_play in done:
            try:
                session.baseline(self.roster.get(self._random_play, self.roster.judge))
                self._random_play = None
            except MemberLost as lost:
                self._mend(self.roster.judge, lost)
        if self._judging is not None and self._judging[0] in done:
            future, step, learner = self._judging
            self._judging = None
            try:
                session.judged(self.roster.get(future, self.roster.judge), step)
            except MemberLost as lost:
                self._mend(self.roster.judge, lost, [learner])
                self._judging = session.ask_judge()

    def _look_for_hanging(self) -> None:
        """A rollout whose environment hangs so that not even its watchdog runs never reports. A shard or learner that
        hangs ends the run: another in its place would do the same.

        Raises:
            RunError: a shard or learner hangs, or too many rollouts were lost.
        """
        late, overdue = time.monotonic() - ANSWER_SECONDS, f"no answer within {ANSWER_SECONDS:,.0f} s"
        for stored in self._storing.values():
            if stored.since < late:
                raise RunError(f"{stored.shard} failed: {overdue}")
        for flight in self._learning:
            if flight.since < late:
                raise RunError(f"{flight.learners[0]}, or a shard that samples for it, failed: {overdue}")
        limit = self.roster.rollout_seconds + ANSWER_SECONDS  # it may have to wait for weights
        for future, play in list(self._playing.items()):
            if time.monotonic() - play.since > limit:
                del self._playing[future]
                self.session.replace(play.member, f"no answer within {limit:,.0f} s")

    def _mend(self, owner: Member, lost: MemberLost, needed: Sequence[Member] = ()) -> None:
        """Replace who was lost, and forget what they were asked for; ``needed``: whose work it needed, as they were."""
        session = self.session
        gone = session.mend(owner, lost, [*needed, *self.roster.everybody])
        roles = {member.role for member in gone}
        for future in [f for f, play in self._playing.items() if play.member in gone]:
            del self._playing[future]
        for future in [f for f, stored in self._storing.items() if stored.shard in gone]:
            del self._storing[future]
        if roles & {"shard", "learner"}:
            self._recover()
        if "evaluator" in roles:
            if self._random_play is not None:
                self._random_play = self.roster.ask(self.roster.judge, "random_play")
            if self._judging is not None:
                self._judging = session.ask_judge()

    def _recover(self) -> None:
        """Each update needs all shards and learners. Of those underway, take in what was made before somebody was lost;
        the others are asked for again."""
        while self._learning and self._learning[0].learners == self.roster.learners:
            try:
                self._land(self._learning[0])
            except MemberLost:
                break
            self._learning.popleft()
        while self._learning:
            self.session.abandon(self._learning.pop())

    # Stops on the way

    def _save(self, *, wait: bool) -> bool:
        """Whether it could be saved; if not, somebody was replaced."""
        try:
            self.session.save(wait=wait)
        except MemberLost as lost:
            self._mend(self.roster.learners[0], lost)
            return False
        return True

    def _settle(self) -> None:
        """Let everything that is underway arrive, so that a checkpoint holds it."""
        while self._playing or self._storing or self._learning:
            self._take_in()

    def _last_evaluation(self) -> dict[str, float] | None:
        """What the run comes to; None where a learner was lost, so that there are updates to make again first, or where
        the run was asked to stop."""
        session = self.session
        while self._random_play is not None or self._judging is not None:
            if session.stop_requested():
                return None
            self._take_in()
            session.tell("evaluating")
        while self._done():
            future, step, learner = session.ask_judge()
            try:
                while not self.roster.crew.ready([future], WAIT_SECONDS):
                    if session.stop_requested():
                        return None
                    session.tell("evaluating")
                return session.judged(self.roster.get(future, self.roster.judge), step)
            except MemberLost as lost:
                self._mend(self.roster.judge, lost, [learner])
        return None
