"""From a job file with a ``sweep:`` block to the jobs of its trials, and to all that is wrong with it before anything
starts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from heliostat.config.document import Document
from heliostat.config.job import Job
from heliostat.config.loading import AnyJob, job_of, sweep_of
from heliostat.config.reinforcement import ReinforcementJob
from heliostat.config.sweep import SWEEP, Sweep
from heliostat.errors import InputError, Problem, require
from heliostat.reinforcement import launch as agents
from heliostat.training import launch
from heliostat.training.datasets import Datasets, minibatches, total_steps
from heliostat.tuning.objective import check_boundaries, check_metrics
from heliostat.tuning.search import build
from heliostat.tuning.space import Assignment, Space, label

_RECORDED = ("name", "output", "tracking", SWEEP, "stages")
"""Sections that say where a trial is recorded rather than what it computes."""
_FIXED_IN_POPULATION = (
    "seed", "data", "begin", "environment", "rollout", "replay", "evaluation", "resources", "checkpoint",
    "algorithm.type", "optimization.batch_size", "optimization.epochs", "optimization.steps",
    "optimization.optimizer.type", "optimization.precision",
)  # fmt: skip
"""What a member of a population cannot change while it trains."""
_CHECKED_COMBINATIONS = 256
"""Random and grid configurations that are validated as a whole before the first starts; later ones when they start."""


@dataclass(frozen=True)
class Plan:
    """A sweep that is well-formed."""

    document: Document
    job: AnyJob
    """As ``heliostat run`` would take it."""
    sweep: Sweep
    space: Space

    @staticmethod
    def of(document: Document) -> Plan:
        """Read a document.

        Raises:
            InputError: with every problem of the form of the job and of the block.
        """
        if "stages" in document.data:
            raise InputError(Problem("a sweep is over a job without stages", document.place(("stages",))))
        problems: list[Problem] = []
        parts: list[Any] = []
        for read in (job_of, sweep_of):
            try:
                parts.append(read(document))
            except InputError as error:
                problems += error.problems
        require(problems)
        job, sweep = parts
        return Plan(document, job, sweep, Space(sweep.parameters))

    @property
    def seeds(self) -> tuple[int, ...]:
        """Of the runs of each configuration."""
        seeds = self.sweep.seeds
        return seeds if isinstance(seeds, tuple) else tuple(range(self.job.seed, self.job.seed + seeds))

    def with_values(self, assigned: Mapping[str, Any], seed: int | None = None) -> AnyJob:
        """The job with some fields replaced.

        Raises:
            InputError: they do not make a job; places are those of the parameters.
        """
        document = self.document.copy()
        for path, value in sorted(assigned.items(), key=lambda item: self.space.order.index(item[0])):
            document.assign(path, value, self.place(path))
        if seed is not None and "seed" not in assigned:
            document.assign("seed", seed, self.document.place((SWEEP, "seeds")))
        return job_of(document)

    def place(self, path: str) -> str:
        """Where the file has a parameter."""
        return self.document.place((SWEEP, "parameters", path))

    def sweeps(self, section: str) -> bool:
        """Whether anything of a section varies."""
        return any(path.split(".")[0] == section for path in self.sweep.parameters)

    def settled(self) -> Plan:
        """The same with places that mean the same from everywhere: the sweep may be resumed from another folder."""
        document = self.document.copy()
        resolved = _resolved(self.job).resolved()
        from heliostat.training.storage import Storage

        document.data["output"] = Storage(self.job.output).uri
        document.data["tracking"] = resolved["tracking"]
        for section in ("data", "begin"):
            if document.data.get(section) is not None and not self.sweeps(section):
                document.data[section] = resolved[section]
        return Plan.of(document)

    def text(self) -> str:
        """The job file, as :meth:`read` takes it."""
        return yaml.safe_dump(self.document.data, sort_keys=False, default_flow_style=None, width=120)

    @staticmethod
    def read(text: str, name: str) -> Plan:
        """Take back :meth:`text`."""
        return Plan.of(Document(text, name))


def check(plan: Plan) -> None:
    """Everything that can be seen without decoding data or starting anything.

    Raises:
        InputError: with all of it.
    """
    problems = [Problem(problem.what, plan.place(problem.where)) for problem in plan.space.problems]
    problems += _check(plan.job)
    problems += _check_paths(plan) + check_metrics(plan)
    known = set(problems)
    for path, value, needed in plan.space.trials():
        problems += [found for found in _check_value(plan, path, value, needed) if found not in known]
    if not problems:
        problems = _check_combinations(plan)
    require(list(dict.fromkeys(problems)))


def _check(job: AnyJob) -> list[Problem]:
    return agents.check(job) if isinstance(job, ReinforcementJob) else launch.check(job)


def _resolved(job: AnyJob) -> AnyJob:
    return agents.resolved(job) if isinstance(job, ReinforcementJob) else launch.resolved(job)


def _check_value(plan: Plan, path: str, value: Any, needed: Assignment) -> list[Problem]:
    try:
        job = plan.with_values({**needed, path: value})
    except InputError as error:
        return list(error.problems)
    shown = f"with {path} = {label(plan.space.parameters[path], value)}"
    return [Problem(f"{shown}: {_told(problem)}", plan.place(path)) for problem in _check(job)]


def _told(problem: Problem) -> str:
    return f"{problem.where}: {problem.what}" if problem.where else problem.what


def _check_paths(plan: Plan) -> list[Problem]:
    sweep, problems = plan.sweep, []
    if sweep.scheduler.type == "pbt" and plan.job.checkpoint.keep < 2:
        what = "a member of a population that is killed may have to go back by one checkpoint; keep at least 2"
        problems.append(Problem(what, plan.document.place(("checkpoint", "keep"))))
    for path, parameter in sweep.parameters.items():
        place = plan.place(path)
        if path.split(".")[0] in _RECORDED:
            problems.append(Problem(f"{path} says where a run is recorded, not what it computes", place))
        if path == "seed" and sweep.seeds != 1:
            problems.append(
                Problem("seed is a parameter here; leave seeds out, or vary the seed by seeds alone", place)
            )
        kinds = {parameter.type, *(inner.type for inner in getattr(parameter, "cases", {}).values())}
        if sweep.search.type == "grid" and kinds & {"uniform", "log-uniform"}:
            problems.append(Problem(f"a grid search needs values of {path} that can be listed: choice or grid", place))
        if "grid" in kinds and (sweep.search.type == "optuna" or sweep.scheduler.type == "pbt"):
            who = "optuna" if sweep.search.type == "optuna" else "pbt"
            problems.append(Problem(f"{who} decides itself which values are tried; make {path} a choice", place))
        fixed = next((part for part in _FIXED_IN_POPULATION if path == part or path.startswith(f"{part}.")), None)
        if sweep.scheduler.type == "pbt" and fixed is not None:
            what = f"a member of a population cannot change {path} while it trains; sweep over it without pbt"
            problems.append(Problem(what, place))
    return problems


def _check_combinations(plan: Plan) -> list[Problem]:
    """Values that are right by themselves and wrong together."""
    if plan.sweep.search.type == "optuna":
        return []
    search, problems = build(plan.sweep, plan.space), []
    for number in range(min(search.total, _CHECKED_COMBINATIONS)):
        assigned = search.propose(number)
        shown = ", ".join(f"{path} = {text}" for path, text in plan.space.labels(assigned).items())
        try:
            found = _check(plan.with_values(assigned))
        except InputError as error:
            found = list(error.problems)
        problems += [
            Problem(f"together, {shown}: {_told(problem)}", plan.document.place((SWEEP,))) for problem in found
        ]
    return problems


def check_job(plan: Plan, assigned: Assignment, seed: int) -> AnyJob:
    """A trial's job, checked.

    Raises:
        InputError: the values are wrong together.
    """
    job = plan.with_values(assigned, seed)
    require(_check(job))
    return _resolved(job)


# Data


@dataclass(frozen=True)
class Material:
    """What all trials learn from, and how long they train."""

    data: Datasets | None
    """Decoded once for all; None where trials differ in it, or play."""
    total_steps: int


def gather(plan: Plan) -> Material:
    """Decode the data, and check every value against it.

    Raises:
        InputError: with all that does not fit.
    """
    job = plan.job
    if isinstance(job, ReinforcementJob):
        require(check_boundaries(plan, job.optimization.steps, None))
        return Material(None, job.optimization.steps)
    data = launch.load(job)
    steps = len(data.train) // (minibatches(job) * job.optimization.batch_size)
    material = Material(data, total_steps(job, steps))
    several = len(plan.seeds) > 1 or plan.sweeps("seed")
    if plan.sweeps("data") or (job.data.train_fraction < 1 and several):  # the share is drawn from the seed
        return Material(None, material.total_steps)
    problems = check_boundaries(plan, material.total_steps, steps)
    shapes = _shapes(job, data) if plan.sweep.scheduler.type == "pbt" else {}
    for path, value, needed in plan.space.trials():
        varied = plan.with_values({**needed, path: value})
        assert isinstance(varied, Job)
        shown = f"with {path} = {label(plan.space.parameters[path], value)}"
        try:
            launch.check_fit(varied, data)
        except InputError as error:
            problems += [Problem(f"{shown}: {_told(problem)}", plan.place(path)) for problem in error.problems]
        else:
            if shapes and _shapes(varied, data) != shapes:
                what = f"{shown} the network has other weights, so that members of a population could not be copied"
                problems.append(Problem(what, plan.place(path)))
    require(list(dict.fromkeys(problems)))
    return material


def _shapes(job: Job, data: Datasets) -> dict[str, Any]:
    from heliostat.training.state import build_algorithm

    return {name: tensor.shape for name, tensor in build_algorithm(job, data.train.spec()).state_dict().items()}
