"""What the terminal says is what was said: text that looks like Rich's markup is neither dropped nor an error."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from heliostat.cli import submit
from heliostat.clusters.cluster_file import Site
from heliostat.clusters.jobs import Submission
from heliostat.clusters.submission import plan
from heliostat.training.monitor import Outcome

ROOT = Path(__file__).parents[2]
PLACES = ["output=/shared/runs", "tracking.uri=http://127.0.0.1:5000"]
SAID = "Gloo failed with [/third_party/gloo/pair.cc:152] at data.games=[pong]"


def submitted(console: Console) -> None:
    job = plan(ROOT / "jobs/representation/simclr-digits.yaml", PLACES, Site(), run="one")
    ended = Submission("one.1", "FAILED", "one", 1, "heliostat run", SAID, 1, 0, 1)
    submit._leave(console, ended, job, "one.1", json=False)


def swept(console: Console) -> None:
    from heliostat.cli.sweep import SweepDisplay

    display = SweepDisplay.__new__(SweepDisplay)
    display.console, display._notices, display._live, display._told, display._line = console, 0, None, {}, 1e12
    display.show(type("NoStudy", (), {"trials": {}})(), [SAID])  # type: ignore[arg-type]


def ran(console: Console) -> None:
    from heliostat.cli.display import Display

    display: Any = Display.__new__(Display)
    display.console, display._quiet, display._began = console, False, 0.0
    about = {"name": "one", "storage": type("Storage", (), {"uri": SAID})()}
    ended = {
        "outcome": Outcome("interrupted", 1, SAID, {}),
        "folder": type("Folder", (), about)(),
        "tracking_uri": "sqlite:///runs.db",
        "tracking": type("Tracking", (), {"pending": 0})(),
    }
    display.finished(type("Finished", (), ended)())


@pytest.mark.parametrize("show", [submitted, swept, ran])
def test_brackets_are_shown(show: Callable[[Console], None]) -> None:
    console = Console(record=True, width=400, color_system=None)
    with suppress(SystemExit):  # a failed job's is how the command ends
        show(console)
    assert SAID in console.export_text()
