"""What a run says while it works: metrics, progress, notices, its end; and the one thing it is told: to stop.

A plain class. In one process the loop calls it directly; under Ray it lives in one actor on the driver's node, the
workers call it without waiting, and the driver reads snapshots. Either way it is the only place that writes to the
tracker.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

if TYPE_CHECKING:
    from heliostat.tracking.tracker import Tracker, TrackerStatus


EndStatus: TypeAlias = Literal["FINISHED", "FAILED", "KILLED"]
"""How MLflow names the end of a run."""


@dataclass(frozen=True)
class Progress:
    """Where the run stands."""

    step: int
    """Optimiser steps done."""
    total_steps: int
    epoch: float = 0.0
    activity: str = "training"
    loss: float | None = None
    samples_per_second: float | None = None
    facts: str = ""
    """More numbers, in words."""


@dataclass(frozen=True)
class Outcome:
    """How the loop ended."""

    status: Literal["finished", "interrupted", "failed"]
    step: int
    """Optimiser steps done and, unless the message says otherwise, saved."""
    message: str = ""
    results: dict[str, float] = field(default_factory=dict)
    """Final evaluation metrics and baselines by name."""
    collapsed: bool = False
    """Whether it failed because the representation stayed collapsed."""


@dataclass(frozen=True)
class Snapshot:
    """What a watcher sees."""

    progress: Progress | None
    notices: tuple[str, ...]
    """All notices so far, oldest first."""
    outcome: Outcome | None
    tracking_run_id: str | None
    """MLflow's id of the run, once the store has it."""
    latest: Mapping[str, tuple[int, float]] = field(default_factory=dict)
    """Of each metric that was logged, its newest step and value."""


class Monitor:
    """See the module.

    Args:
        open_tracker: makes the tracker, in the process where the monitor lives: trackers hold threads and do not
        travel.
    """

    def __init__(self, open_tracker: Callable[[], Tracker]) -> None:
        self.tracker = open_tracker()
        self._progress: Progress | None = None
        self._notices: list[str] = []
        self._outcome: Outcome | None = None
        self._stop = False
        self._latest: dict[str, tuple[int, float]] = {}

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Record points of curves at one step."""
        self.tracker.log_metrics(metrics, step)
        self._latest = self._latest | {name: (step, float(value)) for name, value in metrics.items()}

    def progress(self, progress: Progress) -> None:
        """Replace the shown progress."""
        self._progress = progress

    def notice(self, text: str) -> None:
        """Tell the user something worth a line."""
        self._notices.append(text)

    def before_checkpoint(self) -> None:
        """Bring what the tracker could not send yet to disk, before there is a checkpoint: the steps before one are not
        computed again. Where the process dies in between they are, and their points are skipped as repetitions."""
        self.tracker.persist()

    def link_checkpoint(self, name: str, uri: str, step: int, metrics: Mapping[str, float]) -> None:
        """Make the final model known to the tracker without copying it."""
        self.tracker.link_model(name, uri, step, metrics)

    def log_figure(self, path: Path, name: str) -> None:
        """Record a picture; the file must stay until :meth:`finish` has returned."""
        self.tracker.log_figure(path, name)

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Record facts about the run as a whole."""
        self.tracker.set_tags(tags)

    def conclude(self, outcome: Outcome) -> None:
        """Keep how the loop ended."""
        self._outcome = outcome

    def request_stop(self) -> None:
        """Ask the loop to save a checkpoint and end."""
        self._stop = True

    def stop_requested(self) -> bool:
        """Whether somebody asked."""
        return self._stop

    def snapshot(self) -> Snapshot:
        """What has been said so far."""
        return Snapshot(self._progress, tuple(self._notices), self._outcome, self.tracker.run_id, self._latest)

    def finish(self, status: EndStatus, timeout: float) -> TrackerStatus:
        """Send what is left and close the run in the tracker; ``timeout`` in seconds."""
        return self.tracker.finish(status, timeout)
