"""From a typed job of reinforcement learning to a finished run; the counterpart of ``heliostat.training.launch``."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import torch

from heliostat.config.reinforcement import ReinforcementJob
from heliostat.errors import InputError, Problem, RunError, require
from heliostat.reinforcement.agent import build_agent
from heliostat.reinforcement.crew import Crew, LocalCrew, MemberLost
from heliostat.reinforcement.environments.spec import EnvironmentSpec
from heliostat.reinforcement.lockstep import Lockstep
from heliostat.reinforcement.overlapped import Overlapped
from heliostat.reinforcement.session import Session
from heliostat.training.conduct import (
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
)
from heliostat.training.denormals import flushed_denormals
from heliostat.training.monitor import Monitor, Outcome
from heliostat.training.run_folder import RunFolder
from heliostat.training.runtime import LocalRuntime

if TYPE_CHECKING:
    from heliostat.tracking.tracker import Tracker


def check(job: ReinforcementJob) -> list[Problem]:
    """All that is wrong with a well-formed job and can be seen without starting anything but one environment."""
    problems: list[Problem] = []
    resources, replay, batch = job.resources, job.replay, job.optimization.batch_size
    count = job.rollout.environments
    for key, number, what in (
        ("resources.actors", resources.actors, "actors"),
        ("resources.shards", resources.shards, "shards"),
    ):
        if number > count:
            problems.append(Problem(f"{count} environments are too few for {number} {what}; each needs one", key))
    if replay.capacity % resources.shards:
        fits = max(1, round(replay.capacity / resources.shards)) * resources.shards
        what = f"{resources.shards} shards cannot share {replay.capacity} slots equally; {fits} would do"
        problems.append(Problem(what, "replay.capacity"))
    if batch % resources.learners:
        fits = max(1, round(batch / resources.learners)) * resources.learners
        what = f"{resources.learners} learners cannot share a batch of {batch} equally; {fits} would do"
        problems.append(Problem(what, "optimization.batch_size"))
    if batch > replay.capacity:
        what = f"a batch of {batch} is larger than the memory of {replay.capacity}; take a larger memory"
        problems.append(Problem(what, "optimization.batch_size"))
    if replay.minimum < batch:
        what = f"learning would begin with {replay.minimum} steps, fewer than a batch of {batch}; {batch} would do"
        problems.append(Problem(what, "replay.minimum"))
    if replay.minimum > replay.capacity:
        what = f"learning would begin with {replay.minimum} steps, but the memory holds {replay.capacity}"
        problems.append(Problem(what, "replay.minimum"))
    elif (job.optimization.steps - replay.minimum) * replay.samples_per_insert < batch:
        least = replay.minimum + math.ceil(batch / replay.samples_per_insert)
        what = f"{job.optimization.steps} steps are over before the first update, which is due after {least}"
        problems.append(Problem(what, "optimization.steps"))
    if job.optimization.optimizer.final_weight_decay is not None:
        what = "there is no schedule of the weight decay here; leave it out"
        problems.append(Problem(what, "optimization.optimizer.final_weight_decay"))
    gpus = resources.gpus_per_learner or resources.gpus_per_actor
    if gpus and resources.runtime == "local" and not torch.cuda.is_available():
        problems.append(Problem("a GPU is asked for, but torch sees none here", "resources"))
    if job.rollout.initial_priorities == "td-error" and job.algorithm.prioritization is None:
        what = "uniform replay has no priorities; leave initial_priorities out, or give algorithm.prioritization"
        problems.append(Problem(what, "rollout.initial_priorities"))
    found = job.environment.check()
    problems += [Problem(what, "environment") for what in found]
    if not found:
        problems += _check_agent(job, job.environment.spec())
    return problems + check_tracking(job) + secrets_in(job)


def _check_agent(job: ReinforcementJob, spec: EnvironmentSpec) -> list[Problem]:
    """Whether the agent can see what the environment shows, and the memory can hold it."""
    problems = []
    try:
        build_agent(job, spec)
    except ValueError as error:
        problems.append(Problem(str(error), "algorithm.network"))
    shards = job.resources.shards
    lanes = len(range(0, job.rollout.environments, shards))
    least = lanes * (spec.stack + job.algorithm.n_step)
    if job.replay.capacity // shards < least:
        what = (
            f"a shard of {job.replay.capacity // shards} slots cannot hold {lanes} environments with stacks of "
            f"{spec.stack} frames and {job.algorithm.n_step}-step returns; at least {least * shards} slots in all"
        )
        problems.append(Problem(what, "replay.capacity"))
    return problems


def resolved(job: ReinforcementJob) -> ReinforcementJob:
    """The job with addresses that mean the same on every machine."""
    return job.model_copy(update={"tracking": settled_tracking(job.tracking)})


@flushed_denormals()
def start(job: ReinforcementJob, watcher: Watcher, name: str | None = None) -> Finished:
    """Start a new run.

    Raises:
        InputError: anything is wrong with the job; nothing was started.
    """
    require(check(job))
    job = resolved(job)
    folder = RunFolder.planned(job, name)
    folder.create(job)
    if job.resources.runtime == "ray":
        try:
            _connect(job)
        except InputError:  # a machine too small: the run has not begun
            folder.storage.delete("")
            raise
    return _conduct(job, folder, watcher)


@flushed_denormals()
def resume(folder: RunFolder, job: ReinforcementJob, watcher: Watcher) -> Finished:
    """Continue a run from its newest checkpoint."""
    require(check(job))
    if job.resources.runtime == "ray":
        _connect(job)
    return _conduct(job, folder, watcher)


def _connect(job: ReinforcementJob) -> None:
    from heliostat.training.ray_cluster import connect

    resources = job.resources
    cpus = resources.actors * resources.cpus_per_actor + resources.learners * resources.cpus_per_learner
    gpus = resources.actors * resources.gpus_per_actor + resources.learners * resources.gpus_per_learner
    connect(cpus, gpus, f"{resources.learners} learners and {resources.actors} rollout actors")


def _conduct(job: ReinforcementJob, folder: RunFolder, watcher: Watcher) -> Finished:
    return conduct(job, data_facts(job), folder, watcher, work(job))


def data_facts(job: ReinforcementJob) -> list[DataFacts]:
    """What the tracker records of the environment."""
    return [DataFacts("train", job.environment.spec().name, "", job.optimization.steps)]


def work(job: ReinforcementJob, pause_at: int | None = None) -> Work:
    """The work of a run, for :func:`conduct`; ``pause_at``: see :class:`Session`."""
    return partial(_work, job, job.environment.spec(), pause_at)


def _work(
    job: ReinforcementJob,
    spec: EnvironmentSpec,
    pause_at: int | None,
    folder: RunFolder,
    open_tracker: Callable[[], Tracker],
    watcher: Watcher,
) -> tuple[Recorder, Outcome]:
    return in_this_process(lambda monitor: run(job, spec, folder, monitor, pause_at), folder, open_tracker, watcher)


def run(
    job: ReinforcementJob, spec: EnvironmentSpec, folder: RunFolder, monitor: Monitor, pause_at: int | None = None
) -> Outcome:
    """Coordinate the run in this process, whoever the crew is.

    Raises:
        RunError: it failed for a reason that is known.
    """
    runtime, crew = LocalRuntime(monitor), _crew(job)
    session = Session(job, spec, folder, runtime, crew, pause_at)
    try:
        session.begin()
        if (Lockstep if job.resources.lockstep else Overlapped)(session).run():
            session.conclude()
            folder.storage.write_json("results.json", session.results)
            name, uri = folder.name, session.checkpoints.uri(session.played)
            runtime.link_checkpoint(name, uri, session.played, session.results)
            runtime.log(session.results, session.played)
            return Outcome("finished", session.played, results=session.results)
        return Outcome("interrupted", session.played)
    except MemberLost as lost:
        raise RunError(f"the run cannot go on: {lost.reason}") from None
    finally:
        crew.close()


def _crew(job: ReinforcementJob) -> Crew:
    if job.resources.runtime == "local":
        return LocalCrew()
    from heliostat.reinforcement.ray_crew import RayCrew

    return RayCrew()
