"""What a run records while it works: means over what happened since the last point."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from heliostat.reinforcement.environments.spec import EnvironmentSpec
from heliostat.reinforcement.learner import LearnerReport
from heliostat.reinforcement.rollout import Episode, RolloutReport
from heliostat_algorithms.evaluation.interval import half_width

if TYPE_CHECKING:
    from heliostat.reinforcement.session import Session

_RECENT = 100
"""Episodes over which the shown return is a mean."""


class Mean:
    """A weighted mean that starts anew when it was read."""

    def __init__(self) -> None:
        self._sum = self._weight = 0.0

    def add(self, value: float, weight: float = 1.0) -> None:
        """Take in a value."""
        self._sum += value * weight
        self._weight += weight

    def take(self) -> float | None:
        """The mean, None of nothing; forgets what it saw."""
        mean = self._sum / self._weight if self._weight else None
        self._sum = self._weight = 0.0
        return mean


class Curves:
    """Collects reports, and makes points of them."""

    def __init__(self, spec: EnvironmentSpec) -> None:
        self._spec = spec
        self._means: dict[str, Mean] = {}
        self._recent: deque[float] = deque(maxlen=_RECENT)
        self._episodes = 0
        self._counts = {"failures": 0}
        self._waited = {"inserting": 0.0, "sampling": 0.0}
        self._marked = time.perf_counter()
        self._played = self._updates = 0
        self._speed = 0.0

    def mean(self, name: str, value: float, weight: float = 1.0) -> None:
        """Take in a value of a curve."""
        self._means.setdefault(name, Mean()).add(value, weight)

    def count(self, name: str) -> None:
        """Count an event."""
        self._counts[name] += 1

    def waited(self, side: str, seconds: float) -> None:
        """The limiter held one side: ``inserting`` or ``sampling``."""
        self._waited[side] += seconds

    def rollout(self, report: RolloutReport, updates: int) -> None:
        """Take in what a rollout told; ``updates``: how many are done now."""
        self.mean("rollout/epsilon", report.epsilon, report.steps)
        self.mean("rollout/max_q", report.largest_q, report.steps)
        self.mean("rollout/parameter_lag", max(0, updates - report.version), report.steps)
        self.mean("rollout/acting_share", report.acting_seconds / (report.acting_seconds + report.playing_seconds))
        for episode in report.episodes:
            self.mean("rollout/return", episode.score)
            self.mean("rollout/episode_length", episode.length)
            self._recent.append(episode.score)
            self._episodes += 1
            if self._spec.reference is not None:
                self.mean("rollout/human_normalized", self._spec.reference.normalized(episode.score))

    def learner(self, report: LearnerReport) -> None:
        """Take in what a learner told."""
        for name, value in report.metrics.items():
            self.mean(f"train/{name}", value, report.updates)
        self.mean("replay/sample_age", report.age, report.updates)
        self.mean("train/update_seconds", report.seconds / report.updates, report.updates)

    def point(self, session: Session) -> dict[str, float]:
        """The curves' values now."""
        values = {name: mean.take() for name, mean in self._means.items()}
        point = {name: value for name, value in values.items() if value is not None}
        now = time.perf_counter()
        elapsed = max(now - self._marked, 1e-9)
        self._speed = (session.played - self._played) / elapsed
        point |= {
            "rollout/steps_per_second": self._speed,
            "train/updates_per_second": max(0, session.updates - self._updates) / elapsed,
            "train/updates": session.updates,
            "rollout/episodes": self._episodes,
            "rollout/frames": session.played * self._spec.frames_per_step,
            "replay/items": sum(stand.items for stand in session.stands),
            "replay/bytes": sum(stand.nbytes for stand in session.stands),
            "replay/late_priorities": sum(stand.ignored for stand in session.stands),
            "replay/lost_items": sum(stand.lost for stand in session.stands),
            "limiter/inserting_waits_share": self._waited["inserting"] / elapsed,
            "limiter/sampling_waits_share": self._waited["sampling"] / elapsed,
            "run/failures": self._counts["failures"],
        }
        learned_from = session.played - session.job.replay.minimum
        if learned_from > 0:
            batch = session.job.optimization.batch_size
            point["replay/samples_per_insert"] = session.updates * batch / learned_from
        for number, stand in enumerate(session.stands):
            point[f"replay/fill_{number}"] = stand.fill
        self._marked, self._played, self._updates = now, session.played, session.updates
        self._waited = dict.fromkeys(self._waited, 0.0)
        return point

    def facts(self, updates: int) -> str:
        """The shown numbers in a few words."""
        parts = []
        if self._recent:
            parts.append(f"return {sum(self._recent) / len(self._recent):,.1f} (last {len(self._recent)})")
        parts.append(f"{updates:,} updates")
        if self._speed:
            parts.append(f"{self._speed:,.0f} steps/s")
        return "  ".join(parts)

    def state(self) -> dict[str, Any]:
        """What a resumed run goes on with."""
        return {"recent": list(self._recent), "episodes": self._episodes, "failures": self._counts["failures"]}

    def restore(self, state: dict[str, Any], played: int, updates: int) -> None:
        """Go on from there; ``played`` and ``updates`` were done before."""
        self._played, self._updates = played, updates
        self._recent.extend(state["recent"])
        self._episodes, self._counts["failures"] = state["episodes"], state["failures"]


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
