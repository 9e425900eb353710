"""What a submission takes along: heliostat's own code and the job file. No data, no runs, no dependencies.

Ray zips each folder, names it by the hash of its content and uploads it once; a second submission of the same code
ships the job file alone. The nodes put what was shipped before what is installed on them, so the code that was checked
here is the code that runs there.
"""

from __future__ import annotations

import io
import re
import shutil
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from heliostat.errors import InputError, Problem

LIMIT_BYTES = 2_000_000
"""What heliostat's own part of a submission stays below."""
STOP_SECONDS = 300
"""How long ``jobs stop`` lets a run save its checkpoint before Ray kills it; Ray's own default is 3 s."""
_LEFT_OUT = ("__pycache__", ".git", ".venv", "venv")
"""Ray leaves these out of every folder that it ships."""
_FROM_THE_CLUSTER = ("ray",)
"""Ray refuses to be installed by a job: client and cluster must have the same version anyway."""


@dataclass(frozen=True)
class Shipment:
    """A runtime environment for Ray, and how large its parts are."""

    runtime_env: dict[str, Any]
    sizes: dict[str, int]
    """Zipped bytes of each part by its name."""

    @property
    def bytes(self) -> int:
        """All of it."""
        return sum(self.sizes.values())


@contextmanager
def packed(job: Path, modules: Sequence[Path] = (), *, install: bool = False) -> Iterator[Shipment]:
    """Put together what is shipped; the folder with the job file is there until the context ends.

    Args:
        job: the job file, shipped as it is written.
        modules: packages or files of the user's own, such as an environment.
        install: also have Ray install heliostat's dependencies on each node, in the versions of this machine.

    Raises:
        InputError: a module is not there.
    """
    missing = [Problem("there is no such file or folder", str(module)) for module in modules if not module.exists()]
    if missing:
        raise InputError(missing)
    with TemporaryDirectory(prefix="heliostat-submit-") as folder:
        shutil.copyfile(job, Path(folder) / job.name)
        parts = [*own_packages(), *(module.expanduser().absolute() for module in modules)]
        environment: dict[str, Any] = {
            "working_dir": folder,
            "py_modules": [str(part) for part in parts],
            "env_vars": {"PYTHONUNBUFFERED": "1", "RAY_JOB_STOP_WAIT_TIME_S": str(STOP_SECONDS)},
        }
        if install:
            environment["pip"] = {"packages": pins(), "pip_check": False}
        sizes = {part.name: _zipped_bytes(part) for part in [*parts, Path(folder) / job.name]}
        yield Shipment(environment, sizes)


def own_packages() -> tuple[Path, Path]:
    """The folders of heliostat and its algorithms, wherever they are installed."""
    import heliostat
    import heliostat_algorithms

    return Path(next(iter(heliostat.__path__))), Path(next(iter(heliostat_algorithms.__path__)))


def pins() -> list[str]:
    """heliostat's dependencies without extras, each as ``name==version`` of this machine.

    Raises:
        InputError: heliostat runs from its source folder, so its dependencies are not known.
    """
    try:
        wanted = requires("heliostat") or []
    except PackageNotFoundError:
        what = "heliostat is not installed here but runs from its folder, so what it needs is unknown; run make setup"
        raise InputError(Problem(what, "--install")) from None
    names = [re.split(r"[\s<>=!~;\[(]", each, maxsplit=1)[0] for each in wanted if "extra ==" not in each]
    # A local version such as 2.13.0+cpu is that of one index, and the nodes may have accelerators.
    return [f"{name}=={version(name).partition('+')[0]}" for name in names if name not in _FROM_THE_CLUSTER]


def _zipped_bytes(path: Path) -> int:
    """What Ray's zip of a file or folder comes to."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in [path] if path.is_file() else sorted(path.rglob("*")):
            if file.is_file() and not any(part in _LEFT_OUT for part in file.relative_to(path).parts):
                archive.write(file, file.relative_to(path.parent))
    return len(buffer.getvalue())
