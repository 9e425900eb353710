"""Showing what a run's agent can do: a stored checkpoint plays some episodes, and a video is made of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from heliostat.errors import InputError, Problem
from heliostat.reinforcement.agent import build_agent
from heliostat.reinforcement.environments.atari import AtariEnvironment
from heliostat.reinforcement.environments.failure import EnvironmentFailure
from heliostat.reinforcement.environments.minatar_ import MinAtarEnvironment
from heliostat.reinforcement.playing import GIF_RATE, Moment, Recording, check_video, record
from heliostat.reinforcement.rollout import Episode, FrameStacks, lane_seeds
from heliostat.training.checkpoint import check_architecture
from heliostat_algorithms.randomness import Random

if TYPE_CHECKING:
    from heliostat.config.reinforcement import ReinforcementJob
    from heliostat.reinforcement.environments import EnvironmentConfig
    from heliostat.reinforcement.environments.vector import VectorEnvironment
    from heliostat.training.run_folder import RunFolder
    from heliostat_algorithms.reinforcement.dqn import DQN

_LANE = range(1)
"""One environment plays: a video shows one."""
_ATARI_RATE = 60.0
"""Frames that the console shows in a second."""
_MINATAR_RATE = 10.0
"""Steps per second in which a person can follow a game of 10 x 10 cells."""
_OTHER_RATE = 30.0


@dataclass(frozen=True)
class Exhibition:
    """What was played and shown."""

    step: int
    """Of the checkpoint, in steps of the environment."""
    epsilon: float
    """Share of random actions."""
    seed: int
    episodes: tuple[Episode, ...]
    """With raw returns."""
    broken_off: int
    """How many of them were not played to their end, because the job's evaluations are not."""
    human_normalized: tuple[float, ...] | None
    """Each episode's return from 0, random play, to 1, a human's; None where nobody measured those, or where episodes
    were broken off."""
    video: Recording


class Play:
    """Some episodes in one environment, moment by moment.

    Both the environment's dice and the agent's are functions of the seed, so that the same play can be shown again.

    Args:
        agent: in evaluation mode.
        environment: one lane, made with ``render``.
        seed: of all that is random.
        epsilon: share of random actions.
        episodes: how many.
        max_steps: steps after which an episode is broken off; None: as long as the environment lets it go on.
        tell: told of each episode that ended, with its number from 0.
    """

    def __init__(
        self,
        agent: DQN,
        environment: VectorEnvironment,
        *,
        seed: int,
        epsilon: float,
        episodes: int,
        max_steps: int | None = None,
        tell: Callable[[int, Episode], None] | None = None,
    ) -> None:
        self._agent, self._environment = agent, environment
        self._seed, self._epsilon, self._count, self._max_steps = seed, torch.tensor([epsilon]), episodes, max_steps
        self._tell = tell
        self.episodes: list[Episode] = []
        """Those that ended."""
        self.broken_off = 0
        """How many of them the environment did not end."""

    def moments(self) -> Iterator[Moment]:
        """Play; one moment for each action, as it is taken."""
        stacks = FrameStacks(self._environment.spec, len(_LANE))
        frame = self._environment.reset(lane_seeds(self._seed, _LANE, "play"))
        start = np.ones(len(_LANE), np.bool_)
        score, length, call = 0.0, 0, 0
        while True:
            stacks.push(frame, start)
            picture = self._environment.render(0).copy()
            with torch.no_grad():
                draws = Random(self._seed, call, _LANE, scope="play/")
                action, values = self._agent.act(torch.from_numpy(stacks.observation), self._epsilon, draws)
            played = self._environment.step(action.numpy())
            call += 1
            frame, start = played.frame, ~played.acted
            if not played.acted[0]:
                continue  # the call that begins the next episode
            reward = float(played.reward[0])
            score, length = score + reward, length + 1
            over = bool(played.terminated[0] or played.truncated[0])
            broken_off = not over and length == self._max_steps
            if over or broken_off:
                self.episodes.append(Episode(score, length))
                self.broken_off += broken_off
                if self._tell is not None:
                    self._tell(len(self.episodes) - 1, self.episodes[-1])
            yield Moment(picture, values[0].float().numpy(), int(action[0]), reward, score)
            if len(self.episodes) == self._count:
                return
            if over or broken_off:
                score, length = 0.0, 0
            if broken_off:
                frame, start = self._environment.reset(), np.ones(len(_LANE), np.bool_)


def exhibit(
    folder: RunFolder,
    *,
    episodes: int = 1,
    checkpoint: int | None = None,
    epsilon: float | None = None,
    seed: int | None = None,
    output: Path | None = None,
    tell: Callable[[int, Episode], None] | None = None,
) -> Exhibition:
    """Play episodes with a run's weights and write a video of them; the run itself stays as it is.

    Args:
        folder: the run's.
        episodes: how many.
        checkpoint: its step; None: the newest.
        epsilon: share of random actions; None: that of the job's evaluations.
        seed: of all that is random; None: the job's.
        output: the video, ``.gif`` or ``.mp4``; None: ``figures/play-STEP.gif`` in the run's folder, or for a run that
            is not on this machine ``RUN-play-STEP.gif`` here.
        tell: told of each episode that ended, with its number from 0.

    Raises:
        InputError: the run is none of reinforcement learning, or has no such checkpoint or a damaged one; the video
            cannot be written to ``output``; a number is out of range; the environment cannot be made.
        RunError: the environment failed, or the disk.
    """
    job = _reinforcement_job(folder)
    epsilon = job.evaluation.epsilon if epsilon is None else epsilon
    seed = job.seed if seed is None else seed
    _check_numbers(episodes, epsilon, seed)
    if output is not None:
        check_video(output, _rate(job.environment, output))
    store = folder.checkpoints()
    steps = store.steps()
    if not steps:
        raise InputError(Problem("the run has no checkpoint yet, so there is no agent to play", folder.storage.uri))
    step = steps[-1] if checkpoint is None else checkpoint
    saved = store.load(step)["learner"]["agent"]
    try:
        environment = job.environment.make(len(_LANE), lane_seeds(seed, _LANE, "play"), evaluation=True, render=True)
    except EnvironmentFailure as failure:
        raise InputError(str(failure)) from failure
    try:
        spec = environment.spec
        try:
            agent = build_agent(job, spec).eval()
        except ValueError as error:
            raise InputError(Problem(str(error), store.uri(step))) from None
        check_architecture(agent.state_dict(), saved, store.uri(step))
        agent.load_state_dict(saved)
        path = _default_output(folder, step) if output is None else output
        play = Play(
            agent,
            environment,
            seed=seed,
            epsilon=epsilon,
            episodes=episodes,
            max_steps=job.evaluation.max_steps,
            tell=tell,
        )
        moments = play.moments()
        title = f"{spec.name} after {step:,} steps"
        video = record(moments, path, spec.action_names, _rate(job.environment, path), title)
        for _ in moments:  # a gif may be full before the episodes are over, whose returns are asked for
            pass
    finally:
        environment.close()
    normalized = None
    if spec.reference is not None and not play.broken_off:
        normalized = tuple(spec.reference.normalized(episode.score) for episode in play.episodes)
    return Exhibition(step, epsilon, seed, tuple(play.episodes), play.broken_off, normalized, video)


def _reinforcement_job(folder: RunFolder) -> ReinforcementJob:
    from heliostat.config.reinforcement import ReinforcementJob

    job = folder.any_job()
    if not isinstance(job, ReinforcementJob):
        what = (
            f"this run trained {job.algorithm.type} on data, so there is nothing to play; name a run of reinforcement "
            "learning, whose job has an 'environment', or judge this one: heliostat evaluate"
        )
        raise InputError(Problem(what, folder.storage.uri))
    return job


def _check_numbers(episodes: int, epsilon: float, seed: int) -> None:
    problems = []
    if episodes < 1:
        problems.append(Problem(f"{episodes} episodes cannot be played; 1 or more", "--episodes"))
    if not 0 <= epsilon <= 1:
        problems.append(Problem(f"{epsilon} is no share of random actions; it is from 0 to 1", "--epsilon"))
    if seed < 0:
        problems.append(Problem(f"a seed is 0 or more, not {seed}", "--seed"))
    if problems:
        raise InputError(problems)


def _rate(environment: EnvironmentConfig, path: Path) -> float:
    """Steps shown in a second: the game's own speed where it has one, as far as the file's format can follow."""
    match environment:
        case AtariEnvironment():
            rate = _ATARI_RATE / environment.frame_skip
        case MinAtarEnvironment():
            rate = _MINATAR_RATE
        case _:
            rate = _OTHER_RATE
    return max(1.0, min(rate, GIF_RATE if path.suffix == ".gif" else math.inf))


def _default_output(folder: RunFolder, step: int) -> Path:
    if not folder.storage.local:
        return Path(f"{folder.name}-play-{step}.gif")
    folder.storage.make("figures")
    return Path(folder.storage.path(f"figures/play-{step}.gif"))
