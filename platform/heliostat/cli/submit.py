"""``heliostat submit``: run a job file on a cluster."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from heliostat.clusters.jobs import Submission
    from heliostat.clusters.submission import Plan


def submit(
    job: Annotated[Path, typer.Argument(help="A job file.", show_default=False)],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Changes such as resources.workers=8", show_default=False)
    ] = None,
    cluster: Annotated[
        Path | None, typer.Option(help="A cluster file for ray up; reached through SSH.", show_default=False)
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(help="The cluster's dashboard. [default: $RAY_API_SERVER_ADDRESS, else $RAY_ADDRESS]"),
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="Name of the run; else made from the job's.", show_default=False)
    ] = None,
    continue_: Annotated[
        bool, typer.Option("--continue", help="Go on with the run of this --name from its newest checkpoint.")
    ] = False,
    retries: Annotated[
        int, typer.Option(min=0, help="Submit again, under the same run, so often where the driver or head was lost.")
    ] = 0,
    module: Annotated[
        list[Path] | None, typer.Option(help="Also ship this package or file of yours; can be repeated.")
    ] = None,
    install: Annotated[
        bool, typer.Option("--install", help="Have the nodes install heliostat's dependencies, as they are here.")
    ] = False,
    data_is_there: Annotated[
        bool, typer.Option("--data-is-there", help="The data lies on the cluster: do not look for it here.")
    ] = False,
    wait: Annotated[bool, typer.Option(help="Show the job's output until it ends.")] = True,
    json: Annotated[bool, typer.Option("--json", help="Print the outcome as JSON, and nothing else.")] = False,
) -> None:
    """Check a job file, ship it with heliostat's code to a Ray cluster, and show its output.

    The cluster needs heliostat's dependencies: its image has them, or --install. Ctrl-C leaves the job running and says
    how to come back to it and how to stop it.
    """
    from functools import partial

    from rich.console import Console
    from rich.markup import escape

    from heliostat.clusters import submission
    from heliostat.clusters.cluster_file import Site, read
    from heliostat.clusters.demand import check_fit, demands
    from heliostat.clusters.jobs import Jobs
    from heliostat.clusters.tunnel import reached
    from heliostat.errors import InputError, Problem, require

    if cluster is not None and address is not None:
        raise InputError(Problem("give --cluster or --address, not both", "command line"))
    if continue_ and name is None:
        raise InputError(Problem("which run to go on with is said by --name", "--continue"))
    if retries and not wait:
        raise InputError(Problem("whoever submits again has to wait for the end; leave --no-wait out", "--retries"))
    console = Console(highlight=False, soft_wrap=True, quiet=json)
    file = read(cluster) if cluster is not None else None
    plan = submission.plan(
        job,
        overrides or [],
        file.site if file else Site(),
        run=name,
        modules=module or [],
        install=install,
        data_is_there=data_is_there,
    )
    if file is not None:
        for each in plan.jobs:
            problems, remarks = check_fit(demands(each), file.nodes)
            require(problems)
            for remark in remarks:
                console.print(f"[bold yellow]note[/]: {escape(remark.what)}")
    with reached(file, address, partial(console.print, markup=False)) as there:
        jobs = Jobs(there)
        for lack in submission.short_of(jobs, plan):
            console.print(f"[bold yellow]note[/]: {escape(str(lack))}")
        attempt = submission.next_attempt(jobs, plan, goes_on=continue_)
        goes_on = continue_
        while True:
            identity, shipment = submission.submit(jobs, plan, attempt, goes_on=goes_on)
            size = ", ".join(f"{part} {count / 1e3:.0f} kB" for part, count in shipment.sizes.items())
            console.print(f"[bold green]submitted[/] {identity}: {escape(plan.entrypoint(goes_on=goes_on))}")
            console.print(f"  shipped   {shipment.bytes / 1e6:.2f} MB at most ({size})")
            if not wait:
                _leave(console, None, plan, identity, json=json)
                return
            ended = _followed(console, lambda: Jobs(there), identity, patient=retries > 0)
            if not submission.lost(ended) or retries == 0:
                break
            retries, attempt, goes_on = retries - 1, attempt + 1, True
            console.print(
                f"[bold yellow]note[/]: the driver was lost; run {plan.run} goes on from its newest checkpoint"
            )
            jobs = Jobs(there)
    _leave(console, ended, plan, identity, json=json)


def _followed(console: Console, connect: object, identity: str, *, patient: bool) -> Submission | None:
    """The job's output until it ends; Ctrl-C leaves it."""
    import sys
    from functools import partial

    from heliostat.clusters import submission

    def write(text: str) -> None:
        if not console.quiet:
            sys.stdout.write(text)
            sys.stdout.flush()

    try:
        patience = submission.PATIENCE_SECONDS if patient else submission.IMPATIENCE_SECONDS
        return submission.follow(connect, identity, write, partial(console.print, markup=False), patience)  # type: ignore[arg-type]
    except KeyboardInterrupt:
        console.print(f"\n[bold yellow]left[/]: job {identity} goes on without this terminal.")
        console.print(f"  follow it again   heliostat jobs logs {identity} --follow")
        console.print(f"  save and end it   heliostat jobs stop {identity}")
        raise


def _leave(console: Console, ended: Submission | None, plan: Plan, identity: str, *, json: bool) -> None:
    """Say how it ended, and exit as the run did."""
    import json as json_module
    import sys

    from rich.markup import escape

    status = ended.status if ended is not None else "SUBMITTED"
    if json:
        code = ended.exit_code if ended is not None else None
        print(
            json_module.dumps({"submission": identity, "run": plan.run, "status": status, "exit_code": code}, indent=2)
        )
    elif ended is None:
        console.print(f"  follow    heliostat jobs logs {identity} --follow")
        console.print(f"  stop      heliostat jobs stop {identity}")
    if ended is None or status == "SUCCEEDED":
        return
    if status == "STOPPED":
        console.print(
            f"[bold yellow]stopped[/]: run {plan.run}; "
            f"go on with: heliostat submit {escape(str(plan.job))} --name {plan.run} --continue"
        )
        sys.exit(130)
    console.print(f"[bold red]failed[/]: {escape(ended.message.strip())}")
    if "No module named" in ended.message:
        console.print("The cluster lacks a package: use an image that has heliostat's dependencies, or --install.")
    sys.exit(ended.exit_code if ended.exit_code in (1, 2, 130) else 1)
