"""One shard of the replay memory, and what it tells of itself."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from heliostat.errors import InputError
from heliostat.reinforcement.environments.spec import EnvironmentSpec
from heliostat.reinforcement.snapshots import ReplaySnapshots
from heliostat_algorithms.reinforcement.replay.batch import ReplayBatch
from heliostat_algorithms.reinforcement.replay.buffer import ReplayBuffer
from heliostat_algorithms.reinforcement.replay.steps import Steps

if TYPE_CHECKING:
    from heliostat.config.reinforcement import ReinforcementJob
    from heliostat.training.storage import Storage


@dataclass(frozen=True)
class ShardReport:
    """How a shard stands."""

    mass: float
    """Sum of the priorities of what can be sampled."""
    items: int
    """Transitions that can be sampled."""
    inserted: int
    """Steps that were ever put in."""
    lost: int
    """Transitions whose outcome never came, because the stream of their environment broke."""
    fill: float
    """Share of the slots in use."""
    nbytes: int
    ignored: int
    """Priorities that came too late: their slot had been used again."""
    snapshot_error: str | None = None
    """What is wrong with the last snapshot that was to be written or read."""


@dataclass(frozen=True)
class Sampled:
    """What a shard gives for some updates."""

    batch: ReplayBatch | None
    """The items of all the updates, one after the other; None if there are none."""
    counts: tuple[int, ...]
    """How many of them belong to each update."""
    mass: float
    """The shard's mass when they were drawn."""
    seconds: float


class ReplayShard:
    """The lanes of a job whose numbers have the remainder ``index`` when divided by the shards.

    Args:
        job: the run's job.
        spec: its environment's.
        index: which shard.
        storage: the run's folder, for snapshots.
    """

    def __init__(self, job: ReinforcementJob, spec: EnvironmentSpec, index: int, storage: Storage) -> None:
        agent, shards = job.algorithm, job.resources.shards
        self._index, self._shards = index, shards
        self.buffer = ReplayBuffer(
            capacity=job.replay.capacity // shards,
            lanes=len(range(index, job.rollout.environments, shards)),
            frame_shape=spec.frame_shape,
            frame_dtype=spec.frame_dtype,
            stack=spec.stack,
            n_step=agent.n_step,
            discount=agent.discount,
            reward_clip=agent.reward_clip,
            prioritization=agent.prioritization,
        )
        self._snapshots = ReplaySnapshots(storage, f"replay/shard-{index}", keep=max(2, job.checkpoint.keep))
        self._writing: threading.Thread | None = None
        self._snapshot_step = -1
        self._snapshot_error: str | None = None
        self._ignored = 0

    def insert(self, steps: Steps | None, lanes: range) -> ShardReport:
        """Store what was played in some lanes of the job."""
        if steps is not None:
            mine = [lane // self._shards for lane in lanes if lane % self._shards == self._index]
            self.buffer.insert(steps, range(mine[0], mine[-1] + 1))
        return self.report()

    def sample(self, points: npt.NDArray[np.float64], counts: tuple[int, ...]) -> Sampled:
        """Draw items.

        Args:
            points: (N,) shares of this shard's mass, from 0 to 1.
            counts: how many of them belong to each update.
        """
        began = time.perf_counter()
        batch = self.buffer.sample(points) if len(points) else None
        return Sampled(batch, counts, self.buffer.mass, time.perf_counter() - began)

    def update_priorities(self, *feedback: Any) -> ShardReport:
        """Take over what each learner says of its items: (slots, generations, priorities), or None."""
        for told in feedback:
            if told is not None:
                self._ignored += self.buffer.update_priorities(*told)
        return self.report()

    def report(self) -> ShardReport:
        """How it stands."""
        buffer = self.buffer
        return ShardReport(
            mass=float(buffer.mass),
            items=buffer.size,
            inserted=buffer.inserted,
            lost=buffer.lost,
            fill=buffer.fill,
            nbytes=buffer.nbytes,
            ignored=self._ignored,
            snapshot_error=self._snapshot_error,
        )

    def snapshot(self, step: int, wait: bool) -> float:
        """Save the memory as it is now; returns the seconds for which the shard did nothing else.

        What changed since the last snapshot is copied here, and written by a thread. Where that takes longer than from
        one snapshot to the next, one is left out, and said to be: the run does not wait for its storage.

        Args:
            step: steps played in the run.
            wait: until it is written.
        """
        began = time.perf_counter()
        if self._writing is not None and self._writing.is_alive():
            if not wait and step == self._snapshot_step:
                return 0.0
            if not wait:
                self._snapshot_error = f"it was not saved at step {step}: what was saved before is still being written"
                return 0.0
            self._writing.join()  # two at a time would write the same blocks
        pending, self._snapshot_step = self._snapshots.begin(self.buffer, step), step

        def write() -> None:
            try:
                pending.write()
                self._snapshot_error = None
            except Exception as error:  # noqa: BLE001 - told by the next report; the run goes on without it
                self._snapshot_error = f"it was not saved: {error}"

        self._writing = threading.Thread(target=write, name="replay-snapshot", daemon=True)
        self._writing.start()
        if wait:
            self._writing.join()
        return time.perf_counter() - began

    def restore(self, at_most: int) -> int | None:
        """Load the newest sound snapshot up to a step; its step, or None where there is none."""
        for step in reversed([step for step in self._snapshots.steps() if step <= at_most]):
            try:
                self._snapshots.load(step, self.buffer)
            except InputError as error:
                self._snapshot_error = f"the snapshot of step {step} is passed over: {error}"
                continue
            return step
        return None
