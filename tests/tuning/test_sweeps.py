"""Sweeps as they are run: trials in processes of Ray's, one instance of which serves this file."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
from mlflow import MlflowClient
from mlflow.entities import Run

from heliostat.config.loading import load, load_document
from heliostat.training import launch as runs
from heliostat.training.monitor import Snapshot
from heliostat.tuning import launch
from heliostat.tuning.launch import Swept
from heliostat.tuning.plan import Plan
from heliostat.tuning.study import Study

LOSS = {"metric": "train/loss", "mode": "min"}
RATE = "optimization.optimizer.learning_rate"
WORTHLESS = 1e30
"""A learning rate with which the loss is soon no number."""


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    """One Ray for all: to start it takes longer than a trial."""
    with tempfile.TemporaryDirectory(prefix="heliostat-ray-") as folder:  # short: it holds sockets
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=2**28, _temp_dir=folder)
        yield
        ray.shutdown()


@dataclass
class Recorded:
    """Watches a sweep; may do something on the way."""

    act: Callable[[Study], None] = lambda study: None
    notices: list[str] = field(default_factory=list)
    seen_running: list[tuple[str, ...]] = field(default_factory=list)

    def show(self, study: Study, notices: list[str]) -> None:
        self.notices = list(notices)
        running = tuple(trial.name for trial in list(study.trials.values()) if trial.status == "running")
        if running and self.seen_running[-1:] != [running]:
            self.seen_running.append(running)
        self.act(study)


@dataclass
class Newest:
    """Watches a run; keeps the newest step and value of each metric."""

    seen: dict[str, tuple[int, float]] = field(default_factory=dict)

    def show(self, snapshot: Snapshot) -> None:
        self.seen.update(snapshot.latest)


class Home:
    """A folder with sweeps and their store."""

    def __init__(self, folder: Path, text: str) -> None:
        self.folder, self.text, self.store = folder, text, f"sqlite:///{folder / 'mlflow.db'}"

    def plan(self, *overrides: str, **block: Any) -> Plan:
        file = self.folder / "tiny.yaml"
        file.write_text(f"{self.text}sweep: {json.dumps({**LOSS, **block})}\n")
        places = [f"output={self.folder / 'runs'}", f"tracking.uri={self.store}"]
        return Plan.of(load_document(file, [*places, *overrides]))

    def sweep(self, name: str, watcher: Recorded, *overrides: str, **block: Any) -> Swept:
        return launch.start(self.plan(*overrides, **block), watcher, name)

    def record(self, name: str) -> tuple[Run, dict[str, Run]]:
        """The sweep's run in MLflow, and its children by name, as MLflow's own client has them."""
        client = MlflowClient(self.store)
        experiment = client.get_experiment_by_name("tests")
        (parent,) = client.search_runs([experiment.experiment_id], f"attributes.run_name = '{name}'")
        mine = f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'"
        return parent, {run.info.run_name: run for run in client.search_runs([experiment.experiment_id], mine)}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, tiny_text: str) -> Home:
    """Of all sweeps of this file."""
    return Home(tmp_path_factory.mktemp("sweeps"), tiny_text)


@pytest.fixture(scope="module")
def mixed(home: Home) -> tuple[Swept, Recorded]:
    """Three learning rates, one of which fails, with two seeds each."""
    watcher = Recorded()
    rates = {RATE: {"type": "grid", "values": [WORTHLESS, 2.0, 0.01]}}
    return home.sweep("mixed", watcher, parameters=rates, search={"type": "grid"}, seeds=2), watcher


def test_a_trial_that_fails_is_shown_at_once_and_ends_nothing(mixed: tuple[Swept, Recorded]) -> None:
    swept, watcher = mixed
    assert swept.status == "finished"
    status = {name: trial.status for name, trial in swept.study.trials.items()}
    assert {status["mixed-000-s3"], status["mixed-000-s4"]} == {"failed"}
    assert {s for name, s in status.items() if "000" not in name} == {"finished"}
    assert any("mixed-000-s3 failed" in notice for notice in watcher.notices)
    assert "not finite" in swept.study.trials["mixed-000-s3"].message


def test_as_many_trials_run_as_the_cluster_holds(mixed: tuple[Swept, Recorded]) -> None:
    assert max(map(len, mixed[1].seen_running)) == 2


def test_the_best_mean_is_the_best_and_its_job_file_gives_its_metric(mixed: tuple[Swept, Recorded], home: Home) -> None:
    swept, _ = mixed
    assert swept.best is not None
    values = {n: [trial.value or 0.0 for trial in swept.study.of(n)] for n in (1, 2)}
    assert swept.best.value == min(sum(v) / 2 for v in values.values())
    (stage,) = load(f"{swept.folder.storage.uri}/best.yaml")  # type: ignore[misc]
    again = Newest()
    runs.start(stage.job, again, "again")
    assert again.seen["train/loss"] == (12, swept.best.trials[0].value)


def test_parent_and_children_in_mlflow(mixed: tuple[Swept, Recorded], home: Home) -> None:
    swept, _ = mixed
    parent, children = home.record("mixed")
    assert swept.best is not None
    assert parent.info.status == "FINISHED"
    assert (parent.data.params["sweep.metric"], parent.data.params["sweep.mode"]) == ("train/loss", "min")
    assert parent.data.metrics["best/train/loss"] == swept.best.value
    assert parent.data.tags["heliostat.best_trial"] == swept.best.trials[0].name
    ran = {name: trial for name, trial in swept.study.trials.items() if "not run" not in trial.message}
    assert set(children) == set(ran)
    for name, child in children.items():
        assert float(child.data.params[RATE]) == ran[name].assigned[RATE]
        assert int(child.data.params["seed"]) == ran[name].seed
        assert child.info.status == {"finished": "FINISHED", "failed": "FAILED"}[ran[name].status]
        if ran[name].status == "finished":
            assert child.data.metrics["train/loss"] == ran[name].value
        else:
            assert child.data.tags["heliostat.outcome"] == ran[name].message


def test_a_collapse_ends_a_trial_and_its_record_says_why(home: Home) -> None:
    swept = home.sweep(
        "collapsed",
        Recorded(),
        "optimization.steps=220",
        "evaluation=[{type: collapse, every_epochs: 1}]",
        samples=1,
        limits={"eval/feature_std": {"min": 100.0, "after": 0.05}},
        search={"type": "optuna"},
        parameters={RATE: {"type": "log-uniform", "low": 0.1, "high": 1.0}},
    )
    assert swept.status == "failed"
    assert "no configuration finished" in swept.message
    (trial,) = swept.study.trials.values()
    assert trial.status == "pruned"
    assert 22 <= trial.step < 220
    parent, children = home.record("collapsed")
    assert parent.info.status == "FAILED"
    child = children["collapsed-000"]
    assert child.info.status == "KILLED"
    assert child.data.tags["heliostat.outcome"] == trial.message
    assert "eval/feature_std was" in trial.message
    assert "below 100" in trial.message


def test_what_no_trial_reports_ends_the_sweep_with_the_names_that_they_do(home: Home) -> None:
    swept = home.sweep(
        "unknown",
        Recorded(),
        metric="train/los",
        samples=1,
        limits={"train/x": {"min": 0.0}},
        parameters={RATE: {"type": "choice", "values": [1.0]}},
    )
    assert swept.status == "failed"
    assert "it reported no 'train/los' and no 'train/x'" in swept.message
    assert "train/loss" in swept.message


def test_a_killed_process_costs_nothing_but_time(home: Home) -> None:
    killed: list[int] = []

    def kill(study: Study) -> None:
        folder = home.folder / "runs/killed-000"
        if killed or not list(folder.glob("checkpoints/*")):
            return
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if any(file.path == str(folder / ".driver.lock") for file in process.open_files()):
                    process.kill()
                    killed.append(process.pid)

    watcher = Recorded(kill)
    swept = home.sweep(
        "killed",
        watcher,
        "optimization.steps=100",
        "resources.max_failures=2",
        samples=1,
        parameters={RATE: {"type": "choice", "values": [1.5]}},
    )
    assert killed
    assert swept.status == "finished"
    assert any("its process died" in notice for notice in watcher.notices)
    (stage,) = load(f"{swept.folder.storage.uri}/best.yaml")  # type: ignore[misc]
    whole = Newest()
    runs.start(stage.job, whole, "unharmed")
    assert whole.seen["train/loss"] == (100, swept.study.trials["killed-000"].value)
    _, children = home.record("killed")
    curve = MlflowClient(home.store).get_metric_history(children["killed-000"].info.run_id, "train/loss")
    assert [point.step for point in curve] == list(range(1, 101))


def test_a_population_copies_its_best_and_records_what_changed(home: Home) -> None:
    swept = home.sweep(
        "population",
        Recorded(),
        samples=2,
        scheduler={"type": "pbt", "interval": 0.5, "quantile": 0.5, "resample": 0.0},
        parameters={RATE: {"type": "log-uniform", "low": 0.05, "high": 5.0}},
    )
    assert swept.status == "finished"
    lines = [json.loads(line) for line in (home.folder / "runs/population/journal.jsonl").read_text().splitlines()]
    (generation,) = (line for line in lines if line["event"] == "generation")
    values = {line["trial"]: line["value"] for line in lines if line["event"] == "report" and line["step"] == 6}
    ((heir, donor),) = generation["donors"].items()
    assert generation["step"] == 6
    assert (values[heir], values[donor]) == (max(values.values()), min(values.values()))
    _, children = home.record("population")
    curve = MlflowClient(home.store).get_metric_history(children[heir].info.run_id, f"sweep/{RATE}")
    first, second = (point.value for point in curve)
    assert [point.step for point in curve] == [0, 6]
    assert first == float(children[heir].data.params[RATE])
    assert second == generation["values"][heir][RATE]
    assert second / swept.study.trials[donor].assigned[RATE] in (pytest.approx(0.8), pytest.approx(1.2))
