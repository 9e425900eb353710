"""This machine: versions, devices, memory, disks and ports."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from heliostat.diagnosis.finding import GIB, Finding, Level

if TYPE_CHECKING:
    from packaging.specifiers import SpecifierSet

_DISK_WARNING, _DISK_PROBLEM = 10 * GIB, 1 * GIB
_MEMORY_WARNING = 2 * GIB
_SHARED_WARNING = 2 * GIB
_INSTALL = "Install heliostat again, as its README says."


def versions() -> Iterator[Finding]:
    """Python, and each package that heliostat asks for against what it asks for."""
    import platform
    import sys
    from importlib.metadata import PackageNotFoundError, version

    right = (3, 11) <= sys.version_info[:2] < (3, 14)
    advice = "" if right else "heliostat runs on Python 3.11, 3.12 and 3.13."
    yield Finding("python", "ok" if right else "problem", platform.python_version(), advice)
    wanted = _wanted()
    found = version("heliostat") if wanted else "from its source folder, not installed"
    yield Finding("heliostat", "ok", found)
    for package in dict.fromkeys(("torch", "ray", "mlflow", *wanted)):
        asked = wanted.get(package)
        try:
            installed = version(package)
        except PackageNotFoundError:
            yield Finding(package, "problem", "not installed", _INSTALL)
            continue
        if asked is not None and not asked.contains(installed, prereleases=True):
            yield Finding(package, "problem", f"{installed}, but heliostat needs {package}{asked}", _INSTALL)
        elif package in _NAMED:
            yield Finding(package, "ok", installed)


_NAMED = ("torch", "ray", "mlflow")
"""Their versions are told even where they are right: errors depend on them."""


def _wanted() -> dict[str, SpecifierSet]:
    """heliostat's dependencies without extras; empty where it runs from its source folder."""
    from importlib.metadata import PackageNotFoundError, requires

    from packaging.requirements import Requirement

    try:
        asked = [Requirement(text) for text in requires("heliostat") or ()]
    except PackageNotFoundError:
        return {}
    return {each.name: each.specifier for each in asked if each.marker is None or each.marker.evaluate({"extra": ""})}


def devices() -> Iterator[Finding]:
    """CPUs of this process, and accelerators that torch can use."""
    import os

    affinity = getattr(os, "sched_getaffinity", None)  # Linux: the CPUs of this process, not of the machine
    yield Finding("cpus", "ok", str(len(affinity(0)) if affinity else os.cpu_count()))
    try:
        import torch
    except (ImportError, OSError) as error:
        yield Finding("devices", "problem", f"torch cannot be imported: {error}", "Install torch again.")
        return
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            yield Finding(f"cuda:{index}", "ok", f"{properties.name}, {properties.total_memory / GIB:.0f} GiB")
    elif torch.version.cuda and os.path.exists("/proc/driver/nvidia"):  # noqa: PTH110 - pathlib is not imported otherwise
        yield Finding(
            "cuda",
            "warning",
            "a driver, but no device that torch can use",
            "Compare nvidia-smi with torch.version.cuda.",
        )
    elif torch.backends.mps.is_available():
        yield Finding("mps", "ok", "Apple GPU")
    else:
        yield Finding("gpu", "ok", "none: runs use the CPU")


def memory() -> Iterator[Finding]:
    """What is free of the machine's."""
    import psutil

    memory = psutil.virtual_memory()
    low = memory.available < _MEMORY_WARNING
    yield Finding(
        "memory",
        "warning" if low else "ok",
        f"{memory.available / GIB:.1f} of {memory.total / GIB:.1f} GiB free",
        "Close other programs, or use fewer workers." if low else "",
    )


def disks() -> Iterator[Finding]:
    """Where runs, Ray's spilled objects and its shared memory go."""
    import os
    import shutil
    import tempfile
    from pathlib import Path

    yield _disk("disk here", Path.cwd(), "Checkpoints and metrics go here; make room.")
    temporary = Path(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir())
    yield _disk(f"disk of Ray ({temporary})", temporary, "Ray spills here; make room, or set RAY_TMPDIR.")
    shared = Path("/dev/shm")
    if shared.is_dir():
        size = shutil.disk_usage(shared).total
        small = size < _SHARED_WARNING
        advice = "Ray falls back to the disk, which is slow. In a container: --shm-size=8g or more." if small else ""
        yield Finding("/dev/shm", "warning" if small else "ok", f"{size / GIB:.1f} GiB", advice)


def _disk(name: str, folder: object, advice: str) -> Finding:
    import os
    import shutil

    path = str(folder)
    if not os.access(path, os.W_OK):
        return Finding(name, "problem", f"{path} cannot be written", "Choose a folder that belongs to you.")
    free = shutil.disk_usage(path).free
    level: Level = "ok"
    if free < _DISK_WARNING:
        level = "problem" if free < _DISK_PROBLEM else "warning"
    return Finding(name, level, f"{free / GIB:.1f} GiB free", "" if level == "ok" else advice)


def ports() -> Iterator[Finding]:
    """Those of MLflow and of Ray's dashboard."""
    for port, taken, advice in (
        (5000, "in use", "If it is not MLflow, use `heliostat ui --port 5001`."),
        (8265, "in use: a Ray dashboard, or another program", ""),
    ):
        used = listens("127.0.0.1", port)
        level: Level = "warning" if used and advice else "ok"
        yield Finding(f"port {port}", level, taken if used else "free", advice if used else "")


def listens(host: str, port: int) -> bool:
    """Whether somebody does, within two seconds."""
    import socket

    try:
        with socket.create_connection((host, port), timeout=2):
            return True
    except OSError:
        return False
