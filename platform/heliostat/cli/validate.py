"""``heliostat validate``: say all that is wrong with a job file, and start nothing."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from heliostat.config.document import Document
    from heliostat.config.job import Job
    from heliostat.config.loading import AnyJob, Stage


def validate(
    job: Annotated[Path | None, typer.Argument(help="A job file.", show_default=False)] = None,
    overrides: Annotated[list[str] | None, typer.Argument(help="Changes such as seed=3", show_default=False)] = None,
    data: Annotated[bool, typer.Option("--data", help="Also decode the data and check that it fits.")] = False,
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON schema of job files, for editors.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the resolved job as JSON.")] = False,
) -> None:
    """Check a job file: every error at once, with line and nearest valid name. Prints the resolved job."""
    import json as json_module

    from rich.console import Console
    from rich.markup import escape
    from rich.syntax import Syntax

    from heliostat.config.loading import dump, load, load_document
    from heliostat.config.loading import schema as job_schema
    from heliostat.config.reinforcement import ReinforcementJob
    from heliostat.config.sweep import SWEEP
    from heliostat.errors import InputError, require
    from heliostat.reinforcement import launch as agents

    if schema:
        print(json_module.dumps(job_schema(), indent=2))
        return
    if job is None:
        raise InputError("name a job file, or ask for --schema")
    document = load_document(job, overrides or [])
    if SWEEP in document.data:
        check_sweep(document, data=data)
    loaded = load(job, overrides or [])
    if isinstance(loaded, ReinforcementJob):
        require(agents.check(loaded))
        checked: dict[str, AnyJob] = {"": agents.resolved(loaded)}
    else:
        checked = dict(checked_stages(loaded, data=data))
    if json:
        plain = {name: each.resolved() for name, each in checked.items()}
        print(json_module.dumps(plain.get("", plain), indent=2))
        return
    console = Console()
    for name, each in checked.items():
        if name:
            console.rule(f"stage {name}", align="left")
        text = dump(each, console.width - 12)
        console.print(Syntax(text, "yaml", theme="ansi_dark", background_color="default"))
    console.print(f"[bold green]valid[/]: {escape(str(job))}", highlight=False)


def check_sweep(document: Document, *, data: bool) -> None:
    """The job with each value of its sweep block; with ``data`` also against the decoded data."""
    from heliostat.tuning.plan import Plan, check, gather

    plan = Plan.of(document)
    check(plan)
    if data:
        gather(plan)


def checked_stages(stages: tuple[Stage, ...], *, data: bool) -> dict[str, Job]:
    """Each stage's resolved job, by the stage's name; with ``data`` also decoded."""
    from heliostat.errors import require
    from heliostat.training import launch
    from heliostat.training.stages import check_data, resolved

    problems = [problem for stage in stages for problem in launch.check(stage.job, follows=bool(stage.follows))]
    require(list(dict.fromkeys(problems)))
    if data:
        check_data(stages)
    return {stage.name: resolved(stage).job for stage in stages}
