"""Judging the representation of a run: which evaluators are due, features over all workers, and the baselines."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import cast

import torch
from torch import Tensor

from heliostat.config.job import Job
from heliostat.config.registry import ALGORITHMS
from heliostat.data.images import ImageData
from heliostat.data.loader import sequential
from heliostat.errors import InputError, Problem, RunError
from heliostat.training.run_folder import RunFolder
from heliostat.training.runtime import Runtime
from heliostat.training.state import build_algorithm
from heliostat_algorithms.algorithm import Algorithm
from heliostat_algorithms.evaluation import Evaluator, Features, concatenate, diagnose, extract, pixels

_ROWS = 512
"""Samples in one forward pass of feature extraction."""
PIXEL_LIMIT = 4096
"""Numbers per image up to which raw pixels are a baseline: 3 x 32 x 32 is, 3 x 224 x 224 would cost more than it
tells."""

Tell = Callable[[str], None]
Network = Callable[[Tensor], Tensor]


class Evaluation:
    """The evaluators of a job over its data. All workers call the same methods; rank 0 alone gets numbers.

    Args:
        job: its ``evaluation`` says what runs and when, its seed decides every random choice of the evaluators.
        train: the bank or training set of the probes.
        test: what accuracy is measured on; the training set stands in for measures that need no labels.
        runtime: this worker.
    """

    def __init__(self, job: Job, train: ImageData, test: ImageData | None, runtime: Runtime) -> None:
        self._evaluators: Sequence[Evaluator] = job.evaluation
        self._seed, self._train, self._test, self._runtime = job.seed, train, test, runtime

    @property
    def shown(self) -> ImageData:
        """The set whose images pictures show: the held-out one where there is one."""
        return self._train if self._test is None else self._test

    def due(self, done: int, steps_per_epoch: int) -> bool:
        """Whether an evaluator runs after this many steps of training."""
        return any(_due(evaluator, done, steps_per_epoch) for evaluator in self._evaluators)

    def run(self, algorithm: Algorithm, done: int, steps_per_epoch: int, at_end: bool, tell: Tell) -> dict[str, float]:
        """Metrics ``eval/...`` of the evaluators that are due, and ``eval/student/...`` or the like of the method's
        other networks; empty on ranks other than 0."""
        due = [e for e in self._evaluators if at_end or _due(e, done, steps_per_epoch)]
        found = self._judge(algorithm, due, tell)
        warning = diagnose(found) if "feature_std" in found else None
        if warning:
            self._runtime.notice(warning)
        results = {f"eval/{name}": value for name, value in found.items()}
        probes = [evaluator for evaluator in due if not evaluator.needs_scores]
        for other, network in algorithm.other_features().items():
            found = self._judge(algorithm, probes, partial(_tell_of, tell, other), network)
            results |= {f"eval/{other}/{name}": value for name, value in found.items()}
        return results

    def baselines(self, algorithm: Algorithm, tell: Tell) -> dict[str, float]:
        """Metrics ``baseline/untrained/...`` of the network as initialised and ``baseline/pixels/...`` of the
        images."""
        found = self._judge(algorithm, self._evaluators, partial(_tell_of, tell, "untrained"))
        results = {f"baseline/untrained/{name}": value for name, value in found.items()}
        labelled = [e for e in self._evaluators if e.needs_labels and not e.needs_scores]
        if (
            self._runtime.rank == 0
            and labelled
            and self._test is not None
            and self._train.images[0].size <= PIXEL_LIMIT
        ):
            train, test = (self._features_of_pixels(data) for data in (self._train, self._test))
            for evaluator in labelled:
                tell(f"{evaluator.type}, raw pixels")
                found = evaluator.evaluate(train, test, self._seed)
                results |= {f"baseline/pixels/{name}": value for name, value in found.items()}
        return results

    def _judge(
        self, algorithm: Algorithm, evaluators: Sequence[Evaluator], tell: Tell, network: Network | None = None
    ) -> dict[str, float]:
        if not evaluators:
            return {}
        tell("computing features")
        results: dict[str, float] = {}
        problem = None
        try:
            train = self._gathered(algorithm, self._train, network, pairs=False)
            pairs = network is None  # views are of the network that the method is judged by
            test = self._gathered(algorithm, self._test, network, pairs=pairs) if self._test is not None else None
            for evaluator in evaluators if train is not None else ():
                tell(f"evaluating {evaluator.type}")
                results |= evaluator.evaluate(cast("Features", train), cast("Features", test or train), self._seed)
        except (
            ValueError,
            ArithmeticError,
        ) as error:  # how evaluators say that features do not fit or a probe diverged
            problem = f"evaluation: {error}"
        if self._runtime.world_size > 1:  # a worker that stopped alone would leave the others waiting
            shared = [problem]
            torch.distributed.broadcast_object_list(shared)
            problem = shared[0]
        if problem is not None:
            raise RunError(problem)
        return results

    def _gathered(
        self, algorithm: Algorithm, data: ImageData, network: Network | None, *, pairs: bool
    ) -> Features | None:
        """Features of the whole set on rank 0, None elsewhere; each worker computes a contiguous part."""
        rank, world_size = self._runtime.rank, self._runtime.world_size
        batches = sequential(data, batch_size=_ROWS, rank=rank, world_size=world_size, device=self._runtime.device)
        part = extract(
            algorithm,
            batches,
            classes=_classes(data),
            network=network,
            pair_seed=self._seed if pairs else None,
            first_row=rank * len(data) // world_size,
        )
        if world_size == 1:
            return part
        parts: list[Features | None] = [None] * world_size
        torch.distributed.gather_object(part, parts if rank == 0 else None)
        return concatenate([p for p in parts if p is not None]) if rank == 0 else None

    def _features_of_pixels(self, data: ImageData) -> Features:
        return pixels(sequential(data, batch_size=_ROWS), classes=_classes(data))


def _tell_of(tell: Tell, network: str, what: str) -> None:
    tell(f"{what}, {network}")


def _due(evaluator: Evaluator, done: int, steps_per_epoch: int) -> bool:
    return evaluator.every_epochs is not None and done % (evaluator.every_epochs * steps_per_epoch) == 0


def _classes(data: ImageData) -> int | None:
    return None if data.labels is None else len(data.classes)


def check_evaluators(job: Job, train: ImageData) -> list[Problem]:
    """What the evaluators miss in the training data, seen before training rather than after it."""
    problems = []
    labels = None if train.labels is None else torch.tensor(train.labels)
    classifies = ALGORITHMS[job.algorithm.type].class_scores is not Algorithm.class_scores
    for index, evaluator in enumerate(job.evaluation):
        if evaluator.needs_scores and not classifies:
            what = f"{evaluator.type} judges class scores, and {job.algorithm.type} gives none; choose a probe"
            problems.append(Problem(what, f"evaluation.{index}"))
        try:
            evaluator.check(len(train), labels, _classes(train))
        except ValueError as error:
            problems.append(Problem(str(error), f"evaluation.{index}"))
    return problems


def evaluate_checkpoint(
    job: Job, data: tuple[ImageData, ImageData | None], folder: RunFolder, step: int | None, runtime: Runtime
) -> tuple[int, dict[str, float]]:
    """Judge a checkpoint of ``folder`` by the evaluators of ``job``, beside the baselines.

    Returns the checkpoint's step and metrics as the training loop names them.

    Raises:
        InputError: the run has no such checkpoint, or it is of another architecture.
    """
    from heliostat.training.checkpoint import check_architecture

    if not job.evaluation:
        raise InputError("the job names no evaluators; add some, for example evaluation='[{type: knn}]'")
    store = folder.checkpoints()
    steps = store.steps()
    if not steps:
        raise InputError(Problem("the run has no checkpoint yet", folder.storage.uri))
    chosen = steps[-1] if step is None else step
    saved = store.load(chosen, runtime.device)
    algorithm = build_algorithm(job, data[0].spec()).to(runtime.device)
    check_architecture(algorithm.state_dict(), saved["algorithm"], store.uri(chosen))
    evaluation = Evaluation(job, *data, runtime)
    results = evaluation.baselines(algorithm, _untold)
    algorithm.load_state_dict(saved["algorithm"])
    return chosen, results | evaluation.run(algorithm, chosen, 1, True, _untold)


def _untold(activity: str) -> None:
    """Nobody watches an evaluation from the command line step by step."""
