"""From a typed job to a finished run: check, load, make the folder, start a runtime, watch it, close it.

Everything that can be found wrong is found before Ray is started or a folder is made. A resumed run takes the same
path.
"""

from __future__ import annotations

import json
import logging
import re
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Protocol

import psutil
import torch

from heliostat.config.job import Job
from heliostat.config.loading import dump
from heliostat.config.registry import ALGORITHMS
from heliostat.data.samples import Samples, fraction_of
from heliostat.errors import InputError, Problem, RunError
from heliostat.tracking.figures import draw_results
from heliostat.tracking.location import StoreError, display_uri, prepare_store, resolve_uri
from heliostat.tracking.tracker import Tracker, TrackerStatus
from heliostat.training.datasets import Datasets, check_against_data, check_alike
from heliostat.training.environment import describe
from heliostat.training.evaluation import check_evaluators
from heliostat.training.loop import TrainingLoop
from heliostat.training.monitor import EndStatus, Monitor, Outcome, Snapshot
from heliostat.training.origin import begin_from, find_origin
from heliostat.training.run_folder import RunFolder
from heliostat.training.runtime import LocalRuntime
from heliostat.training.state import TrainingState

if TYPE_CHECKING:
    from heliostat.training.ray_runtime import RemoteMonitor

_logger = logging.getLogger("heliostat.training")
_PASSWORD = re.compile(r"://[^/@\s]*:[^/@\s]+@")
_FLUSH_SECONDS = 30.0
_POLL_SECONDS = 0.3
_STATUS: dict[str, EndStatus] = {"finished": "FINISHED", "interrupted": "KILLED", "failed": "FAILED"}


class Watcher(Protocol):
    """Whoever shows the run to a person."""

    def show(self, snapshot: Snapshot) -> None:
        """Called a few times a second, from any one thread at a time."""


@dataclass(frozen=True)
class Finished:
    """What is known when a run has ended."""

    folder: RunFolder
    outcome: Outcome
    tracking_uri: str
    tracking: TrackerStatus


def check(job: Job, *, follows: bool = False) -> list[Problem]:
    """All that is wrong with a well-formed job and can be seen without decoding data or starting anything.

    Args:
        follows: the job will begin from a stage that has not run yet.
    """
    problems = []
    if ALGORITHMS[job.algorithm.type].needs_origin and job.begin is None and not follows:
        what = f"{job.algorithm.type} learns from what another run learned: name it with begin.run"
        problems.append(Problem(what, "begin"))
    optimization = job.optimization
    for workers in job.resources.worker_range:
        if optimization.batch_size % workers:
            fits = max(workers, round(optimization.batch_size / workers) * workers)
            what = f"{workers} workers cannot share a batch of {optimization.batch_size} equally; {fits} would do"
            problems.append(Problem(what, "optimization.batch_size"))
        elif (optimization.batch_size // workers) % optimization.accumulate:
            rows, parts = optimization.batch_size // workers, optimization.accumulate
            what = f"a worker's {rows} rows cannot be split into {parts} equal parts"
            problems.append(Problem(what, "optimization.accumulate"))
    if optimization.accumulate > 1 and not _separable(job):
        name = job.algorithm.type
        what = (
            f"{name} compares the samples of a batch with one another, so splitting the batch would change "
            "its loss; use more workers or a smaller batch_size"
        )
        problems.append(Problem(what, "optimization.accumulate"))
    if job.resources.gpus_per_worker and job.resources.runtime == "local" and not torch.cuda.is_available():
        problems.append(Problem("a GPU is asked for, but torch sees none here", "resources.gpus_per_worker"))
    for part, source in (("train", job.data.train), ("test", job.data.test)):
        problems += [Problem(what, f"data.{part}") for what in (source.check() if source is not None else [])]
    for index, evaluator in enumerate(job.evaluation):
        if evaluator.needs_labels and job.data.test is None:
            what = f"{evaluator.type} is judged on held-out data: give data.test"
            problems.append(Problem(what, f"evaluation.{index}"))
    if job.begin is not None and not follows:
        try:
            find_origin(job.begin, job.output)
        except InputError as error:
            problems += error.problems
    try:
        resolve_uri(job.tracking.uri)
    except InputError as error:
        problems += error.problems
    for key, value in flatten(job.resolved()).items():
        if isinstance(value, str) and _PASSWORD.search(value):
            what = (
                "this address holds a password, and the job is stored with the run and in MLflow; give credentials in "
                "the environment: MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or AWS_ACCESS_KEY_ID"
            )
            problems.append(Problem(what, key))
    return problems


def _separable(job: Job) -> bool:
    return ALGORITHMS[job.algorithm.type].is_separable(job.algorithm)


def device(job: Job) -> torch.device:
    """Where this process computes for a job."""
    return torch.device("cuda" if job.resources.gpus_per_worker and torch.cuda.is_available() else "cpu")


def require(problems: list[Problem]) -> None:
    """Raise all problems at once, if there are any."""
    if problems:
        raise InputError(problems)


def resolved(job: Job) -> Job:
    """The job with paths and addresses that mean the same on every machine: Ray's workers run in other folders."""
    data = job.data.model_copy(
        update={
            "train": job.data.train.resolved(),
            "test": job.data.test.resolved() if job.data.test is not None else None,
        }
    )
    uri = resolve_uri(job.tracking.uri)
    # A server that the environment names stays there: its address may hold a password.
    keep = uri.startswith("sqlite:") or job.tracking.uri is not None
    tracking = job.tracking.model_copy(update={"uri": uri if keep else None})
    begin = find_origin(job.begin, job.output).pinned() if job.begin is not None else None
    return job.model_copy(update={"data": data, "tracking": tracking, "begin": begin})


def load(job: Job) -> Datasets:
    """Decode the job's data, and check that the job fits it and what it begins from.

    Raises:
        InputError: it cannot be read, or does not fit the batch, the workers, the schedule or the evaluators.
    """
    whole: Samples = job.data.train.load()
    train = fraction_of(whole, job.data.train_fraction, job.seed)
    data = Datasets(train, job.data.test.load() if job.data.test is not None else None)
    problems = check_evaluators(job, data.train)
    for index, evaluator in enumerate(job.evaluation):
        if evaluator.needs_labels and data.test is not None and data.test.labels is None:
            problems.append(Problem(f"{evaluator.type} needs labels, and data.test has none", f"evaluation.{index}"))
    problems += check_alike(data)
    if ALGORITHMS[job.algorithm.type].video and data.train.spec().frames is None:
        what = f"{job.algorithm.type} learns from clips, and {data.train.name} holds images; take a source of videos"
        problems.append(Problem(what, "data.train"))
    require(problems)
    check_against_data(job, data)
    check_algorithm(job, data)
    return data


def check_algorithm(job: Job, data: Datasets) -> None:
    """Whether the algorithm can be built for this data, and can begin from the run that the job names.

    Raises:
        InputError: it cannot; says why.
    """
    try:
        state = TrainingState(job, data.train.spec(), torch.device("cpu"), 1)
        state.algorithm.check(job.optimization.batch_size)
    except ValueError as error:  # a patch that does not divide the images, a classifier without classes
        raise InputError(Problem(str(error), "algorithm")) from None
    if job.begin is not None:
        begin_from(state, find_origin(job.begin, job.output), "cpu")


def start(job: Job, watcher: Watcher, name: str | None = None) -> Finished:
    """Start a new run.

    Raises:
        InputError: anything is wrong with the job; nothing was started.
    """
    require(check(job))
    job = resolved(job)
    folder = RunFolder.planned(job, name)
    data = load(job)
    folder.create(job)
    if job.resources.runtime == "ray":
        from heliostat.training.ray_runtime import connect

        try:
            connect(job)
        except InputError:  # a machine too small: the run has not begun
            folder.storage.delete("")
            raise
    return _work(job, data, folder, watcher)


def resume(folder: RunFolder, job: Job, watcher: Watcher) -> Finished:
    """Continue a run from its newest checkpoint; ``job`` is the run's own, with changes that leave its trajectory
    alone."""
    begun = bool(folder.checkpoints().steps())
    known = settled(job) if begun else job
    require(check(known, follows=begun))
    return _work(job, load(known), folder, watcher)


def settled(job: Job) -> Job:
    """The job of a run that has begun: what it began from is not needed any more, and may be gone."""
    return job.model_copy(update={"begin": None})


def _work(job: Job, data: Datasets, folder: RunFolder, watcher: Watcher) -> Finished:
    with folder.locked():
        uri = resolve_uri(job.tracking.uri)
        try:
            prepare_store(uri, job.tracking.experiment)
        except StoreError as error:  # the run does not depend on it: what it records waits with the run
            _logger.warning("%s; training goes on and keeps what it records", error)
        folder.storage.replace("job.yaml", dump(job).encode())
        folder.storage.write_json("environment.json", describe())
        folder.update(status="running", tracking_uri=display_uri(uri), experiment=job.tracking.experiment)
        open_tracker = partial(_open_tracker, job, data_facts(data), uri, folder)
        monitor, outcome = (_run_here if job.resources.runtime == "local" else _run_on_ray)(
            job, data, folder, open_tracker, _Watched(watcher, folder)
        )
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
            tracking = monitor.finish(_STATUS[outcome.status], _FLUSH_SECONDS)
        folder.update(status=outcome.status, step=outcome.step, message=outcome.message)
        return Finished(folder, outcome, uri, tracking)


@dataclass(frozen=True)
class DataFacts:
    """What the tracker records of a data set."""

    context: str
    name: str
    digest: str
    rows: int


def data_facts(data: Datasets) -> list[DataFacts]:
    """Facts of both data sets, small enough to travel to the tracker's process."""
    return [
        DataFacts(context, samples.name, samples.fingerprint, len(samples))
        for context, samples in (("train", data.train), ("test", data.test))
        if samples is not None
    ]


def _open_tracker(job: Job, data: list[DataFacts], uri: str, folder: RunFolder) -> Tracker:
    """Make the tracker of a run and tell it what does not change while the run works."""
    environment = folder.storage.read("environment.json").decode()
    git = json.loads(environment)["git"]
    tags = {
        "heliostat.folder": folder.storage.uri,
        "heliostat.algorithm": job.algorithm.type,
        "mlflow.source.name": "heliostat",
        "mlflow.source.type": "JOB" if job.resources.runtime == "ray" else "LOCAL",
        "mlflow.user": psutil.Process().username(),
    }
    if job.begin is not None:
        tags["heliostat.begun_from"] = f"{job.begin.run} at step {job.begin.checkpoint}"
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


class _Watched:
    """Passes snapshots to the watcher and keeps the tracker's run id with the run, from which a resume takes it."""

    def __init__(self, watcher: Watcher, folder: RunFolder) -> None:
        self._watcher, self._folder, self._run_id = watcher, folder, folder.about().get("tracking_run_id")

    def show(self, snapshot: Snapshot) -> None:
        if snapshot.tracking_run_id != self._run_id and snapshot.tracking_run_id is not None:
            self._run_id = snapshot.tracking_run_id
            self._folder.update(tracking_run_id=self._run_id)
        self._watcher.show(snapshot)


def _run_here(
    job: Job, data: Datasets, folder: RunFolder, open_tracker: Callable[[], Tracker], watcher: Watcher
) -> tuple[Monitor, Outcome]:
    """The loop in this thread; another one shows how it goes."""
    monitor = Monitor(open_tracker)
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(_POLL_SECONDS):
            watcher.show(monitor.snapshot())

    thread = threading.Thread(target=watch, name="watch", daemon=True)
    thread.start()
    try:
        with _stop_signals(monitor.request_stop):
            outcome = TrainingLoop(job, data, LocalRuntime(monitor, device=device(job)), folder).run()
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


def _run_on_ray(
    job: Job, data: Datasets, folder: RunFolder, open_tracker: Callable[[], Tracker], watcher: Watcher
) -> tuple[RemoteMonitor, Outcome]:
    """The loop in a Ray Train worker group; this thread shows how it goes."""
    from heliostat.training.ray_runtime import RayRun  # here, so that a local run imports no Ray

    run = RayRun(job, data, folder, open_tracker)
    asked = threading.Event()
    told = False
    with _stop_signals(asked.set):
        while not run.wait(_POLL_SECONDS):
            watcher.show(run.monitor.snapshot())
            if asked.is_set() and not told:
                run.monitor.request_stop()
                told = True
    watcher.show(run.monitor.snapshot())
    return run.monitor, run.outcome()


def _step(snapshot: Snapshot) -> int:
    return snapshot.progress.step if snapshot.progress else 0


@contextmanager
def _stop_signals(request: Callable[[], None]) -> Iterator[None]:
    """Ctrl-C and SIGTERM ask the run to save and end; a second Ctrl-C ends it at once."""

    def handle(number: int, frame: FrameType | None) -> None:
        request()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    previous = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
