"""The parts of a DQN run against bare code that does the same: learning and acting; and replay in 1, 2 and 4 shards.

Both sides have the same network, optimiser class and number of threads, and take turns in one process, so that what
disturbs the machine disturbs both; ratios are medians of the ratios of neighbouring turns. The bare code is what one
would type into one file: an update without priorities, metrics and checks, and a loop that plays without keeping what
it saw. Shards are actors of Ray that are fed and asked in turn too.
"""

from __future__ import annotations

import copy
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heliostat.config.loading import parse_any
from heliostat.config.reinforcement import ReinforcementJob
from heliostat.reinforcement.crew import Member, Resources
from heliostat.reinforcement.environments.spec import EnvironmentSpec
from heliostat.reinforcement.learner import Learner, Shares
from heliostat.reinforcement.rollout import RolloutWorker
from heliostat.reinforcement.shard import ReplayShard, Sampled
from heliostat.training.denormals import flushed_denormals
from heliostat.training.storage import Storage
from heliostat_algorithms.reinforcement.replay import ReplayBatch, Steps, allocate, stratified

Rates: TypeAlias = tuple[float, float | None, float | None]
"""Units of work per second of ours and the other, and the ratio; None where there is no other."""
PONG = """
name: bench
algorithm: {type: dqn, epsilon: {type: constant, value: 0}}
environment: {type: atari, game: pong}
rollout: {environments: 8, calls: 16}
replay: {capacity: 20000, minimum: 1000, samples_per_insert: 8}
optimization: {optimizer: {type: adam, learning_rate: 1.0e-4}, batch_size: 32, steps: 1000000}
"""
CARTPOLE = """
name: bench
algorithm: {type: dqn, network: {type: mlp, hidden_units: [256, 256]}, reward_clip: null}
environment: {type: gymnasium, id: CartPole-v1}
rollout: {environments: 8, calls: 32}
replay: {capacity: 20000, minimum: 1000, samples_per_insert: 32}
optimization: {optimizer: {type: adam, learning_rate: 2.3e-3}, batch_size: 64, steps: 1000000}
"""
GROUP = 2
"""Updates that a learner is asked for at once, as with the default of ``replay.prefetch``."""
SHARDS = (1, 2, 4)


def rows(quick: bool = False) -> list[dict[str, Any]]:
    """The measures of learning, acting and sharding."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # what an actor of one CPU has
    try:
        measured = [
            _row(
                "learner, Nature network, Adam, 32 x 4 x 84 x 84; a bare PyTorch update",
                "updates/s",
                _learning(PONG, rounds=3 if quick else 60),
            ),
            _row(
                "learner, Nature network, centred RMSProp, 32 x 4 x 84 x 84; a bare PyTorch update",
                "updates/s",
                _learning(PONG.replace("type: adam", "type: rmsprop"), rounds=3 if quick else 60),
            ),
            _row(
                "learner, MLP of 256 x 256 for CartPole, Adam, batch 64; a bare PyTorch update",
                "updates/s",
                _learning(CARTPOLE, rounds=20 if quick else 2500),
            ),
            _row(
                "acting, 8 lanes of Pong, Nature network; bare AtariVectorEnv and a forward pass",
                "steps/s",
                _acting(rounds=3 if quick else 60),
            ),
        ]
    finally:
        torch.set_num_threads(threads)
    return measured + _sharding(rounds=2 if quick else 25)


def _row(name: str, unit: str, rates: Rates) -> dict[str, Any]:
    ours, other, ratio = rates
    return {"name": name, "ours": ours, "other": other, "ratio": ratio, "unit": unit, "higher_is_better": True}


def _in_turn(works: Sequence[Callable[[int], object]], rounds: int) -> list[list[float]]:
    """Seconds of each work in each round, after three rounds of warm-up; every other round in the opposite order."""
    seconds: list[list[float]] = [[] for _ in works]
    for number in range(-3, rounds):
        order = range(len(works)) if number % 2 else reversed(range(len(works)))
        for which in order:
            start = time.perf_counter()
            works[which](number)
            if number >= 0:
                seconds[which].append(time.perf_counter() - start)
    return seconds


def _rates(ours: Callable[[int], object], other: Callable[[int], object], size: int, rounds: int) -> Rates:
    """Of two works of ``size`` units each."""
    first, second = _in_turn([ours, other], rounds)
    ratio = statistics.median(b / a for a, b in zip(first, second, strict=True))
    return size / statistics.median(first), size / statistics.median(second), ratio


# Learning


def _learning(text: str, rounds: int) -> Rates:
    job, spec = _job(text)
    learner = Learner(job, spec)
    pool = [_sampled(spec, job.optimization.batch_size, seed) for seed in range(4)]
    shares = Shares(mass=(1.0,), items=10_000)

    @flushed_denormals()  # as in a run
    def ours(step: int) -> None:
        learner.update(1, GROUP, 0.0, shares, pool[step % len(pool)])

    return _rates(ours, _bare_update(learner, spec, pool), GROUP, rounds)


def _bare_update(learner: Learner, spec: EnvironmentSpec, pool: list[Sampled]) -> Callable[[int], None]:
    """As many updates by hand, of the same batches, which are numpy's there too."""
    network = _network(spec)
    target = copy.deepcopy(network)
    theirs = learner.optimizer
    chosen = {k: v for k, v in theirs.defaults.items() if k in ("lr", "betas", "eps", "fused", "decay", "centered")}
    optimizer = type(theirs)(network.parameters(), **chosen)
    batches = [
        [
            [array[part] for array in (b.observation, b.action, b.reward, b.bootstrap, b.next_observation)]
            for part in np.split(np.arange(len(b)), GROUP)
        ]
        for b in (sampled.batch for sampled in pool)
        if b is not None
    ]

    def update(step: int) -> None:
        for arrays in batches[step % len(batches)]:
            observation, action, reward, bootstrap, following = map(torch.from_numpy, arrays)
            with torch.no_grad():
                best = reward + bootstrap * target(_scaled(following)).max(dim=1).values
            value = network(_scaled(observation)).gather(1, action[:, None])[:, 0]
            loss = F.smooth_l1_loss(value, best)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()

    return update


def _network(spec: EnvironmentSpec) -> nn.Sequential:
    """The job's network, as one would write it."""
    if len(spec.observation_shape) == 1:
        layers: list[nn.Module] = [nn.Linear(spec.observation_shape[0], 256), nn.ReLU(inplace=True)]
        layers += [nn.Linear(256, 256), nn.ReLU(inplace=True), nn.Linear(256, spec.actions)]
        return nn.Sequential(*layers)
    layers = [nn.Conv2d(spec.observation_shape[0], 32, 8, 4), nn.ReLU(inplace=True)]
    layers += [nn.Conv2d(32, 64, 4, 2), nn.ReLU(inplace=True), nn.Conv2d(64, 64, 3, 1), nn.ReLU(inplace=True)]
    layers += [nn.Flatten(), nn.Linear(64 * 7 * 7, 512), nn.ReLU(inplace=True), nn.Linear(512, spec.actions)]
    return nn.Sequential(*layers)


def _scaled(observation: Tensor) -> Tensor:
    return observation.float().div_(255) if observation.dtype == torch.uint8 else observation


def _sampled(spec: EnvironmentSpec, batch: int, seed: int) -> Sampled:
    """What a shard hands out for a group of updates; noise, since the time of an update does not depend on it."""
    rng, count = np.random.default_rng(seed), batch * GROUP
    items = ReplayBatch(
        observation=_noise(spec, count, rng),
        action=rng.integers(0, spec.actions, count),
        reward=rng.normal(size=count).astype(np.float32),
        bootstrap=np.full(count, 0.99, np.float32),
        next_observation=_noise(spec, count, rng),
        priority_mass=np.ones(count),
        slot=np.arange(count),
        generation=np.zeros(count, np.int64),
        age=np.zeros(count, np.int64),
    )
    return Sampled(items, (batch,) * GROUP, float(count), 0.0)


def _noise(spec: EnvironmentSpec, count: int, rng: np.random.Generator) -> npt.NDArray[Any]:
    shape = (count, *spec.observation_shape)
    if spec.frame_dtype == np.uint8:
        return rng.integers(0, 256, shape, dtype=np.uint8)
    return rng.normal(size=shape).astype(spec.frame_dtype)


def _job(text: str) -> tuple[ReinforcementJob, EnvironmentSpec]:
    job = parse_any(text, "bench.yaml")
    assert isinstance(job, ReinforcementJob)
    return job, job.environment.spec()


# Acting


def _acting(rounds: int) -> Rates:
    job, spec = _job(PONG)
    lanes, calls = job.rollout.environments, job.rollout.calls
    worker = RolloutWorker(job, spec, range(lanes))
    try:
        bare = _bare_acting(spec, lanes, calls)
        return _rates(lambda _: worker.play(None, 0), bare, lanes * calls, rounds)
    finally:
        worker.close()


def _bare_acting(spec: EnvironmentSpec, lanes: int, calls: int) -> Callable[[int], None]:
    """Greedy play without memory; the emulator stacks the frames."""
    from ale_py.vector_env import AtariVectorEnv

    emulator = AtariVectorEnv(
        "pong", lanes, num_threads=1, repeat_action_probability=0.0, reward_clipping=False, use_fire_reset=False
    )
    network = _network(spec)
    seen: npt.NDArray[np.uint8] = emulator.reset(seed=0)[0]

    def play(_: int) -> None:
        nonlocal seen
        for _ in range(calls):
            with torch.no_grad():
                action = network(_scaled(torch.from_numpy(seen))).argmax(dim=1)
            seen = emulator.step(action.numpy())[0]

    return play


# Shards


def _sharding(rounds: int) -> list[dict[str, Any]]:
    """A round: 128 steps of play are put in, and 1,024 transitions drawn in batches of 32, as with 8 samples per
    insert. What is drawn stays in the object store, where learners would fetch it."""
    import ray

    from heliostat.reinforcement.ray_crew import RayCrew
    from heliostat.training.ray_cluster import connect

    job, spec = _job(PONG.replace("{type: dqn,", "{type: dqn, prioritization: {},"))
    connect(0, 0, "the shards")
    crews = [RayCrew() for _ in SHARDS]
    try:
        with tempfile.TemporaryDirectory() as folder:
            works = [_shard_round(crew, job, spec, n, folder) for crew, n in zip(crews, SHARDS, strict=True)]
            for work in works:  # something to draw from
                for number in range(16):
                    work(number)
            seconds = _in_turn(works, rounds)
    finally:
        for crew in crews:
            crew.close()
        ray.shutdown()
    rates = [1024 / statistics.median(mine) for mine in seconds]
    label = "replay of Pong, 1,024 stacks out and 128 steps in;"
    found = [_row(f"{label} one shard as a Ray actor", "transitions/s", (rates[0], None, None))]
    return found + [
        _row(
            f"{label} {count} shards over one",
            "transitions/s",
            (rate, rates[0], statistics.median(b / a for a, b in zip(mine, seconds[0], strict=True))),
        )
        for count, rate, mine in zip(SHARDS[1:], rates[1:], seconds[1:], strict=True)
    ]


def _shard_round(
    crew: Any, job: ReinforcementJob, spec: EnvironmentSpec, count: int, folder: str
) -> Callable[[int], None]:
    resources = job.resources.model_copy(update={"shards": count})
    job = job.model_copy(update={"resources": resources})
    members = [Member("shard", number, 0) for number in range(count)]
    for member in members:
        crew.hire(member, partial(ReplayShard, job, spec, member.index, Storage(folder)), Resources(cpus=0))
    lanes = range(job.rollout.environments)
    parts = [crew.share(_steps(spec, len(lanes) // count)) for _ in members]
    rng = np.random.default_rng(0)

    def work(_: int) -> None:
        stored = [crew.ask(member, "insert", part, lanes) for member, part in zip(members, parts, strict=True)]
        stands = [crew.get(future) for future in stored]
        if sum(stand.items for stand in stands) < 32:
            return
        points = allocate([stand.mass for stand in stands], stratified(rng.random(1024)))
        drawn = [crew.ask(m, "sample", p, (len(p),)) for m, p in zip(members, points, strict=True)]
        while drawn:
            done = crew.ready(drawn, 10.0)
            drawn = [future for future in drawn if future not in done]

    return work


def _steps(spec: EnvironmentSpec, lanes: int) -> Steps:
    """16 calls of play that goes on and on."""
    shape = (16, lanes)
    rng = np.random.default_rng(0)
    no = np.zeros(shape, np.bool_)
    return Steps(
        frame=rng.integers(0, 256, (*shape, *spec.frame_shape), dtype=np.uint8),
        action=np.zeros(shape, np.int64),
        reward=np.ones(shape, np.float32),
        terminated=no,
        truncated=no,
        life_lost=no,
        acted=~no,
        start=no,
    )


if __name__ == "__main__":
    for row in rows():
        against = "" if row["ratio"] is None else f" against {row['other']:,.4g}, {row['ratio']:.3f} times"
        print(f"{row['name']}: {row['ours']:,.4g} {row['unit']}{against}")
