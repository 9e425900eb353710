"""One trial: a run like any other, in a process that Ray Tune started.

The same loop as everywhere does the work: in this process where one worker is enough, else in a Ray Train worker group
or as a crew of actors that this process coordinates. What the sweep wants to know is read from the run's snapshots.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from heliostat.config.job import Job
from heliostat.config.loading import AnyJob, parse_any
from heliostat.data.samples import Samples
from heliostat.data.sharing import Shared
from heliostat.errors import InputError, RunError
from heliostat.reinforcement import launch as agents
from heliostat.training import launch
from heliostat.training.conduct import Watcher, conduct
from heliostat.training.datasets import Datasets
from heliostat.training.denormals import flushed_denormals
from heliostat.training.monitor import Outcome, Snapshot
from heliostat.training.run_folder import RunFolder
from heliostat.tuning.inheritance import adopt

_OLD_PROCESS_S = 60.0
"""How long a trial waits for a process that a killed driver left behind."""
_HEARTBEAT_S = 3.0
_THIN = 0.005
"""Share of the training between two points of a curve that are reported; evaluations always are."""
_LATEST = "latest.json"


@dataclass(frozen=True, kw_only=True)
class Order:
    """What a trial is told to do."""

    name: str
    folder: str
    """Its run's."""
    job: str
    """As YAML."""
    tags: dict[str, str]
    """For its MLflow run."""
    metric: str
    limits: dict[str, dict[str, float | None]]
    pause_at: int | None = None
    """The step at which it stands still and waits to be told how to go on; of members of a population."""
    inherits: int | None = None
    """The step of the generation from which it goes on with another's state, if it has not done so yet."""
    varied: dict[str, float] = field(default_factory=dict)
    """Settings that are numbers and may change while it trains, by their paths: recorded as curves."""


class Reporter:
    """Watches a trial's run: tells the sweep what the metric is, and the run when to end."""

    def __init__(self, order: Order, folder: RunFolder, board: Any) -> None:
        self._order, self._folder, self._board = order, folder, board
        storage = folder.storage
        self.latest: dict[str, tuple[int, float]] = {}
        if storage.exists(_LATEST):
            self.latest = {name: (int(s), float(v)) for name, (s, v) in storage.read_json(_LATEST).items()}
        self._reported = self.latest.get(order.metric, (-1, 0.0))[0]
        self._share = 0.0
        self._beat = time.monotonic()
        self.ended = ""
        """Why the run was told to end; empty where it was not."""
        self.step = 0

    def show(self, snapshot: Snapshot) -> str:
        """Called a few times a second; returns why the run is to end, empty where it is to go on."""
        self.latest.update(snapshot.latest)
        if snapshot.progress is not None:
            self.step = snapshot.progress.step
            if self._order.pause_at is None:
                self._tell(snapshot.progress.step, snapshot.progress.total_steps)
            self._watch_limits(snapshot.latest, snapshot.progress.total_steps)
        if not self.ended:
            self.ended = self.asked()
        return self.ended

    def asked(self) -> str:
        """Why the sweep wants the trial to end; empty where it does not."""
        import ray

        return str(ray.get(self._board.asked.remote(self._order.name)))

    def _tell(self, step: int, total: int) -> None:
        from ray import tune

        metric = self._order.metric
        at, value = self.latest.get(metric, (-1, 0.0))
        now = time.monotonic()
        new = at > self._reported and at > 0
        if new and (metric.startswith("eval/") or at / total - self._share >= _THIN):
            self._reported, self._share, self._beat = at, min(1.0, at / total), now  # agents play whole rounds
            self.keep()
            tune.report({"final": False, "step": at, "share": self._share, "value": value})
        elif now - self._beat > _HEARTBEAT_S:
            self._beat = now
            tune.report({"final": False, "step": step, "share": step / total})

    def _watch_limits(self, latest: Mapping[str, tuple[int, float]], total: int) -> None:
        for name, limit in self._order.limits.items():
            step, value = latest.get(name, (0, 0.0))
            if step <= (limit["after"] or 0.0) * total:
                continue
            low, high = limit["min"], limit["max"]
            if (low is not None and not value >= low) or (high is not None and not value <= high):
                bound = f"below {low:g}" if low is not None and not value >= low else f"above {high:g}"
                self.ended = f"{name} was {value:.4g} at step {step}, {bound}"

    def keep(self) -> None:
        """Write down the newest values: a trial that is continued does not make all of them again."""
        self._folder.storage.write_json(_LATEST, {name: list(point) for name, point in self.latest.items()})


def run_trial(config: dict[str, Any], train: Shared[Samples] | None, test: Shared[Samples] | None, board: Any) -> None:
    """What Ray Tune calls. Ends with one final report, whatever happens but the death of the process."""
    from ray import tune

    order = Order(**config["order"])
    try:
        data = Datasets(train.open(), test.open() if test else None) if train is not None else None
        told = _worked(order, data, board)
    except (InputError, RunError, OSError) as error:
        told = _final("failed", message=str(error))
    except Exception as error:  # noqa: BLE001 - a bug in one configuration must not end the sweep; it is shown and kept
        RunFolder(order.folder).storage.replace("error.txt", traceback.format_exc().encode())
        told = _final(
            "failed", message=f"{type(error).__name__}: {error} (the traceback is in {order.folder}/error.txt)"
        )
    tune.report(told)


def _final(status: Literal["finished", "pruned", "failed", "interrupted"], **facts: Any) -> dict[str, Any]:
    return {"final": True, "status": status, "ended_at": 0, "result": None, "message": "", "missing": "", **facts}


def _worked(order: Order, data: Datasets | None, board: Any) -> dict[str, Any]:
    job, folder = parse_any(order.job, f"the job of {order.name}"), RunFolder(order.folder)
    if not folder.storage.exists("job.yaml"):
        folder.create(job)
    with folder.locked(wait=_OLD_PROCESS_S):
        folder.update(tags=order.tags)
        if order.inherits is not None:
            adopt(folder, job, order.inherits)
        if order.varied:
            begun = max(folder.checkpoints().steps(), default=0)
            values = {f"sweep/{path}": value for path, value in order.varied.items()}
            folder.update(varied={"step": begun, "values": values})
    while True:
        reporter = Reporter(order, folder, board)
        if reporter.asked() == STOP_ALL:  # any other reason is heard while it works, which closes its record
            return _final("interrupted", message=STOP_ALL)
        steps = folder.checkpoints().steps()
        if order.pause_at is not None and steps and steps[-1] >= order.pause_at:  # it was there when the driver died
            if reporter.latest.get(order.metric, (-1, 0.0))[0] >= steps[-1]:
                return _standing(order, reporter, steps[-1])
            _forget(folder, steps[-1])
            continue
        outcome = _attempt(order, job, data, folder, reporter)
        if order.metric in outcome.results:
            reporter.latest[order.metric] = outcome.step, outcome.results[order.metric]
        reporter.keep()
        at, value = reporter.latest.get(order.metric, (-1, None))
        paused = outcome.status == "interrupted" and not reporter.ended
        if (outcome.status == "finished" or paused) and at < outcome.step and steps and steps[-1] >= outcome.step:
            _forget(folder, steps[-1])  # it was trained by a process that is no more, and that took the value with it
            continue
        if paused and value is not None:
            return _standing(order, reporter, outcome.step)
        return _concluded(order, outcome, reporter, value, paused=paused)


STOP_ALL = "the sweep was asked to stop"
"""What the board tells every trial then."""


@flushed_denormals()
def _attempt(order: Order, job: AnyJob, data: Datasets | None, folder: RunFolder, watcher: Watcher) -> Outcome:
    if not isinstance(job, Job):
        return conduct(job, agents.data_facts(job), folder, watcher, agents.work(job, order.pause_at)).outcome
    begun = launch.settled(job) if folder.checkpoints().steps() else job
    data = data or launch.load(begun)
    return conduct(job, launch.data_facts(data), folder, watcher, launch.work(job, data, order.pause_at)).outcome


def _forget(folder: RunFolder, step: int) -> None:
    """Go back one checkpoint: what follows is made again, to the same bits."""
    folder.storage.delete(folder.checkpoints().name(step))


def _standing(order: Order, reporter: Reporter, step: int) -> dict[str, Any]:
    """A member of a population has come to where it waits for the others."""
    return {"final": False, "step": step, "value": reporter.latest[order.metric][1]}


def _concluded(
    order: Order, outcome: Outcome, reporter: Reporter, value: float | None, *, paused: bool
) -> dict[str, Any]:
    if outcome.collapsed or (outcome.status == "interrupted" and reporter.ended not in ("", STOP_ALL)):
        return _final("pruned", ended_at=outcome.step, message=reporter.ended or outcome.message)
    if outcome.status == "interrupted" and not paused:
        return _final("interrupted", ended_at=outcome.step, message=reporter.ended)
    if outcome.status == "failed":
        return _final("failed", ended_at=outcome.step, message=outcome.message)
    names = {*outcome.results, *(name for name in reporter.latest if not name.startswith("system/"))}
    wanted = [name for name in (order.metric, *order.limits) if name not in names]
    if value is None or wanted:  # a limit that nobody could watch would be none
        missing = f"it reported no {' and no '.join(map(repr, wanted))}. Reported: {', '.join(sorted(names))}"
        return _final("failed", ended_at=outcome.step, message=missing, missing=missing)
    return _final("finished", ended_at=outcome.step, result=value)
