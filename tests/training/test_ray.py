"""Runs on Ray, through the command line as a user starts them: killed workers, killed drivers, Ctrl-C.

The reference is an uninterrupted run of the same job with the same number of workers; everything else must end with the
same bits, and leave one MLflow run with each step once.
"""

from __future__ import annotations

import os
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from heliostat.config.loading import dump, parse
from heliostat.training.run_folder import RunFolder

STEPS = 60
TIMEOUT_S = 240


@dataclass(frozen=True)
class Home:
    """A folder with a job file, its runs and its MLflow store."""

    folder: Path

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """``heliostat ...`` in this folder, in a session of its own as a terminal would give it."""
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
        environment.pop("RAY_ADDRESS", None)
        return subprocess.Popen(
            [sys.executable, "-m", "heliostat", *arguments],
            cwd=self.folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def run(self, *arguments: str) -> str:
        """As :meth:`start`, to its successful end; returns what it printed."""
        process = self.start(*arguments)
        output, _ = process.communicate(timeout=TIMEOUT_S)
        assert process.returncode == 0, output
        return output

    def open(self, name: str) -> RunFolder:
        return RunFolder(str(self.folder / "runs" / name))

    def wait_for_step(self, name: str, step: int, process: subprocess.Popen[str]) -> None:
        """Until the run has a checkpoint at or after a step."""
        deadline = time.monotonic() + TIMEOUT_S
        while not any(done >= step for done in self.open(name).checkpoints().steps()):
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < deadline
            time.sleep(0.02)


def weights(folder: RunFolder) -> dict[str, Any]:
    assert folder.checkpoints().steps()[-1] == folder.job().optimization.steps
    return folder.checkpoints().load(folder.checkpoints().steps()[-1])


def assert_same_bits(one: Any, other: Any, where: str = "") -> None:
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other), where
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            assert_same_bits(one[key], other[key], f"{where}.{key}")
    elif isinstance(one, list):
        assert len(one) == len(other), where
        for index, (a, b) in enumerate(zip(one, other, strict=True)):
            assert_same_bits(a, b, f"{where}.{index}")
    else:
        assert one == other, where


def assert_tracked_once(home: Home, name: str) -> None:
    from heliostat.tracking.client import connect

    client = connect(f"sqlite:///{home.folder / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("tests")
    runs = [r for r in client.search_runs([experiment.experiment_id]) if r.info.run_name == name]
    assert len(runs) == 1
    assert runs[0].info.status == "FINISHED"
    for metric in ("train/loss", "train/learning_rate"):
        steps = [point.step for point in client.get_metric_history(runs[0].info.run_id, metric)]
        assert sorted(steps) == list(range(1, STEPS + 1)), metric


def children(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """The Ray Train workers that a driver started; Ray gives them this title."""
    found = psutil.Process(process.pid).children(recursive=True)
    return [child for child in found if "RayTrainWorker" in " ".join(child.cmdline())]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, tiny_text: str) -> Home:
    folder = tmp_path_factory.mktemp("home")
    changes = [
        f"optimization.steps={STEPS}",
        "resources.runtime=ray",
        "resources.workers=2",
        "evaluation=[{type: knn, k: 5}]",
        "tracking.uri=sqlite:///mlflow.db",
    ]
    (folder / "job.yaml").write_text(dump(parse(tiny_text, "tiny.yaml", changes)))
    return Home(folder)


@pytest.fixture(scope="module")
def uninterrupted(home: Home) -> dict[str, Any]:
    output = home.run("run", "job.yaml", "--name", "whole")
    assert "finished" in output
    assert "knn_top1" in output
    assert_tracked_once(home, "whole")
    return weights(home.open("whole"))


def test_a_killed_worker_is_replaced_and_changes_nothing(home: Home, uninterrupted: dict[str, Any]) -> None:
    process = home.start("run", "job.yaml", "--name", "worker-killed")
    home.wait_for_step("worker-killed", 8, process)
    victim = children(process)[-1]
    victim.send_signal(signal.SIGKILL)
    output, _ = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 0, output
    assert "restarting from the last checkpoint" in output
    assert "continuing from the checkpoint of step" in output
    assert_same_bits(weights(home.open("worker-killed")), uninterrupted)
    assert_tracked_once(home, "worker-killed")


def test_a_killed_driver_is_resumed_and_changes_nothing(home: Home, uninterrupted: dict[str, Any]) -> None:
    process = home.start("run", "job.yaml", "--name", "driver-killed")
    home.wait_for_step("driver-killed", 8, process)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=TIMEOUT_S)
    assert home.open("driver-killed").checkpoints().steps()[-1] < STEPS, "the run ended before it was killed"
    home.run("resume", "runs/driver-killed")
    assert_same_bits(weights(home.open("driver-killed")), uninterrupted)
    assert_tracked_once(home, "driver-killed")


def test_ctrl_c_saves_says_how_to_resume_and_changes_nothing(home: Home, uninterrupted: dict[str, Any]) -> None:
    process = home.start("run", "job.yaml", "--name", "interrupted")
    home.wait_for_step("interrupted", 8, process)
    os.killpg(process.pid, signal.SIGINT)  # what a terminal does: everything in the foreground gets it
    output, _ = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 130, output
    assert "heliostat resume runs/interrupted" in output
    assert home.open("interrupted").about()["status"] == "interrupted"
    home.run("resume", "interrupted")
    assert_same_bits(weights(home.open("interrupted")), uninterrupted)
    assert_tracked_once(home, "interrupted")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "strategy"),
    [
        ("simclr-v2-memory", "ddp"),
        ("moco", "ddp"),
        ("moco-v3-vit", "ddp"),
        ("dino", "ddp"),
        ("dinov2", "ddp"),
        ("mae", "ddp"),
        ("ijepa", "ddp"),
        ("vjepa", "ddp"),
        ("moco-v3-vit", "fsdp"),
    ],
)
def test_a_killed_worker_changes_nothing_of_any_method(tmp_path: Path, method: str, strategy: str) -> None:
    """Queues, teachers and centres come back with the weights, each worker's own or what it holds of them: two workers,
    one of them killed by SIGKILL."""
    text = runpy.run_path(str(Path(__file__).with_name("methods.py")))["job_text"](method, "")
    changes = [
        "resources.runtime=ray",
        "resources.workers=2",
        f"resources.strategy={strategy}",
        "optimization.steps=40",
        "tracking.uri=sqlite:///mlflow.db",
    ]
    (tmp_path / "job.yaml").write_text(dump(parse(text, "tiny.yaml", changes)))
    home = Home(tmp_path)
    home.run("run", "job.yaml", "--name", "whole")
    process = home.start("run", "job.yaml", "--name", "killed")
    home.wait_for_step("killed", 8, process)
    children(process)[-1].send_signal(signal.SIGKILL)
    output, _ = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 0, output
    assert "continuing from the checkpoint of step" in output
    assert_same_bits(weights(home.open("killed")), weights(home.open("whole")))


def test_a_name_that_is_taken(home: Home, uninterrupted: Callable[..., object]) -> None:
    process = home.start("run", "job.yaml", "--name", "whole")
    output, _ = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 2, output
    assert "a run of this name exists" in output
    assert "heliostat resume" in output
