"""What submitting costs: bytes shipped, and seconds until the first step, over a run started by hand.

A head and one worker node on this machine, and the same job with one worker three ways in turn: submitted, started as a
driver that joins the same nodes, and started alone, where it makes a Ray of its own. The clock stops when the person
sees the first step.
"""

from __future__ import annotations

import re
import runpy
import statistics
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).parents[1] / "clusters"
LIMIT_MB = 2.0
CHANGES = ("resources.workers=1", "optimization.steps=4")


def rows(quick: bool = False) -> list[dict[str, Any]]:
    """Megabytes over their limit, and seconds from the command to the first step over both other ways."""
    parts = runpy.run_path(str(HERE / "conftest.py"))
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        (folder / "simclr.yaml").write_text(parts["SIMCLR"])
        nodes = parts["Nodes"](folder)
        try:
            nodes.start_head()
            nodes.add_worker()
            submitted, joined, alone, shipped = [], [], [], 0.0
            for number in range(1 if quick else 5):
                seconds, said = _seconds(nodes, "submit", f"submitted-{number}")
                found = re.search(r"shipped\s+([0-9.]+) MB", said)
                assert found is not None
                shipped = float(found[1])
                submitted.append(seconds)
                address = f"127.0.0.1:{nodes.port}"
                joined.append(_seconds(nodes, "run", f"joined-{number}", RAY_ADDRESS=address)[0])
                alone.append(_seconds(nodes, "run", f"alone-{number}")[0])
        finally:
            nodes.close()
    middle = statistics.median(submitted)
    return [
        _row("bytes shipped by submit over their limit of 2 MB", shipped, LIMIT_MB, "MB"),
        _row("submit to the first step, over a run that joins the same nodes", middle, statistics.median(joined), "s"),
        _row("submit to the first step, over a run that starts Ray itself", middle, statistics.median(alone), "s"),
    ]


def _seconds(nodes: Any, verb: str, name: str, **variables: str) -> tuple[float, str]:
    """From the command to the first step that is shown, and what was said until its end."""
    started = time.perf_counter()
    process: subprocess.Popen[str] = nodes.heliostat(
        verb, "simclr.yaml", *nodes.places, *CHANGES, "--name", name, **variables
    )
    assert process.stdout is not None
    said, seconds = "", 0.0
    for line in process.stdout:
        said += line
        if not seconds and re.search(r"training: step \d+/", line):
            seconds = time.perf_counter() - started
    assert process.wait() == 0, said
    assert seconds, said
    return seconds, said


def _row(name: str, ours: float, other: float, unit: str) -> dict[str, Any]:
    return {"name": name, "ours": ours, "other": other, "ratio": ours / other, "unit": unit, "higher_is_better": False}
