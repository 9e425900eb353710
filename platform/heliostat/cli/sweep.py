"""``heliostat sweep``: run a job with many values of some of its fields, and find the best."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from heliostat.tuning.launch import Swept
    from heliostat.tuning.study import Study, Trial


def sweep(
    job: Annotated[Path, typer.Argument(help="A job file with a sweep block.", show_default=False)],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Changes such as sweep.samples=16", show_default=False)
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="Name of the sweep; else made from the job's.", show_default=False)
    ] = None,
) -> None:
    """Try many values of some fields of a job, each as a full run, and write the best as a job file.

    Ctrl-C lets every running trial save a checkpoint and says how to resume.
    """
    from heliostat.config.loading import load_document
    from heliostat.tuning import launch
    from heliostat.tuning.plan import Plan

    display = SweepDisplay()
    with display:
        swept = launch.start(Plan.of(load_document(job, overrides or [])), display, name)
    display.finished(swept)


class SweepDisplay:
    """Shows a sweep: a table that moves on a terminal, lines in a log."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.live import Live

        self.console = Console(highlight=False)
        self._live = Live(console=self.console, refresh_per_second=2) if self.console.is_terminal else None
        self._notices = 0
        self._told: dict[str, str] = {}
        self._line = time.monotonic()

    def __enter__(self) -> SweepDisplay:
        self.console.print("checking, loading data, starting Ray")
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._live is not None:
            self._live.stop()

    def show(self, study: Study, notices: list[str]) -> None:
        """The newest state."""
        from rich.markup import escape

        for notice in notices[self._notices :]:
            self.console.print(f"[bold yellow]note:[/] {escape(notice)}", soft_wrap=True)
        self._notices = len(notices)
        if self._live is not None:
            self._live.update(table(study))
            return
        for trial in list(study.trials.values()):
            if trial.status != self._told.get(trial.name, "waiting"):
                self._told[trial.name] = trial.status
                self.console.print(
                    f"{trial.name}: {trial.status} {_values(trial)} {_metric(study, trial)}".rstrip(), markup=False
                )
        if time.monotonic() - self._line > 30:
            self._line = time.monotonic()
            self.console.print(_summary(study))

    def finished(self, swept: Swept) -> None:
        """How it ended, and what can be done next; exits as it ended."""
        from rich.markup import escape

        study, folder = swept.study, swept.folder.storage.uri
        self.console.print(table(study))
        if swept.best is not None:
            first = swept.best.trials[0]
            what = f"{first.name}, {study.sweep.metric} = {swept.best.value:.6g}; {_values(first)}"
            self.console.print(f"best: {what}", markup=False)
            self.console.print(f"  run it    heliostat run {folder}/best.yaml", soft_wrap=True, markup=False)
        if swept.status == "interrupted":
            what = "interrupted: running trials saved their checkpoints. Continue with:"
            self.console.print(f"[bold yellow]{what}[/]\n  heliostat resume {escape(folder)}", soft_wrap=True)
        elif swept.status == "failed":
            self.console.print(f"[bold red]failed:[/] {escape(str(swept.message))}", soft_wrap=True)
        self.console.print(f"  files     {folder}", soft_wrap=True, markup=False)
        code = {"finished": 0, "failed": 1, "interrupted": 130}[swept.status]
        if code:
            sys.exit(code)


def table(study: Study) -> Table:
    """All trials."""
    from rich.table import Table

    shown = Table(title=_summary(study), title_justify="left", header_style="bold")
    for column in ("trial", "status", "parameters", "done", study.sweep.metric):
        shown.add_column(column)
    for trial in list(study.trials.values()):
        shown.add_row(trial.name, trial.status, _values(trial), f"{trial.share:.0%}", _metric(study, trial))
    return shown


def _summary(study: Study) -> str:
    trials, best, left = list(study.trials.values()), study.best(), study.left_seconds()
    over = sum(trial.over for trial in trials)
    parts = [f"{over} of {study.total * len(study.seeds)} trials over"]
    parts += [f"best so far {best.value:.5g} ({best.trials[0].name})"] if best is not None else []
    parts += [f"about {left / 60:.0f} min left"] if left else []
    return ", ".join(parts)


def _values(trial: Trial) -> str:
    return ", ".join(
        f"{path.rpartition('.')[2]} = {value:.4g}"
        if isinstance(value, float)
        else f"{path.rpartition('.')[2]} = {value}"
        for path, value in trial.assigned.items()
    )


def _metric(study: Study, trial: Trial) -> str:
    return "" if trial.value is None else f"{trial.value:.5g}"
