from __future__ import annotations

import json
import math
import tracemalloc
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import chisquare

from heliostat_algorithms.reinforcement.replay import Prioritization, ReplayBatch, ReplayBuffer, Steps

EVENTS = ("go", "go", "go", "go", "life", "terminated", "truncated", "life, truncated", "both", "broken")


@dataclass(frozen=True, kw_only=True)
class Setup:
    """Arguments of a buffer."""

    capacity: int
    lanes: int = 1
    frame_shape: tuple[int, ...] = (2,)
    stack: int = 1
    n_step: int = 1
    discount: float = 0.9
    reward_clip: float | None = None
    prioritization: Prioritization | None = None

    def build(self) -> ReplayBuffer:
        return ReplayBuffer(**self.__dict__, frame_dtype=np.dtype(np.int32))


@dataclass
class Moment:
    """One slot of one lane, as it was played."""

    frame: NDArray[Any]
    action: int
    reward: float
    start: bool
    acted: bool = True
    terminated: bool = False
    truncated: bool = False
    life_lost: bool = False
    priority: float = math.nan
    serial: int = 0


@dataclass
class Player:
    """Plays a lane from a tape of events. Each frame, action and reward can be told from all others."""

    lane: int
    frame_shape: tuple[int, ...]
    in_the_middle: bool
    count: int = 0
    over: bool = False
    fresh: bool = True

    def next(self, event: str, priority: float) -> Moment:
        self.count += 1
        number = 1000 * (self.lane + 1) + self.count
        frame = number * 100 + np.arange(math.prod(self.frame_shape)).reshape(self.frame_shape)
        if self.over:
            self.over, self.fresh = False, True
            return Moment(frame, number, 0.0, start=False, acted=False)
        start = self.fresh and not (self.in_the_middle and self.count == 1)
        reward = math.sin(number) * 3
        moment = Moment(frame, number, float(np.float32(reward)), start, priority=priority)
        moment.terminated = event in ("terminated", "both")
        moment.truncated = event in ("truncated", "both", "life, truncated")
        moment.life_lost = event in ("life", "life, truncated")
        self.over, self.fresh = moment.terminated or moment.truncated, event == "broken"
        return moment


@dataclass
class Item:
    """One transition, written out."""

    slot: int
    observation: NDArray[Any]
    action: int
    reward: float
    bootstrap: float
    next_observation: NDArray[Any]
    age: int
    moment: Moment


@dataclass
class Naive:
    """Remembers everything that was ever played, and lists the transitions by their definition."""

    setup: Setup
    played: list[list[Moment]] = field(default_factory=list)
    acted: int = 0
    largest: float = 1.0

    def __post_init__(self) -> None:
        self.played = [[] for _ in range(self.setup.lanes)]

    def insert(self, rows: list[list[Moment]], lanes: range) -> None:
        for row in rows:
            for lane, moment in zip(lanes, row, strict=True):
                self.acted += moment.acted
                moment.serial = self.acted
                self.played[lane].append(moment)
                if moment.acted and not math.isnan(moment.priority):
                    self.largest = max(self.largest, moment.priority)
            for moment in row:
                if math.isnan(moment.priority):
                    moment.priority = self.largest

    def length(self, lane: int) -> int:
        return self.setup.capacity // self.setup.lanes + (lane < self.setup.capacity % self.setup.lanes)

    def stacked(self, frames: list[NDArray[Any]]) -> NDArray[Any]:
        """The last ``stack`` of all frames of an episode so far, zeros before the first."""
        setup = self.setup
        padded = [np.zeros(setup.frame_shape, np.int32)] * setup.stack + frames
        newest = padded[-setup.stack :]
        return np.stack(newest) if len(setup.frame_shape) == 2 else np.concatenate(newest)

    def mass(self, moment: Moment) -> float:
        rule = self.setup.prioritization
        return 1.0 if rule is None else (moment.priority + rule.epsilon) ** rule.exponent

    def items(self) -> tuple[list[Item], int]:
        """All items that can be sampled, in the order of their slots, and how many never can."""
        found, lost, offset = [], 0, 0
        for lane in range(self.setup.lanes):
            played = self.played[lane]
            episodes: list[list[Moment]] = []
            for moment in played:
                if moment.start or not episodes:
                    episodes.append([])
                episodes[-1].append(moment)
            number = 0
            for episode in episodes:
                whole = episode[0].start
                for i, moment in enumerate(episode):
                    if moment.acted:
                        outcome = self.outcome(episode, i)
                        oldest = number + max(0 if whole else -self.setup.stack, i - self.setup.stack + 1)
                        if oldest < 0 or (outcome is None and episode is not episodes[-1]):
                            lost += 1
                        elif outcome is not None and oldest >= len(played) - self.length(lane):
                            slot = offset + (number + i) % self.length(lane)
                            observation = self.stacked([m.frame for m in episode[: i + 1]])
                            age = self.acted - moment.serial
                            found.append(Item(slot, observation, moment.action, *outcome, age, moment))
                number += len(episode)
            offset += self.length(lane)
        return sorted(found, key=lambda item: item.slot), lost

    def outcome(self, episode: list[Moment], i: int) -> tuple[float, float, NDArray[Any]] | None:
        """Return, bootstrap and next observation of an item, if they are known."""
        total, clip = 0.0, self.setup.reward_clip or math.inf
        for k, moment in enumerate(episode[i : i + self.setup.n_step]):
            total += self.setup.discount**k * max(-clip, min(clip, moment.reward))
            if moment.terminated or moment.life_lost:
                return total, 0.0, np.zeros_like(self.stacked([]))
            if moment.truncated or k + 1 == self.setup.n_step:
                after = i + k + 1
                if after == len(episode):
                    return None
                following = self.stacked([m.frame for m in episode[: after + 1]])
                return total, self.setup.discount ** (k + 1), following
        return None


def steps_of(rows: list[list[Moment]], priorities: bool) -> Steps:
    def column(name: str, dtype: Any) -> NDArray[Any]:
        return np.array([[getattr(moment, name) for moment in row] for row in rows], dtype)

    return Steps(
        frame=column("frame", np.int32),
        action=column("action", np.int64),
        reward=column("reward", np.float32),
        terminated=column("terminated", np.bool_),
        truncated=column("truncated", np.bool_),
        life_lost=column("life_lost", np.bool_),
        acted=column("acted", np.bool_),
        start=column("start", np.bool_),
        priority=column("priority", np.float32) if priorities else None,
    )


def middles(masses: list[float]) -> NDArray[np.float64]:
    """A point for each item, in the middle of its mass."""
    mass = np.array(masses)
    return (np.cumsum(mass) - mass / 2) / mass.sum()


def compare(buffer: ReplayBuffer, naive: Naive) -> tuple[ReplayBatch, list[Item]] | None:
    """Sample every item of the reference once: the buffer must have these items and no others."""
    items, lost = naive.items()
    assert buffer.size == len(items)
    assert buffer.lost == lost
    assert buffer.inserted == naive.acted
    used = sum(min(len(naive.played[lane]), naive.length(lane)) for lane in range(naive.setup.lanes))
    assert buffer.fill == used / naive.setup.capacity
    masses = [naive.mass(item.moment) for item in items]
    assert buffer.mass == pytest.approx(math.fsum(masses), rel=1e-12)
    if not items:
        with pytest.raises(ValueError, match="no item"):
            buffer.sample(np.array([0.5]))
        return None
    batch = buffer.sample(middles(masses))
    assert batch.slot.tolist() == [item.slot for item in items]
    np.testing.assert_array_equal(batch.observation, np.stack([item.observation for item in items]))
    np.testing.assert_array_equal(batch.next_observation, np.stack([item.next_observation for item in items]))
    assert batch.observation.dtype == batch.next_observation.dtype == np.int32
    assert batch.action.tolist() == [item.action for item in items]
    assert batch.reward.dtype == batch.bootstrap.dtype == np.float32
    assert batch.reward.tolist() == [float(np.float32(item.reward)) for item in items]
    assert batch.bootstrap.tolist() == [float(np.float32(item.bootstrap)) for item in items]
    assert batch.age.tolist() == [item.age for item in items]
    assert batch.priority_mass.tolist() == pytest.approx(masses, rel=1e-12)
    return batch, items


def copies(buffer: ReplayBuffer) -> dict[str, NDArray[Any]]:
    return {name: array.copy() for name, array in buffer.arrays().items()}


def changed(before: dict[str, NDArray[Any]], after: dict[str, NDArray[Any]]) -> NDArray[np.bool_]:
    differ = [(before[name] != after[name]).reshape(len(after[name]), -1).any(axis=1) for name in after]
    return np.any(differ, axis=0)


@st.composite
def setups(draw: st.DrawFn) -> Setup:
    lanes, stack, n_step = draw(st.integers(1, 3)), draw(st.integers(1, 4)), draw(st.integers(1, 4))
    prioritized = draw(st.booleans())
    return Setup(
        capacity=lanes * (stack + n_step) + draw(st.integers(0, 25)),
        lanes=lanes,
        frame_shape=draw(st.sampled_from([(2,), (1, 2), (2, 1, 1)])),
        stack=stack,
        n_step=n_step,
        discount=draw(st.sampled_from([0.0, 0.9, 1.0])),
        reward_clip=draw(st.sampled_from([None, 1.0])),
        prioritization=Prioritization(exponent=0.6, epsilon=0.01) if prioritized else None,
    )


@settings(max_examples=250, deadline=None)
@given(
    setup=setups(),
    in_the_middle=st.lists(st.booleans(), min_size=3, max_size=3),
    chunks=st.lists(st.tuples(st.integers(1, 12), st.integers(0, 2), st.integers(1, 3)), min_size=1, max_size=8),
    long=st.integers(1, 60),
    tape=st.binary(min_size=0, max_size=200),
    restored_at=st.integers(0, 8),
)
def test_items_are_those_of_a_naive_list_of_transitions(
    setup: Setup,
    in_the_middle: list[bool],
    chunks: list[tuple[int, int, int]],
    long: int,
    tape: bytes,
    restored_at: int,
) -> None:
    buffer, naive = setup.build(), Naive(setup)
    players = [Player(lane, setup.frame_shape, in_the_middle[lane]) for lane in range(setup.lanes)]
    events = iter(tape)
    generations: dict[tuple[int, int], int] = {}
    earlier: list[tuple[ReplayBatch, list[Item]]] = []
    fresh_priority = 0
    other = None
    for turn, (calls, first, last) in enumerate([*chunks, (long, 0, 3)]):
        lanes = range(min(first, setup.lanes - 1), min(max(first + 1, last), setup.lanes))
        rows = []
        for _ in range(calls):
            bytes_ = [next(events, 0) for _ in lanes]
            # Known priorities, and some that are not.
            given_ = [math.nan if byte % 3 == 0 else float(np.float32(0.1 * (byte % 50))) for byte in bytes_]
            rows.append(
                [
                    players[lane].next(EVENTS[byte % len(EVENTS)], priority)
                    for lane, byte, priority in zip(lanes, bytes_, given_, strict=True)
                ]
            )
        steps = steps_of(rows, priorities=setup.prioritization is not None)
        before = copies(buffer)
        buffer.insert(steps, lanes)
        naive.insert(rows, lanes)
        if other is not None:
            other.insert(steps, lanes)
        touched, different = buffer.take_written(), changed(before, buffer.arrays())
        # In a longer insert items come and go, which leaves no trace.
        if calls <= min(naive.length(lane) for lane in lanes) - setup.stack - setup.n_step + 1:
            np.testing.assert_array_equal(touched, different)
        assert touched[different].all()
        found = compare(buffer, naive)
        if found is not None:
            batch, items = found
            for slot, generation, item in zip(batch.slot, batch.generation, items, strict=True):
                assert generations.setdefault((slot, generation), id(item.moment)) == id(item.moment)
            earlier.append(found)
        if setup.prioritization is not None and earlier:
            # What was sampled some time ago: part of it may be gone.
            batch, items = earlier[len(tape) % len(earlier)]
            present = {id(item.moment) for item in naive.items()[0]}
            priorities = np.array([7.0 + 0.001 * (fresh_priority + i) for i in range(len(items))])
            fresh_priority += len(items)
            before = copies(buffer)
            ignored = buffer.update_priorities(batch.slot, batch.generation, priorities)
            if other is not None:
                assert other.update_priorities(batch.slot, batch.generation, priorities) == ignored
            assert ignored == sum(id(item.moment) not in present for item in items)
            np.testing.assert_array_equal(buffer.take_written(), changed(before, buffer.arrays()))
            for item, priority in zip(items, priorities, strict=True):
                if id(item.moment) in present:
                    item.moment.priority = float(priority)
                    naive.largest = max(naive.largest, float(priority))
            compare(buffer, naive)
        if turn == restored_at:
            # From here on, what was restored is compared, and the old buffer goes on beside it.
            other, buffer = buffer, setup.build()
            buffer.restore(copies(other), json.loads(json.dumps(other.counters())))
            assert not buffer.take_written().any()
            compare(buffer, naive)
    if other is not None:
        assert other.counters() == buffer.counters()
        assert other.mass == buffer.mass
        assert not changed(other.arrays(), buffer.arrays()).any()


def played(setup: Setup, events: list[str], priority: float = math.nan) -> list[list[Moment]]:
    """All lanes play the same."""
    players = [Player(lane, setup.frame_shape, False) for lane in range(setup.lanes)]
    return [[player.next(event, priority) for player in players] for event in events]


def filled(setup: Setup, calls: int) -> ReplayBuffer:
    buffer = setup.build()
    buffer.insert(steps_of(played(setup, ["go"] * calls), priorities=False), range(setup.lanes))
    return buffer


def test_a_truncated_episode_by_hand() -> None:
    setup = Setup(capacity=20, stack=2, n_step=3, discount=0.5)
    rows = played(setup, ["go", "go", "go", "truncated", "", "go"])
    for (moment,), reward in zip(rows, (1.0, 2.0, 4.0, 8.0, 0.0, 16.0), strict=True):
        moment.reward = reward
    buffer = setup.build()
    buffer.insert(steps_of(rows, priorities=False), range(1))
    batch = buffer.sample((np.arange(4) + 0.5) / 4)
    assert batch.slot.tolist() == [0, 1, 2, 3]  # the one of the new episode has no outcome yet
    assert batch.reward.tolist() == [1 + 1 + 1, 2 + 2 + 2, 4 + 4, 8]
    assert batch.bootstrap.tolist() == [0.125, 0.125, 0.25, 0.5]
    frames = np.stack([moment.frame for (moment,) in rows])
    np.testing.assert_array_equal(batch.observation[:2], [[0, 0, *frames[0]], [*frames[0], *frames[1]]])
    np.testing.assert_array_equal(batch.next_observation[3], np.concatenate([frames[3], frames[4]]))
    np.testing.assert_array_equal(batch.next_observation[0], np.concatenate([frames[2], frames[3]]))


@pytest.mark.parametrize(("frame_shape", "stacked"), [((5,), (15,)), ((4, 6), (3, 4, 6)), ((2, 4, 6), (6, 4, 6))])
def test_stacks_have_the_oldest_frame_first(frame_shape: tuple[int, ...], stacked: tuple[int, ...]) -> None:
    setup = Setup(capacity=40, frame_shape=frame_shape, stack=3)
    rows = played(setup, ["go"] * 5)
    buffer = setup.build()
    buffer.insert(steps_of(rows, priorities=False), range(1))
    batch = buffer.sample(np.array([0.99]))
    assert batch.observation.shape == batch.next_observation.shape == (1, *stacked)
    for name, last in (("observation", 3), ("next_observation", 4)):
        expected = np.concatenate([rows[i][0].frame.ravel() for i in (last - 2, last - 1, last)])
        assert getattr(batch, name).ravel().tolist() == expected.tolist()


def test_lanes_share_an_odd_capacity_and_do_not_see_one_another() -> None:
    setup = Setup(capacity=11, lanes=3, stack=2)
    buffer = filled(setup, 9)
    batch = buffer.sample((np.arange(buffer.size) + 0.5) / buffer.size)
    # Rings of 4, 4 and 3 slots; the oldest slot lacks a frame, the newest an outcome.
    assert np.bincount(batch.slot // 4).tolist() == [2, 2, 1]
    assert (batch.observation[:, 0] // 100_000 == batch.slot // 4 + 1).all()
    assert (batch.observation[:, 2] - batch.observation[:, 0] == 100).all()


def test_what_is_inserted_is_copied() -> None:
    setup = Setup(capacity=9, prioritization=Prioritization())
    steps = steps_of(played(setup, ["go"] * 5, priority=2.0), priorities=True)
    buffer = setup.build()
    buffer.insert(steps, range(1))
    before = copies(buffer)
    for array in (steps.frame, steps.action, steps.reward, steps.priority):
        assert array is not None
        array[:] = 1
    assert not changed(before, buffer.arrays()).any()


def test_prioritized_sampling_follows_equation_1_for_any_capacity() -> None:
    setup = Setup(capacity=37, lanes=2, n_step=2, prioritization=Prioritization(exponent=0.7, epsilon=0.1))
    buffer, rng = setup.build(), np.random.default_rng(0)
    rows = played(setup, ["go"] * 25)
    for row in rows:
        for moment in row:
            moment.priority = float(np.float32(rng.exponential()))
    rows[20][0].priority = 0.0
    buffer.insert(steps_of(rows, priorities=True), range(2))
    counts = np.bincount(buffer.sample(rng.random(200_000)).slot, minlength=37)
    expected = np.zeros(37)
    for lane, (offset, length) in enumerate(((0, 19), (19, 18))):
        for number in range(25 - length, 23):
            expected[offset + number % length] = (rows[number][lane].priority + 0.1) ** 0.7
    assert (counts[expected == 0] == 0).all()
    some = expected > 0
    assert chisquare(counts[some], 200_000 * expected[some] / expected.sum()).pvalue > 1e-3
    # Again, after priorities changed.
    slots = np.flatnonzero(some)[::3]
    batch = buffer.sample(middles([*expected[some]]))
    chosen = np.isin(batch.slot, slots)
    new = rng.exponential(size=len(slots)) * 3
    assert buffer.update_priorities(batch.slot[chosen], batch.generation[chosen], new) == 0
    expected[slots] = (new + 0.1) ** 0.7
    counts = np.bincount(buffer.sample(rng.random(200_000)).slot, minlength=37)
    assert chisquare(counts[some], 200_000 * expected[some] / expected.sum()).pvalue > 1e-3


def test_uniform_sampling_is_uniform() -> None:
    buffer = filled(Setup(capacity=23, lanes=2), 8)
    slots = buffer.sample(np.random.default_rng(0).random(100_000)).slot
    counts = np.bincount(slots, minlength=23)
    assert np.count_nonzero(counts) == buffer.size == buffer.mass == 14
    assert chisquare(counts[counts > 0]).pvalue > 1e-3


def test_an_item_begins_with_the_largest_priority_so_far() -> None:
    setup = Setup(capacity=30, prioritization=Prioritization(exponent=1.0, epsilon=1e-9))
    buffer = setup.build()
    moments = [row[0] for row in played(setup, ["go"] * 12)]
    given_ = [math.nan, 3.0, math.nan, 0.5, math.nan]
    for moment, priority in zip(moments, given_, strict=False):
        moment.priority = priority
    buffer.insert(steps_of([[moment] for moment in moments[:6]], priorities=True), range(1))
    batch = buffer.sample(middles([1.0, 3.0, 3.0, 0.5, 3.0]))
    assert batch.priority_mass.tolist() == pytest.approx([1.0, 3.0, 3.0, 0.5, 3.0])
    assert buffer.update_priorities(batch.slot[:1], batch.generation[:1], np.array([9.0], np.float32)) == 0
    buffer.insert(steps_of([[moment] for moment in moments[6:8]], priorities=False), range(1))
    masses = [9.0, 3.0, 3.0, 0.5, 3.0, 3.0, 9.0]  # the sixth was played before
    assert buffer.sample(middles(masses)).priority_mass.tolist() == pytest.approx(masses)


def test_priorities_of_recycled_slots_are_ignored_and_counted() -> None:
    setup = Setup(capacity=10, prioritization=Prioritization())
    buffer = setup.build()
    rows = played(setup, ["go"] * 17)
    buffer.insert(steps_of(rows[:10], priorities=False), range(1))
    batch = buffer.sample((np.arange(9) + 0.5) / 9)
    assert batch.slot.tolist() == list(range(9))
    buffer.insert(steps_of(rows[10:17], priorities=False), range(1))
    before = copies(buffer)
    mass = buffer.mass
    buffer.take_written()
    assert buffer.update_priorities(batch.slot[:7], batch.generation[:7], np.full(7, 100.0)) == 7
    assert not buffer.take_written().any()
    assert not changed(before, buffer.arrays()).any()
    assert buffer.mass == mass
    assert buffer.counters()["largest_priority"] == 1.0
    assert buffer.update_priorities(batch.slot, batch.generation, np.full(9, 100.0)) == 7
    assert np.flatnonzero(buffer.take_written()).tolist() == [7, 8]


def test_of_a_slot_named_twice_the_last_priority_counts() -> None:
    setup = Setup(capacity=10, prioritization=Prioritization(exponent=1.0, epsilon=1e-9))
    buffer = filled(setup, 5)
    batch = buffer.sample(np.array([0.1, 0.1]))
    assert buffer.update_priorities(batch.slot, batch.generation, np.array([5.0, 2.0])) == 0
    assert buffer.sample(np.array([0.1])).priority_mass[0] == pytest.approx(2.0)


def test_an_insert_that_breaks_a_rule_changes_nothing() -> None:
    setup = Setup(capacity=40, lanes=2)
    buffer = filled(setup, 6)
    buffer.take_written()
    before, counters = copies(buffer), buffer.counters()
    rows = played(setup, ["go", "terminated", "", "go"])
    good = steps_of(rows, priorities=False)
    good.start[0] = False
    ended = good.terminated.copy()
    ended[0, 1] = True
    for message, wrong in (
        ("lane 1: the episode was over", replace(good, terminated=ended)),
        ("call 3, lane 0: the episode was over", replace(good, start=np.zeros_like(good.start))),
        ("call 2, lane 0: no action was taken, although", replace(good, terminated=np.zeros_like(ended))),
        ("call 2, lane 0: no action was taken, so", replace(good, start=~good.acted)),
        ("call 0, lane 0: the reward is nan", replace(good, reward=np.full((4, 2), np.nan, np.float32))),
        ("frames are float32", replace(good, frame=good.frame.astype(np.float32))),
        ("frames are int32 of the shape", replace(good, frame=good.frame[..., :1])),
    ):
        with pytest.raises(ValueError, match=message):
            buffer.insert(wrong, range(2))
    for lanes in (range(1, 3), range(-1, 1), range(0, 4, 2), range(1)):
        with pytest.raises(ValueError, match="lanes"):
            buffer.insert(good, lanes)
    assert not buffer.take_written().any()
    assert not changed(before, buffer.arrays()).any()
    assert buffer.counters() == counters
    buffer.insert(good, range(2))
    assert buffer.inserted == 18


@pytest.mark.parametrize("wrong", [-1.0, math.inf])
def test_wrong_initial_priorities_are_refused(wrong: float) -> None:
    setup = Setup(capacity=40, prioritization=Prioritization())
    buffer = setup.build()
    with pytest.raises(ValueError, match="a priority is"):
        buffer.insert(steps_of(played(setup, ["go"], priority=wrong), priorities=True), range(1))
    assert buffer.inserted == 0


def test_steps_of_wrong_shapes_and_dtypes_are_refused() -> None:
    good = steps_of(played(Setup(capacity=9, lanes=2), ["go"] * 3), priorities=True)
    with pytest.raises(ValueError, match=r"reward has the shape \(3, 1\); it must be \(3, 2\)"):
        replace(good, reward=good.reward[:, :1])
    with pytest.raises(ValueError, match="reward is float64; it must be float32"):
        replace(good, reward=good.reward.astype(np.float64))
    with pytest.raises(ValueError, match="frame has the shape"):
        replace(good, frame=good.frame[1:])
    with pytest.raises(ValueError, match=r"action has the shape \(3,\)"):
        replace(good, action=good.action[:, 0])
    with pytest.raises(ValueError, match="priority is float64"):
        replace(good, priority=np.zeros((3, 2)))  # type: ignore[arg-type]


def test_arguments_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 21, with which"):
        Setup(capacity=20, lanes=3, stack=4, n_step=3).build()
    Setup(capacity=21, lanes=3, stack=4, n_step=3).build()
    for message, setup in (
        ("lanes is 0", Setup(capacity=9, lanes=0)),
        ("n_step is 0", Setup(capacity=9, n_step=0)),
        ("discount is 1.1", Setup(capacity=9, discount=1.1)),
        ("reward_clip is 0", Setup(capacity=9, reward_clip=0.0)),
        ("frames have the shape", Setup(capacity=9, frame_shape=(1, 2, 3, 4))),
    ):
        with pytest.raises(ValueError, match=message):
            setup.build()
    for options in ({"exponent": 1.1}, {"exponent": -0.1}, {"epsilon": 0.0}, {"epsilon": math.nan}):
        with pytest.raises(ValueError, match="it must be"):
            Prioritization(**options)


def test_wrong_points_and_priorities_are_refused_and_change_nothing() -> None:
    setup = Setup(capacity=20, prioritization=Prioritization())
    buffer = filled(setup, 9)
    batch = buffer.sample(np.array([0.2, 0.7]))
    before = copies(buffer)
    for points in ([-0.1], [1.0], [math.nan], [[0.5]]):
        with pytest.raises(ValueError, match="points must be"):
            buffer.sample(np.array(points))
    for priorities in ([1.0, -1e-9], [math.nan, 1.0], [math.inf, 1.0]):
        with pytest.raises(ValueError, match="a priority is"):
            buffer.update_priorities(batch.slot, batch.generation, np.array(priorities))
    with pytest.raises(ValueError, match="must all be"):
        buffer.update_priorities(batch.slot, batch.generation, np.ones(3))
    with pytest.raises(ValueError, match="from 0 to 19"):
        buffer.update_priorities(batch.slot + 19, batch.generation, np.ones(2))
    assert not changed(before, buffer.arrays()).any()
    uniform = filled(Setup(capacity=20), 9)
    with pytest.raises(ValueError, match="samples uniformly"):
        uniform.update_priorities(batch.slot, batch.generation, np.ones(2))


def test_another_buffers_state_is_refused_by_name() -> None:
    setup = Setup(capacity=20, stack=2, prioritization=Prioritization())
    there, here = filled(replace(setup, discount=0.5, stack=3), 9), filled(setup, 4)
    before = copies(here)
    with pytest.raises(ValueError, match=r"stack is 3 there and 2 here; discount is 0\.5 there and 0\.9 here"):
        here.restore(there.arrays(), there.counters())
    arrays = copies(filled(setup, 9))
    del arrays["priority"]
    with pytest.raises(ValueError, match=r"the array priority is missing there and float64 \[20\] here"):
        here.restore(arrays, here.counters())
    assert not changed(before, here.arrays()).any()


def test_a_buffer_can_be_filled_through_its_own_arrays() -> None:
    setup = Setup(capacity=20, stack=2, prioritization=Prioritization())
    there, here = filled(setup, 30), setup.build()
    for name, array in here.arrays().items():
        array[:] = there.arrays()[name]
    here.restore(here.arrays(), there.counters())
    points = np.random.default_rng(0).random(50)
    first, second = there.sample(points), here.sample(points)
    for name in ReplayBatch.__dataclass_fields__:
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))


def test_a_stored_atari_transition_takes_little_more_than_its_frame() -> None:
    tracemalloc.start()
    try:
        buffer = ReplayBuffer(
            capacity=10_000,
            lanes=8,
            frame_shape=(84, 84),
            frame_dtype=np.dtype(np.uint8),
            stack=4,
            n_step=3,
            prioritization=Prioritization(),
        )
        allocated = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert buffer.nbytes == pytest.approx(allocated, rel=1e-4)
    assert buffer.nbytes / 10_000 <= 84 * 84 + 100


def test_nothing_that_grows_with_the_capacity_is_made_in_daily_work() -> None:
    setup = Setup(capacity=2_000_000, lanes=2, n_step=3, stack=4, prioritization=Prioritization())
    buffer = filled(setup, 50)
    steps = steps_of(played(setup, ["go"] * 50), priorities=False)
    steps.start[0] = True  # a stream of its own
    tracemalloc.start()
    try:
        buffer.insert(steps, range(2))
        batch = buffer.sample(np.linspace(0, 0.99, 32))
        buffer.update_priorities(batch.slot, batch.generation, np.ones(32))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 200_000


def test_batches_are_joined_and_split_by_rows() -> None:
    buffer = filled(Setup(capacity=30, lanes=2, stack=2), 12)
    whole = buffer.sample((np.arange(16) + 0.5) / 16)
    assert len(whole) == 16
    parts = [whole.rows(range(5)), whole.rows(range(5, 6)), whole.rows(range(6, 16))]
    assert [len(part) for part in parts] == [5, 1, 10]
    assert parts[1].action.tolist() == [whole.action[5]]
    joined = ReplayBatch.concatenated([parts[2], parts[0], parts[1]])
    order = [*range(6, 16), *range(6)]
    for name in ReplayBatch.__dataclass_fields__:
        np.testing.assert_array_equal(getattr(joined, name), getattr(whole, name)[order])
