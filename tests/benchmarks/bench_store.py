"""How long a person waits for ``heliostat runs`` and ``heliostat compare`` in a store of 10,000 runs.

The store's tables are made by MLflow's own migrations; its rows are written straight into SQLite, since MLflow's client
would take hours. Each run has 60 parameters, 20 metrics and 5 tags; of the 50 runs that are compared each metric has
200 points, of the others 5. Whole commands are timed, as a user sees them: interpreter, imports, answer.
"""

from __future__ import annotations

import random
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from heliostat.tracking.client import prepare_store

RUNS, COMPARED = 10_000, 50
PARAMETERS, METRICS = 60, 20
RUNS_LIMIT_S, COMPARE_LIMIT_S = 2.0, 10.0


def rows(quick: bool = False) -> list[dict[str, Any]]:
    """Seconds of each command against its limit, and against a bare import of MLflow in turn."""
    with tempfile.TemporaryDirectory() as folder:
        store = f"sqlite:///{folder}/mlflow.db"
        make_store(store, Path(folder) / "mlflow.db", RUNS)
        questions: list[tuple[str, list[str], float]] = [
            ("runs", ["runs"], RUNS_LIMIT_S),
            ("runs --sort by a metric", ["runs", "--sort", "eval/top1"], RUNS_LIMIT_S),
            (
                "runs --where, two conditions",
                ["runs", "--where", "group.p3=7", "--where", "eval/top1>0.9"],
                RUNS_LIMIT_S,
            ),
            (
                f"compare of {COMPARED}",
                ["compare", "--where", "compared=yes", "--html", f"{folder}/c.html", "--png", f"{folder}/c.png"],
                COMPARE_LIMIT_S,
            ),
        ]
        found = []
        for name, arguments, limit in questions:
            ours, imports = [], []
            for _ in range(1 if quick else 3):
                ours.append(_seconds(["-m", "heliostat", *arguments, "--uri", store]))
                imports.append(_seconds(["-c", "import mlflow"]))
            title = f"{name}, {RUNS:,} runs in the store"
            found.append(_row(f"{title}, over its limit", statistics.median(ours), limit))
            found.append(_row(f"{title}, over importing mlflow", statistics.median(ours), statistics.median(imports)))
    return found


def make_store(uri: str, path: Path, count: int) -> None:
    """Fill a new store with ``count`` runs, the first ``COMPARED`` of which are tagged and have long curves."""
    experiment = int(prepare_store(uri, "bench"))
    dice = random.Random(0)
    names = ["train/loss", "eval/top1", *(f"eval/m{index}" for index in range(METRICS - 2))]
    runs, parameters, tags, latest, points = [], [], [], [], []
    for number in range(count):
        run_id, start = f"{number:032x}", 1_700_000_000_000 + 60_000 * number
        end = start + 50_000
        runs.append(
            (run_id, f"job-{number:06x}", "FINISHED", start, end, "active", f"file:///none/{run_id}", experiment)
        )
        values = {"seed": str(number % 5), **{f"group.p{i}": str(dice.randrange(20)) for i in range(PARAMETERS - 1)}}
        if number < COMPARED:
            values |= {f"group.p{i}": "0" for i in range(2, PARAMETERS - 1)}
            values |= {"group.p0": str(number // 5), "group.p1": "0"}
        parameters += [(key, value, run_id) for key, value in values.items()]
        tags += [(f"tag{i}", "x", run_id) for i in range(4)]
        tags.append(("compared", "yes" if number < COMPARED else "no", run_id))
        for name in names:
            value = dice.random()
            steps = range(0, 1000, 5 if number < COMPARED else 200)
            points += [(name, value * (1 + step / 1000), start + step, run_id, step, 0) for step in steps]
            latest.append((name, points[-1][1], points[-1][2], points[-1][4], 0, run_id))
    with sqlite3.connect(path) as database:
        database.execute("PRAGMA synchronous = OFF")
        for table, columns, lines in (
            (
                "runs",
                "run_uuid, name, status, start_time, end_time, lifecycle_stage, artifact_uri, experiment_id",
                runs,
            ),
            ("params", "key, value, run_uuid", parameters),
            ("tags", "key, value, run_uuid", tags),
            ("latest_metrics", "key, value, timestamp, step, is_nan, run_uuid", latest),
            ("metrics", "key, value, timestamp, run_uuid, step, is_nan", points),
        ):
            marks = ", ".join("?" * (columns.count(",") + 1))
            database.executemany(f"INSERT INTO {table} ({columns}) VALUES ({marks})", lines)
    database.close()


def _row(name: str, ours: float, other: float) -> dict[str, Any]:
    return {"name": name, "ours": ours, "other": other, "ratio": ours / other, "unit": "s", "higher_is_better": False}


def _seconds(command: list[str]) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, *command], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start
