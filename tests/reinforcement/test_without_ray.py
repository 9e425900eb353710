"""One process needs no Ray."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

WITHOUT_RAY = """
import sys

sys.modules["ray"] = None  # as where it is not installed: to import it raises
sys.argv = ["heliostat", "run", "job.yaml", "--local", "--name", "one", "optimization.steps=120",
            "tracking.uri=sqlite:///mlflow.db"]
from heliostat.cli.app import main

try:
    main()
except SystemExit as end:
    assert not end.code, end.code
found = [name for name in sys.modules if name.split(".")[0] == "ray" and sys.modules[name] is not None]
assert not found, found
"""


def test_a_run_in_one_process_imports_no_ray(tmp_path: Path, small_text: str) -> None:
    (tmp_path / "job.yaml").write_text(small_text)
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_RAY], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "finished one" in done.stdout
    assert (tmp_path / "runs/one/results.json").exists()
