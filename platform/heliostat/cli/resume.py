"""``heliostat resume``: continue a run that was interrupted, killed or failed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from heliostat.training.run_folder import RunFolder


def resume(
    run: Annotated[
        str, typer.Argument(help="The folder of a run or of a chain of stages, or its name.", show_default=False)
    ],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Changes to resources, tracking or checkpoint.", show_default=False)
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the outcome as JSON, and nothing else.")] = False,
) -> None:
    """Continue a run from its newest checkpoint, exactly where an uninterrupted run would be."""
    from heliostat.cli.display import Display
    from heliostat.cli.run import run_chain
    from heliostat.config.reinforcement import ReinforcementJob
    from heliostat.errors import InputError, Problem
    from heliostat.reinforcement import launch as agents
    from heliostat.training import launch
    from heliostat.training.continuation import FREE
    from heliostat.training.run_folder import RunFolder
    from heliostat.training.stages import Chain
    from heliostat.tuning import launch as sweeps

    swept = sweeps.find(run)
    if swept is not None:
        resume_sweep(swept, overrides or [])
        return
    chain = Chain.open(run)
    if chain is not None:
        if overrides:
            what = "the stages of a chain keep their jobs; resume the stage's own run to change its resources"
            raise InputError(Problem(what, f"command line, '{overrides[0]}'"))
        run_chain(chain, json=json)
        return
    folder = RunFolder.open(run)
    if folder.about().get("status") == "finished":
        raise InputError(Problem("this run has finished; there is nothing to continue", folder.storage.uri))
    for change in overrides or []:
        if change.split(".")[0] not in FREE:
            free = ", ".join(FREE)
            what = f"a resumed run keeps its job; only {free} may change. Start a new run for another experiment"
            raise InputError(Problem(what, f"command line, '{change}'"))
    job = folder.any_job(overrides or [])
    display = Display(quiet=json)
    with display:
        if isinstance(job, ReinforcementJob):
            finished = agents.resume(folder, job, display)
        else:
            finished = launch.resume(folder, job, display)
    display.finished(finished)
    display.leave(finished)


def resume_sweep(folder: RunFolder, overrides: list[str]) -> None:
    """Go on with a sweep."""
    from heliostat.cli.sweep import SweepDisplay
    from heliostat.errors import InputError, Problem
    from heliostat.tuning import launch

    if overrides:
        raise InputError(Problem("a resumed sweep keeps its job", f"command line, '{overrides[0]}'"))
    if folder.about().get("status") == "finished":
        raise InputError(Problem("this sweep has finished; there is nothing to continue", folder.storage.uri))
    display = SweepDisplay()
    with display:
        swept = launch.resume(folder, display)
    display.finished(swept)
