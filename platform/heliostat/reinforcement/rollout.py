"""Playing: some copies of the environment, a copy of the network, and a record of what happened."""

from __future__ import annotations

import time
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from heliostat.reinforcement.agent import build_agent, device_for
from heliostat.reinforcement.environments.spec import EnvironmentSpec
from heliostat_algorithms.randomness import Random
from heliostat_algorithms.reinforcement.replay.lookahead import returns, spans
from heliostat_algorithms.reinforcement.replay.rings import Places
from heliostat_algorithms.reinforcement.replay.steps import Steps
from heliostat_algorithms.reinforcement.replay.stream import flags

if TYPE_CHECKING:
    from heliostat.config.reinforcement import ReinforcementJob


@dataclass(frozen=True)
class Episode:
    """One episode that ended."""

    score: float
    """Sum of its raw rewards."""
    length: int
    """Steps of the agent."""


@dataclass(frozen=True)
class RolloutReport:
    """What the coordinator is told of a rollout; the steps themselves go to the shards."""

    steps: int
    """Actions taken."""
    episodes: tuple[Episode, ...]
    version: int
    """Updates behind the weights that were played with."""
    epsilon: float
    """Mean share of random actions."""
    largest_q: float
    """Mean over states of the largest Q-value."""
    acting_seconds: float
    """Time spent in the network."""
    playing_seconds: float
    """Time spent in the environment."""


def lane_seeds(seed: int, lanes: range, purpose: str) -> list[int]:
    """The seed of each lane's environment: another one for each lane and each purpose."""
    drawn = Random(seed, 0, lanes, scope=f"environment/{purpose}/").integers("seed", 2**31)
    return [int(value) for value in drawn.tolist()]


class FrameStacks:
    """The last frames of each lane as the network sees them, zeros before an episode's first frame.

    Args:
        spec: the environment's.
        lanes: how many.
    """

    def __init__(self, spec: EnvironmentSpec, lanes: int) -> None:
        self._stack = spec.stack
        self.observation: npt.NDArray[Any] = np.zeros((lanes, *spec.observation_shape), spec.frame_dtype)
        """(lanes, *observation shape), oldest frame first."""
        self._frames = self.observation.reshape(lanes, spec.stack, *spec.frame_shape)

    def push(self, frame: npt.NDArray[Any], start: npt.NDArray[np.bool_]) -> None:
        """Add the newest frames (lanes, ...); ``start`` (lanes,): they begin an episode."""
        if self._stack > 1:
            for place in range(self._stack - 1):  # in one assignment numpy would copy twice, since both sides overlap
                self._frames[:, place] = self._frames[:, place + 1]
            if start.any():
                self._frames[start, :-1] = 0
        self._frames[:, -1] = frame


class _Record:
    """What happens in some calls, row by row."""

    def __init__(self, calls: int, lanes: int, spec: EnvironmentSpec) -> None:
        shape = (calls, lanes)
        self.frame: npt.NDArray[Any] = np.empty((*shape, *spec.frame_shape), spec.frame_dtype)
        self.action = np.empty(shape, np.int64)
        self.reward = np.empty(shape, np.float32)
        self.terminated, self.truncated, self.life_lost = (np.empty(shape, np.bool_) for _ in range(3))
        self.acted, self.start = (np.empty(shape, np.bool_) for _ in range(2))
        self.values = np.empty((*shape, spec.actions), np.float32)

    def steps(self) -> Steps:
        """As the replay takes them."""
        return Steps(
            frame=self.frame,
            action=self.action,
            reward=self.reward,
            terminated=self.terminated,
            truncated=self.truncated,
            life_lost=self.life_lost,
            acted=self.acted,
            start=self.start,
        )


class _Kept:
    """Keeps the last n steps of each lane back until their outcome is known, and gives each step its priority (Horgan
    et al. 2018, algorithm 1)."""

    def __init__(self, n_step: int, discount: float, reward_clip: float | None) -> None:
        self._n, self._discount, self._clip = n_step, discount, reward_clip
        self._steps: Steps | None = None
        self._values: npt.NDArray[np.float32] | None = None

    def known(self, made: _Record) -> Steps | None:
        """The steps whose outcome is known by now; None where there are none."""
        new = made.steps()
        steps, values = new, made.values
        if self._steps is not None and self._values is not None:
            steps, values = joined(self._steps, new), np.concatenate([self._values, values])
        calls = len(steps.action)
        ready = max(0, calls - self._n)
        self._steps, self._values = part(steps, slice(ready, None)), values[ready:]
        if not ready:
            return None
        known = part(steps, slice(0, ready))
        return replace(known, priority=self._errors(steps, values)[:ready])

    def _errors(self, steps: Steps, values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """(T, E): size of the n-step TD error by the values (T, E, A) that were played with; NaN where not known."""
        calls, lanes = steps.action.shape
        # Each lane as a ring of T slots, one lane after the other.
        offset, position = np.arange(lanes) * calls, np.arange(calls)[:, None]
        items = Places(offset, np.full(lanes, calls), np.broadcast_to(position, (calls, lanes)))
        reach = spans(flags(steps).T.reshape(-1), items, calls - items.position, self._n)
        reward = returns(steps.reward.T.reshape(-1), items, reach.steps, self._discount, self._clip)
        best = values.max(axis=2).astype(np.float64).T.reshape(-1)
        taken = np.take_along_axis(values, steps.action[..., None], axis=2)[..., 0]
        following = np.where(reach.final, 0.0, self._discount**reach.steps * best[items.slots(reach.steps)])
        error = np.abs(reward + following - taken)
        return np.where(reach.complete, error, np.nan).astype(np.float32)


def part(steps: Steps, rows: slice) -> Steps:
    """Some calls, without a copy."""
    taken: dict[str, Any] = {f.name: getattr(steps, f.name) for f in fields(steps)}
    some: dict[str, Any] = {name: None if value is None else value[rows] for name, value in taken.items()}
    return Steps(**some)


def joined(first: Steps, second: Steps) -> Steps:
    """Calls of the same lanes, one after the other; without priorities."""
    names = [f.name for f in fields(Steps) if f.name != "priority"]
    return Steps(**{name: np.concatenate([getattr(first, name), getattr(second, name)]) for name in names})


class RolloutWorker:
    """Plays some lanes of a job's environments.

    Args:
        job: the run's job.
        spec: its environment's.
        lanes: which of the job's environments, by number.
        life: how many workers played these lanes before: each draws its own random numbers.
        played: steps that were played in the whole run before, from which the share of random actions goes on.
        threads: threads that step the environments.

    Raises:
        RunError: it should have a GPU, and torch sees none.
    """

    def __init__(
        self,
        job: ReinforcementJob,
        spec: EnvironmentSpec,
        lanes: range,
        *,
        life: int = 0,
        played: int = 0,
        threads: int = 1,
    ) -> None:
        self._job, self._spec, self._lanes, self._life, self._played = job, spec, lanes, life, played
        self._shards = job.resources.shards
        self._agent = build_agent(job, spec).train()  # noisy layers explore
        self._device = device_for(job.resources.gpus_per_actor, "gpus_per_actor")
        self._agent.to(self._device)
        self._environment = job.environment.make(len(lanes), lane_seeds(job.seed, lanes, f"rollout/{life}"), threads)
        self._stacks = FrameStacks(spec, len(lanes))
        self._start = np.ones(len(lanes), np.bool_)
        self._frame = self._environment.reset()
        self._stacks.push(self._frame, self._start)
        self._score, self._length = np.zeros(len(lanes)), np.zeros(len(lanes), np.int64)
        self._calls, self._version = 0, 0
        agent = job.algorithm
        early = job.rollout.initial_priorities == "td-error"
        self._kept = _Kept(agent.n_step, agent.discount, agent.reward_clip) if early else None

    def play(self, weights: dict[str, Tensor] | None, version: int) -> tuple[Any, ...]:
        """Play ``rollout.calls`` calls of the environment.

        Args:
            weights: new ones to play with; None: as before.
            version: updates behind them.

        Returns:
            A :class:`RolloutReport`, and for each shard the :class:`Steps` of its lanes, or None where it has none of
            these or none of its steps is ready.
        """
        if weights is not None:
            self._agent.load_acting_state(weights)
            self._version = version
        calls, lanes = self._job.rollout.calls, len(self._lanes)
        made = _Record(calls, lanes, self._spec)
        episodes: list[Episode] = []
        epsilons: list[Tensor] = []
        acting = playing = 0.0
        for call in range(calls):
            mark = time.perf_counter()
            action, values, epsilon = self._act()
            acting += time.perf_counter() - mark
            made.frame[call], made.action[call], made.start[call] = self._frame, action, self._start
            made.values[call] = values
            mark = time.perf_counter()
            played = self._environment.step(action)
            playing += time.perf_counter() - mark
            made.reward[call], made.acted[call] = played.reward, played.acted
            made.terminated[call], made.truncated[call] = played.terminated, played.truncated
            made.life_lost[call] = played.life_lost
            self._score += played.reward
            self._length += played.acted
            for lane in np.flatnonzero(played.terminated | played.truncated):
                episodes.append(Episode(float(self._score[lane]), int(self._length[lane])))
                self._score[lane], self._length[lane] = 0.0, 0
            self._frame, self._start = played.frame, ~played.acted
            self._stacks.push(self._frame, self._start)
            epsilons.append(epsilon)
        report = RolloutReport(
            steps=int(made.acted.sum()),
            episodes=tuple(episodes),
            version=self._version,
            epsilon=float(torch.stack(epsilons).mean()),
            largest_q=float(made.values.max(axis=2).mean()),
            acting_seconds=acting,
            playing_seconds=playing,
        )
        steps = made.steps() if self._kept is None else self._kept.known(made)
        return (report, *(self._of_shard(steps, shard) for shard in range(self._shards)))

    def close(self) -> None:
        """Close the environments."""
        self._environment.close()

    def _act(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32], Tensor]:
        """Actions (E,) and Q-values (E, A) for what is seen now, and the shares of random actions (E,)."""
        job, call = self._job, self._calls
        count = job.rollout.environments
        # An actor knows its own calls only; all lanes are called about equally often.
        epsilon = job.algorithm.epsilon.at(self._played + call * count, self._lanes, count)
        random = Random(job.seed, call, self._lanes, scope=f"act/{self._life}/")
        with torch.no_grad():
            observation = torch.from_numpy(self._stacks.observation).to(self._device)
            action, values = self._agent.act(observation, epsilon, random)
        self._calls += 1
        return action.cpu().numpy(), values.float().cpu().numpy(), epsilon

    def _of_shard(self, steps: Steps | None, shard: int) -> Steps | None:
        """The columns of the lanes that a shard holds: lane g of the job belongs to shard g mod shards."""
        if steps is None or self._shards == 1:
            return steps
        first = (shard - self._lanes.start) % self._shards
        columns = slice(first, None, self._shards)
        if first >= len(self._lanes):
            return None
        parts: dict[str, Any] = {f.name: getattr(steps, f.name) for f in fields(steps)}
        mine: dict[str, Any] = {name: None if value is None else value[:, columns] for name, value in parts.items()}
        return Steps(**mine)
