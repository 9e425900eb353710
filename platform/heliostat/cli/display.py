"""What a person sees of a run: the job, the progress, notices, the result and what to do next."""

from __future__ import annotations

import json
import logging
import shutil
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text

from heliostat.tracking.location import display_uri
from heliostat.tracking.metrics import Cell, cell

if TYPE_CHECKING:
    from heliostat.config.loading import AnyJob
    from heliostat.training.conduct import Finished
    from heliostat.training.monitor import Progress as RunProgress
    from heliostat.training.monitor import Snapshot

_PLAIN_SECONDS = 10.0
"""Time between two lines where there is no terminal."""


class Display:
    """Shows one run: a moving bar on a terminal, a line now and then in a log.

    Args:
        quiet: show nothing but the outcome, as JSON.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self._quiet = quiet
        self.console = Console(quiet=quiet, highlight=False)
        self._bar: Progress | None = None
        self._notices = 0
        self._last_line, self._last = 0.0, ("", -1)
        self._began = time.monotonic()

    def job(self, job: AnyJob) -> None:
        """The resolved job."""
        from heliostat.config.loading import dump

        self.console.print(
            Syntax(dump(job, self.console.width - 12), "yaml", theme="ansi_dark", background_color="default")
        )

    def __enter__(self) -> Self:
        logging.basicConfig(level=logging.WARNING, format="%(message)s")
        if self.console.is_terminal and not self._quiet:
            columns: tuple[ProgressColumn, ...] = (
                TextColumn("{task.description:<28}"),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TextColumn("{task.fields[numbers]}"),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
            )
            self._bar = Progress(*columns, console=self.console)
            self._task = self._bar.add_task("loading data, starting workers", total=None, numbers="")
            self._bar.start()
        else:
            self.console.print("loading data, starting workers")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def show(self, snapshot: Snapshot) -> None:
        """The newest state of the run."""
        for notice in snapshot.notices[self._notices :]:
            self.console.print(Text.assemble(("note: ", "bold yellow"), notice))
        self._notices = len(snapshot.notices)
        progress = snapshot.progress
        if progress is None:
            return
        if self._bar is not None:
            self._bar.update(
                self._task,
                description=progress.activity,
                completed=progress.step,
                total=progress.total_steps,
                numbers=_numbers(progress),
            )
        elif self._worth_a_line(progress):
            self._last_line, self._last = time.monotonic(), (progress.activity, progress.step)
            share = progress.step / progress.total_steps
            where = f"step {progress.step}/{progress.total_steps} ({share:.0%})"
            self.console.print(f"{progress.activity}: {where} {_numbers(progress)}".rstrip(), markup=False)

    def _worth_a_line(self, progress: RunProgress) -> bool:
        """In a log: every new activity, and news of an old one now and then; no news once a minute."""
        activity, step = self._last
        pause = _PLAIN_SECONDS if progress.step != step else 6 * _PLAIN_SECONDS
        return progress.activity != activity or time.monotonic() - self._last_line > pause

    def finished(self, finished: Finished, resume: str | None = None) -> None:
        """How the run ended, and what can be done next; ``resume`` names what is resumed in place of the run: the chain
        that it is a stage of."""
        if self._quiet:
            print(json.dumps(as_data(finished), indent=2))
            return
        outcome, run = finished.outcome, finished.folder
        where = _relative(run.storage.uri)
        minutes, seconds = divmod(round(time.monotonic() - self._began), 60)
        if outcome.status == "finished":
            if outcome.results:
                self.console.print(results_table(outcome.results, run.name))
            self.console.print(f"[bold green]finished[/] {run.name} in {minutes} min {seconds} s")
        elif outcome.status == "interrupted":
            saved = outcome.message or f"checkpoint of step {outcome.step} saved"
            self.console.print(f"[bold yellow]interrupted[/]: {escape(saved)}. Continue with:")
            what = _relative(resume) if resume else where
            self.console.print(f"  {_program()} resume {what}", soft_wrap=True, markup=False)
        else:
            self.console.print(Text.assemble(("failed: ", "bold red"), outcome.message), soft_wrap=True)
        uri = display_uri(finished.tracking_uri)
        if finished.tracking.pending:
            unsent = f"{finished.tracking.pending} records could not be sent to {uri}; they are kept in {where}"
            self.console.print(f"[bold yellow]note[/]: {escape(unsent)}", soft_wrap=True)
        self.console.print(f"  files     {where}", soft_wrap=True, markup=False)
        self.console.print(f"  compare   {_program()} compare {run.name}", soft_wrap=True)
        self.console.print(f"  MLflow    {_program()} ui    ({uri})", soft_wrap=True, markup=False)

    @staticmethod
    def leave(finished: Finished) -> None:
        """Exit as the run ended: 0 finished, 1 failed, 130 interrupted."""
        code = {"finished": 0, "failed": 1, "interrupted": 130}[finished.outcome.status]
        if code:
            sys.exit(code)


def _numbers(progress: RunProgress) -> str:
    parts = [] if progress.loss is None else [f"epoch {progress.epoch:.1f}", f"loss {progress.loss:.4f}"]
    if progress.samples_per_second is not None:
        parts.append(f"{progress.samples_per_second:,.0f} samples/s")
    if progress.facts:
        parts.append(progress.facts)
    return "  ".join(parts)


def _relative(uri: str) -> str:
    """A path below the current directory without the directory."""
    return uri.removeprefix(f"{Path.cwd()}/")


def _program() -> str:
    """How to call this program from here: by its name if the shell finds it, else by its place, as in ``.venv/bin``."""
    called = Path(sys.argv[0])
    if shutil.which("heliostat") is not None or called.name != "heliostat":
        return "heliostat"
    return _relative(str(called.absolute()))


def as_data(finished: Finished) -> dict[str, Any]:
    """The end of a run for JSON."""
    return {
        "run": finished.folder.name,
        "folder": finished.folder.storage.uri,
        "status": finished.outcome.status,
        "step": finished.outcome.step,
        "message": finished.outcome.message,
        "results": finished.outcome.results,
        "tracking_uri": display_uri(finished.tracking_uri),
        "tracking_pending": finished.tracking.pending,
    }


_COLUMNS = {
    "eval": "trained",
    "baseline/untrained": "untrained",
    "baseline/pixels": "raw pixels",
    "baseline/random": "random",
}


def results_table(results: dict[str, float], title: str) -> Table:
    """Each measure of the trained network beside the same measure of the method's other networks and of the baselines;
    shares as per cent, with intervals."""
    found: dict[str, dict[str, float]] = {}
    for name, value in results.items():
        prefix, _, metric = name.rpartition("/")
        found.setdefault(metric, {})[prefix] = value
    seen = {prefix for values in found.values() for prefix in values}
    others = {prefix: prefix.removeprefix("eval/") for prefix in sorted(seen) if prefix.startswith("eval/")}
    titles = {"eval": _COLUMNS["eval"], **others, **_COLUMNS}
    columns = [prefix for prefix in titles if prefix in seen]
    table = Table(title=title, title_justify="left", title_style="bold", header_style="bold")
    table.add_column("measure")
    for prefix in columns:
        table.add_column(titles[prefix].replace("_", " "), justify="right")
    for metric in found:
        if not metric.endswith("_interval"):
            table.add_row(metric, *(str(_cell(metric, found, prefix) or "-") for prefix in columns))
    return table


def _cell(metric: str, found: dict[str, dict[str, float]], prefix: str) -> Cell | None:
    metrics = {name: values[prefix] for name, values in found.items() if prefix in values}
    return cell(metrics, metric)
