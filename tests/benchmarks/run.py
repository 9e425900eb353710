"""``make bench``: all benchmarks, a table on the terminal and ``build/bench.json``.

Every figure is a ratio of two things measured in turn within one run, because machines are noisy: what was measured
yesterday, or while another program ran, says little. ``python tests/benchmarks/run.py NAME ...`` runs some of them.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

HERE = Path(__file__).parent
OUTPUT = Path("build/bench.json")


def main(names: list[str]) -> None:
    files = {file.stem.removeprefix("bench_"): file for file in sorted(HERE.glob("bench_*.py"))}
    unknown = set(names) - files.keys()
    if unknown:
        sys.exit(f"no benchmark named {', '.join(sorted(unknown))}; there are {', '.join(files)}")
    rows: list[dict[str, Any]] = []
    console = Console(width=None if sys.stdout.isatty() else 120)
    for name in names or files:
        console.print(f"measuring {name} ...")
        spec = importlib.util.spec_from_file_location(f"bench_{name}", files[name])
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        # Benchmarks start processes that import them by name.
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
        rows += module.rows()
    table = Table(title="benchmarks", title_justify="left")
    for column in ("measure", "ours", "other", "ratio", "unit", "better"):
        table.add_column(column, justify="left" if column in ("measure", "unit", "better") else "right")
    for row in rows:
        other = "-" if row["other"] is None else f"{row['other']:,.4g}"
        ratio = "-" if row["ratio"] is None else f"{row['ratio']:.3f}"
        better = "higher" if row["higher_is_better"] else "lower"
        table.add_row(row["name"], f"{row['ours']:,.4g}", other, ratio, row["unit"], better)
    console.print(table)
    OUTPUT.parent.mkdir(exist_ok=True)
    OUTPUT.write_text(json.dumps(rows, indent=2) + "\n")
    console.print(f"written to {OUTPUT}")


if __name__ == "__main__":
    main(sys.argv[1:])
