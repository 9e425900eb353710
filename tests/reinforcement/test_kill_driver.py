"""A run through the command line whose process is killed, and gone on with."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from heliostat.config.loading import parse_any
from heliostat.tracking.client import connect
from heliostat.training.run_folder import RunFolder

TIMEOUT_S = 240


def heliostat(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    environment.pop("RAY_ADDRESS", None)
    return subprocess.Popen(
        [sys.executable, "-m", "heliostat", *arguments],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def checkpoints(folder: Path) -> list[int]:
    return RunFolder(str(folder / "runs/one")).checkpoints().steps()


def killed_after_a_checkpoint(folder: Path, *arguments: str) -> list[int]:
    """Start, kill with the first checkpoint; the checkpoints that are there then."""
    process = heliostat(folder, "run", "job.yaml", *arguments, "--name", "one")
    deadline = time.monotonic() + TIMEOUT_S
    while not checkpoints(folder):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=TIMEOUT_S)
    return checkpoints(folder)


def history(folder: Path, metric: str) -> list[tuple[int, float]]:
    client = connect(f"sqlite:///{folder / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("tests")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    return [(point.step, point.value) for point in client.get_metric_history(run.info.run_id, metric)]


def resumed(folder: Path, small_text: str, *changes: str, arguments: tuple[str, ...] = ()) -> Any:
    (folder / "job.yaml").write_text(small_text)
    before = killed_after_a_checkpoint(folder, *changes, *arguments)
    process = heliostat(folder, "resume", "one")
    output, _ = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 0, output
    return before, output


@pytest.mark.parametrize("replay", ["true", pytest.param("false", marks=pytest.mark.slow)])
def test_a_killed_run_is_gone_on_with(tmp_path: Path, small_text: str, replay: str) -> None:
    changes = (
        "optimization.steps=6000",
        "checkpoint.every_steps=1000",
        "evaluation={every_steps: 1500, episodes: 2, max_steps: 30}",
        "tracking.uri=sqlite:///mlflow.db",
        f"checkpoint.replay={replay}",
    )
    before, output = resumed(tmp_path, small_text, *changes, arguments=("--local",))
    assert before[-1] < 6000, "the run ended before it was killed"
    job = parse_any(small_text, "job.yaml")
    folder = RunFolder(str(tmp_path / "runs/one"))
    played = checkpoints(tmp_path)[-1]
    assert 6000 <= played < 6000 + 4 * 8
    about = folder.about()
    assert (about["status"], about["step"]) == ("finished", played)
    state = folder.checkpoints().load(played)
    updates = {int(each["step"]) for each in state["learner"]["optimizer"]["state"].values()}
    assert updates == {state["updates"]}
    # Each step once: the ratio of updates to steps is what the job says, whatever was killed.
    learned = played - job.replay.minimum  # type: ignore[union-attr]
    if replay == "true":
        assert state["updates"] == 4 * learned // 16
    else:
        assert state["updates"] == 4 * (before[-1] - 64) // 16 + 4 * (played - before[-1] - 64) // 16
        assert "the replay memory begins empty" in output
    for metric in ("train/updates", "rollout/return", "eval/return", "train/loss", "rollout/frames"):
        points = history(tmp_path, metric)
        steps = [step for step, _ in points]
        assert steps == sorted(set(steps)), metric
        assert steps[-1] <= played
    assert history(tmp_path, "rollout/frames")[-1] == (played, played)
    assert history(tmp_path, "train/updates")[-1] == (played, state["updates"])
    counts = [value for _, value in history(tmp_path, "train/updates")]
    assert counts == sorted(counts)
    assert {step // 1500 for step, _ in history(tmp_path, "eval/return")} == {1, 2, 3, 4}
    results = folder.storage.read_json("results.json")  # as any run leaves them
    assert {"eval/return", "baseline/random/return"} <= set(results)


@pytest.mark.slow
def test_a_killed_driver_over_ray(tmp_path: Path, small_text: str) -> None:
    changes = (
        "optimization.steps=6000",
        "checkpoint.every_steps=500",
        "resources={runtime: ray, actors: 2, shards: 2, cpus_per_actor: 0.5, cpus_per_learner: 0.5}",
        "algorithm.prioritization={exponent: 0.6}",
        "tracking.uri=sqlite:///mlflow.db",
    )
    before, _ = resumed(tmp_path, small_text, *changes)
    assert before[-1] < 6000, "the run ended before it was killed"
    played = checkpoints(tmp_path)[-1]
    state = RunFolder(str(tmp_path / "runs/one")).checkpoints().load(played)
    updates = {int(each["step"]) for each in state["learner"]["optimizer"]["state"].values()}
    assert updates == {state["updates"]}
    assert 4 * (played - 64) // 16 <= state["updates"] <= 4 * (played - 64) // 16 + 10 + 1
    assert history(tmp_path, "train/updates")[-1] == (played, state["updates"])
    steps = [step for step, _ in history(tmp_path, "train/updates")]
    assert steps == sorted(set(steps))
