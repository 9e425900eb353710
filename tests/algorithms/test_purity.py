"""Algorithms are plain PyTorch, and the source roots hide no module of the standard library."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import heliostat_algorithms

ROOT = Path(__file__).parents[2]
PACKAGE = Path(next(iter(heliostat_algorithms.__path__)))
SOURCES = sorted(PACKAGE.rglob("*.py"))
ALLOWED = {"torch", "numpy", "heliostat_algorithms", *sys.stdlib_module_names}
TRITON = PACKAGE / "sequence/state_space/selective_scan_triton.py"
"""Kernels for GPUs: the one file that needs what comes with PyTorch's builds for CUDA alone; others import it late."""
PLATFORM_ONLY = {
    *("heliostat", "ray", "mlflow", "yaml", "pydantic", "pyarrow", "typer", "rich", "PIL", "sklearn", "scipy"),
    *("matplotlib", "psutil"),
}


def python(program: str, **environment: str) -> str:
    """What a fresh interpreter, started in the repository's root, prints."""
    result = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: str(source.relative_to(PACKAGE)))
def test_a_source_names_only_torch_numpy_and_the_standard_library(source: Path) -> None:
    """Also where an import stands inside a function."""
    imported = set()
    for node in ast.walk(ast.parse(source.read_text())):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: imports are absolute"
            imported.add(str(node.module))
    assert {name.split(".")[0] for name in imported} <= ALLOWED | ({"triton"} if source == TRITON else set())


def test_importing_every_algorithm_loads_nothing_of_the_platform() -> None:
    names = [".".join(s.relative_to(PACKAGE.parent).with_suffix("").parts) for s in SOURCES if s != TRITON]
    names = [name.removesuffix(".__init__") for name in names]
    assert "heliostat_algorithms.representation.simclr" in names
    program = f"""
import importlib, json, sys
for name in {names}:
    importlib.import_module(name)
print(json.dumps(sorted(sys.modules)))
"""
    loaded = json.loads(python(program))
    assert set(names) <= set(loaded)
    assert {name.split(".")[0] for name in loaded} & PLATFORM_ONLY == set()


@pytest.mark.parametrize("folder", ["platform", "algorithms", "tests/platform"])
def test_source_roots_are_no_packages(folder: str) -> None:
    assert not (ROOT / folder / "__init__.py").exists()


def test_the_standard_library_keeps_its_platform_module() -> None:
    """Ray and torch ask ``platform`` what machine this is; the repository's folder of that name comes first here."""
    program = "import platform, sys; print(platform.python_version(), sys.path[:2]); import torch"
    version, path = python(program, PYTHONPATH=str(ROOT)).split(maxsplit=1)
    assert version == sys.version.split()[0]
    assert str(ROOT) in path
