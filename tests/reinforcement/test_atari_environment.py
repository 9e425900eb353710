from __future__ import annotations

import threading
from typing import Any

import ale_py
import numpy as np
import pytest
from ale_py import roms
from ale_py.vector_env import AtariVectorEnv
from pydantic import TypeAdapter, ValidationError

from heliostat.errors import InputError
from heliostat.reinforcement.environments import AtariEnvironment, EnvironmentConfig, EnvironmentFailure, Played
from heliostat.reinforcement.environments.atari_scores import ATARI_SCORES, human_normalized
from heliostat.reinforcement.environments.seeding import episode_seed

ADAPTER: TypeAdapter[Any] = TypeAdapter(EnvironmentConfig)


def atari(game: str = "breakout", **fields: Any) -> AtariEnvironment:
    entry = ADAPTER.validate_python({"type": "atari", "game": game} | fields)
    assert isinstance(entry, AtariEnvironment)
    return entry


def drawn(seed: int, calls: int, lanes: int, actions: int) -> Any:
    return np.random.default_rng(seed).integers(0, actions, (calls, lanes))


def same(one: Played, other: Played, lane: int) -> None:
    for name in ("frame", "reward", "terminated", "truncated", "life_lost", "acted"):
        assert np.array_equal(getattr(one, name)[lane], getattr(other, name)[0]), name


# The emulator, frame by frame


def shares(size: int, into: int) -> Any:
    """(into, size): which share of each old pixel lies in each new one; rows sum to 1."""
    edges = np.arange(into + 1) * size / into
    overlap = np.minimum(edges[1:, None], np.arange(size) + 1) - np.maximum(edges[:-1, None], np.arange(size))
    return overlap.clip(0) * into / size


ROWS, COLUMNS = shares(210, 84), shares(160, 84)


class Console:
    """One game, played by the emulator's plain interface: no frame skip, no stack, nobody else's conventions."""

    def __init__(self, game: str, seed: int, *, frame_skip: int = 4, sticky: float = 0.0, every: bool = False) -> None:
        ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
        self.ale = ale_py.ALEInterface()
        self.ale.setInt("random_seed", seed)
        self.ale.setFloat("repeat_action_probability", sticky)
        self.ale.loadROM(str(roms.get_rom_path(game)))
        self.actions = self.ale.getLegalActionSet() if every else self.ale.getMinimalActionSet()
        self.frame_skip = frame_skip
        self.ale.reset_game()

    def seen(self) -> Any:
        return self.shrunk(self.ale.getScreenGrayscale())

    def restart(self) -> Any:
        self.ale.reset_game()
        return self.seen()

    @staticmethod
    def shrunk(screen: Any) -> Any:
        """(210, 160) -> (84, 84): the mean of the area of each new pixel."""
        return ROWS @ screen.astype(np.float64) @ COLUMNS.T

    def play(self, action: int) -> tuple[Any, float, bool, int]:
        """The brighter of the last two frames, the sum of rewards, whether the game is over, lives."""
        score, screens = 0.0, [np.zeros((210, 160), np.uint8)] * 2
        for _ in range(self.frame_skip):
            score += self.ale.act(self.actions[action])
            if self.ale.game_over():
                break
            screens.append(self.ale.getScreenGrayscale())
        return self.shrunk(np.maximum(screens[-2], screens[-1])), score, self.ale.game_over(), self.ale.lives()


@pytest.mark.parametrize(("game", "calls", "unit"), [("breakout", 420, 1), ("ms_pacman", 700, 10), ("pong", 120, -1)])
def test_a_game_is_what_the_emulator_plays_frame_by_frame(game: str, calls: int, unit: int):
    environment = atari(game, no_ops=0).make(1, (3,))
    console = Console(game, episode_seed(3, 0))
    assert np.abs(environment.reset()[0] - console.seen()).max() <= 1
    over, lives, lost, raw, scores, returns = False, console.ale.lives(), 0, [0.0], [], [0.0]
    for action in drawn(0, calls, 1, environment.spec.actions):
        played = environment.step(action)
        if over:
            scores.append(sum(raw))
            raw.clear()
            returns.append(0.0)
            expected, reward, over, left = console.restart(), 0.0, False, console.ale.lives()
            assert not played.acted[0]
            assert not played.life_lost[0]
        else:
            expected, reward, over, left = console.play(int(action[0]))
            assert played.acted[0]
            assert played.life_lost[0] == (left < lives and not over)
            lost += left < lives
        raw.append(reward)
        returns[-1] += played.reward[0]
        lives = left
        assert played.reward[0] == reward
        assert played.terminated[0] == over
        assert not played.truncated[0]
        if not over:  # the emulator's last frame of a game is an older one
            assert np.abs(played.frame[0] - expected).max() <= 1
    environment.close()
    assert returns == [*scores, sum(raw)]  # the raw scores of whole games
    assert any(value == unit for value in returns) or any(value / unit > 1 for value in returns)
    if game != "pong":
        assert len(scores) >= 1
        assert lost >= 3


def test_machados_protocol_is_what_the_emulator_plays_with_sticky_actions():
    environment = atari("breakout", protocol="machado").make(1, (3,))
    console = Console("breakout", episode_seed(3, 0), sticky=0.25, every=True)
    steady = Console("breakout", episode_seed(3, 0), every=True)
    environment.reset()
    differ = 0
    for action in drawn(1, 240, 1, 18):
        expected, reward, *_ = console.play(int(action[0]))
        played = environment.step(action)
        assert np.abs(played.frame[0] - expected).max() <= 1
        assert played.reward[0] == reward
        assert not played.life_lost[0]
        differ += np.abs(steady.play(int(action[0]))[0] - expected).max() > 1
    assert differ > 50
    assert console.ale.lives() < 5
    environment.close()


def test_frame_skip_and_the_brighter_of_two_frames_can_be_chosen():
    environment = atari("space_invaders", no_ops=0, frame_skip=3, max_pool=False, max_frames=9_000).make(1, (3,))
    pooled = atari("space_invaders", no_ops=0, frame_skip=3, max_frames=9_000).make(1, (3,))
    console = Console("space_invaders", episode_seed(3, 0), frame_skip=3)
    environment.reset()
    pooled.reset()
    differ = 0
    for action in drawn(1, 60, 1, 6):
        brighter, *_ = console.play(int(action[0]))
        newest = console.seen()
        assert np.abs(environment.step(action).frame[0] - newest).max() <= 1
        assert np.abs(pooled.step(action).frame[0] - brighter).max() <= 1
        differ += np.abs(newest - brighter).max() > 1
    assert differ > 10
    assert environment.spec.frames_per_step == 3
    environment.close()
    pooled.close()


def test_stacks_rebuilt_from_newest_frames_are_those_of_the_emulator():
    environment = atari("breakout").make(3, (3, 4, 5))
    emulator = AtariVectorEnv(
        "breakout", 3, num_threads=1, stack_num=4, reward_clipping=False, use_fire_reset=False, noop_max=30
    )
    stacks, _ = emulator.reset(seed=np.array([episode_seed(seed, 0) for seed in (3, 4, 5)]))
    ours = np.zeros((3, 4, 84, 84), np.uint8)
    ours[:, -1] = environment.reset()
    assert np.array_equal(ours, stacks)
    ends = 0
    for action in drawn(2, 300, 3, 4):
        played = environment.step(action)
        stacks, rewards, terminated, *_ = emulator.step(action)
        ours = np.concatenate([ours[:, 1:], played.frame[:, None]], axis=1)
        ours[~played.acted, :-1] = 0
        assert np.array_equal(ours, stacks)
        assert np.array_equal(played.reward, rewards)
        assert np.array_equal(played.terminated, terminated)
        ends += int(terminated.sum())
    assert ends >= 2
    environment.close()


# Ends of episodes


def test_the_frame_at_a_truncation_is_the_one_that_a_longer_episode_shows():
    """The emulator's own time limit gives a mixture of older frames there."""
    short, long = (atari(no_ops=10, max_frames=frames).make(1, (5,)) for frames in (200, 108_000))
    assert np.array_equal(short.reset(), long.reset())
    for call, action in enumerate(drawn(3, 50, 1, 4)):
        one, other = short.step(action), long.step(action)
        assert np.array_equal(one.frame, other.frame)
        assert np.array_equal(one.reward, other.reward)
        assert bool(one.truncated[0]) == (call == 49)
        assert not one.terminated[0]
    new = short.step(np.array([1]))
    assert (new.reward[0], new.acted[0], new.truncated[0]) == (0, False, False)
    assert not np.array_equal(new.frame, one.frame)
    assert short.step(np.array([1])).acted[0]
    short.close()
    long.close()


@pytest.mark.parametrize(("max_frames", "calls"), [(600, 330), (108_000, 200)])
def test_lanes_do_not_notice_each_other(max_frames: int, calls: int):
    """Whoever is cut off is reset while the others play on, in one call, whatever the number of threads. Games that end
    before the limit put the lanes out of step."""
    entry, seeds = atari(max_frames=max_frames), (11, 12, 13)
    together = entry.make(3, seeds, threads=2)
    alone = [entry.make(1, (seed,)) for seed in seeds]
    frames = together.reset()
    for lane, single in enumerate(alone):
        assert np.array_equal(frames[lane], single.reset()[0])
    terminated, truncated, apart, lost = 0, 0, 0, 0
    for action in drawn(6, calls, 3, 4):
        played = together.step(action)
        for lane, single in enumerate(alone):
            same(played, single.step(action[lane : lane + 1]), lane)
        assert not (played.terminated & played.truncated).any()
        terminated, lost = terminated + int(played.terminated.sum()), lost + int(played.life_lost.sum())
        truncated, apart = truncated + int(played.truncated.sum()), apart + (0 < played.truncated.sum() < 3)
    assert lost > 5
    assert terminated >= 1
    assert (truncated >= 2 and apart >= 1) if max_frames == 600 else truncated == 0
    for environment in (together, *alone):
        environment.close()


def test_the_call_after_an_end_ignores_its_action():
    ones, zeros = (atari(no_ops=5, max_frames=80).make(1, (5,)) for _ in range(2))
    ones.reset()
    zeros.reset()
    for call, action in enumerate(drawn(7, 64, 1, 4)):
        begins = call % 21 == 20
        one, zero = ones.step(np.array([1]) if begins else action), zeros.step(np.array([0]) if begins else action)
        assert bool(one.acted[0]) == (not begins)
        same(one, zero, 0)
        if begins:
            assert one.reward[0] == 0
    ones.close()
    zeros.close()


def test_what_happens_in_a_cut_off_game_is_nobodys(monkeypatch: pytest.MonkeyPatch):
    """The emulator plays a step with it before it is reset; that may score, and end the game."""
    played_on, step = [False], AtariVectorEnv.step

    def eventful(self: AtariVectorEnv, actions: Any) -> Any:
        frames, rewards, terminated, truncated, info = step(self, actions)
        rewards += 5
        terminated[:] = played_on[0]
        return frames, rewards, terminated, truncated, info

    monkeypatch.setattr(AtariVectorEnv, "step", eventful)
    environment = atari("pong", no_ops=0, max_frames=8).make(1, (1,))
    first = environment.reset()
    for call in range(9):
        played_on[0] = call % 3 == 2
        played = environment.step(np.array([2]))
        assert played.reward[0] == (0 if played_on[0] else 5)
        assert not played.terminated[0]
        assert bool(played.truncated[0]) == (call % 3 == 1)
        assert bool(played.acted[0]) == (not played_on[0])
        if played_on[0]:
            assert np.array_equal(played.frame, first)
    environment.close()


def test_life_loss_can_be_left_out():
    told, silent = atari(no_ops=0).make(1, (5,)), atari(no_ops=0, life_loss=False).make(1, (5,))
    told.reset()
    silent.reset()
    lost = 0
    for action in drawn(8, 120, 1, 4):
        one, other = told.step(action), silent.step(action)
        assert np.array_equal(one.frame, other.frame)
        assert not other.life_lost[0]
        lost += int(one.life_lost[0])
    assert lost >= 1
    told.close()
    silent.close()


# Seeds, sticky actions, no-ops


def test_lanes_are_repeated_by_their_seeds():
    environment = atari("enduro").make(2, (3, 4))

    def play() -> list[Any]:
        return [environment.step(action).frame for action in drawn(9, 40, 2, 4)]

    first = environment.reset()
    frames = play()
    assert not np.array_equal(first, environment.reset())  # the next episodes, after other numbers of no-ops
    assert np.array_equal(environment.reset([3, 4]), first)
    assert np.array_equal(play(), frames)
    swapped = environment.reset([4, 3])
    assert np.array_equal(swapped, first[::-1])
    environment.close()


@pytest.mark.parametrize(("fire", "no_ops", "last"), [(False, 0, 0), (False, 30, 29), (True, 30, 28)])
def test_episodes_begin_after_the_no_ops(fire: bool, no_ops: int, last: int):
    """The place of an episode's first frame among those that the game shows one after the other."""
    console = Console("enduro", 1)
    if fire:
        console.ale.act(1)
    screens = []
    for _ in range(40):
        screens.append(console.seen())
        console.ale.act(0)
    environment = atari("enduro", no_ops=no_ops, fire_on_reset=fire).make(2, (1, 2))
    found = []
    for _ in range(60 if no_ops > 1 else 3):
        for frame in environment.reset():
            (place,) = (place for place, screen in enumerate(screens) if np.abs(frame - screen).max() <= 1)
            found.append(place)
    environment.close()
    assert max(found) <= last
    if no_ops > 1:
        counts = np.histogram(found, 6, (0, 30))[0]
        assert ((counts - 20) ** 2 / 20).sum() < 20.5  # chi-squared with 5 degrees of freedom, 0.1 %


# The job file


def test_protocols_and_what_overrides_them():
    nature, machado = atari(), atari(protocol="machado")
    assert (nature.frame_skip, nature.max_pool, nature.stack, nature.no_ops) == (4, True, 4, 30)
    assert (nature.life_loss, nature.sticky_actions, nature.full_action_set) == (True, 0.0, False)
    assert (nature.max_frames, nature.evaluation_max_frames, nature.fire_on_reset) == (108_000, 18_000, False)
    assert (machado.life_loss, machado.sticky_actions, machado.full_action_set) == (False, 0.25, True)
    assert (machado.no_ops, machado.frame_skip, machado.stack, machado.max_frames) == (0, 4, 4, 108_000)
    mixed = atari(protocol="machado", sticky_actions=0.0, life_loss=True)
    assert (mixed.life_loss, mixed.sticky_actions, mixed.full_action_set) == (True, 0.0, True)
    for entry in (nature, machado, mixed):
        assert ADAPTER.validate_python(entry.model_dump(mode="json")) == entry


def test_specs():
    spec = atari("pong").spec()
    assert (spec.frame_shape, spec.observation_shape, spec.frame_dtype) == ((84, 84), (4, 84, 84), np.uint8)
    assert spec.action_names == ("NOOP", "FIRE", "RIGHT", "LEFT", "RIGHTFIRE", "LEFTFIRE")
    assert spec.actions == 6
    assert spec.reference == ATARI_SCORES["pong"]
    assert spec.frames_per_step == 4
    full = atari("pong", protocol="machado").spec()
    assert full.actions == len(set(full.action_names)) == 18


@pytest.mark.parametrize(
    ("fields", "right"),
    [
        ({"max_frames": 18_002}, "max_frames: .*18000 or 18004 would be"),
        ({"evaluation_max_frames": 3}, "evaluation_max_frames: .*; 4 would be"),
        ({"frame_skip": 7}, "max_frames: .*107996 or 108003 would be"),
    ],
)
def test_a_time_limit_is_a_whole_number_of_steps(fields: dict[str, Any], right: str):
    with pytest.raises(ValidationError, match=right):
        atari(**fields)


@pytest.mark.parametrize(
    "fields", [{"sticky_actions": 1.0}, {"frame_skip": 0}, {"no_ops": -1}, {"protocol": "nurture"}, {"games": "pong"}]
)
def test_settings_that_make_no_sense_are_refused(fields: dict[str, Any]):
    with pytest.raises(ValidationError):
        atari(**fields)


def test_an_unknown_game_is_refused_with_the_nearest_name():
    entry = atari("brekout")
    assert entry.check() == ["there is no Atari game 'brekout'. Did you mean 'breakout'?"]
    with pytest.raises(InputError, match="breakout"):
        entry.spec()
    assert atari("breakout").check() == []


def test_evaluation_has_a_time_limit_of_its_own():
    environment = atari("pong", evaluation_max_frames=40).make(1, (0,), evaluation=True)
    environment.reset()
    assert [bool(environment.step(np.array([0])).truncated[0]) for _ in range(10)] == [False] * 9 + [True]
    environment.close()


# Bad actions, hanging, pictures


def test_an_action_that_the_game_lacks_is_refused_before_the_emulator_hangs():
    environment, other = (atari(no_ops=0).make(2, (1, 2)) for _ in range(2))
    environment.reset()
    other.reset()
    for action in (4, -1):
        with pytest.raises(ValueError, match=f"action {action} of lane 1 is out of range"):
            environment.step(np.array([0, action]))
    assert np.array_equal(environment.step(np.array([1, 3])).frame, other.step(np.array([1, 3])).frame)
    environment.close()
    other.close()


def test_a_hanging_emulator_is_left_behind(monkeypatch: pytest.MonkeyPatch):
    environment = atari(timeout_s=0.5).make(1, (1,))
    environment.reset()
    go = threading.Event()
    monkeypatch.setattr(AtariVectorEnv, "step", lambda self, actions: go.wait(10))
    with pytest.raises(EnvironmentFailure, match=r"atari/breakout: step: it takes longer than 0\.5 s"):
        environment.step(np.array([0]))
    environment.close()
    go.set()


def test_pictures_are_the_colour_screen_of_what_is_played():
    environment = atari("breakout", max_pool=False, max_frames=120).make(2, (1, 2), render=True)
    grey = environment.reset()
    weights = np.array([0.2989, 0.5870, 0.1140])
    for action in drawn(5, 40, 2, 4):  # over a truncation
        for lane in range(2):
            picture = environment.render(lane)
            assert (picture.shape, picture.dtype) == ((210, 160, 3), np.uint8)
            assert np.abs(Console.shrunk(picture @ weights) - grey[lane]).max() < 3
        grey = environment.step(action).frame
    environment.close()
    plain = atari().make(1, (0,))
    plain.reset()
    with pytest.raises(EnvironmentFailure, match="made without render"):
        plain.render(0)
    plain.close()


# Reference scores


def test_reference_scores():
    assert len(ATARI_SCORES) == 57
    assert set(ATARI_SCORES) <= set(roms.get_all_rom_ids())
    assert all(np.isfinite([scores.random, scores.human]).all() for scores in ATARI_SCORES.values())
    assert all(scores.human > scores.random for scores in ATARI_SCORES.values())
    assert human_normalized("breakout", 1.7) == 0
    assert human_normalized("breakout", 30.5) == 1
    assert human_normalized("pong", 20.9) == pytest.approx(1.178470255, abs=1e-9)
    assert human_normalized("qbert", 100.0) < 0
    with pytest.raises(ValueError, match="Did you mean 'breakout'"):
        human_normalized("brekout", 1.0)
