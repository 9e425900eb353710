"""A whole run in one process: what it leaves in its folder and in MLflow, with and without a tracking server."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from heliostat.config.job import Job
from heliostat.config.loading import parse
from heliostat.errors import InputError
from heliostat.tracking.client import connect
from heliostat.training import launch
from heliostat.training.monitor import Snapshot
from heliostat.training.run_folder import RunFolder

MakeJob = Callable[..., Job]


class Nobody:
    """Watches without a word."""

    def __init__(self) -> None:
        self.snapshots: list[Snapshot] = []

    def show(self, snapshot: Snapshot) -> None:
        self.snapshots.append(snapshot)


def test_what_a_run_leaves_behind(tiny: MakeJob, tmp_path: Path) -> None:
    job = tiny("evaluation=[{type: few-label, labels_per_class: [1], trials: 3}]")
    watcher = Nobody()
    finished = launch.start(job, watcher, "whole")
    folder = finished.folder
    assert folder.name == "whole"
    assert finished.outcome.status == "finished"
    assert (finished.tracking.pending, finished.tracking.failures, finished.tracking.refused) == (0, 0, 0)
    assert watcher.snapshots[-1].outcome == finished.outcome
    assert watcher.snapshots[-1].progress is not None

    root = tmp_path / "runs/whole"
    assert parse((root / "job.yaml").read_text(), "job.yaml") == launch.resolved(job)
    environment = json.loads((root / "environment.json").read_text())
    assert environment["packages"]["torch"].startswith("2.")
    assert environment["cpus"] >= 1
    assert json.loads((root / "results.json").read_text()) == finished.outcome.results
    assert (root / "figures/results.png").read_bytes().startswith(b"\x89PNG")
    assert folder.about()["status"] == "finished"
    assert folder.checkpoints().steps() == [8, 12]

    client = connect(job.tracking.uri or "")
    run = client.get_run(folder.about()["tracking_run_id"])
    assert run.info.run_name == "whole"
    assert run.info.status == "FINISHED"
    assert run.data.params["algorithm.backbone.width"] == "4"
    assert run.data.params["optimization.optimizer.type"] == "lars"
    assert run.data.tags["heliostat.algorithm"] == "simclr"
    assert run.data.tags["mlflow.user"]
    points = client.get_metric_history(run.info.run_id, "train/loss")
    assert [point.step for point in points] == list(range(1, 13))
    assert run.data.metrics["eval/few_label_1_top1"] == finished.outcome.results["eval/few_label_1_top1"]
    assert run.data.metrics["baseline/pixels/few_label_1_top1"] > 0.3
    assert {dataset.dataset.name for dataset in run.inputs.dataset_inputs} == {"digits/train", "digits/test"}
    assert {file.path for file in client.list_artifacts(run.info.run_id)} >= {"job.yaml", "environment.json", "figures"}
    assert [f.path for f in client.list_artifacts(run.info.run_id, "figures")] == ["figures/results.png"]
    model = client.get_logged_model(run.outputs.model_outputs[0].model_id)
    assert model.tags["heliostat.checkpoint"] == folder.checkpoints().uri(12)

    with pytest.raises(InputError, match="a run of this name exists"):
        launch.start(job, Nobody(), "whole")


def test_a_tracking_server_that_is_away_costs_no_training(
    tiny: MakeJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("heliostat.training.conduct._FLUSH_SECONDS", 2.0)
    job = tiny("tracking.uri=http://127.0.0.1:1")
    finished = launch.start(job, Nobody(), "away")
    assert finished.outcome.status == "finished"
    assert finished.tracking.pending > 12
    assert finished.tracking.last_error
    kept = (tmp_path / "runs/away/tracking.jsonl").read_text()
    assert kept.count('"train/loss"') == 12


def test_too_many_workers_for_this_machine_leave_nothing(tiny: MakeJob, monkeypatch: pytest.MonkeyPatch) -> None:
    def small(job: Job) -> None:
        raise InputError("64 workers need 64 CPUs")

    monkeypatch.setattr("heliostat.training.ray_runtime.connect", small)
    job = tiny("resources={runtime: ray, workers: 64}")
    with pytest.raises(InputError, match="64 CPUs"):
        launch.start(job, Nobody(), "large")
    assert not RunFolder(f"{job.output}/large").storage.exists()


@pytest.mark.parametrize(
    "override",
    [
        "tracking.uri=http://me:secret@mlflow.example:5000",
        "output=s3://key:secret@bucket/runs",
        "data.train={source: parquet, path: 's3://key:secret@bucket/train.parquet'}",
    ],
)
def test_passwords_do_not_belong_into_a_job(tiny: MakeJob, monkeypatch: pytest.MonkeyPatch, override: str) -> None:
    monkeypatch.setattr("heliostat.data.sources.ParquetImages.check", lambda self: [])  # no network here
    found = launch.check(tiny(override))
    assert [problem.where for problem in found if "password" in problem.what] == [
        override.split("=")[0] + (".path" if "parquet" in override else "")
    ]
    assert "secret" not in str(found)


def test_a_password_in_the_environment_is_not_written_down(tiny: MakeJob, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@127.0.0.1:1")
    job = tiny("tracking.uri=null")
    assert launch.check(job) == []
    assert "secret" not in str(launch.resolved(job).resolved())
