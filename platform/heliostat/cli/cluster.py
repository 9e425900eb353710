"""``heliostat cluster``: cluster files and clusters."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from heliostat.clusters.cluster_file import ClusterFile

app = typer.Typer(name="cluster", help="Check cluster files, render jobs for KubeRay and Slurm.", no_args_is_help=True)

_File = Annotated[Path, typer.Argument(help="A file for ray up, KubeRay or Slurm.", show_default=False)]
_Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


class Target(StrEnum):
    """What a job can be rendered for."""

    KUBERAY = "kuberay"
    SLURM = "slurm"


@app.command()
def check(
    file: _File,
    job: Annotated[Path | None, typer.Option(help="Also whether this job file fits.", show_default=False)] = None,
    overrides: Annotated[list[str] | None, typer.Argument(help="Changes to the job.", show_default=False)] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say all that is wrong with a cluster file, and whether a job fits its nodes. Reaches no machine."""
    import json as json_module
    from dataclasses import asdict

    from rich.console import Console
    from rich.markup import escape

    from heliostat.clusters.checking import check as look
    from heliostat.clusters.cluster_file import read
    from heliostat.clusters.demand import check_fit, demands
    from heliostat.config.loading import load
    from heliostat.config.reinforcement import ReinforcementJob
    from heliostat.errors import InputError, Problem, require

    if overrides and job is None:
        raise InputError(Problem("changes are made to a job; name one with --job", "command line"))
    found = read(file)
    report = look(found)
    problems, remarks = list(report.problems), list(report.remarks)
    if job is not None:
        loaded = load(job, overrides or [])
        for each in [loaded] if isinstance(loaded, ReinforcementJob) else [stage.job for stage in loaded]:
            wrong, worth = check_fit(demands(each), found.nodes)
            problems += wrong
            remarks += worth
    require(list(dict.fromkeys(problems)))
    remarks = list(dict.fromkeys(remarks))
    if json:
        plain = {"file": str(file), "kind": found.kind, "provider": found.provider}
        nodes = [asdict(group) for group in found.nodes]
        print(json_module.dumps({**plain, "nodes": nodes, "remarks": [str(each) for each in remarks]}, indent=2))
        return
    console = Console(highlight=False, soft_wrap=True)
    for remark in remarks:
        console.print(f"[bold yellow]note[/]: {escape(str(remark))}")
    for group in found.nodes:
        count = f"{group.least}" if group.least == group.most else f"{group.least} to {group.most}"
        has = ", ".join(
            f"{'?' if number is None else format(number, 'g')} {kind}"
            for number, kind in ((group.cpus, "CPUs"), (group.gpus, "GPUs"))
        )
        console.print(f"  {group.name}: {count} x {has}")
    console.print(f"[bold green]valid[/]: {escape(str(file))}" + (f", and {escape(str(job))} fits" if job else ""))


@app.command()
def render(
    job: Annotated[Path, typer.Argument(help="A job file.", show_default=False)],
    to: Annotated[Target, typer.Option(help="What it is rendered for.", show_default=False)],
    overrides: Annotated[list[str] | None, typer.Argument(help="Changes to the job.", show_default=False)] = None,
    name: Annotated[str | None, typer.Option(help="Name of the run; else made from the job's.")] = None,
    image: Annotated[str, typer.Option(help="KubeRay: the image of all nodes.")] = "heliostat:latest",
    per_node: Annotated[
        int | None, typer.Option(min=1, help="Workers on one node. [default: 1]", show_default=False)
    ] = None,
    hours: Annotated[float | None, typer.Option(help="When it is ended. [default: Slurm 24, KubeRay never]")] = None,
    data_is_there: Annotated[
        bool, typer.Option("--data-is-there", help="The data lies on the cluster: do not look for it here.")
    ] = False,
) -> None:
    """Print a RayJob for KubeRay, or a script for Slurm, that runs a job file."""
    from heliostat.clusters import rendering
    from heliostat.clusters.cluster_file import Site
    from heliostat.clusters.submission import plan

    made = plan(job, overrides or [], Site(), run=name, data_is_there=data_is_there)
    nodes = rendering.shape(made, per_node)
    if to is Target.KUBERAY:
        print(rendering.kuberay(made, nodes, image, hours=hours), end="")
    else:
        print(rendering.slurm(made, nodes, hours=hours), end="")


@app.command()
def up(file: _File, yes: _Yes = False) -> None:
    """Check a cluster file and start its cluster by Ray's own command, which is printed."""
    from heliostat.clusters.checking import check as look
    from heliostat.errors import require

    found = _startable(file)
    require(look(found).problems)
    _run(["up", str(file), *(["--yes"] if yes else [])])


@app.command()
def down(file: _File, yes: _Yes = False) -> None:
    """End a cluster by Ray's own command, which is printed."""
    _startable(file)
    _run(["down", str(file), *(["--yes"] if yes else [])])


@app.command()
def status(
    file: Annotated[Path | None, typer.Argument(help="A file for ray up.", show_default=False)] = None,
    address: Annotated[
        str | None,
        typer.Option(help="The cluster's dashboard. [default: $RAY_API_SERVER_ADDRESS, else $RAY_ADDRESS]"),
    ] = None,
) -> None:
    """Show a cluster's nodes and what is asked of them, as ``ray status`` does on one of them.

    From its dashboard, which needs neither Ray's command nor the token's file on the head node's own path.
    """
    import sys

    from heliostat.clusters.jobs import Jobs
    from heliostat.clusters.tunnel import reached
    from heliostat.errors import InputError, Problem

    if file is not None and address is not None:
        raise InputError(Problem("give a file or --address, not both", "command line"))
    found = _startable(file) if file is not None else None
    with reached(found, address, lambda line: print(line, file=sys.stderr)) as there:
        print(Jobs(there).nodes())


def _startable(file: Path) -> ClusterFile:
    from heliostat.clusters.cluster_file import read
    from heliostat.errors import InputError, Problem

    found = read(file)
    if found.kind != "ray-up":
        command = "kubectl apply -f" if found.kind == "kuberay" else "sbatch"
        raise InputError(Problem(f"a file of this kind is started with: {command} {file}", str(file)))
    return found


def _run(arguments: list[str]) -> None:
    """Show the command, run it here, and end as it ends."""
    import shlex
    import subprocess
    import sys

    print("ray", *map(shlex.quote, arguments), file=sys.stderr, flush=True)
    try:
        code = subprocess.run([sys.executable, "-m", "ray.scripts.scripts", *arguments], check=False).returncode
    except KeyboardInterrupt:
        code = 130
    if code:
        raise typer.Exit(code)
