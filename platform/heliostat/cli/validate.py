"""``heliostat validate``: say all that is wrong with a job file, and start nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


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
    from rich.syntax import Syntax

    from heliostat.config.loading import dump, load
    from heliostat.config.loading import schema as job_schema
    from heliostat.errors import InputError
    from heliostat.training import launch
    from heliostat.training.stages import check_data, resolved

    if schema:
        print(json_module.dumps(job_schema(), indent=2))
        return
    if job is None:
        raise InputError("name a job file, or ask for --schema")
    stages = load(job, overrides or [])
    launch.require(
        list(
            dict.fromkeys(
                problem for stage in stages for problem in launch.check(stage.job, follows=bool(stage.follows))
            )
        )
    )
    checked = {stage.name: resolved(stage).job for stage in stages}
    if data:
        check_data(stages)
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
    console.print(f"[bold green]valid[/]: {job}", highlight=False)
