"""DQN on Atari Pong against RLlib's and Stable-Baselines3's: environment steps played, and transitions trained, per
second.

All have the network of the 2015 paper, Adam, batches of 32, one update for every four steps, and four emulated frames
to a step without repeated actions, on two CPU cores. What differs is what each library brings along:

- RLlib 2.60 on its new API stack, with one rollout actor and the learner in the driver, as in its own example of DQN on
  Atari. Its frame stacking as a connector fails with a learner in the driver, and its networks take float32 with
  channels last: so its environments stack and scale the frames. It replays by priority, and so do we.
- Stable-Baselines3, in one process, replays uniformly.

Each plays once as its users do, with the Atari wrappers that it ships (Python and OpenCV), and once with ale-py's own
vectorised preprocessing, one lane, which is what we play with: the latter leaves only what the libraries themselves
cost. RLlib has one lane unless told; acting is measured with as many as ours, too. In training both may use one thread
of torch or two, whichever is faster here; our learner has two, since our rollout actor, which has one, waits most of
the time. All take turns of some seconds within one overlapped run of ours, whose coordinator waits while the others
have theirs. All ratios are medians over turns.
"""

from __future__ import annotations

import logging
import os
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import ray
import torch

from heliostat.config.loading import parse_any
from heliostat.config.reinforcement import ReinforcementJob
from heliostat.reinforcement.crew import Member, Resources
from heliostat.reinforcement.overlapped import Overlapped
from heliostat.reinforcement.ray_crew import RayCrew
from heliostat.reinforcement.rollout import RolloutWorker
from heliostat.reinforcement.session import Session
from heliostat.reinforcement.shard import ReplayShard
from heliostat.training.run_folder import RunFolder
from heliostat.training.runtime import SilentRuntime
from heliostat.training.storage import Storage

JOB = """
name: bench
algorithm: {type: dqn, prioritization: {}, epsilon: {type: constant, value: 1}}
environment: {type: atari, game: pong}
rollout: {environments: 8, calls: 8, broadcast_updates: 8}
replay: {capacity: 20000, minimum: 500, samples_per_insert: 8, prefetch: 16}
resources: {cpus_per_learner: 2}
optimization: {optimizer: {type: adam, learning_rate: 1.0e-4}, batch_size: 32, steps: 100000000}
evaluation: {episodes: 1, max_steps: 1}
"""
BATCH, TRAIN_EVERY, MINIMUM, CAPACITY = 32, 4, 500, 5_000
LANES = 8
"""Of ours in training."""
ACTING_LANES = 32
"""Of ours where nothing but playing is timed."""
OWN, SAME = "its own Atari wrappers", "our emulator"
ENVIRONMENTS = (OWN, SAME)
"""What a peer plays: see above."""
SETTLED_UPDATES = 1500
"""Before the first turn in training, ours and Stable-Baselines3's. By then the moments of weights that get no gradients
are so small that processors are slow with them, as for the rest of a run. RLlib, which would take minutes for as many,
has its turns without."""
SETTLING_SECONDS = 1.0
"""How long our run goes on after a wait before its turn is timed, so that nothing made while it waited is counted."""


def rows(quick: bool = False) -> list[dict[str, Any]]:
    """Playing and training."""
    warnings.filterwarnings("ignore")
    for name in ("ray", "ray.rllib"):
        logging.getLogger(name).setLevel(logging.ERROR)
    cores, threads = os.sched_getaffinity(0), torch.get_num_threads()
    os.sched_setaffinity(0, sorted(cores)[:2])  # actors inherit it
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import this file by name
    # Seven by name, since RLlib's actors wait while ours work and the other way round.
    ray.init(num_cpus=7, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    peers = {name: Rllib(name) for name in ENVIRONMENTS}
    wide = {name: Rllib(name, ACTING_LANES) for name in ENVIRONMENTS}
    try:
        rounds = 2 if quick else 9
        measured = [_acting(name, rllib, rounds) for group in (peers, wide) for name, rllib in group.items()]
        measured.append(_acting_in_process(rounds))
        for rllib in wide.values():
            rllib.close()
        if quick:
            return measured + _training(peers, turns=1, seconds=3, settled=0)
        return measured + _training(peers, turns=4, seconds=6, settled=SETTLED_UPDATES)
    finally:
        for rllib in peers.values():
            rllib.close()
        ray.shutdown()
        os.sched_setaffinity(0, cores)
        torch.set_num_threads(threads)


def _row(name: str, unit: str, ours: list[float], other: list[float]) -> dict[str, Any]:
    return {
        "name": name,
        "ours": statistics.median(ours),
        "other": statistics.median(other),
        "ratio": statistics.median(a / b for a, b in zip(ours, other, strict=True)),
        "unit": unit,
        "higher_is_better": True,
    }


class Pong(gym.Env[np.ndarray[Any, Any], np.int64]):
    """One lane of ale-py's vector environment: stacks of four frames, rewards clipped.

    Args:
        scaled: float32 from -1 to 1 with channels last, as RLlib's networks take them; otherwise bytes, channels first.
    """

    def __init__(self, scaled: bool) -> None:
        from ale_py.vector_env import AtariVectorEnv

        self._emulator = AtariVectorEnv("pong", 1, num_threads=1, repeat_action_probability=0.0, use_fire_reset=False)
        self._scaled = scaled
        box = gym.spaces.Box
        self.observation_space = box(-1, 1, (84, 84, 4), np.float32) if scaled else box(0, 255, (4, 84, 84), np.uint8)
        self.action_space = gym.spaces.Discrete(len(self._emulator.ale.get_action_set()))

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray[Any, Any], dict[str, Any]]:
        """Begin an episode."""
        return self._seen(self._emulator.reset(seed=seed)[0]), {}

    def step(self, action: np.int64) -> tuple[np.ndarray[Any, Any], float, bool, bool, dict[str, Any]]:
        """Act for four frames of the emulator."""
        stacks, reward, terminated, truncated, _ = self._emulator.step(np.array([action]))
        return self._seen(stacks), float(reward[0]), bool(terminated[0]), bool(truncated[0]), {}

    def _seen(self, stacks: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        seen: np.ndarray[Any, Any] = stacks[0]
        return seen.transpose(1, 2, 0).astype(np.float32) / 128 - 1 if self._scaled else seen


def _rllib_pong(_: Any) -> gym.Env[Any, Any]:
    """Pong as RLlib's own Atari wrappers make it."""
    import ale_py
    from ray.rllib.env.wrappers.atari_wrappers import wrap_atari_for_new_api_stack

    gym.register_envs(ale_py)
    bare = gym.make("ALE/Pong-v5", frameskip=1, repeat_action_probability=0.0)
    wrapped: gym.Env[Any, Any] = wrap_atari_for_new_api_stack(bare, dim=84, framestack=4)
    return wrapped


def _sb3_pong() -> Any:
    """Pong as Stable-Baselines3's own Atari wrappers make it."""
    import ale_py
    from stable_baselines3.common.env_util import make_atari_env
    from stable_baselines3.common.vec_env import VecFrameStack

    gym.register_envs(ale_py)
    bare = {"frameskip": 1, "repeat_action_probability": 0.0}
    return VecFrameStack(make_atari_env("ALE/Pong-v5", n_envs=1, env_kwargs=bare), 4)


def _rllib(lanes: int, runners: int, environment: str) -> Any:
    """RLlib's DQN without the additions that are on by default."""
    from ray.rllib.algorithms.dqn import DQNConfig
    from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig
    from ray.tune.registry import register_env

    make: Callable[[Any], gym.Env[Any, Any]] = {OWN: _rllib_pong, SAME: lambda _: Pong(scaled=True)}[environment]
    register_env(f"bench-pong-{environment}", make)
    layers = [(32, 8, 4, "valid"), (64, 4, 2, "valid"), (64, 3, 1, "valid")]
    config = DQNConfig()
    config.environment(f"bench-pong-{environment}")
    config.env_runners(
        num_env_runners=runners, num_envs_per_env_runner=lanes, rollout_fragment_length=TRAIN_EVERY, explore=True
    )
    config.learners(num_learners=0)
    config.training(
        lr=1e-4,
        train_batch_size=BATCH,
        num_steps_sampled_before_learning_starts=MINIMUM,
        target_network_update_freq=10_000,
        replay_buffer_config={
            "type": "PrioritizedEpisodeReplayBuffer",
            "capacity": CAPACITY,
            "alpha": 0.6,
            "beta": 0.4,
        },
        double_q=False,
        dueling=False,
        epsilon=1.0,
        grad_clip=None,
    )
    config.reporting(min_sample_timesteps_per_iteration=40, min_time_s_per_iteration=0)
    config.rl_module(
        model_config=DefaultModelConfig(
            conv_filters=layers, conv_activation="relu", fcnet_hiddens=[], head_fcnet_hiddens=[512]
        )
    )
    return config


class Rllib:
    """RLlib's DQN, which plays and trains in turns; with several lanes it plays alone."""

    def __init__(self, environment: str, lanes: int = 1) -> None:
        self.lanes = lanes
        config = _rllib(lanes=lanes, runners=1, environment=environment)
        if lanes > 1:  # which are too quick to be timed before they are to train
            config.training(num_steps_sampled_before_learning_starts=1_000_000)
        self._algorithm = config.build_algo()
        self._played = 0.0

    def play(self) -> float:
        """One of its iterations, of about 40 steps or 4 of each lane; how many. Until ``MINIMUM`` are played, it does
        not train."""
        before = self._played
        self._played = float(self._algorithm.train()["env_runners"]["num_env_steps_sampled_lifetime"])
        return self._played - before

    def _trained(self) -> float:
        learned = self._algorithm.train().get("learners", {}).get("default_policy", {})
        return float(learned.get("num_module_steps_trained_lifetime", 0))

    def turn(self, seconds: float) -> float:
        """Transitions trained per second."""
        while not (before := self._trained()):
            pass
        start, after = time.perf_counter(), before
        while time.perf_counter() - start < seconds:
            after = self._trained()
        return (after - before) / (time.perf_counter() - start)

    def close(self) -> None:
        """Stop its actors."""
        self._algorithm.stop()


def _job(lanes: int = LANES) -> ReinforcementJob:
    job = parse_any(JOB, "bench.yaml", [f"rollout.environments={lanes}"])
    assert isinstance(job, ReinforcementJob)
    return job


# Acting


def _acting(environment: str, rllib: Rllib, rounds: int) -> dict[str, Any]:
    """Playing and storing what was played, with one rollout actor."""
    ours, theirs = [], []
    with tempfile.TemporaryDirectory() as folder:
        crew = RayCrew()
        play = _play_over_ray(crew, folder)
        try:
            for number in range(-1, rounds):
                start = time.perf_counter()
                steps = play()
                middle = time.perf_counter()
                their_steps = rllib.play()
                if number >= 0:
                    ours.append(steps / (middle - start))
                    theirs.append(their_steps / (time.perf_counter() - middle))
        finally:
            crew.close()
    label = f"acting on Pong, one rollout actor, {ACTING_LANES} lanes, and storing; RLlib's DQN before it trains,"
    return _row(f"{label} lanes: {rllib.lanes}, {environment}", "steps/s", ours, theirs)


def _play_over_ray(crew: RayCrew, folder: str) -> Callable[[], int]:
    """A rollout actor and a shard; playing goes on while the shard stores."""
    job, player, shard, lanes = _job(ACTING_LANES), Member("rollout", 0, 0), Member("shard", 0, 0), range(ACTING_LANES)
    spec = job.environment.spec()
    crew.hire(player, partial(RolloutWorker, job, spec, lanes), Resources(cpus=1))
    crew.hire(shard, partial(ReplayShard, job, spec, 0, Storage(folder)), Resources(cpus=0))

    def play() -> int:
        reports, stored = [], []
        for _ in range(16):
            report, steps = crew.ask(player, "play", None, 0, returns=2)
            reports.append(report)
            stored.append(crew.ask(shard, "insert", steps, lanes))
        for future in stored:
            crew.get(future)
        return sum(crew.get(report).steps for report in reports)

    return play


def _acting_in_process(rounds: int) -> dict[str, Any]:
    """The two workers themselves, with one thread and equally many lanes."""
    from ray.rllib.env.single_agent_env_runner import SingleAgentEnvRunner

    torch.set_num_threads(1)
    job = _job()
    worker = RolloutWorker(job, job.environment.spec(), range(LANES))
    runner = SingleAgentEnvRunner(config=_rllib(LANES, 0, SAME))
    ours, theirs = [], []
    for number in range(-1, rounds):
        start = time.perf_counter()
        for _ in range(8):
            worker.play(None, 0)
        middle = time.perf_counter()
        runner.sample(num_timesteps=64)
        if number >= 0:
            ours.append(8 * LANES * job.rollout.calls / (middle - start))
            theirs.append(64 / (time.perf_counter() - middle))
    worker.close()
    runner.stop()
    label = f"acting on 8 lanes of Pong, the worker alone; RLlib's DQN runner alone, {SAME}"
    return _row(label, "steps/s", ours, theirs)


# Training


class StableBaselines:
    """Stable-Baselines3's DQN, trained for some seconds at a time."""

    def __init__(self, environment: str, settled: int) -> None:
        from stable_baselines3 import DQN

        self._model = DQN(
            "CnnPolicy",
            _sb3_pong() if environment == OWN else Pong(scaled=False),
            learning_rate=1e-4,
            buffer_size=CAPACITY,
            learning_starts=MINIMUM,
            batch_size=BATCH,
            train_freq=TRAIN_EVERY,
            gradient_steps=1,
            target_update_interval=10_000,
            exploration_initial_eps=1.0,
            exploration_final_eps=1.0,
            device="cpu",
        )
        self._learn(MINIMUM + 20 + settled * TRAIN_EVERY)

    def _learn(self, steps: int) -> None:
        self._model.learn(steps, log_interval=None, reset_num_timesteps=False)

    def turn(self, seconds: float) -> float:
        """Transitions trained per second."""
        start, before = time.perf_counter(), self._model._n_updates
        while time.perf_counter() - start < seconds:
            self._learn(40)
        return (self._model._n_updates - before) * BATCH / (time.perf_counter() - start)


class Turns(SilentRuntime):
    """Times our run for a turn, then lets it wait while the others have theirs. The run asks every half second whether
    it is to stop.

    Args:
        peers: a turn of each of the others, of so many seconds, which gives the transitions trained per second.
        turns: how many.
        seconds: length of a turn.
        settled: updates of our run before its first turn.
    """

    session: Session

    def __init__(self, peers: dict[str, Callable[[float], float]], turns: int, seconds: float, settled: int) -> None:
        super().__init__(torch.device("cpu"))
        self._peers, self._turns, self._seconds, self._settled = peers, turns, seconds, settled
        self._threads = {name: [1, 2] for name in peers}
        self.rates: dict[str, list[float]] = {name: [] for name in ("ours", *peers)}
        self._resumed: float | None = None
        self._mark: tuple[float, int] | None = None

    def stop_requested(self) -> bool:
        """True after the last turn."""
        now, updates = time.perf_counter(), self.session.updates
        if self._mark is None:
            if updates > self._settled and self._resumed is None:
                self._resumed = now
            if self._resumed is not None and now - self._resumed >= SETTLING_SECONDS:
                self._mark = (now, updates)
            return False
        if now - self._mark[0] < self._seconds:
            return False
        self.rates["ours"].append((updates - self._mark[1]) * BATCH / (now - self._mark[0]))
        for name, turn in self._peers.items():
            self.rates[name].append(self._best(name, turn))
        self._mark, self._resumed = None, time.perf_counter()
        return len(self.rates["ours"]) == self._turns

    def _best(self, name: str, turn: Callable[[float], float]) -> float:
        """In the first turn with one thread and with two; later with what was faster."""
        found = {}
        for threads in self._threads[name]:
            torch.set_num_threads(threads)
            found[threads] = turn(self._seconds)
        best = max(found, key=lambda threads: found[threads])
        self._threads[name] = [best]
        return found[best]


def _training(rllib: Mapping[str, Rllib], turns: int, seconds: float, settled: int) -> list[dict[str, Any]]:
    job, crew = _job(), RayCrew()
    peers = {f"RLlib, {name}": peer.turn for name, peer in rllib.items()}
    peers |= {f"Stable-Baselines3, {name}": StableBaselines(name, settled).turn for name in ENVIRONMENTS}
    runtime = Turns(peers, turns, seconds, settled)
    try:
        with tempfile.TemporaryDirectory() as folder:
            runtime.session = Session(job, job.environment.spec(), RunFolder(folder), runtime, crew)
            runtime.session.begin()
            Overlapped(runtime.session).run()
    finally:
        crew.close()
    rates = runtime.rates
    label = "training DQN on Pong, batch 32, 8 samples per step, 2 cores;"
    return [_row(f"{label} {name}", "transitions/s", rates["ours"], rates[name]) for name in peers]


if __name__ == "__main__":
    for row in rows():
        print(f"{row['name']}: {row['ours']:,.4g} against {row['other']:,.4g} {row['unit']}, {row['ratio']:.2f}")
