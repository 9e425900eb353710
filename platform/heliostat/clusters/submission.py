"""From a job file to a job of a cluster: checked, shipped, followed and, where its driver was lost, submitted again.

The run's name is chosen here, before anything is sent. Every attempt works on the run of that name and continues it
from its newest checkpoint, so what a lost driver or head costs is the steps since then.
"""

from __future__ import annotations

import secrets
import shlex
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from heliostat.clusters import submitted
from heliostat.clusters.cluster_file import Site
from heliostat.clusters.demand import demands
from heliostat.clusters.jobs import Jobs, Submission, Unreachable
from heliostat.clusters.shipping import Shipment, packed
from heliostat.config.loading import AnyJob, Stage, load
from heliostat.config.reinforcement import ReinforcementJob
from heliostat.errors import InputError, Problem, RunError, require
from heliostat.tracking.location import display_uri
from heliostat.training.environment import checkout

_RECONNECT_SECONDS = 5.0
PATIENCE_SECONDS = 600.0
"""How long a cluster that has fallen silent is waited for by who would submit again."""
IMPATIENCE_SECONDS = 60.0
"""The same, for who only watches."""
_KNOWN_ENDS = frozenset({0, 1, 2, 130})
"""Exit codes of heliostat itself: another attempt would end alike. Every other end is a lost driver, and 75 a part of
it that could not be replaced."""

Tell = Callable[[str], object]


@dataclass(frozen=True)
class Plan:
    """What will be submitted."""

    job: Path
    overrides: tuple[str, ...]
    """On top of the file, the cluster's places included."""
    run: str
    jobs: tuple[AnyJob, ...]
    """The typed job, or those of its stages."""
    modules: tuple[Path, ...] = ()
    install: bool = False

    def entrypoint(self, *, goes_on: bool) -> str:
        """The command that the cluster runs; also what ``ray job submit`` would be given.

        Args:
            goes_on: continue the run of this name, where there is one.
        """
        command = ["python", "-m", "heliostat", "run", self.job.name, *self.overrides, "--name", self.run]
        return shlex.join([*command, "--continue"] if goes_on else command)


def plan(
    job: Path,
    overrides: Sequence[str],
    site: Site,
    *,
    run: str | None = None,
    modules: Sequence[Path] = (),
    install: bool = False,
    data_is_there: bool = False,
) -> Plan:
    """Check a job file for a cluster, as ``heliostat validate`` does, and whether what it leaves behind stays.

    Args:
        overrides: ``key=value`` of the command line, which win.
        site: what the cluster file says of places.
        run: the run's name; None makes a new one.
        modules: the user's own code to be shipped.
        install: have Ray install heliostat's dependencies.
        data_is_there: paths of data lie on the cluster, not here: leave them to the job.

    Raises:
        InputError: with all that is wrong.
    """
    first = _typed(load(job, overrides))
    changes = [*overrides, *_places(first[0].job, site)]
    stages = _typed(load(job, changes))
    problems = []
    for stage in stages:
        found = _check(stage)
        if data_is_there:
            found = [problem for problem in found if not problem.where.startswith("data.")]
        problems += found + _lasting(stage.job)
    require(list(dict.fromkeys(problems)))
    typed = tuple(stage.job for stage in stages)
    common = typed[0].name.removesuffix(f"-{stages[0].name}") if stages[0].name else typed[0].name
    name = run or f"{common}-{secrets.token_hex(3)}"
    return Plan(job, tuple(changes), name, typed, tuple(modules), install)


@dataclass(frozen=True)
class _Any:
    """A stage, or a job of another kind in the place of one."""

    name: str
    job: AnyJob
    follows: str | None


def _typed(loaded: tuple[Stage, ...] | ReinforcementJob) -> list[_Any]:
    if isinstance(loaded, ReinforcementJob):
        return [_Any("", loaded, None)]
    return [_Any(stage.name, stage.job, stage.follows) for stage in loaded]


def _check(stage: _Any) -> list[Problem]:
    from heliostat.reinforcement import launch as agents
    from heliostat.training import launch

    if isinstance(stage.job, ReinforcementJob):
        return agents.check(stage.job)
    return launch.check(stage.job, follows=stage.follows is not None)


def _places(job: AnyJob, site: Site) -> list[str]:
    """The cluster's places where the job names none that would last."""
    changes = []
    if site.output is not None and not _absolute(job.output):
        changes.append(f"output={site.output}")
    if site.tracking is not None and job.tracking.uri is None:
        changes.append(f"tracking.uri={site.tracking}")
    return changes


def _lasting(job: AnyJob) -> list[Problem]:
    """Whether runs and records go where they stay: a job's own folder on the cluster is deleted with the job."""
    problems = []
    if job.resources.runtime == "local":
        what = "a job for a cluster uses Ray; the local runtime is one process of the head node"
        problems.append(Problem(what, "resources.runtime"))
    if not _absolute(job.output):
        what = (
            f"'{job.output}' would be lost with the job's folder on the cluster; give a place that all nodes see: "
            "output=s3://bucket/runs or output=/shared/runs, or metadata.heliostat.output in the cluster file"
        )
        problems.append(Problem(what, "output"))
    uri = job.tracking.uri
    if uri is None or (uri.startswith("sqlite:") and not uri.startswith("sqlite:////")):
        what = (
            "the record would be lost with the job's folder on the cluster; give a server that the head reaches: "
            "tracking.uri=http://127.0.0.1:5000, or metadata.heliostat.tracking in the cluster file"
        )
        problems.append(Problem(what, "tracking.uri"))
    return problems


def _absolute(place: str) -> bool:
    return "://" in place or place.startswith("/")


def short_of(jobs: Jobs, plan: Plan) -> list[str]:
    """What the cluster lacks just now, in sentences. Whether it can grow is known to the job, which refuses what can
    never be."""
    have = jobs.room()
    if not have:
        return []
    said = []
    for kind, of_one in (("CPU", "cpus"), ("GPU", "gpus")):
        need = max(sum(each.least * getattr(each, of_one) for each in demands(job)) for job in plan.jobs)
        if need > have[kind]:
            said.append(
                f"the job needs {need:g} {kind}s, and the cluster has {have[kind]:g} now; it waits for more to join"
            )
    return said


def next_attempt(jobs: Jobs, plan: Plan, *, goes_on: bool) -> int:
    """The number of the run's next submission.

    Raises:
        InputError: somebody works on the run already, or did and ``goes_on`` is not said.
    """
    before = jobs.of_run(plan.run)
    for job in before:
        if not job.over:
            what = (
                f"run {plan.run} is running already, as job {job.id}; follow it with 'heliostat jobs logs {job.id}', "
                f"end it with 'heliostat jobs stop {job.id}', or choose another name"
            )
            raise InputError(Problem(what, "--name"))
    if before and not goes_on:
        what = f"run {plan.run} was submitted before; go on with it by --continue, or choose another name"
        raise InputError(Problem(what, "--name"))
    return max((job.attempt for job in before), default=0) + 1


def submit(jobs: Jobs, plan: Plan, attempt: int, *, goes_on: bool) -> tuple[str, Shipment]:
    """Ship and start one attempt. Returns the submission's id and what was shipped."""
    metadata = {
        submitted.RUN: plan.run,
        submitted.JOB: plan.jobs[0].name,
        submitted.ATTEMPT: str(attempt),
        submitted.ADDRESS: display_uri(jobs.address),
    }
    source = checkout(Path(__file__).parent)
    if source is not None:
        metadata |= {submitted.COMMIT: source["commit"], submitted.CHANGED: str(source["changed_files"])}
    identity = f"{plan.run}.{attempt}"  # never the run's own name, by which its latest job is found
    with packed(plan.job, plan.modules, install=plan.install) as shipment:
        entrypoint = plan.entrypoint(goes_on=goes_on)
        return jobs.submit(entrypoint, identity, shipment.runtime_env, metadata), shipment


def follow(
    connect: Callable[[], Jobs], submission: str, write: Tell, tell: Tell, patience: float = PATIENCE_SECONDS
) -> Submission | None:
    """Hand on a job's output until it ends, over lost connections.

    Args:
        connect: makes a connection to the cluster.
        write: takes the output, in pieces.
        tell: takes a line on what happens to the connection.
        patience: seconds without an answer after which to give up.

    Returns:
        How it ended; None where the cluster answers and does not know the job: its head was lost.

    Raises:
        Unreachable: the cluster did not come back in time.
    """
    seen, silent_since = 0, None

    def count(piece: str) -> None:
        nonlocal seen
        seen += len(piece)
        write(piece)

    while True:
        try:
            jobs = connect()
            if silent_since is not None:
                tell(f"{display_uri(jobs.address)} answers again")
                silent_since = None
            if submission not in {job.id for job in jobs.all()}:
                return None
            jobs.follow(submission, count, seen)
            ended = jobs.get(submission)
            if ended.over:
                return ended
        except (InputError, Unreachable, RunError) as error:
            if silent_since is None:
                silent_since = time.monotonic()
                tell(f"connection lost ({error}); trying again for {patience:g} s")
            elif time.monotonic() - silent_since > patience:
                raise Unreachable(f"the cluster did not come back: {error}; the job may go on all the same") from None
        time.sleep(_RECONNECT_SECONDS if silent_since is not None else 0.5)


def lost(ended: Submission | None) -> bool:
    """Whether an attempt ended with its driver, and another would go on from the newest checkpoint."""
    return ended is None or (ended.status == "FAILED" and ended.exit_code not in _KNOWN_ENDS)
