"""What a number was computed with: versions, hardware, the state of the code."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil
import torch

from heliostat.clusters import submitted

_PACKAGES = ("heliostat", "torch", "numpy", "ray", "mlflow", "pyarrow", "pillow", "scikit-learn")


def describe() -> dict[str, Any]:
    """Plain data about this process, its machine, and the git checkout of the current directory; in a submitted job, of
    the folder from which the code was shipped."""
    return {
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "platform": platform.platform(),
        "processor": _processor(),
        "cpus": os.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "cuda": torch.version.cuda,
        "git": submitted.git() or checkout(Path.cwd()),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        return platform.processor()
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor()
    )


def checkout(folder: Path) -> dict[str, Any] | None:
    """Commit and number of files that differ from it; None outside a checkout or without git."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(folder), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout

    try:
        return {
            "commit": git("rev-parse", "HEAD").strip(),
            "changed_files": len(git("status", "--porcelain").splitlines()),
        }
    except (OSError, subprocess.SubprocessError):
        return None
