"""``heliostat compare``: runs side by side, on the terminal, as a page and as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from heliostat.tracking.records import RunRecord

_LATEST = 4
_LARGEST_FIGURE = 4_000_000  # bytes; the page is one file that people send to each other


def compare(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[RUN]...",
            help="Names of runs or their beginnings, run directories, or MLflow's ids. "
            f"Without any: the latest {_LATEST} finished runs of the experiment.",
            show_default=False,
        ),
    ] = None,
    experiment: Annotated[
        str | None,
        typer.Option("--experiment", "-e", help="Only runs of this experiment. [default: that of the latest run]"),
    ] = None,
    html: Annotated[Path, typer.Option("--html", help="Where the page goes.")] = Path("comparison.html"),
    png: Annotated[Path, typer.Option("--png", help="Where the curves go.")] = Path("comparison.png"),
    json: Annotated[bool, typer.Option("--json", help="Print JSON and write no files.")] = False,
    uri: Annotated[
        str | None, typer.Option("--uri", help="Tracking store. [default: $MLFLOW_TRACKING_URI, else ./mlflow.db]")
    ] = None,
) -> None:
    """Show what differs between runs and what came out: a table here, and a page and a picture to keep."""
    from heliostat.errors import InputError, Problem
    from heliostat.tracking.comparison import compare as put_side_by_side
    from heliostat.tracking.comparison import to_json
    from heliostat.tracking.location import display_uri, resolve_uri
    from heliostat.tracking.records import load_runs

    store = resolve_uri(uri)
    if not json:  # before the store is read, which may take a while
        missing = [path for path in (html, png) if not path.absolute().parent.is_dir()]
        if missing:
            raise InputError([Problem(f"There is no folder {path.parent}.", str(path)) for path in missing])
    chosen = names or _latest(store, experiment)
    comparison = put_side_by_side(load_runs(store, chosen, experiment))
    if json:
        import json as json_module

        print(json_module.dumps(to_json(comparison), indent=2))
        return

    from rich.console import Console
    from rich.text import Text

    from heliostat.tracking.figures import draw_curves
    from heliostat.tracking.page import render
    from heliostat.tracking.terminal import print_comparison

    console = Console(highlight=False)
    print_comparison(console, comparison)
    pictures, notes = _pictures(store, comparison.runs)
    html.write_text(render(comparison, pictures, display_uri(store)), encoding="utf-8")
    for note in notes:
        console.print(Text(note, "yellow"), soft_wrap=True)
    console.print(Text(f"page    {html}"), soft_wrap=True)
    if draw_curves(comparison, png):
        console.print(Text(f"curves  {png}"), soft_wrap=True)
    else:
        console.print(Text("no metric has more than one step: no curves to draw"))


def _latest(store: str, experiment: str | None) -> list[str]:
    """Ids of the latest finished runs; of the latest run's experiment where none is named."""
    from heliostat.errors import InputError
    from heliostat.tracking.records import list_runs

    latest = list_runs(store, experiment, status="FINISHED", limit=1)
    if not latest:
        raise InputError("No run is finished yet. Name the runs to compare; `heliostat runs` lists them.")
    return [run.id for run in list_runs(store, latest[0].experiment, status="FINISHED", limit=_LATEST)]


def _pictures(store: str, runs: tuple[RunRecord, ...]) -> tuple[dict[str, list[tuple[str, bytes]]], list[str]]:
    """The figures of the runs, by run id, and what to say of those that were left out."""
    import tempfile

    from heliostat.tracking.records import download

    pictures: dict[str, list[tuple[str, bytes]]] = {}
    notes = []
    with tempfile.TemporaryDirectory(prefix="heliostat-") as folder:
        for run in runs:
            for path in run.figures:
                content = download(store, run, path, Path(folder)).read_bytes()
                if len(content) > _LARGEST_FIGURE:
                    notes.append(f"left out of the page: {path} of {run.name}, {len(content) / 1e6:.0f} MB")
                else:
                    pictures.setdefault(run.id, []).append((path, content))
    return pictures, notes
