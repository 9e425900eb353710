"""``heliostat runs``: the runs of a tracking store."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from heliostat.tracking.run_record import RunRecord

_ORDERS = (None, "name", "start", "duration")


def runs(
    experiment: Annotated[str | None, typer.Option("--experiment", "-e", help="Only runs of this experiment.")] = None,
    status: Annotated[
        str | None, typer.Option("--status", help="Only runs that are running, finished, failed or killed.")
    ] = None,
    name: Annotated[
        str | None, typer.Option("--name", help="Only runs of this name; * stands for any letters: 'simclr-*'.")
    ] = None,
    algorithm: Annotated[str | None, typer.Option("--algorithm", "-a", help="Only runs of this algorithm.")] = None,
    where: Annotated[
        list[str] | None,
        typer.Option(
            "--where",
            "-w",
            help="Only runs of which it holds: a parameter, metric or tag with =, !=, <, <=, > or >=, as in "
            "'optimization.batch_size=256' or 'eval/knn_top1>0.9'; may be repeated.",
        ),
    ] = None,
    group_by: Annotated[
        list[str] | None,
        typer.Option("--group-by", help="A line for each value of this parameter; may be repeated."),
    ] = None,
    sort: Annotated[
        str | None,
        typer.Option("--sort", help="A metric such as eval/knn_top1, best first; a parameter; name, start, duration."),
    ] = None,
    limit: Annotated[
        int, typer.Option("--limit", "-n", min=1, help="At most so many; runs of a sweep come with it.")
    ] = 20,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    uri: Annotated[
        str | None, typer.Option("--uri", help="Tracking store. [default: $MLFLOW_TRACKING_URI, else ./mlflow.db]")
    ] = None,
) -> None:
    """List runs, the latest first, those of a sweep below it."""
    from heliostat.tracking.conditions import Condition, parse_conditions
    from heliostat.tracking.location import display_uri, resolve_uri
    from heliostat.tracking.records import list_runs, summary

    store = resolve_uri(uri)
    conditions = parse_conditions(where or ())
    conditions += [Condition("name", "=", name)] if name is not None else []
    conditions += [Condition("algorithm", "=", algorithm)] if algorithm is not None else []
    if group_by:
        found = list_runs(store, experiment, status=status, conditions=conditions)
        _grouped(found, group_by, sort, limit, json)
        return
    found = list_runs(store, experiment, status=status, conditions=conditions, sort=sort, limit=limit + 1)
    shown, more = _first(found, limit)
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
    print_runs(console, shown, sort if sort not in _ORDERS else None)
    if more:
        console.print(f"The first {limit}; --limit shows more.", style="dim")


def _first(found: Sequence[RunRecord], limit: int) -> tuple[list[RunRecord], bool]:
    """The first runs with what belongs to them, and whether there are more."""
    here: set[str] = set()
    count = 0
    for index, run in enumerate(found):
        count += run.parent not in here
        if count > limit:
            return list(found[:index]), True
        here.add(run.id)
    return list(found), False


def _grouped(found: Sequence[RunRecord], names: Sequence[str], sort: str | None, limit: int, json: bool) -> None:
    from rich.console import Console

    from heliostat.errors import InputError, Problem
    from heliostat.tracking.comparison import compare, main_metric
    from heliostat.tracking.export import to_json
    from heliostat.tracking.grouping import group_by
    from heliostat.tracking.terminal import print_groups

    if sort in _ORDERS[1:]:
        raise InputError(Problem(f"Groups have no {sort}; sort them by a metric.", "--sort"))
    parents = {run.parent for run in found}
    comparison = compare(group_by([run for run in found if run.id not in parents], names))
    row = main_metric(comparison, sort)
    if json:
        import json as json_module

        print(json_module.dumps(to_json(comparison), indent=2))
        return
    print_groups(Console(highlight=False), comparison, row, limit)
