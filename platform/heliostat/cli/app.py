"""The command line's entry point: registers the verbs, and turns errors into sentences and exit codes."""

from __future__ import annotations

import json
import sys

import typer

from heliostat.cli import (
    cluster,
    compare,
    data,
    doctor,
    evaluate,
    jobs,
    list_,
    play,
    register,
    replay,
    resume,
    run,
    runs,
    sample,
    submit,
    sweep,
    ui,
    validate,
)
from heliostat.errors import InputError, PartLost, RunError
from heliostat.training.allocation import keep_freed_memory

app = typer.Typer(
    name="heliostat",
    help="Run landmark machine-learning papers as experiments, from a laptop to a cluster, and compare what came out.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("run")(run.run)
app.command("sweep")(sweep.sweep)
app.command("validate")(validate.validate)
app.command("list")(list_.list_)
app.command("resume")(resume.resume)
app.command("replay")(replay.replay)
app.command("runs")(runs.runs)
app.command("compare")(compare.compare)
app.command("register")(register.register)
app.command("evaluate")(evaluate.evaluate)
app.command("play")(play.play)
app.command("sample")(sample.sample)
app.add_typer(data.app, name="data")
app.command("submit")(submit.submit)
app.add_typer(jobs.app)
app.add_typer(cluster.app)
app.command("ui")(ui.ui)
app.command("doctor")(doctor.doctor)


def main() -> None:
    """Entry point.

    Exit codes: 0 done, 1 the run failed, 2 the input was wrong, 75 a part of it was lost and it can go on (EX_TEMPFAIL
    of sysexits.h), 130 interrupted.
    """
    keep_freed_memory()  # this process trains, with --local, or evaluates
    try:
        app()
    except InputError as error:
        _tell("wrong input", [str(problem) for problem in error.problems])
        sys.exit(2)
    except PartLost as error:
        _tell("lost", [str(error)])
        sys.exit(75)
    except (RunError, OSError) as error:  # a full disk, a lost mount
        _tell("failed", [str(error)])
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


def _tell(what: str, problems: list[str]) -> None:
    """Errors on standard error: as lines, or as JSON where the caller asked for JSON."""
    if "--json" in sys.argv:
        print(json.dumps({"error": what, "problems": problems}), file=sys.stderr)
        return
    from rich.console import Console
    from rich.text import Text

    console = Console(stderr=True, soft_wrap=True)
    for problem in problems:
        console.print(Text.assemble((f"{what}: ", "bold red"), problem))
