"""``heliostat runs``: the runs of a tracking store."""

from __future__ import annotations

from typing import Annotated

import typer


def runs(
    experiment: Annotated[str | None, typer.Option("--experiment", "-e", help="Only runs of this experiment.")] = None,
    status: Annotated[
        str | None, typer.Option("--status", help="Only runs that are running, finished, failed or killed.")
    ] = None,
    sort: Annotated[
        str | None,
        typer.Option("--sort", help="A metric such as eval/knn_top1, best first; or name, start, duration."),
    ] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="At most so many.")] = 20,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    uri: Annotated[
        str | None, typer.Option("--uri", help="Tracking store. [default: $MLFLOW_TRACKING_URI, else ./mlflow.db]")
    ] = None,
) -> None:
    """List runs, the latest first."""
    from heliostat.tracking.location import display_uri, resolve_uri
    from heliostat.tracking.records import list_runs, summary

    store = resolve_uri(uri)
    found = list_runs(store, experiment, status=status, sort=sort, limit=limit + 1)
    shown, more = found[:limit], len(found) > limit
    if json:
        import json as json_module

        print(json_module.dumps([summary(run) for run in shown], indent=2))
        return
    from rich.console import Console
    from rich.text import Text

    from heliostat.tracking.terminal import print_runs

    console = Console(highlight=False)
    if not shown:
        console.print(Text(f"No such runs in {display_uri(store)}."), soft_wrap=True)
        return
    metric = sort if sort not in (None, "name", "start", "duration") else None
    print_runs(console, shown, metric)
    if more:
        console.print(f"The first {limit}; --limit shows more.", style="dim")
