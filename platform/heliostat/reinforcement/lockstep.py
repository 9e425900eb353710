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
            session.results |= self._evaluate()
            if not session.updates_due and self._save():  # a learner that dies takes updates with it
                return True

    def _save(self) -> bool:
        """Whether it could be saved; if not, somebody was replaced."""
        session = self.session
        try:
            session.save(wait=True)
        except MemberLost as lost:
            session.mend(session.learners[0], lost, session.shards)
            return False
        return True

    def _play(self) -> None:
        session = self.session
        teachers = session.learners[:1]  # whose weights are played with
        asked = [(member, session.lanes(member.index), session.ask_to_play(member)) for member in session.rollouts]
        stored: list[tuple[Member, object]] = []
        for member, lanes, (report, *steps) in asked:
            try:
                played = session.get(report, member)
            except MemberLost as lost:
                session.mend(member, lost, teachers)
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
        except MemberLost as lost:
            session.mend(session.learners[0], lost, session.shards)
            session.abandon(flight)
            return
        for shard, future in told:
            try:
                session.hear(shard.index, session.get(future, shard))
            except MemberLost as lost:
                session.mend(shard, lost)

    def _evaluate(self) -> dict[str, float]:
        session = self.session
        session.tell("evaluating", at_once=True)
        while True:
            future, step, learner = session.ask_judge()
            try:
                return session.judged(session.get(future, session.judge), step)
            except MemberLost as lost:
                session.mend(session.judge, lost, [learner])

    def _random_play(self) -> tuple[Episode, ...]:
        session = self.session
        session.tell("playing at random, for comparison", at_once=True)
        while True:
            try:
                found: tuple[Episode, ...] = session.get(session.crew.ask(session.judge, "random_play"), session.judge)
                return found
            except MemberLost as lost:
                session.mend(session.judge, lost)
