"""Ray Tune at work on a study: which trial runs, with which order, and what becomes of it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Protocol

from heliostat.config.loading import dump
from heliostat.config.sweep import PopulationBased
from heliostat.errors import InputError
from heliostat.tracking.tracker import Tracker
from heliostat.training.conduct import POLL_SECONDS, stop_signals
from heliostat.training.run_folder import RunFolder
from heliostat.tuning.inheritance import hand_over
from heliostat.tuning.objective import boundaries
from heliostat.tuning.placement import in_trial
from heliostat.tuning.plan import Material, Plan, check_job
from heliostat.tuning.population import generation
from heliostat.tuning.study import Study, Trial
from heliostat.tuning.trial import STOP_ALL, Order

_WITHOUT_METRIC = 3
"""Finished trials without the metric after which nobody expects it any more."""


class SweepWatcher(Protocol):
    """Whoever shows a sweep to a person."""

    def show(self, study: Study, notices: list[str]) -> None:
        """Called a few times a second; all notices so far."""


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
        varied = trial.assigned if self._population is not None else {}
        return asdict(
            Order(
                name=trial.name,
                folder=self._folder_of(trial.name).storage.uri,
                job=dump(job),
                tags={
                    "mlflow.parentRunId": self.parent.run_id or "",
                    "heliostat.sweep": self.folder.name,
                    "heliostat.trial": str(trial.number),
                },
                metric=self.plan.sweep.metric,
                limits=limits,
                pause_at=self._boundary(),
                inherits=trial.inherits,
                varied={path: float(value) for path, value in varied.items() if _is_number(value)},
            )
        )

    def _folder_of(self, name: str) -> RunFolder:
        return RunFolder(f"{self.folder.storage.uri.rpartition('/')[0]}/{name}")

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
        if last.get("status") == "interrupted":  # a resumed sweep goes on with it
            self.study.trials[name].status = "waiting"
        if last.get("status") in ("finished", "pruned", "failed"):
            self.ended(name, last["status"], last["result"], int(last["ended_at"]), last["message"])
            if last["missing"]:
                self._missing.append(last["missing"])
        finished = any(trial.status == "finished" for trial in self.study.trials.values())
        if self._missing and not finished and (len(self._missing) >= _WITHOUT_METRIC or self.study.exhausted):
            self.error = f"no trial reports what the sweep asks for: of the first, {self._missing[0]}"
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
        last = self.study.generations[-1] if self.study.generations else 0
        ahead = boundaries(self._population, self.material.total_steps)
        return next((step for step in ahead if step > last), None)

    def turn(self, standing: dict[str, tuple[int, float]]) -> dict[str, dict[str, Any]]:
        """All members stand still: who goes on from whose state, and everybody's new order; no new ones where the sweep
        is to stop, because members that are no longer there would be missing in the comparison."""
        settings = self._population
        assert settings is not None
        if self.stopping:
            return {}
        sign = 1 if self.plan.sweep.mode == "max" else -1
        step = max(step for step, _ in standing.values())
        names = {self.study.trials[name].number: name for name in standing}
        for name, (at, value) in standing.items():
            self.study.report(name, at, at / self.material.total_steps, value)
        scores = {number: sign * standing[name][1] for number, name in names.items()}
        values = {number: self.study.trials[name].assigned for number, name in names.items()}
        changes = generation(self.plan.space, settings, self.plan.sweep.seed, step, scores, values)
        for number, exploit in changes.items():
            heir, donor = names[number], names[exploit.donor]
            hand_over(self._folder_of(donor), standing[donor][0], self._folder_of(heir), step)
            shown = ", ".join(f"{p} = {t}" for p, t in self.plan.space.labels(exploit.assigned).items())
            self.notices.append(f"step {step}: {heir} goes on from {donor} with {shown}")
        # Only now: a driver that dies before this line makes the same copies again, and no member takes them before.
        self.study.generation(
            step,
            {names[number]: exploit.assigned for number, exploit in changes.items()},
            {names[number]: names[exploit.donor] for number, exploit in changes.items()},
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
                scheduler = Pruning(chosen, self._compared, self._prune, self.study.reports)
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

    def _prune(self, name: str, share: float) -> None:
        import ray

        if not self.study.trials[name].over:
            why = f"{self.plan.sweep.scheduler.type}: not among the best after {share:.0%} of the training"
            ray.get(self._board.stop.remote(name, why))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _name(trial: Any) -> str:
    return str(trial.config["order"]["name"])
