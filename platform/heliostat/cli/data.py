"""``heliostat data``: prepare large image sets for streaming, and look at them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from heliostat.data.prepared.index import Index
    from heliostat.data.samples import Progress

app = typer.Typer(no_args_is_help=True, help="Prepare large image sets for streaming, and look at them.")


class Format(StrEnum):
    """Of images that were resized."""

    JPEG = "jpeg"
    PNG = "png"


@app.command("prepare")
def prepare(
    source: Annotated[
        str,
        typer.Argument(
            metavar="INPUT",
            help="A folder of images, of tar shards (WebDataset) or of Parquet, or one such file; or a URI (s3://...).",
            show_default=False,
        ),
    ],
    output: Annotated[str, typer.Argument(help="The folder to make; or a URI.", show_default=False)],
    image_size: Annotated[
        int | None,
        typer.Option(min=1, help="Reduce larger images to this shorter side, in pixels.", show_default=False),
    ] = None,
    format: Annotated[Format, typer.Option(help="Of images that were resized.")] = Format.JPEG,
    quality: Annotated[int, typer.Option(min=1, max=100, help="Of JPEG.")] = 90,
    grey: Annotated[bool, typer.Option("--grey", help="One channel in place of RGB.")] = False,
    image: Annotated[str, typer.Option(help="Parquet: the column of images.")] = "image",
    label: Annotated[str, typer.Option(help="Parquet: the column of labels.")] = "label",
    unlabeled: Annotated[bool, typer.Option("--unlabeled", help="Parquet: take no labels.")] = False,
    rows_per_group: Annotated[int, typer.Option(min=1, help="Images that are read at once.")] = 64,
    rows_per_file: Annotated[int, typer.Option(min=1, help="Images of a file.")] = 4096,
    seed: Annotated[int, typer.Option(help="Decides how the input is mixed.")] = 0,
    max_corrupt: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="The share of images that may be impossible to decode.")
    ] = 0.0,
    workers: Annotated[int, typer.Option(min=1, help="Tasks at a time, on Ray; 1: this process, without Ray.")] = 1,
    json: Annotated[bool, typer.Option("--json", help="Print the index as JSON, and nothing else.")] = False,
) -> None:
    """Turn images into a set that can be streamed: Parquet with encoded images, in mixed order, with an index. The same
    command goes on where it was stopped. The same input and options make the same bytes, with any number of workers."""
    from heliostat.data.prepared.index import Settings
    from heliostat.data.prepared.inputs import find_inputs
    from heliostat.data.prepared.preparation import prepare as prepare_set

    settings = Settings(
        image_size=image_size,
        format=format.value,
        quality=quality,
        channels=1 if grey else 3,
        rows_per_group=rows_per_group,
        rows_per_file=rows_per_file,
        seed=seed,
        max_corrupt=max_corrupt,
    )
    inputs = find_inputs(source, image=image, label=None if unlabeled else label)
    with _shown(quiet=json) as progress:
        index = prepare_set(inputs, output, settings, workers=workers, progress=progress)
    _print(index, output, json)


@app.command("info")
def info(
    path: Annotated[str, typer.Argument(help="A prepared set's folder, or a URI.", show_default=False)],
    sheet: Annotated[
        Path | None,
        typer.Option("--sheet", help="Write a contact sheet of 64 images to this PNG file.", show_default=False),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the index as JSON, and nothing else.")] = False,
) -> None:
    """Show what a prepared set holds: files, images, sizes, classes and their balance, how well it is mixed."""
    from heliostat.data.locations import locate
    from heliostat.data.prepared.index import Index
    from heliostat.training.storage import Storage

    locate(path)
    storage = Storage(path)
    index = Index.read(storage)
    if sheet is not None:
        from heliostat.data.prepared.contact_sheet import draw_contact_sheet

        draw_contact_sheet(storage, index, sheet)
    _print(index, path, json)
    if sheet is not None and not json:
        typer.echo(f"contact sheet: {sheet}")


@contextmanager
def _shown(*, quiet: bool) -> Iterator[Progress]:
    """A bar on a terminal, a line for each tenth of the work in a log."""
    from rich import progress as bars
    from rich.console import Console

    console = Console(stderr=True, quiet=quiet, highlight=False)
    if console.is_terminal and not quiet:
        columns = (bars.TextColumn("{task.description}"), bars.BarColumn(), bars.MofNCompleteColumn())
        with bars.Progress(*columns, bars.TimeRemainingColumn(), console=console) as bar:
            task = bar.add_task("preparing", total=None)
            yield lambda what, done, total: bar.update(task, description=what, completed=done, total=total)
        return
    told = 0

    def tell(what: str, done: int, total: int | None) -> None:
        nonlocal told
        if total and done * 10 // total > told:
            told = done * 10 // total
            console.print(f"{what}: {done:,} of {total:,}", soft_wrap=True)

    yield tell


def _print(index: Index, path: str, json: bool) -> None:
    if json:
        typer.echo(index.model_dump_json(indent=2))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    found = index.statistics
    groups = len(index.starts) - 1
    table = Table(box=None, show_header=False, padding=(0, 2), title=Text(path), title_justify="left")
    table.add_column(style="cyan", no_wrap=True)
    table.add_column()
    columns = "image: struct<bytes: binary, path: string>" + ("" if index.classes is None else ", label: int64")
    rows = [
        ("schema", columns),
        ("images", f"{index.rows:,}; {index.corrupt:,} of the input were corrupt and are left out (corrupt.json)"),
        ("files", f"{len(index.files):,} with {groups:,} row groups, {index.bytes / 2**20:,.1f} MiB"),
        ("row groups", f"about {index.rows // groups} images, at most {index.largest_group / 2**20:.2f} MiB"),
        ("width, height", f"{_range(found.width)}, {_range(found.height)} pixels"),
        ("mean", ", ".join(f"{value:.4f}" for value in found.mean)),
        ("std", ", ".join(f"{value:.4f}" for value in found.std)),
    ]
    if index.classes is not None:
        counts = sorted(zip(found.class_counts, index.classes, strict=True), reverse=True)
        shown = counts if len(counts) <= 12 else [*counts[:6], *counts[-6:]]
        balance = ", ".join(f"{name} {count:,}" for count, name in shown[: len(shown) // 2 or 1])
        balance += " ... " if len(shown) < len(counts) else ", " if len(shown) > 1 else ""
        balance += ", ".join(f"{name} {count:,}" for count, name in shown[len(shown) // 2 or 1 :])
        rows += [
            ("classes", f"{len(index.classes):,}; {counts[-1][0]:,} to {counts[0][0]:,} images in each"),
            ("most to fewest", balance),
            ("mixed", f"{found.classes_per_group:.1f} different classes in a row group on average"),
        ]
    rows.append(("fingerprint", index.fingerprint))
    for name, value in rows:
        table.add_row(name, Text(value))
    Console(soft_wrap=True).print(table)


def _range(values: tuple[int, int]) -> str:
    return str(values[0]) if values[0] == values[1] else f"{values[0]} to {values[1]}"
