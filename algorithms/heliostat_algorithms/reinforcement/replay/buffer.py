"""The replay memory (Mnih et al. 2013, arXiv 1312.5602, algorithm 1): each frame once, items of n steps, sampled
uniformly or by priority.

Slots hold what one call of an environment showed and did; an item is not stored, but read off its slots when it is
sampled. What is kept beside the slots is whether an item can be sampled, as its mass in a tree of sums. It gets its
mass with the slot that completes it, and loses it with the slot that overwrites the oldest frame that it shows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from heliostat_algorithms.reinforcement.replay import stream
from heliostat_algorithms.reinforcement.replay.availability import cut_off, histories, settled
from heliostat_algorithms.reinforcement.replay.batch import ReplayBatch
from heliostat_algorithms.reinforcement.replay.lookahead import returns, spans
from heliostat_algorithms.reinforcement.replay.prioritization import FIRST_PRIORITY, Prioritization
from heliostat_algorithms.reinforcement.replay.rings import Places, Rings
from heliostat_algorithms.reinforcement.replay.stacks import gather, stacked_shape
from heliostat_algorithms.reinforcement.replay.steps import Steps
from heliostat_algorithms.reinforcement.replay.sum_tree import SumTree


class ReplayBuffer:
    """Experience of some lanes, each in a ring of its own.

    An item begins in each slot in which an action was taken. It can be sampled once its outcome is there: the rewards
    of its k <= n steps and, unless the episode terminated or a life was lost, the observation after them; and as long
    as all frames of both its stacks are. What is in the buffer does not depend on how a stream is cut into inserts.

    Args:
        capacity: slots, shared out to the lanes as evenly as possible.
        lanes: environments whose streams it holds.
        frame_shape: of a single frame: (D,), (H, W) or (C, H, W).
        frame_dtype: of a frame's elements.
        stack: frames in an observation; zeros stand for those before an episode's first.
        n_step: n, steps that are summed at most.
        discount: factor on what comes one step later, from 0 to 1.
        reward_clip: rewards are clipped to [-reward_clip, reward_clip] in returns; None: not at all.
        prioritization: how priorities become probabilities; None: all items are equally likely.

    Raises:
        ValueError: an argument is out of range, or the capacity too small for the lanes.
    """

    def __init__(
        self,
        *,
        capacity: int,
        lanes: int,
        frame_shape: tuple[int, ...],
        frame_dtype: np.dtype[Any],
        stack: int = 1,
        n_step: int = 1,
        discount: float = 0.99,
        reward_clip: float | None = None,
        prioritization: Prioritization | None = None,
    ) -> None:
        for name, value in (("lanes", lanes), ("stack", stack), ("n_step", n_step)):
            if value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1")
        if not 0 <= discount <= 1:
            raise ValueError(f"discount is {discount}; it must be from 0 to 1")
        if reward_clip is not None and not reward_clip > 0:
            raise ValueError(f"reward_clip is {reward_clip}; it must be above 0, or None")
        if capacity < lanes * (stack + n_step):
            raise ValueError(
                f"a capacity of {capacity} slots is too small: {lanes} lanes with stacks of {stack} and {n_step}-step "
                f"returns need at least {lanes * (stack + n_step)}, with which each lane has one item at a time"
            )
        self._capacity, self._stack, self._n_step = capacity, stack, n_step
        self._discount, self._reward_clip, self._prioritization = discount, reward_clip, prioritization
        self._stacked_shape = stacked_shape(frame_shape, stack)
        self._rings = Rings(capacity, lanes)
        self._frame = np.zeros((capacity, *frame_shape), frame_dtype)
        self._action = np.zeros(capacity, np.int64)
        self._reward = np.zeros(capacity, np.float32)
        self._flags = np.zeros(capacity, np.uint8)
        # Frames of the same episode before the slot's, as many as a stack shows. In a stream that begins in the middle
        # of an episode they may be more than there ever were.
        self._history = np.zeros(capacity, np.min_scalar_type(stack))
        # Actions that the buffer had taken in before the slot, plus 1: it differs between any two writes of a slot.
        self._generation = np.zeros(capacity, np.int64)
        # |TD error| with which the slot's item begins. It may get its mass many inserts later.
        self._priority = None if prioritization is None else np.zeros(capacity)
        self._tree = SumTree(capacity)
        self._touched = np.zeros(capacity, np.bool_)
        self._size = self._inserted = self._lost = 0
        self._largest = FIRST_PRIORITY

    @property
    def size(self) -> int:
        """Items that can be sampled now."""
        return self._size

    @property
    def mass(self) -> float:
        """Sum of priority^exponent of the items that can be sampled; their number where sampling is uniform."""
        return self._tree.total

    @property
    def inserted(self) -> int:
        """Actions ever taken in."""
        return self._inserted

    @property
    def lost(self) -> int:
        """Items that never could nor can be sampled: their stream broke before their outcome, or began in the middle
        of an episode after the first of their frames."""
        return self._lost

    @property
    def nbytes(self) -> int:
        """Bytes of everything that is kept for slots, items and lanes, also where nothing has been written yet."""
        arrays = [array for name, array in self.arrays().items() if name != "mass"]
        return sum(array.nbytes for array in (*arrays, self._touched)) + self._tree.nbytes + self._rings.nbytes

    @property
    def fill(self) -> float:
        """Share of the slots that are in use."""
        return self._rings.used / self._capacity

    def insert(self, steps: Steps, lanes: range) -> None:
        """Take in what happened next in some lanes; everything is copied. Time is proportional to the slots written.

        Args:
            steps: T calls of E lanes.
            lanes: which E neighbouring lanes of this buffer the columns are.

        Raises:
            ValueError: the steps do not fit the buffer or the stream so far; nothing is taken in.
        """
        flags = self._checked(steps, lanes)
        if not flags.size:
            return
        acted = steps.acted
        generation = 1 + self._inserted + np.cumsum(acted).reshape(acted.shape) - acted
        priority = None if self._prioritization is None else self._known_priorities(steps)
        # So few calls at a time that no item is overwritten before it is complete.
        longest = int(self._rings.lengths.min()) - self._n_step - self._stack + 1
        for first in range(0, len(flags), longest):
            some = slice(first, first + longest)
            self._write(
                lanes,
                frame=steps.frame[some],
                action=steps.action[some],
                reward=steps.reward[some],
                flags=flags[some],
                generation=generation[some],
                priority=None if priority is None else priority[some],
            )
        self._inserted += int(acted.sum())

    def sample(self, points: NDArray[np.float64]) -> ReplayBatch:
        """The items in which points fall when all items' masses lie end to end.

        Args:
            points: (B,) in [0, 1), fractions of the mass.

        Raises:
            ValueError: points that are not so, or no items.
        """
        if points.ndim != 1 or not np.all((points >= 0) & (points < 1)):
            raise ValueError("points must be a row of numbers in [0, 1)")
        if not self._size:
            raise ValueError("the replay buffer has no item that can be sampled")
        slots = self._tree.find(np.asarray(points, np.float64) * self.mass)
        items = self._rings.places(slots)
        found = spans(self._flags, items, self._n_step + 1, self._n_step)
        total = returns(self._reward, items, found.steps, self._discount, self._reward_clip)
        powers = np.array([self._discount**k for k in range(self._n_step + 1)])
        after = Places(items.offset, items.length, items.position + found.steps)
        following = self._history[after.slots()]
        generation = self._generation[slots]
        return ReplayBatch(
            observation=gather(self._frame, items, self._history[slots], self._stack),
            action=self._action[slots],
            reward=total.astype(np.float32),
            bootstrap=np.where(found.final, 0.0, powers[found.steps]).astype(np.float32),
            next_observation=gather(self._frame, after, following, self._stack, blank=found.final),
            priority_mass=self._tree.leaves[slots],
            slot=slots,
            generation=generation,
            age=self._inserted - generation,
        )

    def update_priorities(
        self, slots: NDArray[np.int64], generations: NDArray[np.int64], priorities: NDArray[Any]
    ) -> int:
        """Give sampled items other priorities; of an item that is named twice the last counts.

        Args:
            slots: (B,), as in ``ReplayBatch``.
            generations: (B,), as in ``ReplayBatch``.
            priorities: (B,) |TD error|, finite and not negative.

        Returns:
            How many were ignored, because their slot holds another item by now or can no longer be sampled.

        Raises:
            ValueError: the arguments are not so, or items are sampled uniformly; nothing is changed.
        """
        if self._prioritization is None:
            raise ValueError("this replay buffer samples uniformly; there are no priorities to update")
        if slots.ndim != 1 or not slots.shape == generations.shape == priorities.shape:
            raise ValueError(
                f"slots, generations and priorities have the shapes {slots.shape}, {generations.shape} and "
                f"{priorities.shape}; they must all be (B,)"
            )
        if np.any((slots < 0) | (slots >= self._capacity)):
            raise ValueError(f"slots must be from 0 to {self._capacity - 1}")
        errors = np.asarray(priorities, np.float64)
        _require_priorities(errors)
        current = (self._generation[slots] == generations) & (self._tree.leaves[slots] > 0)
        if current.any():
            slots, errors = slots[current], errors[current]
            self._largest = max(self._largest, float(errors.max()))
            self._tree.update(slots, self._prioritization.masses(errors))
            self._touched[slots] = True
        return int(np.count_nonzero(~current))

    def arrays(self) -> dict[str, NDArray[Any]]:
        """All that is stored for slots, by name: live views whose axis 0 is the slot. All zeros at first. ``frame``
        changes only together with ``generation``."""
        arrays: dict[str, NDArray[Any]] = {
            "frame": self._frame,
            "action": self._action,
            "reward": self._reward,
            "flags": self._flags,
            "history": self._history,
            "generation": self._generation,
            "mass": self._tree.leaves,
        }
        return arrays if self._priority is None else {**arrays, "priority": self._priority}

    def counters(self) -> dict[str, Any]:
        """The rest of the state as plain JSON data, and the settings that must be the same to restore it."""
        return {
            "settings": {
                "capacity": self._capacity,
                "lanes": len(self._rings.written),
                "frame_shape": list(self._frame.shape[1:]),
                "frame_dtype": self._frame.dtype.str,
                "stack": self._stack,
                "n_step": self._n_step,
                "discount": self._discount,
                "reward_clip": self._reward_clip,
                "prioritization": None if self._prioritization is None else asdict(self._prioritization),
            },
            "written": self._rings.written.tolist(),
            "inserted": self._inserted,
            "lost": self._lost,
            "largest_priority": self._largest,
        }

    def restore(self, arrays: Mapping[str, NDArray[Any]], counters: Mapping[str, Any]) -> None:
        """Become the buffer that ``arrays`` and ``counters`` were read from; afterwards no slot counts as written since
        then. ``arrays`` may be this buffer's own, filled from outside.

        Raises:
            ValueError: that buffer had other settings or arrays; names what differs. Nothing is changed.
        """
        settings = self.counters()["settings"]
        different = [
            f"{name} is {counters['settings'].get(name)} there and {value} here"
            for name, value in settings.items()
            if counters["settings"].get(name) != value
        ]
        own = self.arrays()
        for name in sorted(own.keys() | arrays.keys()):
            there, here = (f"{a[name].dtype} {list(a[name].shape)}" if name in a else "missing" for a in (arrays, own))
            if there != here:
                different.append(f"the array {name} is {there} there and {here} here")
        if different:
            raise ValueError(f"this state is of another replay buffer: {'; '.join(different)}")
        for name, array in own.items():
            np.copyto(array, arrays[name])
        self._tree.rebuild()
        self._rings.written[:] = counters["written"]
        self._size = int(np.count_nonzero(self._tree.leaves))
        self._inserted, self._lost = counters["inserted"], counters["lost"]
        self._largest = counters["largest_priority"]
        self._touched[:] = False

    def take_written(self) -> NDArray[np.bool_]:
        """(capacity,): slots of which some array changed since the last call, or since the beginning."""
        touched = self._touched
        self._touched = np.zeros_like(touched)
        return touched

    def _checked(self, steps: Steps, lanes: range) -> NDArray[np.uint8]:
        """The bits of the slots (T, E), if they may be taken in."""
        rings = self._rings
        calls, count = steps.action.shape
        if lanes.step != 1 or lanes.start < 0 or lanes.stop > len(rings.written):
            raise ValueError(f"lanes are {lanes}; they must be neighbours from 0 to {len(rings.written) - 1}")
        if len(lanes) != count:
            raise ValueError(f"the steps are of {count} lanes, but {len(lanes)} are named: {lanes}")
        if steps.frame.dtype != self._frame.dtype or steps.frame.shape[2:] != self._frame.shape[1:]:
            raise ValueError(
                f"frames are {steps.frame.dtype} of the shape {steps.frame.shape[2:]}; this replay buffer stores "
                f"{self._frame.dtype} of the shape {self._frame.shape[1:]}"
            )
        if not np.isfinite(steps.reward).all():
            call, column = np.argwhere(~np.isfinite(steps.reward))[0]
            raise ValueError(f"call {call}, lane {lanes[column]}: the reward is {steps.reward[call, column]}")
        if steps.priority is not None:
            _require_priorities(steps.priority[steps.acted & ~np.isnan(steps.priority)])
        flags = stream.flags(steps)
        if calls:
            before = rings.written[lanes.start : lanes.stop]
            last = self._flags[rings.numbered(lanes, before - 1).slots()]
            stream.check(flags, last, before > 0, lanes)
        return flags

    def _known_priorities(self, steps: Steps) -> NDArray[np.float64]:
        """(T, E): priorities, those not known replaced by the largest up to their call."""
        shape = steps.action.shape
        given = np.full(shape, np.nan) if steps.priority is None else steps.priority.astype(np.float64)
        known = steps.acted & ~np.isnan(given)
        largest = np.where(known, given, self._largest).max(axis=1, initial=self._largest)
        largest = np.maximum.accumulate(largest)
        self._largest = float(largest[-1])
        return np.where(known, given, largest[:, None])

    def _write(
        self,
        lanes: range,
        *,
        frame: NDArray[Any],
        action: NDArray[np.int64],
        reward: NDArray[np.float32],
        flags: NDArray[np.uint8],
        generation: NDArray[np.int64],
        priority: NDArray[np.float64] | None,
    ) -> None:
        """Write some calls, then settle which items can be sampled."""
        rings, calls = self._rings, len(flags)
        before = rings.written[lanes.start : lanes.stop]
        last = self._history[rings.numbered(lanes, before - 1).slots()]
        history = histories(flags, last, before > 0, self._stack)
        slots = rings.numbered(lanes, before + np.arange(calls)[:, None]).slots()
        self._frame[slots], self._action[slots], self._reward[slots] = frame, action, reward
        self._flags[slots], self._generation[slots], self._history[slots] = flags, generation, history
        if self._priority is not None and priority is not None:
            self._priority[slots] = priority
        rings.written[lanes.start : lanes.stop] += calls
        left = np.concatenate([slots.reshape(-1), cut_off(rings, lanes, self._history, self._stack)])
        left = left[self._tree.leaves[left] > 0]
        complete, lost = settled(rings, lanes, calls, self._flags, self._history, self._n_step)
        self._lost += lost
        self._size += len(complete) - len(left)
        masses = np.ones(len(complete))
        if self._prioritization is not None and self._priority is not None:
            masses = self._prioritization.masses(self._priority[complete])
        # An item may be complete already in a slot that another has just left: what comes last counts.
        changed = np.concatenate([left, complete])
        self._tree.update(changed, np.concatenate([np.zeros(len(left)), masses]))
        self._touched[slots] = True
        self._touched[changed] = True


def _require_priorities(priorities: NDArray[Any]) -> None:
    wrong = priorities[~(np.isfinite(priorities) & (priorities >= 0))]
    if len(wrong):
        raise ValueError(f"a priority is {wrong[0]}; priorities must be finite and at least 0")
