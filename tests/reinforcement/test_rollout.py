"""Rollouts play what single environments would, and mark, cut and rate it as the replay expects."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

import gymnasium
import numpy as np
import numpy.typing as npt
import pytest
import torch

from heliostat.config.reinforcement import ReinforcementJob
from heliostat.reinforcement.agent import build_agent
from heliostat.reinforcement.environments import EnvironmentFailure, EnvironmentSpec, Played
from heliostat.reinforcement.environments.config import Environment
from heliostat.reinforcement.environments.seeding import episode_seed
from heliostat.reinforcement.rollout import Episode, RolloutReport, RolloutWorker, lane_seeds
from heliostat.reinforcement.shard import ReplayShard
from heliostat.training.storage import Storage
from heliostat_algorithms.randomness import Random
from heliostat_algorithms.reinforcement.dqn import DQN
from heliostat_algorithms.reinforcement.replay.steps import Steps

MakeJob = Callable[..., ReinforcementJob]
Row = dict[str, Any]


# A world of which every event is a function of seed, episode, step and action


class World:
    """Episodes of 2 to 9 steps that terminate, are cut off, or lose lives on the way."""

    def __init__(self, seed: int) -> None:
        self.seed, self.episode = seed, -1

    def reset(self) -> list[float]:
        self.episode += 1
        self.step_number = 0
        self.dice = np.random.default_rng([self.seed, self.episode])
        self.length, self.kind = int(self.dice.integers(2, 10)), int(self.dice.integers(2))
        return self.seen(0)

    def seen(self, action: int) -> list[float]:
        return [self.seed % 97 / 97 + self.episode, self.step_number / 10 + action, float(self.dice.normal())]

    def step(self, action: int) -> tuple[list[float], float, bool, bool, bool]:
        """Frame, reward, terminated, truncated, life lost."""
        self.step_number += 1
        over = self.step_number == self.length
        reward = float(self.dice.normal()) * 2 + action
        lost = not over and bool(self.dice.random() < 0.2)
        return self.seen(action), reward, over and self.kind == 0, over and self.kind == 1, lost


class Worlds:
    """Several worlds by the convention of vector environments."""

    def __init__(self, seeds: Sequence[int], breaks_at: int | None) -> None:
        self.worlds, self.count, self.spec = [World(seed) for seed in seeds], len(seeds), SPEC
        self.over, self.calls, self.breaks_at, self.closed = [False] * self.count, 0, breaks_at, False

    def reset(self, seeds: Sequence[int] | None = None) -> npt.NDArray[Any]:
        if seeds is not None:
            self.worlds = [World(seed) for seed in seeds]
        return np.array([world.reset() for world in self.worlds], np.float32)

    def step(self, actions: npt.NDArray[np.int64]) -> Played:
        assert actions.shape == (self.count,)
        assert actions.dtype == np.int64
        self.calls += 1
        if self.calls == self.breaks_at:
            raise EnvironmentFailure("worlds", "it broke", 0, int(actions[0]))
        rows = []
        for lane, (world, action) in enumerate(zip(self.worlds, actions.tolist(), strict=True)):
            if self.over[lane]:
                rows.append((world.reset(), 0.0, False, False, False, False))
                self.over[lane] = False
            else:
                rows.append((*world.step(action), True))
                self.over[lane] = rows[-1][2] or rows[-1][3]
        frame, reward, terminated, truncated, life_lost, acted = zip(*rows, strict=True)
        flags = [np.array(each, np.bool_) for each in (terminated, truncated, life_lost, acted)]
        return Played(np.array(frame, np.float32), np.array(reward), *flags)

    def render(self, lane: int) -> npt.NDArray[np.uint8]:
        raise AssertionError("nobody looks here")

    def close(self) -> None:
        self.closed = True


SPEC = EnvironmentSpec("worlds", (3,), np.dtype(np.float32), 2, 3, ("a", "b", "c"))


class WorldsEnvironment(Environment):
    """An entry of a job that makes them."""

    type: Literal["worlds"] = "worlds"
    breaks_at: int | None = None

    def make(
        self, count: int, seeds: Sequence[int], threads: int = 1, evaluation: bool = False, render: bool = False
    ) -> Worlds:
        assert len(seeds) == count
        return Worlds(seeds, self.breaks_at)


def worlds(small: MakeJob, *overrides: str, breaks_at: int | None = None) -> ReinforcementJob:
    """The small job in these worlds."""
    return small(*overrides).model_copy(update={"environment": WorldsEnvironment(breaks_at=breaks_at)})


# A naive player: one environment, one lane, lists


@dataclass
class Player:
    """Plays one lane of a job step by step, with nothing but the agent's network and the run's dice."""

    job: ReinforcementJob
    agent: DQN
    lane: int
    life: int = 0
    before: int = 0

    def stream(self, world: Any, stack: int, width: int) -> Iterator[Row]:
        """What each call adds to the stream of the lane; ``world`` has reset() and step(action)."""
        seen = [[0.0] * width] * (stack - 1) + [world.reset()]
        start, over, call = True, False, 0
        count = self.job.rollout.environments
        while True:
            observation = torch.tensor(seen[-stack:]).reshape(1, -1)
            dice = Random(self.job.seed, call, range(self.lane, self.lane + 1), scope=f"act/{self.life}/")
            with torch.no_grad():
                q = self.agent.q_values(observation)[0]
            explore, which = dice.uniform("explore", 2)[0].tolist()
            epsilon = float(self.job.algorithm.epsilon.at(self.before + call * count, range(count), count)[self.lane])
            action = int(which * len(q)) if explore < epsilon else int(q.argmax())
            row: Row = {
                "frame": seen[-1],
                "action": action,
                "start": start,
                "q": q.double().numpy(),
                "epsilon": epsilon,
            }
            if over:
                row |= {"reward": 0.0, "terminated": False, "truncated": False, "life_lost": False, "acted": False}
                seen, start, over = [[0.0] * width] * (stack - 1) + [world.reset()], True, False
            else:
                frame, reward, terminated, truncated, life_lost = world.step(action)
                row |= {"reward": reward, "terminated": terminated, "truncated": truncated, "life_lost": life_lost}
                row["acted"], start, over = True, False, terminated or truncated
                seen = [*seen, frame][-stack:]
            yield row
            call += 1


class CartPole:
    """gymnasium's own, cut off after 12 steps."""

    def __init__(self, seed: int) -> None:
        self.environment = gymnasium.make("CartPole-v1", max_episode_steps=12)
        self.seed, self.episode = seed, 0

    def reset(self) -> list[float]:
        observation, _ = self.environment.reset(seed=episode_seed(self.seed, self.episode))
        self.episode += 1
        return list(observation.tolist())

    def step(self, action: int) -> tuple[list[float], float, bool, bool, bool]:
        observation, reward, terminated, truncated, _ = self.environment.step(action)
        return list(observation.tolist()), float(reward), terminated, truncated and not terminated, False


def random_weights(job: ReinforcementJob, spec: EnvironmentSpec, number: int) -> dict[str, torch.Tensor]:
    """An acting state that prefers this or that action, whatever the job's own initial weights do."""
    state = build_agent(job, spec).acting_state()
    dice = torch.Generator().manual_seed(number)
    return {name: torch.randn(value.shape, generator=dice) for name, value in state.items()}


def played(worker: RolloutWorker, weights: Sequence[dict[str, torch.Tensor] | None]) -> list[tuple[Any, ...]]:
    return [worker.play(some, 10 * number) for number, some in enumerate(weights)]


def whole(parts: Sequence[Steps | None]) -> dict[str, npt.NDArray[Any]]:
    """Steps one after the other."""
    some = [part for part in parts if part is not None]
    names = [f.name for f in fields(Steps) if getattr(some[0], f.name) is not None]
    return {name: np.concatenate([getattr(part, name) for part in some]) for name in names}


FLAGS = ("terminated", "truncated", "life_lost", "acted", "start")


@pytest.mark.parametrize("kind", ["cartpole", "worlds"])
def test_a_rollout_is_what_single_environments_would_play(small: MakeJob, kind: str) -> None:
    changes = ["rollout={environments: 5, calls: 7}", "seed=11"]
    if kind == "cartpole":
        environment = "environment={type: gymnasium, id: CartPole-v1, arguments: {max_episode_steps: 12}, stack: 3}"
        job = small(*changes, environment)
    else:
        job = worlds(small, *changes)
    spec, lanes = job.environment.spec(), range(1, 5)
    worker = RolloutWorker(job, spec, lanes, life=2, played=30)
    weights = [random_weights(job, spec, 1), None, random_weights(job, spec, 2), None, None, None]
    plays = played(worker, weights)
    worker.close()
    got = whole([steps for _, steps in plays])
    assert got["frame"].dtype == spec.frame_dtype
    assert got["frame"].shape == (42, 4, *spec.frame_shape)

    agent = build_agent(job, spec).eval()
    seeds = lane_seeds(job.seed, lanes, "rollout/2")
    made: list[Any] = [(CartPole if kind == "cartpole" else World)(seed) for seed in seeds]
    streams = [
        Player(job, agent, lane, life=2, before=30).stream(world, spec.stack, spec.frame_shape[0])
        for lane, world in zip(lanes, made, strict=True)
    ]
    expected: list[list[Row]] = []
    for number in range(6):
        if weights[number] is not None:
            agent.load_acting_state(weights[number])  # type: ignore[arg-type]
        expected += [[next(stream) for stream in streams] for _ in range(7)]
    for call, rows in enumerate(expected):
        for column, row in enumerate(rows):
            at = (call, column)
            assert np.array_equal(got["frame"][at], np.array(row["frame"], np.float32)), at
            assert {name: bool(got[name][at]) for name in FLAGS} == {name: row[name] for name in FLAGS}, at
            assert got["reward"][at] == np.float32(row["reward"]), at
            if row["acted"]:
                assert got["action"][at] == row["action"], at
    every = [row for rows in expected for row in rows]
    assert len({row["action"] for row in every if row["acted"]}) == spec.actions
    for name in FLAGS:
        assert any(row[name] for row in every) or (kind, name) == ("cartpole", "life_lost"), name

    episodes: list[list[Episode]] = [[] for _ in plays]
    running = [[0.0, 0] for _ in lanes]
    for call, rows in enumerate(expected):
        for column, row in enumerate(rows):
            running[column][0] += row["reward"]
            running[column][1] += row["acted"]
            if row["terminated"] or row["truncated"]:
                episodes[call // 7].append(Episode(pytest.approx(running[column][0]), int(running[column][1])))
                running[column] = [0.0, 0]
    for number, (report, _) in enumerate(plays):
        mine = [row for rows in expected[7 * number : 7 * number + 7] for row in rows]
        assert isinstance(report, RolloutReport)
        assert report.steps == sum(row["acted"] for row in mine)
        assert list(report.episodes) == episodes[number]
        assert report.version == (0, 0, 20, 20, 20, 20)[number]
        assert report.epsilon == pytest.approx(np.mean([row["epsilon"] for row in mine]), abs=1e-6)
        assert report.largest_q == pytest.approx(np.mean([row["q"].max() for row in mine]), rel=1e-4)
        assert report.acting_seconds > 0
        assert report.playing_seconds > 0
    assert sum(map(len, episodes)) > 5


def test_the_share_of_random_actions_falls_with_the_steps_of_all_lanes(small: MakeJob) -> None:
    """Linear from 1 to 0.1 over 300 steps: 5 lanes count 5 steps with each call, whoever plays them."""
    job = worlds(small, "rollout={environments: 5, calls: 4}")
    first = RolloutWorker(job, SPEC, range(2))
    late = RolloutWorker(job, SPEC, range(2, 5), played=200)
    steps = 5 * np.arange(4)
    assert first.play(None, 0)[0].epsilon == pytest.approx(np.mean(1 - 0.9 * steps / 300), abs=1e-6)
    assert first.play(None, 0)[0].epsilon == pytest.approx(np.mean(1 - 0.9 * (20 + steps) / 300), abs=1e-6)
    assert late.play(None, 0)[0].epsilon == pytest.approx(np.mean(1 - 0.9 * (200 + steps) / 300), abs=1e-6)
    for _ in range(6):
        report = late.play(None, 0)[0]
    assert report.epsilon == pytest.approx(0.1, abs=1e-6)


@pytest.mark.parametrize("noisy", [False, True])
def test_lanes_play_alike_in_one_worker_and_in_two(small: MakeJob, noisy: bool) -> None:
    change = "algorithm.epsilon={type: ape-x}" if not noisy else "algorithm.epsilon={type: constant, value: 0.05}"
    job = worlds(small, "rollout={environments: 5, calls: 6}", change, f"algorithm.noisy={str(noisy).lower()}")
    weights: list[dict[str, torch.Tensor] | None] = [random_weights(job, SPEC, 5), None, random_weights(job, SPEC, 6)]
    one = whole([steps for _, steps in played(RolloutWorker(job, SPEC, range(5)), weights)])
    parts = [
        whole([steps for _, steps in played(RolloutWorker(job, SPEC, lanes), weights)])
        for lanes in (range(2), range(2, 5))
    ]
    for name, array in one.items():
        assert np.array_equal(array, np.concatenate([part[name] for part in parts], axis=1)), name
    assert len(np.unique(one["action"])) == 3


def test_another_life_has_other_dice_and_begins_anew(small: MakeJob) -> None:
    job = worlds(small, "algorithm.epsilon={type: constant, value: 1.0}")
    lives = [whole([RolloutWorker(job, SPEC, range(4), life=life).play(None, 0)[1]]) for life in (0, 1)]
    again = whole([RolloutWorker(job, SPEC, range(4), life=1).play(None, 0)[1]])
    assert all(life["start"][0].all() for life in lives)
    assert not np.array_equal(lives[0]["action"], lives[1]["action"])
    assert not np.array_equal(lives[0]["frame"], lives[1]["frame"])
    assert all(np.array_equal(lives[1][name], again[name]) for name in again)


@pytest.mark.parametrize("priorities", ["largest", "td-error"])
def test_each_shard_gets_its_lanes(small: MakeJob, priorities: str) -> None:
    """Lane g belongs to shard g mod shards; what is stored does not depend on how lanes are shared out to workers."""
    changes = [
        f"rollout={{environments: 7, calls: 6, initial_priorities: {priorities}}}",
        "algorithm.prioritization={exponent: 1.0}",
        "algorithm.n_step=2",
        "replay={capacity: 600, minimum: 16, samples_per_insert: 4}",
    ]
    one, three = worlds(small, *changes), worlds(small, *changes, "resources.shards=3")
    whole_steps = [steps for _, steps in played(RolloutWorker(one, SPEC, range(7)), [None] * 8)]
    for lanes in (range(7), range(1, 3), range(5, 6), range(2, 7)):
        plays = played(RolloutWorker(three, SPEC, lanes), [None] * 8)
        for (_, *parts), everything in zip(plays, whole_steps, strict=True):
            assert len(parts) == 3
            for shard, part in enumerate(parts):
                mine = [lane for lane in lanes if lane % 3 == shard]
                if not mine:
                    assert part is None
                    continue
                assert part is not None
                assert everything is not None
                for f in fields(Steps):
                    found, expected = getattr(part, f.name), getattr(everything, f.name)
                    if expected is None:
                        assert found is None
                    elif f.name == "priority":
                        assert np.allclose(found, expected[:, mine], rtol=1e-4, equal_nan=True)
                    else:
                        assert np.array_equal(found, expected[:, mine]), (lanes, shard, f.name)
    stored = []
    for split in ([range(7)], [range(3), range(3, 4), range(4, 7)]):
        shards = [ReplayShard(three, SPEC, index, Storage(three.output)) for index in range(3)]
        workers = [RolloutWorker(three, SPEC, lanes) for lanes in split]
        steps = 0
        for _ in range(8):
            for worker, lanes in zip(workers, split, strict=True):
                report, *parts = worker.play(None, 0)
                steps += report.steps
                reports = [shard.insert(part, lanes) for shard, part in zip(shards, parts, strict=True)]
        waiting = 0 if priorities == "largest" else kept_back(three)
        assert sum(report.inserted for report in reports) == steps - waiting
        arrays = [shard.buffer.arrays() for shard in shards]
        stored.append([{name: each[name] for name in each if name != "generation"} for each in arrays])
    for shard in range(3):
        for name, array in stored[0][shard].items():
            # Slots without an item have a priority that means nothing.
            rows = stored[0][shard]["mass"] > 0 if name == "priority" else slice(None)
            assert np.allclose(array[rows], stored[1][shard][name][rows], rtol=1e-4), (shard, name)


def kept_back(job: ReinforcementJob) -> int:
    """Actions among the last two calls of 48, which wait for their outcome."""
    steps = whole([steps for _, steps in played(RolloutWorker(worlds_of(job), SPEC, range(7)), [None] * 8)])
    return int(steps["acted"][-2:].sum())


def worlds_of(job: ReinforcementJob) -> ReinforcementJob:
    """The same play, with nothing kept back and nothing split."""
    rollout = job.rollout.model_copy(update={"initial_priorities": "largest"})
    return job.model_copy(update={"rollout": rollout, "resources": job.resources.model_copy(update={"shards": 1})})


# Initial priorities


def td_error(rows: list[Row], at: int, n: int, discount: float, clip: float | None) -> float | None:
    """|n-step TD error| of the item that begins at ``at`` in one lane's stream, from the values that were played with;
    None where no item begins or its outcome is not there."""
    if not rows[at]["acted"]:
        return None
    total, k = 0.0, 0
    while True:
        row = rows[at + k]
        total += discount**k * (row["reward"] if clip is None else min(max(row["reward"], -clip), clip))
        k += 1
        if row["terminated"] or row["life_lost"]:
            following = 0.0
            break
        if row["truncated"] or k == n:
            following = discount**k * float(rows[at + k]["q"].max())
            break
    return abs(total + following - float(rows[at]["q"][rows[at]["action"]]))


@pytest.mark.parametrize(("n", "calls"), [(1, 5), (3, 7), (3, 2), (4, 1), (5, 5)])
@pytest.mark.parametrize("clip", [None, 1.0])
def test_initial_priorities_are_td_errors_by_the_values_that_were_played_with(
    small: MakeJob, n: int, calls: int, clip: float | None
) -> None:
    job = worlds(
        small,
        f"rollout={{environments: 3, calls: {calls}, initial_priorities: td-error}}",
        "algorithm.prioritization={exponent: 0.6}",
        f"algorithm.n_step={n}",
        "algorithm.discount=0.8",
        f"algorithm.reward_clip={'null' if clip is None else clip}",
    )
    plays = math.ceil(60 / calls)
    weights = [random_weights(job, SPEC, number) if number % 3 == 0 else None for number in range(plays)]
    worker = RolloutWorker(job, SPEC, range(3))
    agent = build_agent(job, SPEC).eval()
    seeds = lane_seeds(job.seed, range(3), "rollout/0")
    streams = [Player(job, agent, lane).stream(World(seed), 2, 3) for lane, seed in enumerate(seeds)]
    lanes: list[list[Row]] = [[], [], []]
    handed: list[Steps] = []
    for number, some in enumerate(weights):
        if some is not None:
            agent.load_acting_state(some)
        report, steps = worker.play(some, number)
        for rows, stream in zip(lanes, streams, strict=True):
            rows += [next(stream) for _ in range(calls)]
        assert report.steps == sum(row["acted"] for rows in lanes for row in rows[-calls:])
        if steps is not None:
            handed.append(steps)
        # All but the last n calls are handed over, each once, as soon as their outcome is known whatever it is.
        assert sum(len(some.action) for some in handed) == max(0, calls * (number + 1) - n)
    got = whole(handed)  # type: ignore[arg-type]
    known = 0
    for lane, rows in enumerate(lanes):
        for at in range(len(got["action"])):
            assert np.array_equal(got["frame"][at, lane], np.array(rows[at]["frame"], np.float32))
            assert all(bool(got[name][at, lane]) == rows[at][name] for name in FLAGS)
            expected = td_error(rows, at, n, 0.8, clip)
            if expected is None:
                assert np.isnan(got["priority"][at, lane])
            else:
                assert got["priority"][at, lane] == pytest.approx(expected, rel=1e-4, abs=1e-4)
                known += 1
    assert known > 100


def test_the_replay_takes_initial_priorities_over(small: MakeJob) -> None:
    """With exponent 1 the mass of an item is its TD error."""
    job = worlds(
        small,
        "rollout={environments: 2, calls: 10, initial_priorities: td-error}",
        "algorithm.prioritization={exponent: 1.0, epsilon: 1.0e-6}",
        "algorithm.n_step=3",
    )
    worker, shard = RolloutWorker(job, SPEC, range(2)), ReplayShard(job, SPEC, 0, Storage(job.output))
    handed = []
    for number in range(6):
        _, steps = worker.play(random_weights(job, SPEC, 1) if not number else None, 0)
        report = shard.insert(steps, range(2))
        handed.append(steps)
    priority = whole(handed)["priority"]
    # Items of the last calls that were handed over wait for frames that are kept back, unless their episode is over.
    known = priority[~np.isnan(priority)].astype(np.float64)
    waiting = report.inserted - report.items
    assert 0 <= waiting <= 3 * 2
    masses = shard.buffer.arrays()["mass"]
    assert np.isin(np.round(masses[masses > 0], 4), np.round(known + 1e-6, 4)).all()
    assert report.mass == pytest.approx(masses.sum())


# What goes wrong


def test_an_environment_that_breaks_says_where(small: MakeJob) -> None:
    job = worlds(small, breaks_at=3)
    worker = RolloutWorker(job, SPEC, range(4))
    with pytest.raises(EnvironmentFailure, match=r"environment worlds, lane 0, action [012]: it broke"):
        worker.play(None, 0)
    worker.close()
    assert worker._environment.closed  # type: ignore[attr-defined]


def test_seeds_differ_between_lanes_purposes_and_runs_but_not_between_workers() -> None:
    drawn = [lane_seeds(seed, range(6), purpose) for seed in (0, 1) for purpose in ("rollout/0", "rollout/1", "random")]
    assert len({seed for seeds in drawn for seed in seeds}) == 36
    assert lane_seeds(0, range(2, 4), "random") == drawn[2][2:4]
    assert all(0 <= seed < 2**31 for seeds in drawn for seed in seeds)
