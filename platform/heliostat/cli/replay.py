"""``heliostat replay``: make one step of a run again, and look at it closely."""

from __future__ import annotations

from typing import Annotated

import typer


def replay(
    run: Annotated[str, typer.Argument(help="The run's folder, or its name below runs/.", show_default=False)],
    step: Annotated[int, typer.Option(help="The step to make again, from 0.", show_default=False)],
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Repeat one training step in this process: its samples, loss and gradients, and where the first non-finite number
    arose.

    Starts from the newest checkpoint at or before the step. Writes nothing.
    """
    import json as json_module

    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from heliostat.training.replay import replay_step
    from heliostat.training.run_folder import RunFolder

    report = replay_step(RunFolder.open(run), step)
    if json:
        print(json_module.dumps(report.as_data(), indent=2))
        return
    console = Console(highlight=False)
    console.print(f"[bold]step {report.step}[/], made from the checkpoint of step {report.start}")
    samples = ", ".join(map(str, report.samples[:16])) + (" ..." if len(report.samples) > 16 else "")
    console.print(f"samples  {samples}", soft_wrap=True)
    for name, value in report.metrics.items():
        console.print(f"{name}  {value:.6g}")
    table = Table(title="largest gradients", title_justify="left", box=None)
    table.add_column("parameter")
    table.add_column("norm", justify="right")
    table.add_column("finite", justify="right")
    for gradient in report.gradients[:12]:
        table.add_row(gradient.parameter, f"{gradient.norm:.4g}", "yes" if gradient.finite else "[bold red]no[/]")
    console.print(table)
    if report.anomaly:
        console.print(f"[bold red]not finite[/]: {escape(str(report.anomaly))}", soft_wrap=True)
