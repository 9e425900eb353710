"""``heliostat doctor``: whether this machine can run experiments, and what to do where it cannot."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from heliostat.diagnosis.finding import Finding


def doctor(
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    uri: Annotated[
        str | None, typer.Option("--uri", help="Tracking store. [default: $MLFLOW_TRACKING_URI, else ./mlflow.db]")
    ] = None,
    output: Annotated[str, typer.Option(help="Where runs go: a folder, s3://..., gs://...")] = "runs",
    address: Annotated[
        str | None,
        typer.Option(help="A cluster's dashboard. [default: $RAY_API_SERVER_ADDRESS]", show_default=False),
    ] = None,
) -> None:
    """Look at versions, devices, memory, disks, ports, storage, the tracking store, Ray's token and cluster.

    Exit code 1 if something would stop a run.
    """
    from heliostat.diagnosis import machine, services

    findings = [
        *machine.versions(),
        *machine.devices(),
        *machine.memory(),
        *machine.disks(),
        services.storage(output),
        services.tracking(uri),
        *machine.ports(),
        services.token(),
        *services.ray_clusters(address),
    ]
    if json:
        import json as json_module
        from dataclasses import asdict

        print(json_module.dumps([asdict(finding) for finding in findings], indent=2))
    else:
        _print(findings)
    if any(finding.level == "problem" for finding in findings):
        raise typer.Exit(1)


def _print(findings: list[Finding]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    styles = {"ok": "green", "warning": "yellow", "problem": "bold red"}
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 1))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for finding in findings:
        text = Text(finding.found)
        if finding.advice:
            text.append(f"\n{finding.advice}", styles[finding.level])
        table.add_row(Text(finding.level, styles[finding.level]), Text(finding.name), text)
    console.print(table)
    count = {level: sum(finding.level == level for finding in findings) for level in styles}
    said = [
        f"{count[level]} {level}{'s' if count[level] > 1 else ''}" for level in ("problem", "warning") if count[level]
    ]
    console.print(f"\n{', '.join(said) or 'All is well'}.")
