"""What the loop is handed: where it runs, and whom it tells. Nothing here knows Ray."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch

from heliostat.training.monitor import Monitor, Outcome, Progress


class Runtime(Protocol):
    """One worker's view of the run. Methods that tell are called on rank 0 only and do not wait."""

    @property
    def rank(self) -> int:
        """This worker's position, from 0."""

    @property
    def world_size(self) -> int:
        """How many workers share each batch."""

    @property
    def device(self) -> torch.device:
        """Where this worker computes."""

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Record points of curves."""

    def progress(self, progress: Progress) -> None:
        """Show where the run stands."""

    def notice(self, text: str) -> None:
        """Tell the user something."""

    def before_checkpoint(self) -> None:
        """A checkpoint will be made: what was told so far must not be lost any more."""

    def link_checkpoint(self, name: str, uri: str, step: int, metrics: Mapping[str, float]) -> None:
        """The final model is at ``uri``."""

    def conclude(self, outcome: Outcome) -> None:
        """The loop has ended."""

    def stop_requested(self) -> bool:
        """Whether the run should save and end; asked on every rank, and one yes is enough."""

    def preemption(self) -> str | None:
        """In words, that nodes of this run will be taken away soon, else None; the same on every rank, which all ask at
        the same steps."""


class LocalRuntime:
    """This process, without Ray; with ``rank`` and ``world_size`` also one process of a torch.distributed group."""

    def __init__(
        self, monitor: Monitor, *, rank: int = 0, world_size: int = 1, device: torch.device | str = "cpu"
    ) -> None:
        self.rank, self.world_size, self.device = rank, world_size, torch.device(device)
        self.log = monitor.log
        self.progress = monitor.progress
        self.notice = monitor.notice
        self.before_checkpoint = monitor.before_checkpoint
        self.link_checkpoint = monitor.link_checkpoint
        self.conclude = monitor.conclude
        self.stop_requested = monitor.stop_requested

    def preemption(self) -> str | None:
        """A process is not told."""
        return None


class SilentRuntime:
    """A worker that tells nobody: for looking at a run again without changing its record."""

    def __init__(self, device: torch.device, rank: int = 0, world_size: int = 1) -> None:
        self.device, self.rank, self.world_size = device, rank, world_size

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Not recorded."""

    def progress(self, progress: Progress) -> None:
        """Not shown."""

    def notice(self, text: str) -> None:
        """Not shown."""

    def before_checkpoint(self) -> None:
        """Nothing is saved."""

    def link_checkpoint(self, name: str, uri: str, step: int, metrics: Mapping[str, float]) -> None:
        """Nothing is linked."""

    def conclude(self, outcome: Outcome) -> None:
        """Nobody waits."""

    def stop_requested(self) -> bool:
        """Nobody asks."""
        return False

    def preemption(self) -> str | None:
        """Nobody tells."""
        return None
