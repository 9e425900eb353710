"""Sweeps as a user starts them: killed drivers, Ctrl-C, trials that are several processes.

The reference is an uninterrupted sweep of the same job; everything else must end with the same trials and the same
bits.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow
TIMEOUT_S = 400
RATE = {"optimization.optimizer.learning_rate": {"type": "log-uniform", "low": 0.05, "high": 5.0}}
BLOCKS: dict[str, dict[str, Any]] = {
    "random": {"parameters": RATE, "metric": "train/loss", "mode": "min", "samples": 4},
    "population": {
        "parameters": RATE,
        "metric": "train/loss",
        "mode": "min",
        "samples": 4,
        "scheduler": {"type": "pbt", "interval": 0.25},
    },
}


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    """``heliostat ...`` in a folder, in a session of its own as a terminal would give it."""
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


def run(folder: Path, *arguments: str, code: int = 0) -> str:
    process = start(folder, *arguments)
    output, _ = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == code, output
    return output


def write(folder: Path, text: str, block: dict[str, Any]) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "job.yaml").write_text(f"{text.replace('steps: 12', 'steps: 80')}sweep: {json.dumps(block)}\n")


def events(folder: Path) -> list[dict[str, Any]]:
    file = folder / "runs/s/journal.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines(keepends=True) if line.endswith("\n")]


def ends(folder: Path) -> dict[str, tuple[str, float | None]]:
    return {e["trial"]: (e["status"], e["value"]) for e in events(folder) if e["event"] == "end"}


def begun_well(folder: Path, kind: str) -> bool:
    """Whether there is something to lose: a finished trial and one under way, or a generation and work after it."""
    if not (folder / "runs/s/journal.jsonl").exists():
        return False
    told = [event["event"] for event in events(folder)]
    if kind == "random":
        running = [path for path in folder.glob("runs/s-*/checkpoints") if path.parent.name not in ends(folder)]
        return "end" in told and any(list(path.iterdir()) for path in running)
    return "generation" in told and any(
        int(path.name.rpartition("-")[2]) > 20
        for path in folder.glob("runs/s-*/checkpoints/*")
        if path.name.rpartition("-")[2].isdigit()
    )


@pytest.fixture(scope="module", params=["random", "population"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def whole(kind: str, tmp_path_factory: pytest.TempPathFactory, tiny_text: str) -> Path:
    """The uninterrupted sweep."""
    folder = tmp_path_factory.mktemp(kind)
    write(folder, tiny_text, BLOCKS[kind])
    run(folder, "sweep", "job.yaml", "--name", "s")
    return folder


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_resumed_sweep_ends_as_an_uninterrupted_one(
    how: signal.Signals, kind: str, whole: Path, tmp_path: Path, tiny_text: str
) -> None:
    write(tmp_path, tiny_text, BLOCKS[kind])
    process = start(tmp_path, "sweep", "job.yaml", "--name", "s")
    deadline = time.monotonic() + TIMEOUT_S
    while not begun_well(tmp_path, kind):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(how)
    output, _ = process.communicate(timeout=TIMEOUT_S)
    before = ends(tmp_path)
    assert len(before) < 4
    if how == signal.SIGINT:
        assert process.returncode == 130, output
        assert "heliostat resume" in output
    run(tmp_path, "resume", "s")
    assert ends(tmp_path) == ends(whole)
    assert {name: ends(tmp_path)[name] for name in before} == before
    told = Counter((event["event"], event.get("trial"), event.get("number")) for event in events(tmp_path))
    assert all(told[key] == 1 for key in told if key[0] in ("end", "configuration"))
    changes = [[event for event in events(folder) if event["event"] == "generation"] for folder in (tmp_path, whole)]
    assert changes[0] == changes[1]
    assert len(changes[0]) == (3 if kind == "population" else 0)
    bests = [(folder / "runs/s/best.yaml").read_text() for folder in (tmp_path, whole)]
    assert bests[0].splitlines()[1] == bests[1].splitlines()[1]
    assert "nothing to continue" in run(tmp_path, "resume", "s", code=2)


def test_trials_of_several_workers(tmp_path: Path, tiny_text: str) -> None:
    write(tmp_path, tiny_text, {**BLOCKS["random"], "samples": 1})
    changes = ["resources.runtime=ray", "resources.workers=2", "optimization.steps=12"]
    run(tmp_path, "sweep", "job.yaml", *changes, "--name", "s")
    assert ends(tmp_path)["s-000"][0] == "finished"


AGENT = """
name: agent
algorithm: {type: dqn, network: {type: mlp, hidden_units: [16]}, reward_clip: null}
environment: {type: gymnasium, id: CartPole-v1}
rollout: {environments: 4, calls: 8}
replay: {capacity: 2000, minimum: 100, samples_per_insert: 4}
optimization: {optimizer: {type: adam, learning_rate: 1.0e-3, per: null}, batch_size: 16, steps: 800}
evaluation: {every_steps: 200, episodes: 4, environments: 2}
checkpoint: {every_steps: 200}
tracking: {experiment: tests, every_steps: 100}
sweep:
  parameters: {optimization.optimizer.learning_rate: {type: log-uniform, low: 1.0e-4, high: 1.0e-2}}
  metric: eval/return
  mode: max
  samples: 2
"""


@pytest.mark.parametrize(
    "resources", ["{overlap: false}", "{overlap: true, cpus_per_actor: 0.5, cpus_per_learner: 0.5}"]
)
def test_trials_of_agents_in_one_process_and_as_crews(resources: str, tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text(AGENT)
    run(tmp_path, "sweep", "job.yaml", f"resources={resources}", "--name", "s")
    assert [status for status, _ in ends(tmp_path).values()] == ["finished", "finished"]


def test_a_population_of_agents(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text(AGENT)
    changes = ["resources={overlap: false}", "sweep.scheduler={type: pbt, interval: 0.25}", "sweep.samples=2"]
    run(tmp_path, "sweep", "job.yaml", *changes, "--name", "s")
    assert [status for status, _ in ends(tmp_path).values()] == ["finished", "finished"]
    assert sum(event["event"] == "generation" for event in events(tmp_path)) == 3
