"""From a plan to a finished sweep: check, gather, start Ray Tune, watch it, write down what was best. A resumed sweep
takes the same path."""

from __future__ import annotations

import json
import os
import re
import secrets
import time
from dataclasses import dataclass
from typing import Literal

from heliostat.config.loading import dump
from heliostat.config.sweep import PopulationBased
from heliostat.errors import InputError, Problem, RunError
from heliostat.tracking.client import prepare_store
from heliostat.tracking.location import display_uri, resolve_uri
from heliostat.tracking.tracker import Tracker
from heliostat.training.conduct import flatten
from heliostat.training.monitor import EndStatus
from heliostat.training.run_folder import RunFolder
from heliostat.training.storage import Storage
from heliostat.tuning.engine import Engine, SweepWatcher
from heliostat.tuning.journal import Journal
from heliostat.tuning.placement import in_trial, needs
from heliostat.tuning.plan import Material, Plan, check, gather
from heliostat.tuning.search import build
from heliostat.tuning.study import Best, Study

PLAN = "sweep.yaml"
_FLUSH_SECONDS = 30.0


@dataclass(frozen=True)
class Swept:
    """How a sweep ended."""

    folder: RunFolder
    study: Study
    status: Literal["finished", "interrupted", "failed"]
    message: str
    best: Best | None
    tracking_uri: str


def start(plan: Plan, watcher: SweepWatcher, name: str | None = None) -> Swept:
    """Start a new sweep.

    Raises:
        InputError: anything is wrong; nothing was started.
        StoreError: the tracking store does not answer: trials could not be recorded as parts of the sweep.
    """
    check(plan)
    plan = plan.settled()
    name = name or f"{plan.job.name}-sweep-{secrets.token_hex(3)}"
    output = Storage(plan.job.output)
    folder = RunFolder(f"{output.uri}/{name}")
    place = folder.storage.uri
    if folder.storage.exists(PLAN) or folder.storage.exists("job.yaml"):
        what = f"a sweep or run of this name exists; continue it with 'heliostat resume {place}', or choose another"
        raise InputError(Problem(what, place))
    left = [other for other in output.folders() if re.fullmatch(rf"{re.escape(name)}-\d{{3,}}(-s\d+)?", other)]
    if left:  # a trial would go on with them
        what = f"runs of an earlier sweep of this name are still there ({left[0]}, ...); choose another name"
        raise InputError(Problem(what, output.uri))
    material = gather(plan)
    uri = resolve_uri(plan.job.tracking.uri)
    prepare_store(uri, plan.job.tracking.experiment)
    limit = _connect(plan)
    try:
        folder.storage.make()
        folder.storage.replace(PLAN, plan.text().encode())
    except OSError as error:
        raise InputError(Problem(f"the sweep's folder cannot be written: {error}", place)) from None
    return _conduct(plan, material, limit, folder, uri, watcher)


def find(run: str, output: str = "runs") -> RunFolder | None:
    """A sweep by its folder or its name below ``output``; None if there is none there."""
    for uri in (run, f"{Storage(output).uri}/{run}"):
        folder = RunFolder(uri)
        if folder.storage.exists(PLAN):
            return folder
    return None


def resume(folder: RunFolder, watcher: SweepWatcher) -> Swept:
    """Go on with a sweep: finished trials stay as they are, the others continue from their own last checkpoints."""
    plan = Plan.read(folder.storage.read(PLAN).decode(), f"{folder.storage.uri}/{PLAN}")
    material = gather(plan)
    return _conduct(plan, material, _connect(plan), folder, resolve_uri(plan.job.tracking.uri), watcher)


def _connect(plan: Plan) -> int:
    """Join or start Ray; returns how many trials it holds at the same time."""
    import ray

    from heliostat.training.ray_cluster import connect

    for key, value in {
        "RAY_CHDIR_TO_TRIAL_DIR": "0",
        "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
        "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # some reports say only how far a trial is
        "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
        "RAY_AIR_NEW_OUTPUT": "0",
    }.items():
        os.environ.setdefault(key, value)
    need = needs(in_trial(plan.job))
    connect(need.cpus, need.gpus, "one trial's workers")
    have: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    fits = [int(have.get(kind, 0) / n) for kind, n in (("CPU", need.cpus), ("GPU", need.gpus)) if n]
    limit = max(1, min([*fits, plan.sweep.concurrent or 10**6]))
    population = isinstance(plan.sweep.scheduler, PopulationBased) and need.reserves_itself
    if population and limit < (plan.sweep.samples or 0):
        what = (
            f"a population of {plan.sweep.samples} with {need.cpus:g} CPUs each does not fit this cluster at "
            "once; give resources.workers=1, with which members take turns to the same result"
        )
        raise InputError(Problem(what, "resources.workers"))
    return limit


def _conduct(plan: Plan, material: Material, limit: int, folder: RunFolder, uri: str, watcher: SweepWatcher) -> Swept:
    journal = Journal(folder.storage)
    with folder.locked():
        study = Study(folder.name, plan.sweep, plan.seeds, build(plan.sweep, plan.space), journal)
        study.restore(journal.read())
        parent = Tracker(
            uri,
            plan.job.tracking.experiment,
            folder.name,
            run_id=folder.about().get("tracking_run_id"),
            parameters={**flatten(plan.sweep.model_dump(mode="json"), "sweep"), "job.name": plan.job.name},
            tags={"heliostat.kind": "sweep", "heliostat.folder": folder.storage.uri, "mlflow.source.name": "heliostat"},
            system_metrics=False,
            spool=folder.spool(),
        )
        deadline = time.monotonic() + 2 * _FLUSH_SECONDS
        while parent.run_id is None and time.monotonic() < deadline:
            time.sleep(0.05)
        if parent.run_id is None:
            parent.finish("FAILED", 0)
            raise RunError(
                f"the tracking store {display_uri(uri)} has no run for the sweep: {parent.status().last_error}"
            )
        folder.update(kind="sweep", status="running", tracking_run_id=parent.run_id, tracking_uri=display_uri(uri))
        parent.log_text(plan.text(), PLAN)
        engine = Engine(plan, study, folder, material, limit, parent)
        error = engine.run(watcher)
        best = study.best()
        if error is None and study.exhausted and best is None:
            error = "no configuration finished; the trials' own errors stand above"
        status: Literal["finished", "interrupted", "failed"] = (
            "failed" if error else "finished" if study.exhausted else "interrupted"
        )
        if best is not None:
            text = best_job(plan, best, folder)
            folder.storage.replace("best.yaml", text.encode())
            parent.log_text(text, "best.yaml")
            tags = {f"best.{path}": shown for path, shown in plan.space.labels(best.trials[0].assigned).items()}
            parent.set_tags({"heliostat.best_trial": best.trials[0].name, **tags})
            parent.log_metrics({f"best/{plan.sweep.metric}": best.value}, len(study.trials))
        parent.log_text(dump_trials(study), "trials.json")
        ends: dict[str, EndStatus] = {"finished": "FINISHED", "failed": "FAILED", "interrupted": "KILLED"}
        parent.finish(ends[status], _FLUSH_SECONDS)
        folder.update(status=status, message=error or "")
        return Swept(folder, study, status, error or "", best, uri)


def dump_trials(study: Study) -> str:
    """All trials as JSON."""
    kept = ("name", "number", "seed", "assigned", "status", "value", "step", "message", "seconds")
    rows = [{key: getattr(trial, key) for key in kept} for trial in study.trials.values()]
    return json.dumps(rows, indent=2)


def best_job(plan: Plan, best: Best, folder: RunFolder) -> str:
    """The best configuration as a job file."""
    first = best.trials[0]
    job = plan.with_values(first.assigned, first.seed)
    lines = [f"# heliostat run {folder.storage.uri}/best.yaml"]
    lines.append(f"# The best of sweep {folder.name}: {first.name} gave {plan.sweep.metric} = {first.value!r}.")
    if len(best.trials) > 1:
        values = ", ".join(f"seed {trial.seed}: {trial.value:.6g}" for trial in best.trials)
        lines.append(f"# Mean over seeds: {best.value:.6g} ({values}).")
    if isinstance(plan.sweep.scheduler, PopulationBased):
        lines.append(
            "# It was found by population-based training: its values changed while it trained (journal.jsonl), and"
        )
        lines.append("# these are the last ones. A run with them from the start is another run, with another result.")
    return "\n".join([*lines, dump(job)])
