"""Playing and learning in turn, in one fixed order: the run is a function of its job and seed, in one process and over
actors of Ray alike."""

from __future__ import annotations

from heliostat.reinforcement.crew import Member, MemberLost
from heliostat.reinforcement.rollout import Episode
from heliostat.reinforcement.session import Session


class Lockstep:
    """Rounds of: all rollouts play, their steps are stored, and as many updates are made as the ratio asks for."""

    def __init__(self, session: Session) -> None:
        self.session = session

    def run(self) -> bool:
        """Work until all steps are played; False where the run was asked to stop before."""
        session = self.session
        if not session.results and not session.played:
            session.baseline(self._random_play())
        while not session.over:
            if session.stop_requested():
                return False
            self._play()
            for _ in range(session.limiter.updates_due(session.job.optimization.batch_size)):
                if not session.may_learn():
                    break
                self._learn()
            session.tell()
            if session.evaluation_due() and not session.over:
                self._evaluate()
            if session.checkpoint_due():
                session.save(wait=True)
        session.results |= self._evaluate()
        return True

    def _play(self) -> None:
        session = self.session
        asked = [(member, session.lanes(member.index), session.ask_to_play(member)) for member in session.rollouts]
        stored: list[tuple[Member, object]] = []
        for member, lanes, (report, *steps) in asked:
            try:
                played = session.get(report, member)
            except MemberLost as lost:
                session.mend(member, lost, session.learners[:1])
                continue
            session.account(played)
            for shard, part in zip(session.shards, steps, strict=True):
                stored.append((shard, session.crew.ask(shard, "insert", part, lanes)))
        for shard, future in stored:
            try:
                session.hear(shard.index, session.get(future, shard))
            except MemberLost as lost:
                session.mend(shard, lost)

    def _learn(self) -> None:
        session = self.session
        flight = session.issue(1)
        try:
            told = session.land(flight)
            for shard, future in zip(session.shards, told, strict=False):
                session.hear(shard.index, session.get(future, shard))
        except MemberLost as lost:
            session.abandon(flight)
            session.mend(session.learners[0], lost, session.shards)

    def _evaluate(self) -> dict[str, float]:
        session = self.session
        session.tell("evaluating", at_once=True)
        while True:
            future, step = session.ask_judge()
            try:
                return session.judged(session.get(future, session.judge), step)
            except MemberLost as lost:
                session.mend(session.judge, lost, session.learners[:1])

    def _random_play(self) -> tuple[Episode, ...]:
        session = self.session
        session.tell("playing at random, for comparison", at_once=True)
        while True:
            try:
                found: tuple[Episode, ...] = session.get(session.crew.ask(session.judge, "random_play"), session.judge)
                return found
            except MemberLost as lost:
                session.mend(session.judge, lost)
