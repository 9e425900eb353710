"""Where a run begins when not from random weights: another run's checkpoint, taken over by the algorithm itself."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.optim import Optimizer

from heliostat.config.job import Begin, Job
from heliostat.errors import InputError, Problem
from heliostat.training.checkpoint import check_architecture
from heliostat.training.run_folder import RunFolder
from heliostat.training.state import TrainingState, build_algorithm
from heliostat_algorithms.algorithm import Algorithm, DataSpec, TokenSpec


@dataclass(frozen=True)
class Origin:
    """A checkpoint of another run."""

    folder: RunFolder
    step: int
    optimizer: bool
    """Whether the optimiser's state is taken over, too."""

    @property
    def uri(self) -> str:
        """Where the checkpoint is."""
        return self.folder.checkpoints().uri(self.step)

    def pinned(self) -> Begin:
        """The same origin by its absolute place and step: it means the same on every machine and at any time."""
        return Begin(run=self.folder.storage.uri, checkpoint=self.step, optimizer=self.optimizer)


def find_origin(begin: Begin, output: str) -> Origin:
    """The checkpoint that a job names.

    Raises:
        InputError: there is no such run or checkpoint.
    """
    if begin.run is None:
        raise InputError(
            Problem("say which run to begin from; only a stage after another one may leave it out", "begin")
        )
    folder = RunFolder.open(begin.run, output)
    steps = folder.checkpoints().steps()
    if not steps:
        raise InputError(Problem(f"the run {folder.storage.uri} has no checkpoint to begin from", "begin.run"))
    if begin.checkpoint is not None and begin.checkpoint not in steps:
        known = ", ".join(map(str, steps))
        what = f"the run {folder.storage.uri} has no checkpoint of step {begin.checkpoint}; complete ones: {known}"
        raise InputError(Problem(what, "begin.checkpoint"))
    return Origin(folder, begin.checkpoint or steps[-1], begin.optimizer)


def spec_facts(spec: DataSpec) -> dict[str, Any]:
    """What a checkpoint's manifest says of the data; plain data. What is not images says so."""
    facts = dataclasses.asdict(spec)
    return {name: value for name, value in facts.items() if name not in ("tokens", "points") or value}


def spec_from(facts: Mapping[str, Any]) -> DataSpec:
    """The other way round."""
    tokens = facts.get("tokens")
    return DataSpec(
        image_shape=tuple(facts["image_shape"]),
        classes=facts["classes"],
        frames=facts.get("frames"),
        points=facts.get("points", False),
        tokens=None if tokens is None else TokenSpec(**tokens),
    )


def begin_from(state: TrainingState, origin: Origin, device: torch.device | str) -> None:
    """Hand the origin's algorithm over to a new run's, and the optimiser's state where that is asked for.

    Raises:
        InputError: the algorithm cannot begin from it.
    """
    store = origin.folder.checkpoints()
    saved = store.load(origin.step, device)
    other_data = spec_from(store.manifest(origin.step)["data"])
    other_job = origin.folder.job()
    other = build_algorithm(other_job, other_data).to(device)
    check_architecture(other.state_dict(), saved["algorithm"], origin.uri)
    other.load_state_dict(saved["algorithm"])
    take_over(state.algorithm, other, other_job, origin.uri)
    if origin.optimizer:
        kinds = state.kind, other_job.optimization.optimizer.type
        if kinds[0] != kinds[1]:
            what = f"{kinds[0]} cannot go on from the state of {kinds[1]} at {origin.uri}; leave begin.optimizer out"
            raise InputError(Problem(what, "begin.optimizer"))
        _take_optimizer(state.optimizer, saved["optimizer"], origin.uri)


def take_over(algorithm: Algorithm, other: Algorithm, other_job: Job, where: str) -> None:
    """``algorithm.begin_from(other)``, with its refusal as an input error."""
    try:
        with torch.no_grad():
            algorithm.begin_from(other)
    except ValueError as error:
        what = f"cannot begin from {other_job.algorithm.type} at {where}: {error}"
        raise InputError(Problem(what, "begin")) from None


def _take_optimizer(optimizer: Optimizer, saved: dict[str, Any], where: str) -> None:
    """Momentum and moments of parameters that have to be the same ones in the same groups; rates and decay are the new
    job's."""
    mine = optimizer.state_dict()
    names = [[group["name"] for group in groups] for groups in (mine["param_groups"], saved["param_groups"])]
    sizes = [[len(group["params"]) for group in groups] for groups in (mine["param_groups"], saved["param_groups"])]
    shapes = {number: p.shape for number, p in enumerate(p for g in optimizer.param_groups for p in g["params"])}
    fits = all(
        value.ndim == 0 or value.shape == shapes[number]
        for number, values in saved["state"].items()
        if number in shapes
        for value in values.values()
        if isinstance(value, torch.Tensor)
    )
    if names[0] != names[1] or sizes[0] != sizes[1] or not fits:
        what = f"the optimiser's state at {where} is of other parameters; leave begin.optimizer out to start it afresh"
        raise InputError(Problem(what, "begin.optimizer"))
    optimizer.load_state_dict({"state": saved["state"], "param_groups": mine["param_groups"]})
