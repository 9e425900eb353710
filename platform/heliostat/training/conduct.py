"""How any run is conducted: its folder is held, its record kept, its end written down, whoever does the work."""

from __future__ import annotations

import json
import logging
import re
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, Protocol, TypeAlias, TypeVar

import psutil

from heliostat.clusters import submitted
from heliostat.config.job import Tracking
from heliostat.config.loading import AnyJob, dump
from heliostat.errors import InputError, Problem, RunError
from heliostat.tracking.client import prepare_store
from heliostat.tracking.figures import draw_results
from heliostat.tracking.location import StoreError, display_uri, resolve_uri
from heliostat.tracking.tracker import Tracker, TrackerStatus
from heliostat.training.environment import describe
from heliostat.training.monitor import EndStatus, Monitor, Outcome, Snapshot
from heliostat.training.run_folder import RunFolder

Tracked = TypeVar("Tracked", bound=Tracking)
_logger = logging.getLogger("heliostat.training")
_PASSWORD = re.compile(r"://[^/@\s]*:[^/@\s]+@")
_FLUSH_SECONDS = 30.0
POLL_SECONDS = 0.3
"""Time between two looks at a run."""
_STATUS: dict[str, EndStatus] = {"finished": "FINISHED", "interrupted": "KILLED", "failed": "FAILED"}


class Watcher(Protocol):
    """Whoever shows the run to a person."""

    def show(self, snapshot: Snapshot) -> str | None:
        """Called a few times a second, from any one thread at a time. A reason asks the run to save and end."""


@dataclass(frozen=True)
class Finished:
    """What is known when a run has ended."""

    folder: RunFolder
    outcome: Outcome
    tracking_uri: str
    tracking: TrackerStatus


class Recorder(Protocol):
    """What is left to be told to a run's record when the work has ended; ``Monitor``, here or in an actor."""

    def log_figure(self, path: Path, name: str) -> None:
        """Record a picture."""

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Record facts about the run as a whole."""

    def finish(self, status: EndStatus, timeout: float) -> TrackerStatus:
        """Close the record."""


Work: TypeAlias = Callable[[RunFolder, Callable[[], Tracker], Watcher], tuple[Recorder, Outcome]]
"""Does the work of a run: given its folder, what makes its tracker, and who watches."""


@dataclass(frozen=True)
class DataFacts:
    """What the tracker records of a data set."""

    context: str
    name: str
    digest: str
    rows: int


def conduct(job: AnyJob, facts: Sequence[DataFacts], folder: RunFolder, watcher: Watcher, work: Work) -> Finished:
    """Hold the run's folder while ``work`` is done, and write down what it needs and how it ended."""
    with folder.locked():
        uri = resolve_uri(job.tracking.uri)
        try:
            prepare_store(uri, job.tracking.experiment)
        except StoreError as error:  # the run does not depend on it: what it records waits with the run
            _logger.warning("%s; training goes on and keeps what it records", error)
        folder.storage.replace("job.yaml", dump(job).encode())
        folder.storage.write_json("environment.json", describe())
        folder.update(status="running", tracking_uri=display_uri(uri), experiment=job.tracking.experiment)
        open_tracker = partial(_open_tracker, job, facts, uri, folder, submitted.tags())
        watched = _Watched(watcher, folder)
        monitor, outcome = work(folder, open_tracker, watched)
        told = outcome.message or (watched.why if outcome.status == "interrupted" else "")
        with tempfile.TemporaryDirectory(prefix="heliostat-") as pictures:
            try:
                picture = Path(pictures) / "results.png"
                if draw_results(outcome.results, folder.name, picture):
                    folder.keep_figure(picture.name, picture.read_bytes())
                for name in folder.figures():
                    picture = Path(pictures) / name
                    picture.write_bytes(folder.storage.read(f"figures/{name}"))
                    monitor.log_figure(picture, picture.stem)
            except OSError as error:  # the numbers are safe
                _logger.warning("a picture of the run could not be written: %s", error)
            if told or folder.about().get("message"):  # why it failed or was ended stands beside its curves
                monitor.set_tags({"heliostat.outcome": told or outcome.status})
            tracking = monitor.finish(_STATUS[outcome.status], _FLUSH_SECONDS)
        folder.update(status=outcome.status, step=outcome.step, message=told)
        return Finished(folder, outcome, uri, tracking)


def _open_tracker(
    job: AnyJob, data: Sequence[DataFacts], uri: str, folder: RunFolder, submission: Mapping[str, str]
) -> Tracker:
    """Make the tracker of a run and tell it what does not change while the run works."""
    environment = folder.storage.read("environment.json").decode()
    git = json.loads(environment)["git"]
    tags = {
        "heliostat.folder": folder.storage.uri,
        "heliostat.algorithm": job.algorithm.type,
        "mlflow.source.name": "heliostat",
        "mlflow.source.type": "JOB" if job.resources.runtime == "ray" else "LOCAL",
        "mlflow.user": psutil.Process().username(),
        **submission,
        **folder.about().get("tags", {}),
    }
    begin = getattr(job, "begin", None)
    if begin is not None:
        tags["heliostat.begun_from"] = f"{begin.run} at step {begin.checkpoint}"
    if git is not None:
        tags["mlflow.source.git.commit"] = git["commit"]
    tracker = Tracker(
        uri,
        job.tracking.experiment,
        folder.name,
        run_id=folder.about().get("tracking_run_id"),
        parameters=flatten(job.resolved()),
        tags=tags,
        system_metrics=job.tracking.system_metrics,
        spool=folder.spool(),
    )
    varied = folder.about().get("varied")
    if varied is not None:  # a member of a population changes its settings while it trains: they are curves
        tracker.log_metrics(varied["values"], varied["step"])
    tracker.log_text(dump(job), "job.yaml")
    tracker.log_text(environment, "environment.json")
    for facts in data:
        tracker.log_dataset(facts.name, facts.digest, facts.name, facts.context, facts.rows)
    return tracker


def flatten(value: Any, prefix: str = "") -> dict[str, str | int | float | bool | None]:
    """Nested data as ``a.b.0.c`` -> scalar, the form in which parameters are compared."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
    if items is None:
        return {prefix: value}
    flat: dict[str, str | int | float | bool | None] = {}
    for key, inner in items:
        flat |= flatten(inner, f"{prefix}.{key}" if prefix else str(key))
    return flat


def secrets_in(job: AnyJob) -> list[Problem]:
    """Addresses with passwords, which would be stored with the run."""
    what = (
        "this address holds a password, and the job is stored with the run and in MLflow; give credentials in "
        "the environment: MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or AWS_ACCESS_KEY_ID"
    )
    return [
        Problem(what, key)
        for key, value in flatten(job.resolved()).items()
        if isinstance(value, str) and _PASSWORD.search(value)
    ]


def settled_tracking(tracking: Tracked) -> Tracked:
    """With an address that means the same on every machine: Ray's workers run in other folders."""
    uri = resolve_uri(tracking.uri)
    # A server that the environment names stays there: its address may hold a password.
    keep = uri.startswith("sqlite:") or tracking.uri is not None
    return tracking.model_copy(update={"uri": uri if keep else None})


def check_tracking(job: AnyJob) -> list[Problem]:
    """What is wrong with where the run is recorded."""
    try:
        resolve_uri(job.tracking.uri)
    except InputError as error:
        return list(error.problems)
    return []


class _Watched:
    """Passes snapshots to the watcher and keeps the tracker's run id with the run, from which a resume takes it."""

    def __init__(self, watcher: Watcher, folder: RunFolder) -> None:
        self._watcher, self._folder, self._run_id = watcher, folder, folder.about().get("tracking_run_id")
        self.why = ""
        """Why the watcher asked the run to end; empty where it did not."""

    def show(self, snapshot: Snapshot) -> str | None:
        if snapshot.tracking_run_id != self._run_id and snapshot.tracking_run_id is not None:
            self._run_id = snapshot.tracking_run_id
            self._folder.update(tracking_run_id=self._run_id)
        asked = self._watcher.show(snapshot)
        self.why = self.why or asked or ""
        return asked


def in_this_process(
    work: Callable[[Monitor], Outcome], folder: RunFolder, open_tracker: Callable[[], Tracker], watcher: Watcher
) -> tuple[Monitor, Outcome]:
    """Work in this thread; another one shows how it goes."""
    monitor = Monitor(open_tracker)
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(POLL_SECONDS):
            if watcher.show(monitor.snapshot()):
                monitor.request_stop()

    thread = threading.Thread(target=watch, name="watch", daemon=True)
    thread.start()
    try:
        with stop_signals(monitor.request_stop):
            outcome = work(monitor)
    except RunError as error:
        outcome = Outcome("failed", _step(monitor.snapshot()), str(error))
    except (Exception, KeyboardInterrupt):
        monitor.finish("FAILED", _FLUSH_SECONDS)
        folder.update(status="failed")
        raise
    finally:
        ended.set()
        thread.join()
    watcher.show(monitor.snapshot())
    return monitor, outcome


def _step(snapshot: Snapshot) -> int:
    return snapshot.progress.step if snapshot.progress else 0


@contextmanager
def stop_signals(request: Callable[[], None]) -> Iterator[None]:
    """Ctrl-C and SIGTERM ask the run to save and end; a second Ctrl-C ends it at once.

    Signals reach the main thread alone. A trial of a sweep works in another one and is stopped by its watcher.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(number: int, frame: FrameType | None) -> None:
        request()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    previous = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
