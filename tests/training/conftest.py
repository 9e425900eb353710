"""Jobs small enough to train in a second or two."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from heliostat.config.job import Job
from heliostat.config.loading import parse


@pytest.fixture
def tiny(tmp_path: Path, tiny_text: str) -> Callable[..., Job]:
    """Makes the tiny job, with changes, that writes below the test's own folder."""

    def make(*overrides: str) -> Job:
        places = [f"output={tmp_path / 'runs'}", f"tracking.uri=sqlite:///{tmp_path / 'mlflow.db'}"]
        return parse(tiny_text, "tiny.yaml", [*places, *overrides])

    return make
