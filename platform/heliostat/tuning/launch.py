"""From a plan to a finished sweep: check, gather, start Ray Tune, watch it, write down what was best. A resumed sweep
takes the same path."""

from __future__ import annotations

import logging
import os
import secrets
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, Protocol

from heliostat.config.job import Job
from heliostat.config.loading import AnyJob, dump
from heliostat.config.sweep import PopulationBased
from heliostat.errors import InputError, Problem, RunError
from heliostat.tracking.location import display_uri, prepare_store, resolve_uri
from heliostat.tracking.tracker import Tracker
from heliostat.training.conduct import POLL_SECONDS, flatten, stop_signals
from heliostat.training.run_folder import RunFolder
from heliostat.training.storage import Storage
from heliostat.tuning.inheritance import hand_over
from heliostat.tuning.journal import Journal
from heliostat.tuning.plan import Material, Plan, check, check_job, gather
from heliostat.tuning.population import generation
from heliostat.tuning.search import build
from heliostat.tuning.study import Best, Study, Trial
from heliostat.tuning.trial import STOP_ALL, Order

PLAN = "sweep.yaml"
_FLUSH_SECONDS = 30.0
_WITHOUT_METRIC = 3
"""Finished trials without the metric after which nobody expects it any more."""


class SweepWatcher(Protocol):
    """Whoever shows a sweep to a person."""

    def show(self, study: Study, notices: list[str]) -> None:
        """Called a few times a second; all notices so far."""


@dataclass(frozen=True)
class Swept:
    """How a sweep ended."""

    folder: RunFolder
    study: Study
    status: Literal["finished", "interrupted", "failed"]
    message: str
    best: Best | None
    tracking_uri: str


@dataclass(frozen=True)
class Needs:
    """What a trial takes from the cluster."""

    bundles: list[dict[str, float]]
    """Reserved by Tune: the trial's own process, and the actors that it hires."""
    cpus: float
    gpus: float
    """In all, with workers that Ray Train reserves itself."""


def needs(job: AnyJob) -> Needs:
    """What a trial of a job takes."""
    resources = job.resources
    if isinstance(job, Job):
        workers = job.resources.worker_range[0]
        cpus, gpus = job.resources.cpus_per_worker, job.resources.gpus_per_worker
        own = {"CPU": cpus, "GPU": gpus} if job.resources.runtime == "local" else {"CPU": 0.0}
        return Needs([own], workers * cpus, workers * gpus)
    actor = {"CPU": float(resources.cpus_per_actor), "GPU": resources.gpus_per_actor}  # type: ignore[union-attr]
    learner = {"CPU": float(resources.cpus_per_learner), "GPU": resources.gpus_per_learner}  # type: ignore[union-attr]
    if resources.runtime == "local":
        return Needs([learner], learner["CPU"], learner["GPU"])
    bundles = [actor] * resources.actors + [learner] * resources.learners  # type: ignore[union-attr]
    return Needs([{"CPU": 0.0}, *bundles], sum(b["CPU"] for b in bundles), sum(b["GPU"] for b in bundles))


def in_trial(job: AnyJob) -> AnyJob:
    """The job as a trial runs it: what one process can do, it does in the trial's own, to the same bits."""
    resources = job.resources
    alone = (
        job.resources.worker_range == range(1, 2)
        if isinstance(job, Job)
        else job.resources.lockstep and job.resources.actors == job.resources.shards == job.resources.learners == 1
    )
    if not alone:
        return job
    changes: dict[str, Any] = {"runtime": "local"} | ({"workers": 1} if isinstance(job, Job) else {})
    return job.model_copy(update={"resources": resources.model_copy(update=changes)})


def start(plan: Plan, watcher: SweepWatcher, name: str | None = None) -> Swept:
    """Start a new sweep.

    Raises:
        InputError: anything is wrong; nothing was started.
        StoreError: the tracking store does not answer: trials could not be recorded as parts of the sweep.
    """
    check(plan)
    plan = plan.settled()
    material = gather(plan)
    limit = _connect(plan)
    uri = resolve_uri(plan.job.tracking.uri)
    prepare_store(uri, plan.job.tracking.experiment)
    place = f"{Storage(plan.job.output).uri}/{name or f'{plan.job.name}-sweep-{secrets.token_hex(3)}'}"
    folder = RunFolder(place)
    if folder.storage.exists(PLAN) or folder.storage.exists("job.yaml"):
        what = f"a sweep or run of this name exists; continue it with 'heliostat resume {place}', or choose another"
        raise InputError(Problem(what, place))
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
    population = isinstance(plan.sweep.scheduler, PopulationBased) and need.bundles == [{"CPU": 0.0}]
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
        parent.finish({"finished": "FINISHED", "failed": "FAILED", "interrupted": "KILLED"}[status], _FLUSH_SECONDS)  # type: ignore[arg-type]
        folder.update(status=status, message=error or "")
        return Swept(folder, study, status, error or "", best, uri)


def dump_trials(study: Study) -> str:
    """All trials as JSON."""
    import json

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


class Engine:
    """Ray Tune at work on a study."""

    def __init__(
        self, plan: Plan, study: Study, folder: RunFolder, material: Material, limit: int, parent: Tracker
    ) -> None:
        self.plan, self.study, self.folder, self.material = plan, study, folder, material
        self.limit, self.parent = limit, parent
        self.notices: list[str] = []
        self.stopping = False
        self.error: str | None = None
        self._missing: list[str] = []
        self._ended = sum(trial.over for trial in study.trials.values())
        self._board: Any = None

    def __getstate__(self) -> dict[str, Any]:
        """Ray writes down its callbacks and searchers, to restore them; here the journal does that, so nothing is
        kept."""
        return {}

    def __deepcopy__(self, memo: dict[int, Any]) -> Engine:
        return self

    def run(self, watcher: SweepWatcher) -> str | None:
        """Work until everything was tried or somebody asks to stop; returns what keeps the sweep from a result."""
        import ray

        from heliostat.tuning.board import Board

        actor: Any = ray.remote(Board)
        self._board = actor.options(num_cpus=0).remote()
        thread = threading.Thread(target=self._fit, name="ray-tune", daemon=True)  # in the main one, Tune takes Ctrl-C
        with stop_signals(self.stop):
            thread.start()
            while thread.is_alive():
                thread.join(POLL_SECONDS)
                watcher.show(self.study, self.notices)
        watcher.show(self.study, self.notices)
        return self.error

    def stop(self) -> None:
        """Let every trial save and end, and start no other."""
        self.stopping = True
        self._board.stop_all.remote(STOP_ALL)

    def order(self, trial: Trial) -> dict[str, Any]:
        """What a trial is told to do."""
        job = in_trial(check_job(self.plan, trial.assigned, trial.seed))
        limits = {name: limit.model_dump() for name, limit in self.plan.sweep.limits.items()}
        return asdict(
            Order(
                name=trial.name,
                folder=f"{self.folder.storage.uri.rpartition('/')[0]}/{trial.name}",
                job=dump(job),
                tags={
                    "mlflow.parentRunId": self.parent.run_id or "",
                    "heliostat.sweep": self.folder.name,
                    "heliostat.trial": str(trial.number),
                },
                metric=self.plan.sweep.metric,
                limits=limits,
                pause_at=self._boundary(),
            )
        )

    def next_order(self) -> dict[str, Any] | None:
        """The next trial's; a configuration whose values are wrong together fails here and is shown."""
        while (trial := self.study.next()) is not None:
            try:
                order = self.order(trial)
            except InputError as error:
                self.ended(trial.name, "failed", None, 0, str(error))
                continue
            self.study.start(trial.name)
            return order
        return None

    def ended(self, name: str, status: Any, value: float | None, step: int, message: str) -> None:
        """A trial is over."""
        self.study.end(name, status, value, step, message)
        trial = self.study.trials[name]
        if trial.status == "failed":
            self.notices.append(f"{name} failed: {trial.message}")
        self._ended += 1
        metrics = {f"sweep/{self.plan.sweep.metric}": trial.value} if trial.status == "finished" else {}
        best = self.study.best()
        if best is not None:
            metrics["sweep/best"] = best.value
        if metrics:
            self.parent.log_metrics({key: value for key, value in metrics.items() if value is not None}, self._ended)

    def conclude(self, name: str, last: Mapping[str, Any]) -> None:
        """Take in a trial's final report."""
        if last.get("status") in ("finished", "pruned", "failed"):
            self.ended(name, last["status"], last["result"], int(last["ended_at"]), last["message"])
            if last["missing"]:
                self._missing.append(last["missing"])
        finished = any(trial.status == "finished" for trial in self.study.trials.values())
        if self._missing and not finished and (len(self._missing) >= _WITHOUT_METRIC or self.study.exhausted):
            self.error = f"no trial reports the metric '{self.plan.sweep.metric}': {self._missing[0]}"
            self.stop()

    # A population

    @property
    def _population(self) -> PopulationBased | None:
        scheduler = self.plan.sweep.scheduler
        return scheduler if isinstance(scheduler, PopulationBased) else None

    def _boundary(self) -> int | None:
        """The step at which members stand still next; None where they train to their end."""
        if self._population is None:
            return None
        every = max(1, round(self._population.interval * self.material.total_steps))
        last = self.study.generations[-1] if self.study.generations else 0
        boundary = (last // every + 1) * every
        return boundary if boundary < self.material.total_steps else None

    def turn(self, standing: dict[str, tuple[int, float]]) -> dict[str, dict[str, Any]]:
        """All members stand still: who goes on from whose state, and everybody's new order."""
        settings = self._population
        assert settings is not None
        sign = 1 if self.plan.sweep.mode == "max" else -1
        step = max(step for step, _ in standing.values())
        values = {name: self.study.trials[name].assigned for name in standing}
        scores = {name: sign * value for name, (_, value) in standing.items()}
        for name, (at, value) in standing.items():
            self.study.report(name, at, at / self.material.total_steps, value)
        changes = generation(self.plan.space, settings, self.plan.sweep.seed, step, scores, values)
        beside = self.folder.storage.uri.rpartition("/")[0]
        for name, exploit in changes.items():
            hand_over(RunFolder(f"{beside}/{exploit.donor}"), standing[exploit.donor][0], RunFolder(f"{beside}/{name}"))
            shown = ", ".join(f"{p} = {t}" for p, t in self.plan.space.labels(exploit.assigned).items())
            self.notices.append(f"step {step}: {name} goes on from {exploit.donor} with {shown}")
        self.study.generation(
            step,
            {name: exploit.assigned for name, exploit in changes.items()},
            {name: exploit.donor for name, exploit in changes.items()},
        )
        return {name: self.order(self.study.trials[name]) for name in standing}

    # Ray Tune

    def _fit(self) -> None:
        try:
            self._tune()
        except Exception as error:  # noqa: BLE001 - handed to the main thread, which reports it
            self.error = self.error or f"Ray Tune failed: {error}"

    def _tune(self) -> None:
        from ray import tune

        from heliostat.data.sharing import share
        from heliostat.tuning.feed import Events, Feed, resources
        from heliostat.tuning.schedulers import Population, Pruning, rule
        from heliostat.tuning.trial import run_trial

        logging.getLogger("ray.tune").setLevel(logging.ERROR)
        data = self.material.data
        function = tune.with_parameters(
            run_trial,
            train=share(data.train) if data is not None else None,
            test=share(data.test) if data is not None and data.test is not None else None,
            board=self._board,
        )
        scheduler: Any = None
        arguments: dict[str, Any] = {}
        if self._population is not None:
            orders = []
            while (order := self.next_order()) is not None:
                orders.append(order)
            if not orders:
                return
            scheduler = Population(self.turn)
            arguments["param_space"] = {"order": tune.grid_search(orders)}
        else:
            chosen = rule(self.plan.sweep)
            if chosen is not None:
                past = [(t.name, share_, v) for t in self.study.trials.values() for _, share_, v in t.points]
                scheduler = Pruning(chosen, self._compared, self._prune, past)
            arguments["param_space"] = {}
        tuner = tune.Tuner(
            tune.with_resources(function, resources),
            tune_config=tune.TuneConfig(
                search_alg=None if self._population is not None else Feed(self),
                num_samples=1 if self._population is not None else -1,
                scheduler=scheduler,
                trial_name_creator=_name,
                trial_dirname_creator=_name,
            ),
            run_config=tune.RunConfig(
                name="ray",
                storage_path=self.folder.storage.uri,
                verbose=0,
                callbacks=[Events(self)],
                failure_config=tune.FailureConfig(max_failures=self.plan.job.resources.max_failures),
            ),
            **arguments,
        )
        tuner.fit()

    def _compared(self, name: str) -> bool:
        trial = self.study.trials[name]
        return trial is self.study.of(trial.number)[0]

    def _prune(self, name: str) -> None:
        import ray

        trial = self.study.trials[name]
        why = f"{self.plan.sweep.scheduler.type}: not among the best after {trial.share:.0%} of the training"
        ray.get(self._board.stop.remote(name, why))


def _name(trial: Any) -> str:
    return str(trial.config["order"]["name"])
