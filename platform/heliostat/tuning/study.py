"""The state of a sweep: its configurations, their trials, what they reported, and which is best.

Everything that happens is told to the study, which writes it to the journal; a resumed sweep reads the journal and is
where it was.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from heliostat.config.sweep import Sweep
from heliostat.errors import InputError, Problem
from heliostat.tuning.journal import Event, Journal
from heliostat.tuning.search import Search, Verdict
from heliostat.tuning.space import Assignment

Status: TypeAlias = Literal["waiting", "running", "finished", "pruned", "failed"]


@dataclass
class Trial:
    """One run of a configuration."""

    name: str
    """Of its run: the sweep's name, the configuration's number and, where there are several, the seed."""
    number: int
    """Of the configuration, from 0."""
    seed: int
    assigned: Assignment
    status: Status = "waiting"
    value: float | None = None
    """Its metric: the result of a finished trial, else the newest point."""
    step: int = 0
    share: float = 0.0
    """Part of the training that is done."""
    points: list[tuple[int, float, float]] = field(default_factory=list)
    """Step, share and value of what it reported on the way."""
    message: str = ""
    began: float | None = None
    """When it began, in seconds since 1970; in this process only."""
    seconds: float = 0.0
    """How long it took; of one that a resumed sweep went on with, the last part alone."""
    inherits: int | None = None
    """Of a member of a population: the step at which it last went on from another's state."""

    @property
    def over(self) -> bool:
        """Whether nothing is left to do."""
        return self.status in ("finished", "pruned", "failed")


@dataclass(frozen=True)
class Best:
    """The best configuration so far."""

    trials: tuple[Trial, ...]
    """Its runs, by seed."""
    value: float
    """Mean over them."""


class Study:
    """See the module.

    Args:
        name: of the sweep; begins those of its trials.
        sweep: the block.
        seeds: of each configuration's runs.
        search: proposes configurations.
        journal: is written to.
    """

    def __init__(self, name: str, sweep: Sweep, seeds: Sequence[int], search: Search, journal: Journal) -> None:
        self.name, self.sweep, self.seeds = name, sweep, tuple(seeds)
        self._search, self._journal = search, journal
        self.trials: dict[str, Trial] = {}
        self.configurations = 0
        self.generations: list[int] = []
        """Steps at which a population was changed."""
        self.reports: list[tuple[str, float, float]] = []
        """(name, share, value) of all points that trials told, in the order in which they came."""
        self.began = time.time()
        self._proposed = -1  # the newest configuration that this process asked for
        self._told: set[int] = set()  # configurations whose outcome the search knows

    @property
    def total(self) -> int:
        """Configurations that will be tried."""
        return self._search.total

    @property
    def prunes(self) -> bool:
        """Whether trials may be ended by comparison with others: then a configuration's further seeds run only once its
        first one has come through."""
        return self.sweep.scheduler.type in ("asha", "median")

    def restore(self, events: Sequence[Event]) -> None:
        """Take in what happened before this process.

        Raises:
            InputError: events that do not follow from each other, or are of another sweep.
        """
        for number, event in enumerate(events, 1):
            try:
                self._happened(event)
            except (KeyError, ValueError, TypeError) as error:
                what = f"event {number} of the sweep's journal does not follow from those before it ({error!r})"
                raise InputError(Problem(what, self.name)) from error
        for trial in self.trials.values():
            if not trial.over:
                trial.status = "waiting"

    # What happens

    def _record(self, event: Event) -> None:
        self._journal.append(event)
        self._happened(event)

    def _happened(self, event: Event) -> None:
        match event["event"]:
            case "configuration":
                self._add(event["number"], event["values"])
            case "report":
                trial = self.trials[event["trial"]]
                trial.step, trial.share, trial.value = event["step"], event["share"], event["value"]
                trial.points.append((event["step"], event["share"], event["value"]))
                self.reports.append((trial.name, event["share"], event["value"]))
            case "end":
                trial = self.trials[event["trial"]]
                trial.status, trial.message, trial.seconds = event["status"], event["message"], event["seconds"]
                trial.step = event["step"]
                if event["status"] == "finished":
                    trial.value, trial.share = event["value"], 1.0
                self._conclude(trial.number)
            case "generation":
                self.generations.append(event["step"])
                for name, values in event["values"].items():
                    self.trials[name].assigned, self.trials[name].inherits = values, event["step"]

    def _add(self, number: int, assigned: Assignment) -> None:
        if number != self._proposed:  # by an earlier process
            self._search.recall(number, assigned)
        self.configurations = number + 1
        for seed in self.seeds:
            suffix = f"-s{seed}" if len(self.seeds) > 1 else ""
            name = f"{self.name}-{number:03d}{suffix}"
            self.trials[name] = Trial(name, number, seed, dict(assigned))

    def _conclude(self, number: int) -> None:
        """Tell the search once a configuration's outcome is known."""
        trials = self.of(number)
        first = trials[0]
        points = [(step, value) for step, _, value in first.points]
        verdict: Verdict | None = None
        if any(trial.status == "failed" for trial in trials):
            verdict = "failed"
        elif any(trial.status == "pruned" for trial in trials):
            verdict = "pruned"
        elif all(trial.status == "finished" for trial in trials):
            verdict = "finished"
        if verdict is None or number in self._told:
            return
        self._told.add(number)
        self._search.tell(number, verdict, mean(trials) if verdict == "finished" else None, points)
        if verdict != "finished":  # its other seeds cannot make it the best
            for trial in trials:
                if trial.status == "waiting":
                    trial.status, trial.message = verdict, f"not run: another seed {_HOW[verdict]}"

    def of(self, number: int) -> list[Trial]:
        """The trials of a configuration, by seed."""
        return [trial for trial in list(self.trials.values()) if trial.number == number]

    # Work

    def next(self) -> Trial | None:
        """The trial to run next; None where there is none now. Asks the search where nothing else waits."""
        for trial in self.trials.values():
            if trial.status == "waiting" and (not self.prunes or self._first(trial)):
                return trial
        if self.configurations < self.total:
            number = self.configurations
            assigned = self._search.propose(number)
            self._proposed = number
            self._record({"event": "configuration", "number": number, "values": assigned})
            return self.of(number)[0]
        return None

    def _first(self, trial: Trial) -> bool:
        first = self.of(trial.number)[0]
        return trial is first or first.status == "finished"

    @property
    def exhausted(self) -> bool:
        """Whether every configuration was tried and every trial is over."""
        return self.configurations >= self.total and all(trial.over for trial in list(self.trials.values()))

    def start(self, name: str) -> None:
        """A trial has a process."""
        trial = self.trials[name]
        trial.status, trial.began = "running", time.time()

    def progress(self, name: str, step: int, share: float) -> None:
        """A trial has come so far; worth showing, not worth keeping."""
        trial = self.trials[name]
        trial.step, trial.share = step, share

    def report(self, name: str, step: int, share: float, value: float) -> None:
        """A trial told a point of the metric."""
        points = self.trials[name].points
        if not points or step > points[-1][0]:  # a trial whose process was lost repeats some
            self._record({"event": "report", "trial": name, "step": step, "share": share, "value": value})

    def end(self, name: str, status: Verdict, value: float | None, step: int, message: str) -> None:
        """A trial is over; a value that is no number is a failure."""
        trial = self.trials[name]
        if trial.over:
            return
        if status == "finished" and (value is None or not math.isfinite(value)):
            status, message = "failed", f"its {self.sweep.metric} is {value}"
        seconds = time.time() - trial.began if trial.began is not None else 0.0
        event: Event = {"event": "end", "trial": name, "status": status, "step": step, "message": message}
        self._record({**event, "value": value if status == "finished" else None, "seconds": round(seconds, 1)})

    def generation(self, step: int, values: Mapping[str, Assignment], donors: Mapping[str, str]) -> None:
        """A population was changed: new values and whose state each replaced member goes on from."""
        plain: dict[str, Any] = {"values": dict(values), "donors": dict(donors)}
        self._record({"event": "generation", "step": step, **plain})

    # What came out

    def best(self) -> Best | None:
        """The configuration with the best mean over its seeds, among those that finished; the earlier of equals."""
        found: Best | None = None
        sign = 1 if self.sweep.mode == "max" else -1
        for number in range(self.configurations):
            trials = self.of(number)
            if all(trial.status == "finished" for trial in trials):
                value = mean(trials)
                if found is None or sign * value > sign * found.value:
                    found = Best(tuple(trials), value)
        return found

    def left_seconds(self) -> float | None:
        """How long the rest may take, by what was done in how long; None before anything was."""
        whole = self.total * len(self.seeds)
        done = sum(1.0 if trial.over else trial.share for trial in list(self.trials.values()))
        before = sum(1.0 for trial in list(self.trials.values()) if trial.over and trial.began is None)
        worked = done - before
        if worked <= 0:
            return None
        return (time.time() - self.began) / worked * max(0.0, whole - done)


_HOW = {"failed": "failed", "pruned": "was ended early"}


def mean(trials: Sequence[Trial]) -> float:
    """Mean of the trials' values."""
    return math.fsum(trial.value for trial in trials if trial.value is not None) / len(trials)
