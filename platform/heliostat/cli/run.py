"""``heliostat run``: train what a job file describes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def run(
    job: Annotated[Path, typer.Argument(help="A job file.", show_default=False)],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Changes such as optimization.batch_size=256", show_default=False)
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="Name of the run; else made from the job's.", show_default=False)
    ] = None,
    local: Annotated[bool, typer.Option("--local", help="In this process, without Ray.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the outcome as JSON, and nothing else.")] = False,
) -> None:
    """Train what a job file describes, evaluate it, and record it in MLflow.

    Ctrl-C saves a checkpoint and says how to resume; a second Ctrl-C stops at once.
    """
    from heliostat.cli.display import Display
    from heliostat.config.loading import load
    from heliostat.training import launch

    changes = list(overrides or [])
    if local:
        changes += ["resources.runtime=local", "resources.workers=1"]
    display = Display(quiet=json)
    loaded = load(job, changes)
    launch.require(launch.check(loaded))
    display.job(launch.resolved(loaded))
    with display:
        finished = launch.start(loaded, display, name)
    display.finished(finished)
    display.leave(finished)
