"""Replay: sampling and new priorities against RLlib's buffer, bytes of a transition, and stacks of Atari frames.

Both buffers hold the same 50,000 items of four numbers, with random priorities. A round is one batch of 512 drawn by
priority, with weights, and new priorities for it. Rounds alternate in one process, so that a busy machine slows both
alike; the ratio is the median of the ratios of neighbouring rounds. Stacks of frames are measured against a bare copy
of as many bytes.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
from ray.rllib.env.single_agent_episode import SingleAgentEpisode
from ray.rllib.utils.replay_buffers import PrioritizedEpisodeReplayBuffer

from heliostat_algorithms.reinforcement.replay import (
    Prioritization,
    ReplayBuffer,
    Steps,
    importance_weights,
    stratified,
)

BATCH, LENGTH = 512, 500
"""Items of a batch, and actions of an episode."""


def rows(quick: bool = False) -> list[dict[str, Any]]:
    """The three measures."""
    return [
        _against_rllib(items=5_000 if quick else 50_000, rounds=3 if quick else 25),
        _bytes_of_a_transition(),
        _stacks(slots=2_000 if quick else 20_000, rounds=9 if quick else 199),
    ]


def _against_rllib(items: int, rounds: int) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    frames = rng.normal(size=(items // LENGTH, LENGTH + 1, 4)).astype(np.float32)
    ours, other = _our_buffer(frames), _their_buffer(frames)
    assert ours.size == other.get_num_timesteps() == items
    priorities = rng.exponential(size=(rounds + 1, BATCH)) + 0.01

    def our_round(step: int) -> None:
        batch = ours.sample(stratified(rng.random(BATCH)))
        importance_weights(batch.priority_mass / ours.mass, ours.size, 0.4)
        ours.update_priorities(batch.slot, batch.generation, priorities[step])

    def their_round(step: int) -> None:
        other.sample(num_items=BATCH, n_step=1, beta=0.4, gamma=0.99)
        other.update_priorities(priorities[step])

    our_seconds, their_seconds = [], []
    for step in range(rounds + 1):
        our_seconds.append(_seconds(lambda step=step: our_round(step)))  # type: ignore[misc]
        their_seconds.append(_seconds(lambda step=step: their_round(step)))  # type: ignore[misc]
    pairs = list(zip(our_seconds[1:], their_seconds[1:], strict=True))  # the first is a warm-up
    return {
        "name": f"replay, sample and update {BATCH} of {items} prioritised items; RLlib",
        "ours": statistics.median(ours for ours, _ in pairs) * 1e3,
        "other": statistics.median(other for _, other in pairs) * 1e3,
        "ratio": statistics.median(other / ours for ours, other in pairs),
        "unit": "ms; ratio: times as fast",
        "higher_is_better": False,
    }


def _our_buffer(frames: np.ndarray[Any, np.dtype[np.float32]]) -> ReplayBuffer:
    """One lane for each episode, all truncated at their end."""
    episodes, slots = frames.shape[:2]
    buffer = ReplayBuffer(
        capacity=episodes * slots,
        lanes=episodes,
        frame_shape=(4,),
        frame_dtype=np.dtype(np.float32),
        prioritization=Prioritization(),
    )
    buffer.insert(_steps(np.moveaxis(frames, 0, 1), last=True), range(episodes))
    return buffer


def _their_buffer(frames: np.ndarray[Any, np.dtype[np.float32]]) -> PrioritizedEpisodeReplayBuffer:
    buffer = PrioritizedEpisodeReplayBuffer(capacity=frames.shape[0] * LENGTH, alpha=0.6)
    for observations in frames:
        episode = SingleAgentEpisode(
            observations=list(observations),
            observation_space=gym.spaces.Box(-np.inf, np.inf, (4,), np.float32),
            actions=[0] * LENGTH,
            action_space=gym.spaces.Discrete(2),
            rewards=[1.0] * LENGTH,
            truncated=True,
            len_lookback_buffer=0,
        )
        buffer.add(episode.to_numpy())
    return buffer


def _bytes_of_a_transition() -> dict[str, Any]:
    slots = 100_000
    buffer = _atari_buffer(slots)
    return {
        "name": "replay, a stored transition of 84 x 84, priorities and all; its frame alone",
        "ours": buffer.nbytes / slots,
        "other": 84 * 84,
        "ratio": buffer.nbytes / slots / (84 * 84),
        "unit": "bytes",
        "higher_is_better": False,
    }


def _stacks(slots: int, rounds: int) -> dict[str, Any]:
    batch, lanes = 32, 8
    buffer, rng = _atari_buffer(slots), np.random.default_rng(0)
    frames = rng.integers(0, 256, (slots // lanes, lanes, 84, 84), dtype=np.uint8)
    buffer.insert(_steps(frames), range(lanes))
    flat = frames.reshape(-1, 84, 84)
    places = rng.integers(0, len(flat) - 8 * batch, rounds + 1)
    ours, bare = [], []
    for step in range(rounds + 1):
        points = stratified(rng.random(batch))
        ours.append(_seconds(lambda points=points: buffer.sample(points)))  # type: ignore[misc]
        # Two stacks of four frames for each item.
        bare.append(_seconds(lambda at=places[step]: flat[at : at + 8 * batch].copy()))  # type: ignore[misc]
    pairs = list(zip(ours[1:], bare[1:], strict=True))
    return {
        "name": f"replay, {batch} prioritised items of 4 x 84 x 84: sampling over a bare copy of as many bytes",
        "ours": batch / statistics.median(seconds for seconds, _ in pairs),
        "other": batch / statistics.median(seconds for _, seconds in pairs),
        "ratio": statistics.median(other / seconds for seconds, other in pairs),
        "unit": "items/s",
        "higher_is_better": True,
    }


def _atari_buffer(slots: int) -> ReplayBuffer:
    return ReplayBuffer(
        capacity=slots,
        lanes=8,
        frame_shape=(84, 84),
        frame_dtype=np.dtype(np.uint8),
        stack=4,
        n_step=3,
        prioritization=Prioritization(),
    )


def _steps(frames: np.ndarray[Any, Any], last: bool = False) -> Steps:
    """Episodes without an end, or cut off one action before the last frame. Frames are (T, E, ...)."""
    shape = frames.shape[:2]
    start, ended, acted = (np.full(shape, value, np.bool_) for value in (False, False, True))
    start[0] = True
    if last:
        ended[-2], acted[-1] = True, False
    return Steps(
        frame=frames,
        action=np.zeros(shape, np.int64),
        reward=np.ones(shape, np.float32),
        terminated=np.zeros(shape, np.bool_),
        truncated=ended,
        life_lost=np.zeros(shape, np.bool_),
        acted=acted,
        start=start,
    )


def _seconds(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


if __name__ == "__main__":
    for row in rows():
        print(f"{row['name']}: {row['ours']:,.4g} against {row['other']:,.4g} {row['unit']}, {row['ratio']:.2f}")
