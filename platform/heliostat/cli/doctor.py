"""``heliostat doctor``: whether this machine can run experiments, and what to do where it cannot."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Annotated, Literal

import typer

_GIB = 1024**3
_DISK_WARNING, _DISK_PROBLEM = 10 * _GIB, 1 * _GIB
_MEMORY_WARNING = 2 * _GIB
_SHARED_WARNING = 2 * _GIB


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    name: str
    level: Literal["ok", "warning", "problem"]
    found: str
    advice: str = ""
    """What to do about it; empty where nothing needs doing."""


def doctor(
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    uri: Annotated[
        str | None, typer.Option("--uri", help="Tracking store. [default: $MLFLOW_TRACKING_URI, else ./mlflow.db]")
    ] = None,
) -> None:
    """Look at versions, devices, memory, disks and the tracking store; exit code 1 if something would stop a run."""
    findings = [*_versions(), *_devices(), *_memory(), *_disks(), _store(uri), *_ports(), _ray()]
    if json:
        import json as json_module

        print(json_module.dumps([asdict(finding) for finding in findings], indent=2))
    else:
        _print(findings)
    if any(finding.level == "problem" for finding in findings):
        raise typer.Exit(1)


def _print(findings: list[Finding]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    styles = {"ok": "green", "warning": "yellow", "problem": "bold red"}
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 1))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for finding in findings:
        text = Text(finding.found)
        if finding.advice:
            text.append(f"\n{finding.advice}", styles[finding.level])
        table.add_row(Text(finding.level, styles[finding.level]), Text(finding.name), text)
    console.print(table)
    count = {level: sum(finding.level == level for finding in findings) for level in styles}
    said = [
        f"{count[level]} {level}{'s' if count[level] > 1 else ''}" for level in ("problem", "warning") if count[level]
    ]
    console.print(f"\n{', '.join(said) or 'All is well'}.")


def _versions() -> Iterator[Finding]:
    import platform
    import sys
    from importlib.metadata import PackageNotFoundError, version

    right = (3, 11) <= sys.version_info[:2] < (3, 14)
    advice = "" if right else "heliostat runs on Python 3.11, 3.12 and 3.13."
    yield Finding("python", "ok" if right else "problem", platform.python_version(), advice)
    for package in ("heliostat", "torch", "ray", "mlflow"):
        try:
            yield Finding(package, "ok", version(package))
        except PackageNotFoundError:
            if package == "heliostat":  # this file runs, so it is there
                yield Finding(package, "ok", "from its source folder, not installed")
            else:
                yield Finding(package, "problem", "not installed", "Install heliostat again, as its README says.")


def _devices() -> Iterator[Finding]:
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
            yield Finding(f"cuda:{index}", "ok", f"{properties.name}, {properties.total_memory / _GIB:.0f} GiB")
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


def _memory() -> Iterator[Finding]:
    import psutil

    memory = psutil.virtual_memory()
    low = memory.available < _MEMORY_WARNING
    yield Finding(
        "memory",
        "warning" if low else "ok",
        f"{memory.available / _GIB:.1f} of {memory.total / _GIB:.1f} GiB free",
        "Close other programs, or use fewer workers." if low else "",
    )


def _disks() -> Iterator[Finding]:
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
        yield Finding("/dev/shm", "warning" if small else "ok", f"{size / _GIB:.1f} GiB", advice)


def _disk(name: str, folder: object, advice: str) -> Finding:
    import os
    import shutil

    path = str(folder)
    if not os.access(path, os.W_OK):
        return Finding(name, "problem", f"{path} cannot be written", "Choose a folder that belongs to you.")
    free = shutil.disk_usage(path).free
    level: Literal["ok", "warning", "problem"] = "ok"
    if free < _DISK_WARNING:
        level = "problem" if free < _DISK_PROBLEM else "warning"
    return Finding(name, level, f"{free / _GIB:.1f} GiB free", "" if level == "ok" else advice)


def _store(uri: str | None) -> Finding:
    from heliostat.errors import InputError, RunError
    from heliostat.tracking.location import display_uri, resolve_uri, sqlite_path
    from heliostat.tracking.records import list_runs

    name = "tracking store"
    try:
        store = resolve_uri(uri)
        path = sqlite_path(store)
        if path is not None and not path.exists():
            return Finding(name, "ok", f"{display_uri(store)}: the first run makes it")
        runs = list_runs(store, limit=1)
    except (InputError, RunError) as error:
        return Finding(name, "problem", str(error), "Start the server, or correct --uri or $MLFLOW_TRACKING_URI.")
    return Finding(name, "ok", f"{display_uri(store)}: " + (f"latest run {runs[0].name}" if runs else "no runs yet"))


def _ports() -> Iterator[Finding]:
    for port, taken, advice in (
        (5000, "in use", "If it is not MLflow, use `heliostat ui --port 5001`."),
        (8265, "in use: a Ray dashboard, or another program", ""),
    ):
        used = _listens("127.0.0.1", port)
        level: Literal["ok", "warning"] = "warning" if used and advice else "ok"
        yield Finding(f"port {port}", level, taken if used else "free", advice if used else "")


def _ray() -> Finding:
    import os

    address = os.environ.get("RAY_ADDRESS", "")
    if address in ("", "local", "auto"):
        return Finding("ray cluster", "ok", "RAY_ADDRESS names none: runs start Ray on this machine")
    host, _, port = address.partition("://")[2].rpartition(":") if "://" in address else address.rpartition(":")
    if not host or not port.isdigit():
        return Finding("ray cluster", "problem", f"RAY_ADDRESS={address}", "It should be host:port, such as head:6379.")
    if not _listens(host, int(port)):
        return Finding(
            "ray cluster", "problem", f"{address} does not answer", "Start the cluster, or unset RAY_ADDRESS."
        )
    return Finding("ray cluster", "ok", f"{address} answers")


def _listens(host: str, port: int) -> bool:
    import socket

    try:
        with socket.create_connection((host, port), timeout=2):
            return True
    except OSError:
        return False
