"""``heliostat compare``: runs side by side, on the terminal, as a page, as a picture and as data."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from heliostat.tracking.comparison import Comparison
    from heliostat.tracking.run_record import RunRecord

_LATEST = 4
_LARGEST_FIGURE = 4_000_000  # bytes; the page is one file that people send to each other
_LARGEST_PAGE = 40_000_000  # bytes of all its figures together


def compare(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[RUN]...",
            help="Names of runs or their beginnings, run directories, MLflow's ids, or a sweep for all of its runs. "
            f"Without any: the runs that --experiment and --where choose, else the latest {_LATEST} finished ones.",
            show_default=False,
        ),
    ] = None,
    experiment: Annotated[
        str | None,
        typer.Option("--experiment", "-e", help="Only runs of this experiment. [default: that of the latest run]"),
    ] = None,
    where: Annotated[
        list[str] | None,
        typer.Option(
            "--where", "-w", help="Only runs of which it holds, as in 'optimization.batch_size=256'; may be repeated."
        ),
    ] = None,
    fold: Annotated[
        bool, typer.Option("--fold/--no-fold", help="Put runs that differ in the seed alone together.")
    ] = True,
    group_by: Annotated[
        list[str] | None,
        typer.Option("--group-by", help="Put runs with the same value of this parameter together; may be repeated."),
    ] = None,
    metric: Annotated[
        str | None,
        typer.Option("--metric", "-m", help="Ranks settings. [default: what the sweep was after, or an evaluation]"),
    ] = None,
    html: Annotated[Path, typer.Option("--html", help="Where the page goes.")] = Path("comparison.html"),
    png: Annotated[Path, typer.Option("--png", help="Where the curves go.")] = Path("comparison.png"),
    csv: Annotated[Path | None, typer.Option("--csv", help="Also write a table, a line a setting.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON and write no page and no picture.")] = False,
    uri: Annotated[
        str | None, typer.Option("--uri", help="Tracking store. [default: $MLFLOW_TRACKING_URI, else ./mlflow.db]")
    ] = None,
) -> None:
    """Show what differs between runs and what came out: a table here, and a page and a picture to keep.

    Runs that differ in the seed alone are one setting, shown as mean ± 95 % interval over seeds.
    """
    from heliostat.errors import InputError, Problem, require
    from heliostat.tracking.comparison import compare as put_side_by_side
    from heliostat.tracking.comparison import main_metric
    from heliostat.tracking.conditions import parse_conditions
    from heliostat.tracking.export import to_csv, to_json
    from heliostat.tracking.grouping import fold_seeds, single
    from heliostat.tracking.grouping import group_by as put_together
    from heliostat.tracking.location import display_uri, resolve_uri
    from heliostat.tracking.records import load_runs
    from heliostat.tracking.sweeps import as_sweep, objective

    store = resolve_uri(uri)
    files = [path for path in ((csv,) if json else (html, png, csv)) if path is not None]
    # Before the store is read, which may take a while.
    require(
        [
            Problem(f"There is no folder {path.parent}.", str(path))
            for path in files
            if not path.absolute().parent.is_dir()
        ]
    )
    if group_by and not fold:
        raise InputError(Problem("--no-fold keeps runs apart and --group-by puts them together; choose one."))
    conditions = parse_conditions(where or ())
    chosen = names or ([] if conditions else _latest(store, experiment))
    records = load_runs(store, chosen, experiment, conditions)
    if not records:
        raise InputError("No run matches. `heliostat runs` with the same --experiment and --where shows what there is.")
    groups = put_together(records, group_by) if group_by else fold_seeds(records) if fold else single(records)
    comparison = put_side_by_side(groups)
    parent = _parent(store, records)
    known = {row.name for row in comparison.metrics}
    if metric is None and (told := objective(parent)) in known:
        metric = told
    main_metric(comparison, metric)  # an unknown name stops here
    sweep = as_sweep(comparison, metric, parent)
    if csv is not None:
        csv.write_text(to_csv(comparison), encoding="utf-8")
    if json:
        import json as json_module

        print(json_module.dumps(to_json(comparison, sweep), indent=2))
        return

    from rich.console import Console
    from rich.text import Text

    from heliostat.tracking.figures import draw_curves
    from heliostat.tracking.page import render
    from heliostat.tracking.terminal import print_comparison

    console = Console(highlight=False)
    print_comparison(console, comparison, metric)
    pictures, notes = _pictures(store, comparison, metric)
    page = render(
        comparison, pictures, display_uri(store), title=parent.name if parent else None, metric=metric, sweep=sweep
    )
    html.write_text(page, encoding="utf-8")
    for note in notes:
        console.print(Text(note, "yellow"), soft_wrap=True)
    console.print(Text(f"page    {html}"), soft_wrap=True)
    if draw_curves(comparison, png, metric):
        console.print(Text(f"curves  {png}"), soft_wrap=True)
    else:
        console.print(Text("no metric has more than one step: no curves to draw"))
    if csv is not None:
        console.print(Text(f"table   {csv}"), soft_wrap=True)


def _latest(store: str, experiment: str | None) -> list[str]:
    """Ids of the latest finished runs; of the latest run's experiment where none is named."""
    from heliostat.errors import InputError
    from heliostat.tracking.records import list_runs

    latest = list_runs(store, experiment, status="FINISHED", limit=1)
    if not latest:
        raise InputError("No run is finished yet. Name the runs to compare; `heliostat runs` lists them.")
    found = list_runs(store, latest[0].experiment, status="FINISHED", limit=_LATEST)
    return [run.id for run in found if run.parent not in {other.id for other in found}]


def _parent(store: str, records: Sequence[RunRecord]) -> RunRecord | None:
    """The run that all of these belong to, such as their sweep."""
    from heliostat.errors import InputError
    from heliostat.tracking.records import find_run

    parents = {run.parent for run in records}
    if len(parents) != 1 or (parent := parents.pop()) is None:
        return None
    try:
        return find_run(store, parent)
    except InputError:  # deleted
        return None


def _pictures(
    store: str, comparison: Comparison, metric: str | None
) -> tuple[dict[str, list[tuple[str, bytes]]], list[str]]:
    """The figures of the best groups, by run id, and what to say of those that were left out."""
    from heliostat.tracking.comparison import main_metric, ranking
    from heliostat.tracking.page_pictures import MOST
    from heliostat.tracking.run_files import read_file

    pictures: dict[str, list[tuple[str, bytes]]] = {}
    notes, total = [], 0
    order = ranking(comparison, main_metric(comparison, metric))
    for index in order[:MOST]:
        run = next((run for run in comparison.groups[index].runs if run.figures), None)
        for path in run.figures if run is not None else ():
            assert run is not None
            content = read_file(store, run, path)
            total += len(content)
            if len(content) > _LARGEST_FIGURE or total > _LARGEST_PAGE:
                notes.append(f"left out of the page: {path} of {run.name}, {len(content) / 1e6:.1f} MB")
            else:
                pictures.setdefault(run.id, []).append((path, content))
    if len(order) > MOST and pictures:
        notes.append(f"the page shows pictures of the {MOST} best settings of {len(order)}")
    return pictures, notes
