"""Judging: episodes played for the score alone, with their own environments and dice."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from heliostat.reinforcement.agent import build_agent
from heliostat.reinforcement.environments.spec import EnvironmentSpec
from heliostat.reinforcement.rollout import Episode, FrameStacks, lane_seeds
from heliostat_algorithms.randomness import Random

if TYPE_CHECKING:
    from heliostat.config.reinforcement import ReinforcementJob

_STATES_AT_ONCE = 256


@dataclass(frozen=True)
class Verdict:
    """What an evaluation found."""

    episodes: tuple[Episode, ...]
    largest_q: float | None
    """Mean over the held-out states of the largest Q-value; None where none are held."""


class Judge:
    """Plays episodes with given weights.

    Args:
        job: the run's job.
        spec: its environment's.
    """

    def __init__(self, job: ReinforcementJob, spec: EnvironmentSpec) -> None:
        self._job, self._spec = job, spec
        self._agent = build_agent(job, spec).eval()
        evaluation = job.evaluation
        self._lanes = range(min(evaluation.environments, evaluation.episodes))
        self._environment = job.environment.make(
            len(self._lanes), lane_seeds(job.seed, self._lanes, "evaluation"), evaluation=True
        )
        self._states: Tensor | None = None

    def evaluate(self, weights: dict[str, Tensor], number: int) -> Verdict:
        """Play the job's number of episodes; the ``number`` of the evaluation decides all that is random in it."""
        self._agent.load_acting_state(weights)
        self._hold_out()
        largest = None
        if self._states is not None:
            with torch.no_grad():
                parts = [self._agent.q_values(part) for part in torch.split(self._states, _STATES_AT_ONCE)]
            largest = float(torch.cat(parts).max(dim=1).values.double().mean())
        epsilon = self._job.evaluation.epsilon
        return Verdict(self._play(epsilon, f"evaluation/{number}"), largest)

    def random_play(self) -> tuple[Episode, ...]:
        """As many episodes of uniformly random actions: what an agent that knows nothing gets."""
        return self._play(None, "random")

    def close(self) -> None:
        """Close the environments."""
        self._environment.close()

    def _play(self, epsilon: float | None, purpose: str) -> tuple[Episode, ...]:
        """Rounds in which each lane plays one episode to its end: to take those that end first would prefer short
        ones."""
        job, lanes = self._job, self._lanes
        wanted, limit = job.evaluation.episodes, job.evaluation.max_steps
        found: list[Episode] = []
        stacks = FrameStacks(self._spec, len(lanes))
        call = 0
        while len(found) < wanted:
            frame = self._environment.reset(None if found else lane_seeds(job.seed, lanes, purpose))
            start = np.ones(len(lanes), np.bool_)
            score, length = np.zeros(len(lanes)), np.zeros(len(lanes), np.int64)
            playing = np.arange(len(lanes)) < wanted - len(found)
            while playing.any():
                stacks.push(frame, start)
                action = self._actions(stacks.observation, epsilon, Random(job.seed, call, lanes, scope=f"{purpose}/"))
                played = self._environment.step(action)
                score += np.where(playing, played.reward, 0.0)
                length += playing & played.acted
                over = played.terminated | played.truncated
                if limit is not None:
                    over = over | (length >= limit)
                playing &= ~over
                frame, start = played.frame, ~played.acted
                call += 1
            episodes = [Episode(float(s), int(n)) for s, n in zip(score, length, strict=True)]
            found += episodes[: wanted - len(found)]
        return tuple(found)

    def _actions(self, observation: npt.NDArray[Any], epsilon: float | None, random: Random) -> npt.NDArray[np.int64]:
        if epsilon is None:
            return random.integers("action", self._spec.actions).numpy()
        share = torch.full((len(self._lanes),), epsilon)
        with torch.no_grad():
            action, _ = self._agent.act(torch.from_numpy(observation), share, random)
        return action.cpu().numpy()

    def _hold_out(self) -> None:
        """Gather the held-out states once, by random play: every tenth state, so that they differ."""
        count = self._job.evaluation.held_out_states
        if not count or self._states is not None:
            return
        lanes = self._lanes
        states: list[npt.NDArray[Any]] = []
        stacks = FrameStacks(self._spec, len(lanes))
        frame = self._environment.reset(lane_seeds(self._job.seed, lanes, "held-out"))
        start, call = np.ones(len(lanes), np.bool_), 0
        while len(states) * len(lanes) < count:
            stacks.push(frame, start)
            if call % 10 == 0:
                states.append(stacks.observation.copy())
            draws = Random(self._job.seed, call, lanes, scope="held-out/")
            played = self._environment.step(self._actions(stacks.observation, None, draws))
            frame, start = played.frame, ~played.acted
            call += 1
        self._states = torch.from_numpy(np.concatenate(states)[:count])
