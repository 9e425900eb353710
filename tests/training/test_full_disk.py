"""A disk that is really full for a while: a file system of a few megabytes, in a mount namespace of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from heliostat.tracking.client import connect
from heliostat.training.run_folder import RunFolder

pytestmark = pytest.mark.slow

STEPS = 200
JOB = f"""
name: tiny
seed: 3
algorithm:
  type: simclr
  backbone: {{type: resnet18, stem: cifar, width: 4}}
  projection_dim: 8
  temperature: 0.5
data:
  train: {{source: digits, split: train}}
optimization:
  optimizer: {{type: lars, learning_rate: 2.0, per: 256, weight_decay: 1.0e-4}}
  schedule: {{type: cosine, warmup_epochs: 0.1}}
  batch_size: 32
  steps: {STEPS}
evaluation: []
checkpoint: {{every_steps: 5, keep: 2}}
tracking: {{experiment: tests, every_steps: 1, system_metrics: false}}
"""
FILLED = r"""
mount -t tmpfs -o size=16m none small
"$0" -m heliostat run job.yaml --local output="$PWD/small" --name filled \
    tracking.uri="sqlite:///$PWD/mlflow.db" > log 2>&1 &
run=$!
until ls small/filled/checkpoints/*/* > checkpoints 2> /dev/null || ! kill -0 $run; do sleep 0.05; done
dd if=/dev/zero of=small/ballast bs=4k 2> /dev/null
until grep -q "No space left" log || ! kill -0 $run; do sleep 0.05; done
rm small/ballast
wait $run
code=$?
cp -r small/filled runs/
exit $code
"""
"""The disk is filled once there is a checkpoint, and emptied once the run has noticed."""


def test_a_disk_that_is_full_for_a_while_changes_nothing(tmp_path: Path) -> None:
    alone = ["unshare", "--user", "--map-root-user", "--mount"]
    if not shutil.which("unshare") or subprocess.run([*alone, "true"], check=False, capture_output=True).returncode:
        pytest.skip("this machine allows no mount namespaces")
    (tmp_path / "job.yaml").write_text(JOB)
    for folder in ("small", "runs"):
        (tmp_path / folder).mkdir()
    variables = {**os.environ, "COLUMNS": "500"}
    subprocess.run([*alone, "sh", "-c", FILLED, sys.executable], cwd=tmp_path, env=variables, check=False)
    log = (tmp_path / "log").read_text()
    assert "No space left on device" in log
    assert "training goes on from memory and saves again at the next checkpoint" in log
    whole = ["run", "job.yaml", "--local", "--name", "whole", "tracking.uri=sqlite:///mlflow.db"]
    subprocess.run([sys.executable, "-m", "heliostat", *whole], cwd=tmp_path, check=True, capture_output=True)

    filled, undisturbed = (RunFolder(str(tmp_path / "runs" / name)) for name in ("filled", "whole"))
    assert filled.about()["status"] == undisturbed.about()["status"] == "finished", log
    one, other = (folder.checkpoints().load(STEPS)["algorithm"] for folder in (filled, undisturbed))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)
    assert curve(tmp_path, "filled", "train/loss") == curve(tmp_path, "whole", "train/loss")
    assert [step for step, _ in curve(tmp_path, "whole", "train/loss")] == list(range(1, STEPS + 1))
    assert curve(tmp_path, "filled", "checkpoint/failed_saves")


def curve(folder: Path, name: str, metric: str) -> list[tuple[int, Any]]:
    client = connect(f"sqlite:///{folder / 'mlflow.db'}")
    found = client.search_runs([client.get_experiment_by_name("tests").experiment_id])
    (run,) = [run for run in found if run.info.run_name == name]
    return sorted((point.step, point.value) for point in client.get_metric_history(run.info.run_id, metric))
