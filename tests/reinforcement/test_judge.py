"""Evaluations: who plays how many episodes, how they are cut off, and what is random in them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pytest
import torch
from scipy import stats

from heliostat.config.reinforcement import ReinforcementJob
from heliostat.reinforcement.agent import build_agent
from heliostat.reinforcement.environments import EnvironmentSpec, Played
from heliostat.reinforcement.environments.config import Environment
from heliostat.reinforcement.judge import Judge
from heliostat.reinforcement.rollout import Episode, lane_seeds

MakeJob = Callable[..., ReinforcementJob]
SPEC = EnvironmentSpec("metronomes", (2,), np.dtype(np.float32), 2, 4, ("a", "b", "c", "d"))


class Metronomes:
    """Lane i's episodes have ``lengths[i]`` steps, endless where that is 0. The reward is 1 in each step, and 1000 in
    the first of an episode; a frame tells the lane's seed and the step."""

    def __init__(self, seeds: Sequence[int], lengths: Sequence[int], patience: int) -> None:
        self.spec, self.count, self.lengths, self.patience = SPEC, len(seeds), lengths, patience
        self.seeds, self.played = list(seeds), [0] * self.count
        self.resets: list[list[int] | None] = []
        self.actions: list[list[int]] = []
        self.calls = 0

    def frame(self) -> npt.NDArray[Any]:
        return np.array([[seed % 1009 / 1009, step / 10] for seed, step in zip(self.seeds, self.played, strict=True)])

    def reset(self, seeds: Sequence[int] | None = None) -> npt.NDArray[Any]:
        self.resets.append(None if seeds is None else list(seeds))
        self.seeds = self.seeds if seeds is None else list(seeds)
        self.played = [0] * self.count
        return self.frame().astype(np.float32)

    def step(self, actions: npt.NDArray[np.int64]) -> Played:
        self.calls += 1
        assert self.calls <= self.patience, "the judge never comes to an end"
        over = [0 < length <= step for length, step in zip(self.lengths, self.played, strict=False)]
        self.actions.append([a for a, ended in zip(actions.tolist(), over, strict=True) if not ended])
        reward = np.array([0.0 if o else 1000.0 if p == 0 else 1.0 for o, p in zip(over, self.played, strict=True)])
        self.played = [0 if ended else step + 1 for ended, step in zip(over, self.played, strict=True)]
        ends = [0 < length == step for length, step in zip(self.lengths, self.played, strict=False)]
        terminated = np.array([end and lane % 2 == 0 for lane, end in enumerate(ends)])
        truncated = np.array([end and lane % 2 == 1 for lane, end in enumerate(ends)])
        nothing = np.zeros(self.count, np.bool_)
        frame = self.frame().astype(np.float32)
        return Played(frame, reward, terminated, truncated, nothing, ~np.array(over))

    def render(self, lane: int) -> npt.NDArray[np.uint8]:
        raise AssertionError("nobody looks here")

    def close(self) -> None:
        pass


class MetronomesEnvironment(Environment):
    """An entry of a job that makes them."""

    type: Literal["metronomes"] = "metronomes"
    lengths: tuple[int, ...]
    patience: int = 10_000

    def make(
        self, count: int, seeds: Sequence[int], threads: int = 1, evaluation: bool = False, render: bool = False
    ) -> Metronomes:
        return Metronomes(seeds, self.lengths[:count], self.patience)


@pytest.fixture
def judge(small: MakeJob) -> Callable[..., Judge]:
    """Makes a judge of metronomes."""

    def make(lengths: tuple[int, ...], evaluation: str, *overrides: str) -> Judge:
        environment = MetronomesEnvironment(lengths=lengths)
        job = small(f"evaluation={evaluation}", *overrides).model_copy(update={"environment": environment})
        return Judge(job, SPEC)

    return make


def weights_of(judge: Judge, number: int = 0) -> dict[str, torch.Tensor]:
    state = build_agent(judge._job, SPEC).acting_state()
    dice = torch.Generator().manual_seed(number)
    return {name: torch.randn(value.shape, generator=dice) for name, value in state.items()}


def metronomes(judge: Judge) -> Metronomes:
    assert isinstance(judge._environment, Metronomes)
    return judge._environment


def test_each_lane_plays_its_share_however_long_that_takes(judge: Callable[..., Judge]) -> None:
    """Those that end first would be the short ones: of 7 episodes 3 lanes play 3, 2 and 2."""
    found = judge((50, 2, 9), "{episodes: 7, environments: 3}")
    lengths = Counter(episode.length for episode in found.evaluate(weights_of(found), 1).episodes)
    assert lengths == {50: 3, 2: 2, 9: 2}


def test_no_more_lanes_than_episodes(judge: Callable[..., Judge]) -> None:
    found = judge((4, 5, 6, 7), "{episodes: 2, environments: 4}")
    assert metronomes(found).count == 2
    assert [episode.length for episode in found.evaluate(weights_of(found), 1).episodes] == [4, 5]


def test_scores_are_of_whole_episodes(judge: Callable[..., Judge]) -> None:
    found = judge((3, 8), "{episodes: 6, environments: 2}")
    for episode in (*found.evaluate(weights_of(found), 1).episodes, *found.random_play()):
        assert episode.score == 1000 + episode.length - 1


def test_long_episodes_are_broken_off(judge: Callable[..., Judge]) -> None:
    """The rest of a long episode is nobody's: the next one counts from its own first step."""
    found = judge((50, 4, 10), "{episodes: 8, environments: 3, max_steps: 10}")
    episodes = found.evaluate(weights_of(found), 1).episodes
    assert Counter(episode.length for episode in episodes) == {10: 3 + 2, 4: 3}
    assert all(episode.score == 1000 + episode.length - 1 for episode in episodes)


def test_episodes_without_an_end_are_broken_off_too(judge: Callable[..., Judge]) -> None:
    """What never ends can only be broken off; the next episode begins all the same."""
    found = judge((0, 3), "{episodes: 6, environments: 2, max_steps: 12}")
    episodes = found.evaluate(weights_of(found), 1).episodes
    assert Counter(episodes) == {Episode(1011.0, 12): 3, Episode(1002.0, 3): 3}


def test_random_play_is_uniform_and_asks_no_network(judge: Callable[..., Judge]) -> None:
    found = judge((25, 25), "{episodes: 40, environments: 2, epsilon: 0.0}", "algorithm.epsilon.start=0.5")
    assert len(found.random_play()) == 40
    actions = [action for actions in metronomes(found).actions for action in actions]
    assert len(actions) >= 1000
    assert stats.chisquare(np.bincount(actions, minlength=4)).pvalue > 1e-3
    pairs = np.bincount(4 * np.array(actions[:-1:2]) + np.array(actions[1::2]), minlength=16)
    assert stats.chisquare(pairs).pvalue > 1e-3


def test_the_share_of_random_actions_is_the_evaluation_s(judge: Callable[..., Judge]) -> None:
    """Not the training's, whose epsilon is 1 here."""
    counts = {}
    for epsilon in (0.0, 0.4, 1.0):
        found = judge((100,), f"{{episodes: 20, environments: 1, epsilon: {epsilon}}}", "algorithm.noisy=true")
        weights = weights_of(found)
        weights = {n: torch.zeros_like(v) if "last" in n else v for n, v in weights.items()}  # all alike: the first
        found.evaluate(weights, 5)
        counts[epsilon] = np.bincount(sum(metronomes(found).actions, []), minlength=4)  # noqa: RUF017
    assert counts[0.0].tolist() == [2000, 0, 0, 0]
    for epsilon, expected in ((0.4, [1400, 200, 200, 200]), (1.0, [500] * 4)):
        assert stats.chisquare(counts[epsilon], expected).pvalue > 1e-3


def test_the_same_seed_and_number_give_the_same_verdict(judge: Callable[..., Judge]) -> None:
    """Whatever was played before; another number or seed gives other dice."""
    text = "{episodes: 4, environments: 2, epsilon: 0.5, held_out_states: 9}"
    one, other, third = (judge((30, 20), text, f"seed={seed}") for seed in (3, 3, 4))
    weights = weights_of(one)

    def played(who: Judge, number: int) -> tuple[Any, list[list[int]], Any]:
        metronomes(who).actions.clear()
        verdict = who.evaluate(weights, number)
        return verdict, metronomes(who).actions[:], [each for each in metronomes(who).resets if each][-1]

    other.random_play()
    other.evaluate(weights_of(one, 2), 7)
    one.evaluate(weights, 1)
    first = played(one, 9)
    assert first == played(other, 9)
    assert first == played(one, 9)
    assert first[2] == lane_seeds(3, range(2), "evaluation/9")
    for elsewhere in (played(one, 10), played(third, 9)):
        assert elsewhere[1] != first[1]
        assert elsewhere[2] != first[2]


def test_real_games_give_the_same_verdict_too(small: MakeJob) -> None:
    job = small("evaluation={episodes: 5, environments: 2, epsilon: 0.3, held_out_states: 20}")
    verdicts = []
    for _ in range(2):
        judge = Judge(job, job.environment.spec())
        judge.random_play()
        weights = build_agent(job, job.environment.spec()).acting_state()
        verdicts += [judge.evaluate(weights, number) for number in (1, 2, 1)]
        judge.close()
    assert verdicts[:3] == verdicts[3:]
    assert verdicts[0] == verdicts[2]
    assert verdicts[0] != verdicts[1]
    assert verdicts[0].largest_q == verdicts[1].largest_q


@pytest.mark.parametrize("count", [1, 7, 280])
def test_the_mean_largest_value_is_that_of_the_held_out_states(judge: Callable[..., Judge], count: int) -> None:
    """Every tenth state of random play, in stacks of 2 with zeros before an episode's first frame; the same states
    in each evaluation. Lanes have 12 and 1000 steps: calls 0, 10, 20, ... see the steps written out below."""
    found = judge((12, 1000), f"{{episodes: 1, environments: 1, held_out_states: {count}}}")
    single = judge((12, 1000), f"{{episodes: 2, environments: 2, held_out_states: {count}}}")
    assert judge((12,), "{episodes: 1}").evaluate(weights_of(found), 1).largest_q is None
    for who, lengths in ((found, (12,)), (single, (12, 1000))):
        seeds = lane_seeds(3, range(len(lengths)), "held-out")
        states = []
        for call in range(0, 10 * count, 10):
            for length, seed in zip(lengths, seeds, strict=True):
                step = call % (length + 1)  # one call more begins the next episode
                frames = [[seed % 1009 / 1009, (step - back) / 10] if step >= back else [0.0, 0.0] for back in (1, 0)]
                states.append(frames[0] + frames[1])
        agent = build_agent(who._job, SPEC)
        for number in (1, 2):
            weights = weights_of(who, number)
            agent.load_acting_state(weights)
            with torch.no_grad():
                expected = agent.q_values(torch.tensor(states[:count])).max(dim=1).values.mean()
            assert who.evaluate(weights, number).largest_q == pytest.approx(float(expected), rel=1e-4, abs=1e-4)


def test_the_evaluator_has_weights_of_its_own(judge: Callable[..., Judge]) -> None:
    """What it was given may change afterwards, and it changes nothing of it."""
    found = judge((30,), "{episodes: 2, environments: 1}")
    weights = weights_of(found)
    kept = {name: value.clone() for name, value in weights.items()}
    found.evaluate(weights, 1)
    first = metronomes(found).actions[:]
    for value in weights.values():
        assert torch.equal(value, kept[next(n for n in weights if weights[n] is value)])
        value.zero_()
    metronomes(found).actions.clear()
    found.evaluate(kept, 1)
    assert metronomes(found).actions == first
