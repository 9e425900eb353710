"""From a typed job to a finished run: check, load, make the folder, start a runtime, watch it, close it.

Everything that can be found wrong is found before Ray is started or a folder is made. A resumed run takes the same
path.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial

import torch

from heliostat.config.job import Job
from heliostat.config.registry import ALGORITHMS
from heliostat.data.samples import Samples, fraction_of
from heliostat.errors import InputError, Problem, require
from heliostat.tracking.tracker import Tracker
from heliostat.training.conduct import (
    POLL_SECONDS,
    DataFacts,
    Finished,
    Recorder,
    Watcher,
    Work,
    check_tracking,
    conduct,
    in_this_process,
    secrets_in,
    settled_tracking,
    stop_signals,
)
from heliostat.training.datasets import Datasets, check_against_data, check_alike
from heliostat.training.denormals import flushed_denormals
from heliostat.training.evaluation import check_evaluators
from heliostat.training.loop import TrainingLoop
from heliostat.training.monitor import Monitor, Outcome
from heliostat.training.origin import begin_from, find_origin
from heliostat.training.run_folder import RunFolder
from heliostat.training.runtime import LocalRuntime
from heliostat.training.state import TrainingState
from heliostat_algorithms.algorithm import Algorithm
from heliostat_algorithms.comparing import Comparing
from heliostat_algorithms.evaluation import NetworkEvaluator


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
    if optimization.accumulate > 1:
        problems += [Problem(what, "optimization.accumulate") for what in _unsplittable(job)]
    if job.resources.strategy == "fsdp" and optimization.precision == "fp16":
        what = "fp16 needs a loss scale that strategy fsdp has not; take bf16, or strategy ddp"
        problems.append(Problem(what, "optimization.precision"))
    if job.sample is not None and ALGORITHMS[job.algorithm.type].sample is Algorithm.sample:
        problems.append(Problem(f"{job.algorithm.type} is not generative and makes no samples", "sample"))
    if job.resources.gpus_per_worker and job.resources.runtime == "local" and not torch.cuda.is_available():
        problems.append(Problem("a GPU is asked for, but torch sees none here", "resources.gpus_per_worker"))
    for part, source in (("train", job.data.train), ("test", job.data.test)):
        problems += [Problem(what, f"data.{part}") for what in (source.check() if source is not None else [])]
    for index, evaluator in enumerate(job.evaluation):
        if (evaluator.needs_labels or isinstance(evaluator, NetworkEvaluator)) and job.data.test is None:
            what = f"{evaluator.type} is judged on held-out data: give data.test"
            problems.append(Problem(what, f"evaluation.{index}"))
    if job.begin is not None and not follows:
        try:
            find_origin(job.begin, job.output)
        except InputError as error:
            problems += error.problems
    return problems + check_tracking(job) + secrets_in(job)


def _unsplittable(job: Job) -> list[str]:
    """Why the batch cannot be split without changing the method."""
    method, name = ALGORITHMS[job.algorithm.type], job.algorithm.type
    if method.is_separable(job.algorithm):
        return []
    if not issubclass(method, Comparing):
        return [
            f"the loss of {name} is no plain mean over samples, so splitting the batch would change it; use more "
            "workers or a smaller batch_size"
        ]
    if not method.represents_alone(job.algorithm):
        return [
            f"the loss of {name} is no plain mean over samples, and batch normalisation in its backbone would see the "
            "statistics of each part, so splitting the batch would change it; take a Vision Transformer, "
            "resources.activation_checkpointing, more workers or a smaller batch_size"
        ]
    return []


def device(job: Job) -> torch.device:
    """Where this process computes for a job."""
    return torch.device("cuda" if job.resources.gpus_per_worker and torch.cuda.is_available() else "cpu")


def resolved(job: Job) -> Job:
    """The job with paths and addresses that mean the same on every machine: Ray's workers run in other folders."""
    data = job.data.model_copy(
        update={
            "train": job.data.train.resolved(),
            "test": job.data.test.resolved() if job.data.test is not None else None,
        }
    )
    begin = find_origin(job.begin, job.output).pinned() if job.begin is not None else None
    return job.model_copy(update={"data": data, "tracking": settled_tracking(job.tracking), "begin": begin})


def load(job: Job) -> Datasets:
    """Decode the job's data, and check that the job fits it and what it begins from.

    Raises:
        InputError: it cannot be read, or does not fit the batch, the workers, the schedule or the evaluators.
    """
    whole: Samples = job.data.train.load()
    train = fraction_of(whole, job.data.train_fraction, job.seed)
    data = Datasets(train, job.data.test.load() if job.data.test is not None else None)
    check_fit(job, data)
    return data


def check_fit(job: Job, data: Datasets) -> None:
    """Whether a job fits its data and what it begins from.

    Raises:
        InputError: it does not; says why.
    """
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


@flushed_denormals()
def start(job: Job, watcher: Watcher, name: str | None = None, *, profile: bool = False) -> Finished:
    """Start a new run; ``profile``: also measure where the time of its steps goes.

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
    return _work(job, data, folder, watcher, profile=profile)


@flushed_denormals()
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


def _work(job: Job, data: Datasets, folder: RunFolder, watcher: Watcher, *, profile: bool = False) -> Finished:
    return conduct(job, data_facts(data), folder, watcher, work(job, data, profile=profile))


def work(job: Job, data: Datasets, pause_at: int | None = None, *, profile: bool = False) -> Work:
    """The work of a run, for :func:`conduct`; ``pause_at`` and ``profile``: see :class:`TrainingLoop`."""
    return partial(_run_here if job.resources.runtime == "local" else _run_on_ray, job, data, pause_at, profile)


def data_facts(data: Datasets) -> list[DataFacts]:
    """Facts of both data sets, small enough to travel to the tracker's process."""
    return [
        DataFacts(context, samples.name, samples.fingerprint, len(samples))
        for context, samples in (("train", data.train), ("test", data.test))
        if samples is not None
    ]


def _run_here(
    job: Job,
    data: Datasets,
    pause_at: int | None,
    profile: bool,
    folder: RunFolder,
    open_tracker: Callable[[], Tracker],
    watcher: Watcher,
) -> tuple[Recorder, Outcome]:
    """The loop in this process."""

    def train(monitor: Monitor) -> Outcome:
        runtime = LocalRuntime(monitor, device=device(job))
        return TrainingLoop(job, data, runtime, folder, pause_at, profile=profile).run()

    return in_this_process(train, folder, open_tracker, watcher)


def _run_on_ray(
    job: Job,
    data: Datasets,
    pause_at: int | None,
    profile: bool,
    folder: RunFolder,
    open_tracker: Callable[[], Tracker],
    watcher: Watcher,
) -> tuple[Recorder, Outcome]:
    """The loop in a Ray Train worker group; this thread shows how it goes."""
    from heliostat.training.ray_runtime import RayRun  # here, so that a local run imports no Ray

    run = RayRun(job, data, folder, open_tracker, pause_at, profile=profile)
    asked = threading.Event()
    told = False
    with stop_signals(asked.set):
        while not run.wait(POLL_SECONDS):
            stop = watcher.show(run.monitor.snapshot())
            if (stop or asked.is_set()) and not told:
                run.monitor.request_stop()
                told = True
    watcher.show(run.monitor.snapshot())
    return run.monitor, run.outcome()
