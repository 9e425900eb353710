"""``heliostat run``: train what a job file describes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from heliostat.config.loading import Stage
    from heliostat.config.reinforcement import ReinforcementJob
    from heliostat.training.run_folder import RunFolder
    from heliostat.training.stages import Chain


def run(
    job: Annotated[Path, typer.Argument(help="A job file.", show_default=False)],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Changes such as optimization.batch_size=256", show_default=False)
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="Name of the run; else made from the job's.", show_default=False)
    ] = None,
    stage: Annotated[
        str | None,
        typer.Option(help="Only this stage of the file, as a run by itself.", show_default=False),
    ] = None,
    continue_: Annotated[
        bool,
        typer.Option("--continue", help="Go on with the run of this --name if it has begun, and start it if not."),
    ] = False,
    local: Annotated[bool, typer.Option("--local", help="In this process, without Ray.")] = False,
    profile: Annotated[bool, typer.Option("--profile", help="Measure where the time of a step goes.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the outcome as JSON, and nothing else.")] = False,
) -> None:
    """Train what a job file describes, evaluate it, and record it in MLflow.

    A file with stages runs them one after the other, each from what the one before it learned. Ctrl-C saves a
    checkpoint and says how to resume; a second Ctrl-C stops at once.
    """
    from heliostat.cli.display import Display
    from heliostat.config.loading import load, load_document
    from heliostat.config.reinforcement import ReinforcementJob
    from heliostat.config.sweep import SWEEP
    from heliostat.errors import InputError, Problem, require
    from heliostat.training import launch
    from heliostat.training.stages import Chain

    changes = list(overrides or [])
    if local:
        changes += local_changes(job, changes)
    stages = load(job, changes)
    if not json and SWEEP in load_document(job, changes).data:
        print(f"note: the sweep block is left aside; this is one run. The sweep itself: heliostat sweep {job}")
    if continue_ and go_on(stages, name, stage, json=json):
        return
    if isinstance(stages, ReinforcementJob):
        if profile:
            raise InputError(Problem("only training from a data set can be profiled, not play", "--profile"))
        run_agent(stages, name, stage, json=json)
        return
    if stage is not None:
        stages = (only(stages, stage, changes),)
    if len(stages) > 1:
        if profile:
            raise InputError(Problem("one stage at a time can be profiled: name it with --stage", "--profile"))
        run_chain(Chain.planned(stages, name), json=json)
        return
    display = Display(quiet=json)
    loaded = stages[0].job
    require(launch.check(loaded))
    display.job(launch.resolved(loaded))
    with display:
        finished = launch.start(loaded, display, name, profile=profile)
    display.finished(finished)
    if profile and not json and finished.folder.storage.exists("profile.json"):
        show_profile(display.console, finished.folder)
    display.leave(finished)


def go_on(given: tuple[Stage, ...] | ReinforcementJob, name: str | None, stage: str | None, *, json: bool) -> bool:
    """Go on with a run or chain that has begun; False where it has not."""
    import json as json_module

    from heliostat.cli.display import Display
    from heliostat.config.reinforcement import ReinforcementJob
    from heliostat.errors import InputError, Problem
    from heliostat.reinforcement import launch as agents
    from heliostat.training import launch
    from heliostat.training.continuation import begun, begun_chain, same_stages, same_trajectory
    from heliostat.training.stages import resolved

    if name is None or stage is not None:
        raise InputError(Problem("which run to go on with is said by --name, for the whole file", "--continue"))
    if not isinstance(given, ReinforcementJob) and len(given) > 1:
        chain = begun_chain(name, given[0].job.output)
        if chain is not None:
            same_stages(chain, [resolved(each) for each in given])
            run_chain(chain, json=json)
        return chain is not None
    job = given if isinstance(given, ReinforcementJob) else given[0].job
    folder = begun(name, job.output)
    if folder is None:
        return False
    if folder.about().get("status") == "finished":
        about = {"run": folder.name, "folder": folder.storage.uri, "status": "finished"}
        print(json_module.dumps(about, indent=2) if json else f"the run {folder.name} has finished already")
        return True
    display = Display(quiet=json)
    if isinstance(job, ReinforcementJob):
        known = same_trajectory(folder.any_job(), agents.resolved(job), folder.storage.uri)
    else:
        known = same_trajectory(folder.any_job(), launch.resolved(launch.settled(job)), folder.storage.uri)
    with display:
        if isinstance(known, ReinforcementJob):
            finished = agents.resume(folder, known, display)
        else:
            finished = launch.resume(folder, known, display)
    display.finished(finished)
    display.leave(finished)
    return True


def local_changes(path: Path, changes: list[str]) -> list[str]:
    """What makes a job one process; a job that already is one, or cannot be read, tells of its own problems."""
    from heliostat.config.loading import load
    from heliostat.config.reinforcement import ReinforcementJob

    loaded = load(path, changes)
    parts = ("actors", "shards", "learners") if isinstance(loaded, ReinforcementJob) else ("workers",)
    return ["resources.runtime=local", *(f"resources.{part}=1" for part in parts)]


def run_agent(job: ReinforcementJob, name: str | None, stage: str | None, *, json: bool) -> None:
    """Run a job of reinforcement learning."""
    from heliostat.cli.display import Display
    from heliostat.errors import InputError, Problem, require
    from heliostat.reinforcement import launch

    if stage is not None:
        raise InputError(Problem(f"there is no stage '{stage}': the file has no stages", "--stage"))
    display = Display(quiet=json)
    require(launch.check(job))
    display.job(launch.resolved(job))
    with display:
        finished = launch.start(job, display, name)
    display.finished(finished)
    display.leave(finished)


def only(stages: tuple[Stage, ...], name: str, changes: list[str]) -> Stage:
    """One stage of a file, to be run by itself."""
    from heliostat.errors import InputError, Problem, nearest

    found = {stage.name: stage for stage in stages if stage.name}
    if name not in found:
        hint = nearest(name, found) if found else " The file has no stages."
        raise InputError(Problem(f"there is no stage '{name}'.{hint}", "--stage"))
    stage = found[name]
    if stage.follows is not None:
        what = (
            f"stage '{name}' begins from a run of stage '{stage.follows}': name it with begin.run=RUN, or say "
            "begin=null to begin with random weights"
        )
        raise InputError(Problem(what, "--stage"))
    return stage


def run_chain(chain: Chain, *, json: bool) -> None:
    """Run the stages of a chain that are not finished; exits as the last one ended."""
    import json as json_module
    from contextlib import ExitStack

    from heliostat.cli.display import Display, as_data
    from heliostat.training.conduct import Finished, Watcher

    done: list[Finished] = []
    order = [stage.name for stage in chain.stages]
    with ExitStack() as shown:
        display = Display(quiet=json)

        def announce(stage: Stage, name: str) -> Watcher:
            nonlocal display
            display = Display(quiet=json)
            display.console.rule(
                f"stage {stage.name} ({order.index(stage.name) + 1} of {len(order)}): {name}", align="left"
            )
            display.job(stage.job)
            shown.enter_context(display)
            return display

        for finished in chain.run(announce):
            shown.close()
            done.append(finished)
            if not json:
                display.finished(finished, resume=chain.storage.uri)
    if json:
        print(json_module.dumps([as_data(finished) for finished in done], indent=2))
    if done:
        Display.leave(done[-1])


def show_profile(console: Console, folder: RunFolder) -> None:
    """The profile of a run as a table, with what to change."""
    from rich.table import Table

    found = folder.storage.read_json("profile.json")
    title = f"a step: {found['step_seconds'] * 1000:,.1f} ms, {found['samples_per_second']:,.0f} samples/s"
    table = Table(title=title, title_justify="left", title_style="bold", header_style="bold")
    for column in ("phase", "share", "ms", "ms over workers"):
        table.add_column(column, justify="left" if column == "phase" else "right")
    for name, part in found["parts"].items():
        spread = f"{part['least'] * 1000:,.1f} - {part['most'] * 1000:,.1f}" if found["workers"] > 1 else "-"
        table.add_row(name, f"{part['share']:.1%}", f"{part['seconds'] * 1000:,.1f}", spread)
    console.print(table)
    if found["exchange_seconds"] is not None:
        console.print(f"exchange of gradients by itself: {found['exchange_seconds'] * 1000:,.1f} ms")
    if found["utilisation"] is not None:
        peak = found["peak"]
        console.print(f"{found['utilisation']:.1%} of {peak['flops'] / 1e12:,.3f} TFLOP/s ({peak['source']})")
    console.print(
        f"peak memory {found['peak_memory_bytes'] / 2**20:,.0f} MiB; trace in {folder.storage.uri}/trace.json.gz"
    )
    for advice in found["advice"]:
        console.print(f"advice: {advice}", soft_wrap=True, markup=False)
