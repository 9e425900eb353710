"""What all vector environments have in common: checked arguments, a watchdog, errors that say where."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from heliostat.errors import InputError
from heliostat.reinforcement.environments.failure import EnvironmentFailure
from heliostat.reinforcement.environments.spec import EnvironmentSpec
from heliostat.reinforcement.environments.vector import Frames, Played
from heliostat.reinforcement.environments.watchdog import Watchdog

Result = TypeVar("Result")


class Supervised(ABC):
    """A vector environment (see ``VectorEnvironment``) whose lanes live in a thread of their own. Subclasses implement
    the methods that begin with an underscore, which run in that thread.

    Args:
        name: what errors call it.
        seeds: one per lane, at least 0.
        timeout_s: seconds that making it and each call may take.

    Raises:
        InputError: it cannot be made.
        EnvironmentFailure: making it takes too long.
    """

    spec: EnvironmentSpec

    def __init__(self, name: str, seeds: Sequence[int], timeout_s: float) -> None:
        self.name, self.count = name, len(seeds)
        self._next_seeds: tuple[int, ...] | None = self._checked_seeds(seeds)
        self._begun = self._closed = False
        self._doing: tuple[int | None, int | None] = (None, None)
        self._watchdog = Watchdog(timeout_s)
        try:
            self.spec = self._supervised("making it", self._open)
        except (InputError, EnvironmentFailure):
            self._closed = True
            raise
        except Exception as error:
            self._closed = True
            raise InputError(f"{name} cannot be made: {type(error).__name__}: {error}") from error

    @abstractmethod
    def _open(self) -> EnvironmentSpec:
        """Make all lanes."""

    @abstractmethod
    def _reset(self, seeds: Sequence[int] | None) -> Frames:
        """Begin an episode in every lane; with new seeds, or the next one."""

    @abstractmethod
    def _step(self, actions: npt.NDArray[np.int64]) -> Played:
        """Act; ``actions`` are in range."""

    @abstractmethod
    def _render(self, lane: int) -> npt.NDArray[np.uint8]:
        """A picture for people."""

    @abstractmethod
    def _close(self) -> None:
        """Give everything back."""

    def reset(self, seeds: Sequence[int] | None = None) -> Frames:
        """Begin an episode in every lane; see ``VectorEnvironment``."""
        chosen = self._next_seeds if seeds is None else self._checked_seeds(seeds)
        frames = self._guarded("reset", self._reset, chosen)
        self._next_seeds, self._begun = None, True
        return frames

    def step(self, actions: npt.NDArray[np.int64]) -> Played:
        """Act in all lanes; see ``VectorEnvironment``."""
        if not self._begun:
            raise RuntimeError(f"{self.name}: reset() comes before step()")
        return self._guarded("step", self._step, self._checked_actions(actions))

    def render(self, lane: int) -> npt.NDArray[np.uint8]:
        """(H, W, 3): a picture for people, of an environment that was made with ``render``."""
        return self._guarded("drawing", self._render, lane)

    def close(self) -> None:
        """Give everything back; see ``VectorEnvironment``."""
        if self._closed:
            return
        self._closed = True
        try:
            self._watchdog.close(self._close)
        except TimeoutError as error:
            raise self._overdue("closing it", error) from None

    def _guarded(self, purpose: str, work: Callable[..., Result], *arguments: Any) -> Result:
        """``work(*arguments)`` in the environment's thread; whatever goes wrong is an ``EnvironmentFailure``."""
        try:
            return self._supervised(purpose, work, *arguments)
        except EnvironmentFailure:
            raise
        except Exception as error:
            lane, action = self._doing
            raise EnvironmentFailure(self.name, f"{type(error).__name__}: {error}", lane, action) from error

    def _supervised(self, purpose: str, work: Callable[..., Result], *arguments: Any) -> Result:
        try:
            return self._watchdog.call(work, *arguments)
        except TimeoutError as error:
            raise self._overdue(purpose, error) from None

    def _overdue(self, purpose: str, error: TimeoutError) -> EnvironmentFailure:
        lane, action = self._doing
        return EnvironmentFailure(self.name, f"{purpose}: {error}", lane, action)

    def _checked_seeds(self, seeds: Sequence[int]) -> tuple[int, ...]:
        if len(seeds) != self.count or not seeds or min(seeds) < 0:
            raise ValueError(f"{self.name}: one seed of 0 or above for each of {self.count} lanes, got {list(seeds)}")
        return tuple(int(seed) for seed in seeds)

    def _checked_actions(self, actions: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        given = np.asarray(actions)
        if given.shape != (self.count,) or given.dtype.kind not in "iu":
            raise ValueError(
                f"{self.name}: actions are integers of shape ({self.count},), got {given.dtype} of shape {given.shape}"
            )
        if given.min() < 0 or given.max() >= self.spec.actions:
            wrong = np.flatnonzero((given < 0) | (given >= self.spec.actions))
            raise ValueError(
                f"{self.name}: action {given[wrong[0]]} of lane {wrong[0]} is out of range: there are "
                f"{self.spec.actions} actions, from 0 to {self.spec.actions - 1}"
            )
        return given.astype(np.int64, copy=False)
