"""The samples of a job, and what of a job can only be checked once they are known."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from heliostat.config.job import Job
from heliostat.config.registry import ALGORITHMS
from heliostat.data.loader import Loader
from heliostat.data.samples import Samples
from heliostat.data.sequences import SequenceSamples
from heliostat.errors import InputError, Problem


@dataclass(frozen=True)
class Datasets:
    """Decoded samples."""

    train: Samples
    test: Samples | None


def check_alike(data: Datasets) -> list[Problem]:
    """Whether the network that is trained on one set can be shown the other."""
    if data.test is None:
        return []
    train, test = data.train.spec(), data.test.spec()
    problems = []
    if train.image_shape != test.image_shape:
        shapes = f"{train.image_shape} and {test.image_shape}"
        problems.append(Problem(f"train and test images differ in (channels, height, width): {shapes}", "data.test"))
    if train.kind != test.kind:
        problems.append(Problem(f"train and test differ in their samples: {train.kind} and {test.kind}", "data.test"))
    elif isinstance(data.train, SequenceSamples) and isinstance(data.test, SequenceSamples):
        mine, other = data.train.vocabulary, data.test.vocabulary
        if mine.fingerprint != other.fingerprint:
            what = f"train and test have different vocabularies: {mine} and {other}; make both from the same text"
            problems.append(Problem(what, "data.test"))
    if train.frames != test.frames:
        kinds = " and ".join("images" if s.frames is None else f"clips of {s.frames} frames" for s in (train, test))
        problems.append(Problem(f"train and test differ in their samples: {kinds}", "data.test"))
    return problems


def minibatches(job: Job) -> int:
    """How many minibatches one step of the job's algorithm takes."""
    turns = ALGORITHMS[job.algorithm.type].turns(job.algorithm)
    return 1 + max(turn.minibatch for turn in turns)


def total_steps(job: Job, steps_per_epoch: int) -> int:
    """The training's length in optimiser steps."""
    optimization = job.optimization
    return optimization.steps if optimization.steps is not None else (optimization.epochs or 0) * steps_per_epoch


def check_against_data(job: Job, data: Datasets) -> None:
    """What can only be seen once the data is known: a loader for every worker count, and the schedule's length.

    Raises:
        InputError: the batch does not fit the data or the workers, or the warm-up outlasts the training.
    """
    for workers in job.resources.worker_range:
        loader = Loader(
            data.train,
            batch_size=job.optimization.batch_size,
            seed=0,
            rank=0,
            world_size=workers,
            device=torch.device("cpu"),
            minibatches=minibatches(job),
        )
    problem = job.optimization.schedule.check(total_steps(job, loader.steps_per_epoch) / loader.steps_per_epoch)
    if problem:
        raise InputError(Problem(problem, "optimization.schedule"))
