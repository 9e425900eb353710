"""Starting a run or going on with it, whichever is due: for jobs that are submitted again and again under one name."""

from __future__ import annotations

from collections.abc import Sequence

from heliostat.config.loading import AnyJob, Stage
from heliostat.config.reinforcement import ReinforcementJob
from heliostat.errors import InputError, Problem
from heliostat.training.run_folder import RunFolder
from heliostat.training.stages import Chain
from heliostat.training.storage import Storage

FREE = ("resources", "tracking", "checkpoint")
"""Sections that do not decide the trajectory, so a run that goes on may change them."""
_PINNED = ("begin", "output")
"""``begin`` names a checkpoint that the run has left behind; ``output`` is where the run was found."""


def begun(name: str, output: str) -> RunFolder | None:
    """The run of this name below ``output``, if it has begun."""
    folder = RunFolder(f"{Storage(output).uri}/{name}")
    return folder if folder.storage.exists("job.yaml") else None


def begun_chain(name: str, output: str) -> Chain | None:
    """The chain of stages of this name below ``output``, if it has begun."""
    return Chain.open(f"{Storage(output).uri}/{name}")


def same_trajectory(stored: AnyJob, given: AnyJob, where: str) -> AnyJob:
    """The job to go on with: the stored one, with the given one's resources, tracking and checkpoint.

    Raises:
        InputError: the given job is another experiment.
    """
    one, other = stored.resolved(), given.resolved()
    differing = sorted(
        key for key in one.keys() | other.keys() if key not in (*FREE, *_PINNED) and one.get(key) != other.get(key)
    )
    if differing:
        what = f"the run of this name is another experiment: {', '.join(differing)} differ; choose another name"
        raise InputError(Problem(what, where))
    update = {section: getattr(given, section) for section in FREE}
    if isinstance(stored, ReinforcementJob):
        return stored.model_copy(update=update)
    return stored.model_copy(update=update)


def same_stages(chain: Chain, given: Sequence[Stage]) -> None:
    """Check that a chain that goes on is the one of the job file.

    Raises:
        InputError: it is not.
    """
    names = [stage.name for stage in chain.stages]
    if names != [stage.name for stage in given]:
        what = f"the chain of this name has the stages {', '.join(names)}; choose another name"
        raise InputError(Problem(what, chain.storage.uri))
    for stored, stage in zip(chain.stages, given, strict=True):
        same_trajectory(stored.job, stage.job, f"{chain.storage.uri}, stage {stage.name}")
