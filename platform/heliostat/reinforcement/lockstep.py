"""Playing and learning in turn, in one fixed order: the run is a function of its job and seed, in one process and over
actors of Ray alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from heliostat.reinforcement.crew import Member, MemberLost
from heliostat.reinforcement.rollout import Episode
from heliostat.reinforcement.roster import WAIT_SECONDS
from heliostat.reinforcement.session import Session


class Lockstep:
    """Rounds of: all rollouts play, their steps are stored, and as many updates are made as the ratio asks for."""

    def __init__(self, session: Session) -> None:
        self.session, self.roster = session, session.roster

    def run(self) -> bool:
        """Work until all steps are played and learned from, and saved; False where the run was asked to stop before."""
        session = self.session
        if not session.results:
            session.baseline(self._random_play())
        while True:
            while not session.over or session.updates_due:
                if session.pause_due or session.stop_requested():
                    while not self._save():
                        pass
                    return False
                if not session.over:
                    self._play()
                while session.updates_due and not session.stop_requested():
                    self._learn()
                    session.tell()
                session.tell()
                if session.evaluation_due() and not session.over:
                    self._evaluate()
                if session.checkpoint_due():
                    self._save()
            results = self._evaluate()
            if results is None:
                while not self._save():
                    pass
                return False
            session.results |= results
            if not session.updates_due and self._save():  # a learner that dies takes updates with it
                return True

    def _save(self) -> bool:
        """Whether it could be saved; if not, somebody was replaced."""
        session = self.session
        try:
            session.save(wait=True)
        except MemberLost as lost:
            session.mend(self.roster.learners[0], lost, self.roster.shards)
            return False
        return True

    def _play(self) -> None:
        session = self.session
        teachers = self.roster.learners[:1]  # whose weights are played with
        asked = [
            (member, self.roster.lanes(member.index), session.ask_to_play(member)) for member in self.roster.rollouts
        ]
        stored: list[tuple[Member, Member, object]] = []
        for member, lanes, (report, *steps) in asked:
            try:
                played = self.roster.get(report, member)
            except MemberLost as lost:
                session.mend(member, lost, teachers)
                continue
            session.account(played)
            for shard, part in zip(self.roster.shards, steps, strict=True):
                stored.append((shard, member, self.roster.ask(shard, "insert", part, lanes)))
        for shard, player, future in stored:
            self._hear(shard, future, [player])

    def _learn(self) -> None:
        session = self.session
        flight = session.issue(1)
        try:
            told = session.land(flight)
        except MemberLost as lost:
            session.mend(self.roster.learners[0], lost, self.roster.shards)
            session.abandon(flight)
            return
        for shard, future in told:
            self._hear(shard, future, flight.learners)

    def _hear(self, shard: Member, future: Any, makers: Sequence[Member]) -> None:
        """Take in how a shard stands after something that others made; a node that is lost takes that with it, though
        it was there already."""
        try:
            self.session.hear(shard, self.roster.get(future, shard))
        except MemberLost as lost:
            self.session.mend(shard, lost, makers)

    def _evaluate(self) -> dict[str, float] | None:
        """What the agent is worth now; None where the run was asked to stop. In one process that is not seen before the
        last episode has ended."""
        session = self.session
        session.tell("evaluating", at_once=True)
        while True:
            future, step, learner = session.ask_judge()
            try:
                while not self.roster.crew.ready([future], WAIT_SECONDS):
                    if session.stop_requested():
                        return None
                    session.tell("evaluating")
                return session.judged(self.roster.get(future, self.roster.judge), step)
            except MemberLost as lost:
                session.mend(self.roster.judge, lost, [learner])

    def _random_play(self) -> tuple[Episode, ...]:
        session = self.session
        session.tell("playing at random, for comparison", at_once=True)
        while True:
            try:
                found: tuple[Episode, ...] = self.roster.get(
                    self.roster.ask(self.roster.judge, "random_play"), self.roster.judge
                )
                return found
            except MemberLost as lost:
                session.mend(self.roster.judge, lost)
