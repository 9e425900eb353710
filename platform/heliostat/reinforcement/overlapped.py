"""Playing and learning at the same time.

The coordinator never waits for one member: it asks whoever is idle for the next thing, within what the limiter allows,
and takes in whatever is done first. Data pass from actor to actor; here only reports arrive.
"""

from __future__ import annotations

import time
from collections import deque
from typing import Any

from heliostat.reinforcement.crew import Member, MemberLost
from heliostat.reinforcement.session import Flight, Session

_WAIT_SECONDS = 0.2


class Overlapped:
    """All members busy, as far as the ratio of samples to inserts lets them."""

    def __init__(self, session: Session) -> None:
        self.session = session
        job = session.job
        self._group = max(1, job.replay.prefetch // 2)
        """Updates that are asked for together: half of what is sampled ahead, so that one group waits while the
        other is learned from."""
        self._calls = job.rollout.calls
        self._playing: dict[Any, tuple[Member, range, list[Any], float]] = {}  # by the report
        self._storing: dict[Any, Member] = {}
        self._learning: deque[Flight] = deque()
        self._judging: tuple[Any, int] | None = None
        self._random_play: Any = None
        self._mark = time.perf_counter()

    def run(self) -> bool:
        """Work until all steps are played and learned from; False where the run was asked to stop before."""
        session = self.session
        if not session.results and not session.played:
            self._random_play = session.crew.ask(session.judge, "random_play")
        while not self._done():
            if session.stop_requested():
                self._settle()
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
                self._save()
        session.tell("evaluating", at_once=True)
        session.results |= self._last_evaluation()
        return True

    def _done(self) -> bool:
        session = self.session
        left = session.limiter.updates_due(session.job.optimization.batch_size) if session.may_learn() else 0
        return session.over and not self._playing and not self._storing and not self._learning and not left

    # Asking

    def _send_rollouts(self) -> bool:
        """Ask idle rollouts to play; whether the limiter held them."""
        session = self.session
        busy = {member.index for member, *_ in self._playing.values()}
        underway = sum(len(lanes) * self._calls for _, lanes, *_ in self._playing.values())
        held = False
        for member in session.rollouts:
            lanes = session.lanes(member.index)
            if member.index in busy or session.played + underway >= session.job.optimization.steps:
                continue
            if not session.limiter.may_insert(len(lanes) * self._calls, session.job.optimization.batch_size):
                held = True
                continue
            report, *steps = session.ask_to_play(member)
            self._playing[report] = (member, lanes, steps, time.monotonic())
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
        done = set(session.crew.ready(waiting, _WAIT_SECONDS))
        for future in [future for future in self._storing if future in done]:
            shard = self._storing.pop(future)
            try:
                stand = session.get(future, shard)
            except MemberLost as lost:
                self._mend(shard, lost)
            else:
                if session.shards[shard.index] == shard:  # and not of one that was replaced since
                    session.hear(shard.index, stand)
        for future in [future for future in self._playing if future in done]:
            self._take_steps(future)
        while self._learning and self._learning[0].reports[0] in done:
            flight = self._learning.popleft()
            try:
                for shard, stand in zip(session.shards, session.land(flight), strict=False):
                    self._storing[stand] = shard
            except MemberLost as lost:
                self._learning.appendleft(flight)
                self._mend(session.learners[0], lost)
        self._take_evaluations(done)
        self._look_for_hanging()

    def _take_steps(self, future: Any) -> None:
        session = self.session
        member, lanes, steps, _ = self._playing.pop(future)
        try:
            report = session.get(future, member)
        except MemberLost as lost:
            self._mend(member, lost)
            return
        session.account(report)
        for shard, part in zip(session.shards, steps, strict=True):
            self._storing[session.crew.ask(shard, "insert", part, lanes)] = shard

    def _take_evaluations(self, done: set[Any]) -> None:
        session = self.session
        if self._random_play is not None and self._random_play in done:
            try:
                session.baseline(session.get(self._random_play, session.judge))
                self._random_play = None
            except MemberLost as lost:
                self._mend(session.judge, lost)
        if self._judging is not None and self._judging[0] in done:
            future, step = self._judging
            self._judging = None
            try:
                session.judged(session.get(future, session.judge), step)
            except MemberLost as lost:
                self._mend(session.judge, lost)
                self._judging = session.ask_judge()

    def _look_for_hanging(self) -> None:
        """A rollout whose environment hangs so that not even its watchdog runs never reports."""
        limit = self.session.rollout_seconds
        for future, (member, _, _, since) in list(self._playing.items()):
            if time.monotonic() - since > limit:
                del self._playing[future]
                self.session.replace(member, f"no answer within {limit:,.0f} s")

    def _mend(self, owner: Member, lost: MemberLost) -> None:
        """Replace who was lost, and forget what they were asked for."""
        session = self.session
        gone = session.mend(owner, lost, [*session.shards, *session.learners, session.judge, *session.rollouts])
        roles = {member.role for member in gone}
        for future in [f for f, (member, *_) in self._playing.items() if member in gone]:
            del self._playing[future]
        for future in [f for f, shard in self._storing.items() if shard in gone]:
            del self._storing[future]
        if roles & {"shard", "learner"}:
            # Each update needs all shards and learners: what is underway either fails too, or belongs to the dead.
            for flight in self._learning:
                session.abandon(flight)
            self._learning.clear()
        if "evaluator" in roles:
            if self._random_play is not None:
                self._random_play = session.crew.ask(session.judge, "random_play")
            if self._judging is not None:
                self._judging = session.ask_judge()

    # Stops on the way

    def _save(self) -> None:
        try:
            self.session.save(wait=False)
        except MemberLost as lost:
            self._mend(self.session.learners[0], lost)

    def _settle(self) -> None:
        """Let everything that is underway arrive, so that a checkpoint holds it."""
        while self._playing or self._storing or self._learning:
            self._take_in()

    def _last_evaluation(self) -> dict[str, float]:
        session = self.session
        while self._random_play is not None or self._judging is not None:
            self._take_in()
            session.tell("evaluating")
        while True:
            future, step = session.ask_judge()
            try:
                while not session.crew.ready([future], _WAIT_SECONDS):
                    session.tell("evaluating")
                return session.judged(session.get(future, session.judge), step)
            except MemberLost as lost:
                self._mend(session.judge, lost)
