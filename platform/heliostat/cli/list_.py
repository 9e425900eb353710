"""``heliostat list``: what there is to choose from."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, get_args

import typer


class Kind(StrEnum):
    """What can be listed."""

    ALGORITHMS = "algorithms"
    BACKBONES = "backbones"
    DATA = "data"
    ENVIRONMENTS = "environments"
    EVALUATORS = "evaluators"
    OPTIMIZERS = "optimizers"
    JOBS = "jobs"


def list_(
    kind: Annotated[
        Kind | None, typer.Argument(help="What to list; without it, everything.", show_default=False)
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List algorithms, backbones, data sources, environments, evaluators, optimisers and job files, each with a line on
    what it is."""
    import json as json_module

    from rich.console import Console
    from rich.table import Table

    listing = {str(k): _entries(k) for k in ([kind] if kind else list(Kind))}
    if json:
        print(json_module.dumps(listing, indent=2))
        return
    console = Console()
    for title, entries in listing.items():
        table = Table(
            title=title, title_justify="left", title_style="bold", box=None, show_header=False, padding=(0, 2)
        )
        table.add_column(style="cyan", no_wrap=True)
        table.add_column()
        for name, what in entries.items():
            table.add_row(name, what)
        console.print(table)
        console.print()


def _entries(kind: Kind) -> dict[str, str]:
    from heliostat.config.evaluators import EvaluatorConfig
    from heliostat.config.registry import AGENTS, ALGORITHMS, members
    from heliostat.data.sources import DataSource
    from heliostat.reinforcement.environments import EnvironmentConfig
    from heliostat_algorithms.backbones import BackboneConfig
    from heliostat_algorithms.optimizers import OptimizerConfig

    match kind:
        case Kind.ALGORITHMS:
            return {name: _summary(cls) for name, cls in (ALGORITHMS | AGENTS).items()}
        case Kind.BACKBONES:
            return {name: _summary(cls) for name, cls in members(BackboneConfig).items()}
        case Kind.EVALUATORS:
            return {name: _summary(cls) for name, cls in members(EvaluatorConfig).items()}
        case Kind.OPTIMIZERS:
            return {name: _summary(cls) for name, cls in members(OptimizerConfig).items()}
        case Kind.DATA:
            return {name: _summary(cls) for name, cls in _tagged(DataSource, "source").items()}
        case Kind.ENVIRONMENTS:
            return {name: _summary(cls) for name, cls in _tagged(EnvironmentConfig, "type").items()}
        case Kind.JOBS:
            return {str(path): _comment(path) for path in sorted(Path("jobs").rglob("*.yaml"))}


def _tagged(union: Any, key: str) -> dict[str, type[Any]]:
    """The members of a union of models by the value of the key that tells them apart."""
    return {get_args(cls.model_fields[key].annotation)[0]: cls for cls in get_args(get_args(union)[0])}


def _summary(cls: type[Any]) -> str:
    """The first line of a class's docstring."""
    return (cls.__doc__ or "").strip().partition("\n")[0]


def _comment(path: Path) -> str:
    """What a job file says of itself: its second line, after the command that runs it."""
    lines = [line.lstrip("# ").strip() for line in path.read_text().splitlines()[:2] if line.startswith("#")]
    return lines[-1] if lines else ""
