"""``heliostat jobs``: the jobs of a cluster."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from heliostat.clusters.jobs import Jobs, Submission

app = typer.Typer(name="jobs", help="List, follow and stop the jobs of a cluster.", no_args_is_help=True)

_Cluster = Annotated[Path | None, typer.Option("--cluster", help="A cluster file for ray up.", show_default=False)]
_Address = Annotated[
    str | None,
    typer.Option("--address", help="The cluster's dashboard. [default: $RAY_API_SERVER_ADDRESS, else $RAY_ADDRESS]"),
]
_Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
_Job = Annotated[str, typer.Argument(help="A job's submission id, or the name of its run.", show_default=False)]


@contextmanager
def _jobs(cluster: Path | None, address: str | None) -> Iterator[Jobs]:
    import sys

    from heliostat.clusters.cluster_file import read
    from heliostat.clusters.jobs import Jobs
    from heliostat.clusters.tunnel import reached
    from heliostat.errors import InputError, Problem

    if cluster is not None and address is not None:
        raise InputError(Problem("give --cluster or --address, not both", "command line"))
    file = read(cluster) if cluster is not None else None
    with reached(file, address, lambda line: print(line, file=sys.stderr)) as there:
        yield Jobs(there)


@app.command("list")
def list_(cluster: _Cluster = None, address: _Address = None, json: _Json = False) -> None:
    """List the jobs, the latest first."""
    import json as json_module

    from rich.console import Console
    from rich.table import Table

    with _jobs(cluster, address) as jobs:
        found = jobs.all()
    if json:
        print(json_module.dumps([_plain(job) for job in found], indent=2))
        return
    console = Console(highlight=False)
    if not found:
        console.print("There are no jobs.")
        return
    table = Table(box=None, pad_edge=False)
    for column in ("job", "status", "run", "attempt", "started", "took"):
        table.add_column(column, no_wrap=True, justify="right" if column in ("attempt", "took") else "left")
    for job in found:
        table.add_row(job.id, job.status, job.run or "-", str(job.attempt), _when(job.started), _took(job))
    console.print(table)


@app.command()
def status(job: _Job, cluster: _Cluster = None, address: _Address = None, json: _Json = False) -> None:
    """Say how a job stands."""
    import json as json_module

    with _jobs(cluster, address) as jobs:
        found = jobs.get(job)
    if json:
        print(json_module.dumps(_plain(found), indent=2))
        return
    print(f"{found.status}  {found.id}")
    for name, value in (
        ("run", found.run),
        ("command", found.entrypoint),
        ("started", _when(found.started)),
        ("took", _took(found)),
        ("exit code", found.exit_code),
        ("message", found.message.strip() if found.over else None),
    ):
        if value is not None:
            print(f"  {name:<10}{value}")


@app.command()
def logs(
    job: _Job,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on until the job ends; Ctrl-C leaves it running.")
    ] = False,
    cluster: _Cluster = None,
    address: _Address = None,
    json: _Json = False,
) -> None:
    """Print what a job has printed."""
    import json as json_module
    import sys

    from heliostat.errors import InputError, Problem

    if follow and json:
        raise InputError(Problem("output that goes on is no JSON; leave one of them out", "--follow --json"))
    with _jobs(cluster, address) as jobs:
        found = jobs.get(job)
        if follow:
            jobs.follow(found.id, lambda piece: (sys.stdout.write(piece), sys.stdout.flush()))
            return
        text = jobs.logs(found.id)
    print(
        json_module.dumps({"submission": found.id, "logs": text}, indent=2) if json else text, end="\n" if json else ""
    )


@app.command()
def stop(
    job: _Job,
    wait: Annotated[float, typer.Option(min=0, help="Seconds to wait for its end.")] = 300.0,
    cluster: _Cluster = None,
    address: _Address = None,
    json: _Json = False,
) -> None:
    """End a job; a run of heliostat saves a checkpoint first, from which it can go on."""
    import json as json_module

    with _jobs(cluster, address) as jobs:
        found = jobs.get(job)
        if not found.over:
            found = jobs.stop(found.id, wait)
    if json:
        print(json_module.dumps(_plain(found), indent=2))
    elif not found.over:
        print(f"{found.id} was asked to end, and has not within {wait:g} s; heliostat jobs status {found.id}")
        raise typer.Exit(1)
    else:
        print(f"{found.status}  {found.id}")
        if found.run and found.status == "STOPPED":
            print(f"  go on with: heliostat submit JOB --name {found.run} --continue")


def _plain(job: Submission) -> dict[str, Any]:
    from dataclasses import asdict

    return asdict(job)


def _when(milliseconds: int | None) -> str:
    import time

    return "-" if milliseconds is None else time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(milliseconds / 1000))


def _took(job: Submission) -> str:
    import time

    if job.started is None:
        return "-"
    minutes, seconds = divmod(round((job.ended or time.time() * 1000) / 1000 - job.started / 1000), 60)
    return f"{minutes} min {seconds} s"
