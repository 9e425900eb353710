"""How long a person waits: for ``heliostat --help``, and from the command to the first training step."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

LIMIT_S = 0.5
"""What ``--help`` may take."""
JOB = Path(__file__).parents[2] / "jobs/representation/simclr-digits.yaml"
SMALL = [
    "optimization.epochs=null",
    "optimization.steps=1",
    "optimization.schedule.warmup_epochs=0",
    "evaluation=[]",
    "resources.workers=1",
]


def rows(quick: bool = False) -> list[dict[str, Any]]:
    """Seconds for ``--help`` against its limit and a bare interpreter, and to the first step without and with Ray."""
    rounds = 3 if quick else 9
    helps, bare = [], []
    for _ in range(rounds):
        helps.append(_seconds([sys.executable, "-m", "heliostat", "--help"]))
        bare.append(_seconds([sys.executable, "-c", "pass"]))
    found = [
        _row("heliostat --help over its limit of 0.5 s", statistics.median(helps), LIMIT_S),
        _row("heliostat --help over a bare interpreter", statistics.median(helps), statistics.median(bare)),
    ]
    local, ray, imports = [], [], []
    for _ in range(1 if quick else 3):
        imports.append(_seconds([sys.executable, "-c", "import torch, mlflow"]))
        local.append(_one_step("local"))
        ray.append(_one_step("ray"))
    found.append(
        _row(
            "one step in-process, start to end, over importing torch and mlflow",
            statistics.median(local),
            statistics.median(imports),
        )
    )
    found.append(_row("one step in one Ray worker over in-process", statistics.median(ray), statistics.median(local)))
    return found


def _row(name: str, ours: float, other: float) -> dict[str, Any]:
    return {"name": name, "ours": ours, "other": other, "ratio": ours / other, "unit": "s", "higher_is_better": False}


def _seconds(command: list[str]) -> float:
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def _one_step(runtime: str) -> float:
    with tempfile.TemporaryDirectory() as folder:
        store = f"tracking.uri=sqlite:///{folder}/mlflow.db"
        changes = [*SMALL, f"resources.runtime={runtime}", f"output={folder}/runs", store]
        start = time.perf_counter()
        command = [sys.executable, "-m", "heliostat", "run", str(JOB), *changes, "--json"]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        seconds = time.perf_counter() - start
        assert json.loads(done.stdout)["status"] == "finished"
    return seconds
