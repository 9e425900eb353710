from __future__ import annotations

import gc
import logging
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from heliostat.errors import InputError, RunError
from heliostat.reinforcement.environments import EnvironmentConfig, EnvironmentFailure, EnvironmentSpec, Played
from heliostat.reinforcement.environments.gymnasium_ import GymnasiumLane
from heliostat.reinforcement.environments.lanes import Lanes
from heliostat.reinforcement.environments.seeding import episode_seed
from heliostat.reinforcement.environments.watchdog import Watchdog

ADAPTER: TypeAdapter[Any] = TypeAdapter(EnvironmentConfig)


def config(**fields: Any) -> Any:
    return ADAPTER.validate_python(fields)


def cartpole(**fields: Any) -> Any:
    return config(type="gymnasium", id="CartPole-v1", **fields)


# The interface


@pytest.mark.parametrize(
    ("frame", "stack", "observation"),
    [((4,), 1, (4,)), ((4,), 3, (12,)), ((84, 84), 4, (4, 84, 84)), ((9, 7), 1, (1, 9, 7)), ((3, 9, 7), 2, (6, 9, 7))],
)
def test_observations_are_stacks_of_frames(frame: tuple[int, ...], stack: int, observation: tuple[int, ...]):
    spec = EnvironmentSpec("x", frame, np.dtype(np.uint8), stack, 2, ("a", "b"))
    assert spec.observation_shape == observation


class Scripted(gymnasium.Env[Any, Any]):
    """Episodes whose lengths, ends and rewards follow from their seeds; the observation tells seed and step."""

    observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = spaces.Discrete(3, start=5)

    def __init__(self, longest: int = 6) -> None:
        self._longest = longest
        self._shared = np.zeros(2, np.float32)  # one array for all observations: whoever keeps one must copy it

    @staticmethod
    def script(seed: int, longest: int) -> tuple[int, bool, bool]:
        """Length, whether it terminates, whether it is truncated."""
        kind = seed % 3
        return 1 + seed // 3 % longest, kind != 1, kind != 0

    def _seen(self) -> Any:
        self._shared[:] = self._seed % 10_000, self._step
        return self._shared

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        assert seed is not None
        self._seed, self._step = seed, 0
        return self._seen(), {}

    def step(self, action: Any) -> Any:
        assert self.action_space.contains(action)
        self._step += 1
        length, terminates, truncates = self.script(self._seed, self._longest)
        end = self._step == length
        return self._seen(), 0.1 * self._step + 10.0 * (action - 5), end and terminates, end and truncates, {}


def scripted(seeds: list[int], longest: int = 6) -> Lanes:
    return Lanes("scripted", lambda: GymnasiumLane("scripted", lambda: Scripted(longest), 1), seeds, 20.0)


def expected_lane(seed: int, actions: list[int], longest: int) -> Iterator[tuple[Any, ...]]:
    """Frame, reward, terminated, truncated and acted of each call, from the script."""
    episode, step = 0, 0
    over = False
    for action in actions:
        number = episode_seed(seed, episode)
        if over:
            episode, step, over = episode + 1, 0, False
            yield (episode_seed(seed, episode) % 10_000, 0), 0.0, False, False, False
            continue
        step += 1
        length, terminates, truncates = Scripted.script(number, longest)
        over = step == length
        yield (
            (number % 10_000, step),
            0.1 * step + 10.0 * action,
            over and terminates,
            over and truncates and not terminates,
            True,
        )


@settings(max_examples=40, deadline=None)
@given(
    seeds=st.lists(st.integers(0, 2**62), min_size=1, max_size=4),
    longest=st.integers(1, 6),
    random=st.randoms(use_true_random=False),
)
def test_lanes_follow_the_next_step_convention(seeds: list[int], longest: int, random: Any):
    actions = [[random.randrange(3) for _ in seeds] for _ in range(30)]
    environment = scripted(seeds, longest)
    first = environment.reset()
    played = [environment.step(np.array(chosen)) for chosen in actions]
    environment.close()
    assert first.dtype == np.float32
    for lane, seed in enumerate(seeds):
        assert tuple(first[lane]) == (episode_seed(seed, 0) % 10_000, 0)
        for call, (frame, reward, terminated, truncated, acted) in zip(
            played, expected_lane(seed, [chosen[lane] for chosen in actions], longest), strict=True
        ):
            assert tuple(call.frame[lane]) == frame
            assert call.reward[lane] == pytest.approx(reward, abs=1e-12)
            assert (call.terminated[lane], call.truncated[lane], call.acted[lane]) == (terminated, truncated, acted)
            assert not call.life_lost[lane]


def test_resetting_goes_on_to_the_next_episodes_unless_new_seeds_are_given():
    environment = scripted([7, 8])
    episodes = [environment.reset()[:, 0].tolist() for _ in range(3)]
    assert episodes == [[episode_seed(seed, episode) % 10_000 for seed in (7, 8)] for episode in range(3)]
    assert environment.reset([8, 7])[:, 0].tolist() == episodes[0][::-1]
    environment.close()


def test_seeds_of_episodes_are_spread_over_their_range_and_differ():
    drawn = np.array([episode_seed(seed, episode) for seed in range(60) for episode in range(50)])
    assert drawn.min() >= 0
    assert drawn.max() < 2**31
    assert len(np.unique(drawn)) >= len(drawn) - 1  # 3,000 draws of 2**31 meet once in 500 times
    counts = np.histogram(drawn, 10, (0, 2**31))[0]
    assert ((counts - 300) ** 2 / 300).sum() < 27.9  # chi-squared with 9 degrees of freedom, 0.1 %


@pytest.mark.parametrize("action", [-1, 3, 10**12])
def test_an_action_out_of_range_is_refused_before_the_environment_sees_it(action: int):
    environment, other = scripted([3, 4]), scripted([3, 4])
    environment.reset()
    other.reset()
    with pytest.raises(
        ValueError, match=rf"action {action} of lane 1 is out of range: there are 3 actions, from 0 to 2"
    ):
        environment.step(np.array([0, action]))
    assert np.array_equal(environment.step(np.array([1, 2])).frame, other.step(np.array([1, 2])).frame)
    environment.close()
    other.close()


@pytest.mark.parametrize("actions", [np.zeros(2), np.zeros(3, np.int64), np.zeros((2, 1), np.int64), np.zeros(2, bool)])
def test_actions_are_integers_one_for_each_lane(actions: Any):
    environment = scripted([3, 4])
    environment.reset()
    with pytest.raises(ValueError, match=r"integers of shape \(2,\)"):
        environment.step(actions)
    environment.close()


def test_calls_in_the_wrong_order_are_told():
    environment = scripted([3])
    with pytest.raises(RuntimeError, match="reset"):
        environment.step(np.array([0]))
    with pytest.raises(ValueError, match="one seed"):
        environment.reset([1, 2])
    with pytest.raises(ValueError, match="one seed"):
        environment.reset([-1])
    environment.close()
    environment.close()
    for count, seeds in ((0, ()), (2, (1,))):
        with pytest.raises(ValueError, match="a seed for each"):
            cartpole().make(count, seeds)


# Gymnasium


def test_cartpole_is_as_gymnasium_plays_it():
    environment = cartpole().make(2, (11, 12))
    frames, random = environment.reset(), np.random.default_rng(0)
    singles = [gymnasium.make("CartPole-v1") for _ in range(2)]
    episodes = [0, 0]
    seen = [single.reset(seed=episode_seed(seed, 0))[0] for single, seed in zip(singles, (11, 12), strict=True)]
    assert np.array_equal(frames, np.stack(seen))
    over = [False, False]
    for _ in range(120):
        actions = random.integers(0, 2, 2)
        played = environment.step(actions)
        for lane, single in enumerate(singles):
            if over[lane]:
                episodes[lane] += 1
                frame, _ = single.reset(seed=episode_seed((11, 12)[lane], episodes[lane]))
                reward, terminated, truncated, acted = 0.0, False, False, False
            else:
                frame, reward, terminated, truncated, _ = single.step(int(actions[lane]))
                acted = True
            over[lane] = terminated or truncated
            assert np.array_equal(played.frame[lane], frame)
            assert (played.reward[lane], played.terminated[lane]) == (reward, terminated)
            assert (played.truncated[lane], played.acted[lane]) == (truncated, acted)
    assert min(episodes) >= 2
    environment.close()


def test_the_time_limit_of_gymnasium_truncates():
    environment = cartpole(arguments={"max_episode_steps": 3}).make(1, (1,))
    environment.reset()
    ends = [environment.step(np.array([0])) for _ in range(4)]
    assert [bool(end.truncated[0]) for end in ends] == [False, False, True, False]
    assert [bool(end.acted[0]) for end in ends] == [True, True, True, False]
    assert not any(end.terminated[0] for end in ends)
    environment.close()


def test_the_spec_of_cartpole():
    spec = cartpole(stack=2).spec()
    assert (spec.name, spec.frame_shape, spec.observation_shape) == ("CartPole-v1", (4,), (8,))
    assert (spec.frame_dtype, spec.actions, spec.action_names, spec.reference) == (np.float32, 2, ("0", "1"), None)
    assert cartpole().check() == []


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("CartPole-v7", "knows no environment 'CartPole-v7'. Did you mean 'CartPole-v"),
        ("CartPol-v1", "Did you mean 'CartPole-v1'"),
        ("no_such_package:Thing-v0", "no_such_package"),
        ("Pendulum-v1", "continuous"),
        ("FrozenLake-v1", "must be a Box of float32, float64 or uint8"),
        ("not an id", "not an id"),
    ],
)
def test_environments_that_cannot_be_learned_are_named(name: str, problem: str):
    chosen = config(type="gymnasium", id=name)
    (found,) = chosen.check()
    assert problem in found
    with pytest.raises(InputError):
        chosen.spec()


def test_arguments_that_an_environment_does_not_take_are_told():
    (problem,) = cartpole(arguments={"no_such": 1}).check()
    assert "CartPole-v1 cannot be made" in problem
    assert "no_such" in problem


@pytest.mark.parametrize(
    "bad", [{"type": "gymnasium"}, {"type": "nothing"}, {"type": "gymnasium", "id": "x", "ids": 1}]
)
def test_entries_that_are_no_environment_are_refused(bad: dict[str, Any]):
    with pytest.raises(ValidationError):
        config(**bad)


# Custom environments

MODULE = '''
import time
import gymnasium
import numpy as np
from gymnasium import spaces

number = 3

class Pictures(gymnasium.Env):
    """Rows count up, columns by ten, colours by a hundred."""
    action_space = spaces.Discrete(2)

    def __init__(self, shape=(6, 5, 3), dtype="uint8", seen=None, reward=1.0, fails=None, render_mode=None):
        self.observation_space = spaces.Box(0, 255, tuple(shape), np.dtype(dtype).type)
        self.seen, self.reward, self.fails, self.render_mode = seen, reward, fails, render_mode

    def _picture(self):
        grids = np.meshgrid(*(np.arange(n) for n in self.observation_space.shape), indexing="ij")
        picture = sum(grid * 10**axis for axis, grid in enumerate(grids))
        return picture.astype(self.observation_space.dtype)

    def reset(self, *, seed=None, options=None):
        return self._picture(), {}

    def step(self, action):
        if self.fails == "raises" and action == 1:
            raise ZeroDivisionError("by design")
        if self.fails == "hangs" and action == 1:
            time.sleep(3)
        seen = self._picture() if self.seen is None else eval(self.seen)
        return seen, float(self.reward), False, False, {}

    def render(self):
        return self._picture() if self.render_mode == "rgb_array" else None

def nothing():
    return 5

def slow():
    time.sleep(3)

def broken():
    raise OSError("no such disk")

def two_at_once():
    env = Pictures()
    env.action_space = spaces.MultiDiscrete([2, 2])
    env.observation_space = spaces.Dict({"a": env.observation_space})
    return env
'''


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """``own("Pictures", **arguments)``: the entry of a job file for a module of the user's."""
    (tmp_path / "own_module.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield lambda name, timeout_s=20.0, **arguments: config(
        type="custom", factory=f"own_module:{name}", arguments=arguments, timeout_s=timeout_s
    )
    sys.modules.pop("own_module", None)


def begun(chosen: Any, lanes: int = 2) -> Any:
    environment = chosen.make(lanes, range(lanes))
    environment.reset()
    return environment


@pytest.mark.parametrize(
    ("shape", "frame", "axes"),
    [
        ((6, 5, 3), (3, 6, 5), (2, 0, 1)),  # colours last, as gymnasium has them
        ((3, 6, 5), (3, 6, 5), (0, 1, 2)),
        ((4, 4, 4), (4, 4, 4), (2, 0, 1)),
        ((6, 5), (6, 5), (0, 1)),
        ((7,), (7,), (0,)),
    ],
)
def test_frames_have_their_colours_first(own: Any, shape: Any, frame: Any, axes: Any):
    environment = own("Pictures", shape=shape).make(1, (0,))
    seen = environment.reset()[0]
    places = np.indices(shape)
    picture = sum(places[axis] * 10**axis for axis in range(len(shape))).astype(np.uint8)
    assert environment.spec.frame_shape == frame
    assert np.array_equal(seen, picture.transpose(axes))
    assert environment.step(np.array([0])).frame.shape == (1, *frame)
    environment.close()


def test_float64_is_kept_as_float32(own: Any):
    environment = own("Pictures", shape=(4,), dtype="float64").make(1, (0,))
    assert environment.spec.frame_dtype == np.float32
    assert environment.reset().dtype == np.float32
    environment.close()


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        ({"fails": "raises"}, "ZeroDivisionError: by design"),
        (
            {"seen": "np.zeros((6, 5), np.uint8)"},
            r"uint8 of shape \(6, 5\), but the environment declares uint8 of shape",
        ),
        ({"seen": "np.zeros((6, 5, 3))"}, "the observation is float64"),
        ({"seen": "[1, 2]"}, "the observation is int64"),
        ({"reward": "nan"}, "the reward is nan"),
        ({"reward": "-inf"}, "the reward is -inf"),
    ],
)
def test_a_failing_step_names_environment_lane_and_action(own: Any, arguments: dict[str, Any], what: str):
    environment = begun(own("Pictures", **arguments))
    with pytest.raises(EnvironmentFailure, match=what) as raised:
        environment.step(np.array([1, 0]) if "fails" in arguments else np.array([0, 1]))
    failure = raised.value
    assert isinstance(failure, RunError)
    assert (failure.lane, failure.action) == ((0, 1) if "fails" in arguments else (0, 0))
    assert str(failure).startswith(f"environment own_module:Pictures, lane 0, action {failure.action}: ")
    environment.close()


def test_an_observation_that_is_no_number_is_a_failure_with_its_lane(own: Any):
    environment = begun(
        own("Pictures", shape=(2,), dtype="float32", seen="np.array([action, np.nan if action else 0], np.float32)")
    )
    assert environment.step(np.array([0, 0])).acted.all()
    with pytest.raises(EnvironmentFailure, match=r"lane 1: .*not finite: \[1\.0, nan\]"):
        environment.step(np.array([0, 1]))
    environment.close()


def test_a_hanging_step_is_left_behind(own: Any):
    environment = begun(own("Pictures", timeout_s=0.2, fails="hangs"))
    environment.step(np.array([0, 0]))
    began = time.monotonic()
    with pytest.raises(EnvironmentFailure, match=r"lane 1, action 1: step: it takes longer than 0\.2 s"):
        environment.step(np.array([0, 1]))
    with pytest.raises(EnvironmentFailure, match="has not come back from an earlier call"):
        environment.step(np.array([0, 0]))
    environment.close()
    assert time.monotonic() - began < 1.5


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("Picture", "has no 'Picture'. Did you mean 'Pictures'?"),
        ("number", "is a int; it must be a class or a function"),
        ("nothing", "made a int; it must make a gymnasium.Env"),
        ("broken", "cannot be made: OSError: no such disk"),
        ("two_at_once", "its actions are MultiDiscrete"),
        ("two_at_once", "its observations are Dict"),
    ],
)
def test_factories_that_do_not_make_an_environment_are_told(own: Any, name: str, problem: str):
    problems = own(name).check()
    assert problem in "\n".join(problems)
    assert f"own_module:{name}" in problems[0] or "own_module" in problems[0]


def test_a_factory_that_hangs_is_told(own: Any):
    (problem,) = own("slow", timeout_s=0.1).check()
    assert "making it: it takes longer than 0.1 s" in problem


def test_a_factory_that_cannot_be_imported_is_told():
    (problem,) = config(type="custom", factory="no_such_package.inner:Thing").check()
    assert "No module named 'no_such_package'" in problem
    assert "PYTHONPATH" in problem
    for bad in ("module", "module:", ":Thing", "module:Thing()", "a b:c", "a..b:c"):
        with pytest.raises(ValidationError):
            config(type="custom", factory=bad)


def test_pictures_are_drawn_where_they_were_asked_for(own: Any):
    environment = own("Pictures").make(1, (0,), render=True)
    environment.reset()
    assert environment.render(0).shape == (6, 5, 3)
    environment.close()
    environment = begun(own("Pictures"))
    with pytest.raises(EnvironmentFailure, match=r"draws no picture .* in the mode None"):
        environment.render(1)
    environment.close()


# The watchdog


def test_calls_run_in_one_thread_that_ends_with_its_watchdog():
    dog = Watchdog(5.0)
    threads = {dog.call(threading.current_thread) for _ in range(3)}
    assert len(threads) == 1
    (thread,) = threads
    assert thread is not threading.current_thread()
    del dog
    gc.collect()
    thread.join(5.0)
    assert not thread.is_alive()


def test_a_watchdog_does_not_keep_alive_what_it_called():
    class Thing:
        def work(self) -> int:
            return 5

    ended = threading.Event()
    dog, thing = Watchdog(5.0), Thing()
    Thing.__del__ = lambda self: ended.set()  # type: ignore[attr-defined]
    assert dog.call(thing.work) == 5
    del thing
    gc.collect()
    assert ended.wait(5.0)


def test_what_a_call_raises_comes_back_and_the_next_call_works():
    dog = Watchdog(5.0)
    with pytest.raises(ZeroDivisionError):
        dog.call(lambda: 1 // 0)
    assert dog.call(divmod, 7, 2) == (3, 1)
    with pytest.raises(SystemExit):
        dog.call(sys.exit, 3)
    closed: list[int] = []
    dog.close(lambda: closed.append(1))
    assert closed == [1]


def test_an_abandoned_call_is_not_taken_for_the_answer_to_a_later_one():
    dog, go = Watchdog(0.1), threading.Event()
    with pytest.raises(TimeoutError, match=r"longer than 0\.1 s"):
        dog.call(go.wait)
    go.set()
    time.sleep(0.05)
    with pytest.raises(TimeoutError, match="earlier call"):
        dog.call(lambda: 5)
    closed = threading.Event()
    dog.close(closed.set)
    assert closed.wait(5.0)  # made by the thread, as it came back


# MinAtar

GAMES = ("asterix", "breakout", "freeway", "seaquest", "space_invaders")


def minatar(game: str, **fields: Any) -> Any:
    return config(type="minatar", game=game, **fields)


def play(environment: Any, calls: int, seed: int = 0) -> list[Played]:
    random = np.random.default_rng(seed)
    environment.reset()
    return [environment.step(random.integers(0, environment.spec.actions, environment.count)) for _ in range(calls)]


@pytest.mark.parametrize("game", GAMES)
def test_minatar_is_as_it_was_published(game: str):
    from minatar import Environment

    environment = minatar(game).make(1, (9,))
    official = Environment(game)
    assert (official.sticky_action_prob, official.num_actions()) == (0.1, environment.spec.actions)
    random, episode, over, score, scores = np.random.default_rng(1), 0, False, 0.0, []
    frame = environment.reset()
    for call in range(300):
        if call == 0 or over:
            official.seed(episode_seed(9, episode))
            official.last_action = 0
            official.reset()
            episode, over, reward, acted = episode + 1, False, 0, False
        if call > 0:
            action = random.integers(0, 6)
            played = environment.step(np.array([action]))
            if played.acted[0]:
                reward, over = official.act(int(action))
                acted = True
            assert (played.reward[0], played.terminated[0], played.acted[0]) == (reward, over, acted)
            assert not played.truncated[0]
            score += reward
            if over:
                scores.append(score)
            frame = played.frame
        state = official.state()
        assert frame.shape == (1, state.shape[2], 10, 10)
        assert np.array_equal(frame[0] == 255, state.transpose(2, 0, 1))
        assert np.array_equal(frame[0] == 0, ~state.transpose(2, 0, 1))
    assert scores or game == "freeway"
    environment.close()


def test_minatar_draws_nothing_from_numpys_global_state():
    runs = []
    for seed in (1, 2):
        np.random.seed(seed)
        environment = minatar("asterix").make(2, (3, 4))
        runs.append(np.stack([played.frame for played in play(environment, 80)]))
        environment.close()
    assert np.array_equal(*runs)
    assert not np.array_equal(runs[0][:, 0], runs[0][:, 1])


def test_minatar_options():
    spec = minatar("breakout", full_action_set=False).spec()
    assert spec.action_names == ("no-op", "left", "right")
    assert minatar("breakout").spec().action_names == ("no-op", "left", "up", "right", "down", "fire")
    environment = minatar("freeway", max_steps=5).make(1, (0,), render=True)
    ends = play(environment, 12)
    assert [bool(end.truncated[0]) for end in ends] == [False] * 4 + [True] + [False] * 5 + [True, False]
    assert [bool(end.acted[0]) for end in ends] == [True] * 5 + [False] + [True] * 5 + [False]
    picture = environment.render(0)
    assert (picture.shape, picture.dtype) == ((160, 160, 3), np.uint8)
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 3
    environment.close()


def test_without_sticky_actions_minatar_does_what_it_is_told():
    def paddle(sticky: float) -> list[int]:
        environment = minatar("breakout", sticky_actions=sticky).make(1, (0,))
        environment.reset()
        moves = []
        for call in range(8):
            frame = environment.step(np.array([(1, 3)[call % 2]])).frame
            moves.append(int(frame[0, 0, 9].argmax()))
        environment.close()
        return moves

    assert paddle(0.0)[:4] == [3, 4, 3, 4]
    assert paddle(0.99)[:4] == [4, 4, 4, 4]


def test_without_the_extra_minatar_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "minatar", None)
    assert minatar("breakout").check() == ["environment minatar needs a package: pip install 'heliostat[minatar]'"]


def test_importing_environments_is_quick_and_minatar_leaves_logging_alone():
    code = """
import sys, logging
import heliostat.reinforcement.environments as environments
assert not {"gymnasium", "ale_py", "minatar", "torch", "ray"} & set(sys.modules), "imported too early"
environments.MinAtarEnvironment(type="minatar", game="breakout").spec()
assert not logging.getLogger().handlers and logging.root.manager.disable == 0
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (found.returncode, found.stderr) == (0, "")


def test_failures_cross_processes():
    failure = EnvironmentFailure("CartPole-v1", "hangs", 3, 1)
    copy = pickle.loads(pickle.dumps(failure))  # noqa: S301 - what Ray does with errors
    assert str(copy) == str(failure) == "environment CartPole-v1, lane 3, action 1: hangs"
    assert (copy.environment, copy.what, copy.lane, copy.action) == ("CartPole-v1", "hangs", 3, 1)
    assert logging.getLogger().manager.disable == 0
