"""Judging the representation of a run: which evaluators are due, features over all workers, and the baselines."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TypeVar, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from heliostat.config.job import Job
from heliostat.config.registry import ALGORITHMS
from heliostat.data.loader import Loader, sequential
from heliostat.data.samples import PictureSamples, Samples, fraction_of
from heliostat.errors import InputError, Problem, RunError
from heliostat.training.denormals import flushed_denormals
from heliostat.training.run_folder import RunFolder
from heliostat.training.runtime import Runtime
from heliostat.training.state import build_algorithm
from heliostat_algorithms.algorithm import Algorithm, DataSpec
from heliostat_algorithms.evaluation import (
    Evaluator,
    FeatureEvaluator,
    Features,
    Neighbours,
    NetworkEvaluator,
    Retrieval,
    concatenate,
    diagnose,
    extract,
    neighbours,
    pixels,
)
from heliostat_algorithms.randomness import bits

_PICTURES = 512
"""Images, or frames of clips, in one forward pass of feature extraction."""
_TOKENS = 16384
"""Tokens in one forward pass of an evaluator, padding counted."""
PIXEL_LIMIT = 4096
"""Numbers per sample up to which raw pixels are a baseline: 3 x 32 x 32 is, 3 x 224 x 224 would cost more than it
tells."""

Found = TypeVar("Found")
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

    def __init__(self, job: Job, train: Samples, test: Samples | None, runtime: Runtime) -> None:
        self._evaluators: Sequence[Evaluator] = job.evaluation
        self._seed, self._runtime = job.seed, runtime
        self._train = SharedSamples(train, runtime)
        self._test = None if test is None else SharedSamples(test, runtime)
        self.retrieved: Retrieved | None = None
        """On rank 0, of the last evaluation that retrieves."""

    @property
    def shown(self) -> Samples:
        """The set whose images pictures show: the held-out one where there is one."""
        return self._train.data if self._test is None else self._test.data

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
        probes = [e for e in due if isinstance(e, FeatureEvaluator) and not e.needs_scores]
        for other, network in algorithm.other_features().items():
            found = self._judge(algorithm, probes, partial(_tell_of, tell, other), network)
            results |= {f"eval/{other}/{name}": value for name, value in found.items()}
        return results

    def baselines(self, algorithm: Algorithm, tell: Tell) -> dict[str, float]:
        """Metrics ``baseline/untrained/...`` of the network as initialised and ``baseline/pixels/...`` of the images,
        which those evaluators judge that need no network."""
        judging = [e for e in self._evaluators if not isinstance(e, NetworkEvaluator) or e.judges_untrained]
        found = self._judge(algorithm, judging, partial(_tell_of, tell, "untrained"))
        results = {f"baseline/untrained/{name}": value for name, value in found.items()}
        labelled = [
            e for e in self._evaluators if isinstance(e, FeatureEvaluator) and e.needs_labels and not e.needs_scores
        ]
        data = self._train.data
        small = isinstance(data, PictureSamples) and data.numbers_per_sample <= PIXEL_LIMIT
        if self._runtime.rank == 0 and labelled and self._test is not None and small:
            train, test = (_features_of_pixels(samples.data) for samples in (self._train, self._test))
            for evaluator in labelled:
                tell(f"{evaluator.type}, raw pixels")
                found = evaluator.evaluate(train, test, self._seed)
                results |= {f"baseline/pixels/{name}": value for name, value in found.items()}
        return results

    def _judge(
        self, algorithm: Algorithm, evaluators: Sequence[Evaluator], tell: Tell, network: Network | None = None
    ) -> dict[str, float]:
        results: dict[str, float] = {}
        by_features = [evaluator for evaluator in evaluators if isinstance(evaluator, FeatureEvaluator)]
        if by_features:
            tell("computing features")
            train = self._gathered(algorithm, self._train, network, pairs=False)
            pairs = network is None  # views are of the network that the method is judged by
            test = self._gathered(algorithm, self._test, network, pairs=pairs) if self._test is not None else None
            for probe in by_features:
                tell(f"evaluating {probe.type}")
                results |= self._together(partial(self._evaluated, probe, train, test or train))
                if isinstance(probe, Retrieval) and network is None and train is not None and test is not None:
                    self.retrieved = _retrieved(neighbours(train, test, self._seed), self._train.data, self.shown)
        for evaluator in evaluators:
            if isinstance(evaluator, NetworkEvaluator) and self._test is not None:
                tell(f"evaluating {evaluator.type}")
                sets = self._train.of(algorithm), self._test.of(algorithm)
                results |= self._together(partial(evaluator.judge, algorithm, *sets, self._seed))
        return results if self._runtime.rank == 0 else {}

    def _evaluated(
        self, evaluator: FeatureEvaluator, train: Features | None, test: Features | None
    ) -> dict[str, float]:
        """On rank 0, which has the features of all workers."""
        return {} if train is None or test is None else evaluator.evaluate(train, test, self._seed)

    def _gathered(
        self, algorithm: Algorithm, samples: SharedSamples, network: Network | None, *, pairs: bool
    ) -> Features | None:
        """Features of the whole set on rank 0, None elsewhere; each worker computes a contiguous part."""
        part = self._together(
            lambda: extract(
                algorithm,
                samples.batches(),
                classes=samples.classes,
                network=network,
                pair_seed=self._seed if pairs else None,
                first_row=samples.part().start,
            )
        )
        rank, world_size = self._runtime.rank, self._runtime.world_size
        if world_size == 1:
            return part
        parts: list[Features | None] = [None] * world_size
        torch.distributed.gather_object(part, parts if rank == 0 else None)
        return concatenate([p for p in parts if p is not None]) if rank == 0 else None

    def _together(self, work: Callable[[], Found]) -> Found:
        """Do something on all workers; where it fails on one of them, it fails on all: a worker that stopped alone
        would leave the others waiting.

        Raises:
            RunError: features that do not fit, or a probe that diverged.
        """
        problem, found = None, None
        try:
            found = work()
        except (ValueError, ArithmeticError) as error:  # how evaluators say so
            problem = f"evaluation: {error}"
        if self._runtime.world_size > 1:
            problems: list[str | None] = [None] * self._runtime.world_size
            torch.distributed.all_gather_object(problems, problem)
            problem = next((each for each in problems if each is not None), None)
        if problem is not None:
            raise RunError(problem)
        return cast("Found", found)


@dataclass(frozen=True)
class Retrieved:
    """Some held-out images and the training images that are most similar to them; of videos, frames."""

    queries: npt.NDArray[np.uint8]
    """(Q, C, H, W)."""
    nearest: npt.NDArray[np.uint8]
    """(Q, k, C, H, W), the most similar first."""
    right: npt.NDArray[np.bool_]
    """(Q, k): whether they are of the same class."""


def _retrieved(found: Neighbours, train: Samples, test: Samples) -> Retrieved:
    def pictures(data: Samples, rows: Tensor) -> npt.NDArray[np.uint8]:
        (chosen,) = data.select(rows.flatten().numpy(), clips=False)
        return chosen.values[chosen.rows].reshape(*rows.shape, *chosen.values.shape[1:]).astype(np.uint8, copy=False)

    return Retrieved(pictures(test, found.queries), pictures(train, found.nearest), found.right.numpy())


class SharedSamples:
    """A data set as one of the workers that share it sees it; see ``SampleSet``.

    Args:
        data: the whole set.
        runtime: this worker.
        clips: of videos, whether random batches hold clips, or a frame of each as an image.
    """

    def __init__(self, data: Samples, runtime: Runtime, *, clips: bool = False) -> None:
        self.data, self._runtime, self._clips = data, runtime, clips

    def of(self, algorithm: Algorithm) -> SharedSamples:
        """As the algorithm trains on them."""
        return SharedSamples(self.data, self._runtime, clips=algorithm.video)

    @property
    def classes(self) -> int | None:
        return _classes(self.data)

    @property
    def spec(self) -> DataSpec:
        return self.data.spec()

    def __len__(self) -> int:
        return len(self.data)

    def part(self) -> range:
        rank, world_size = self._runtime.rank, self._runtime.world_size
        return range(rank * len(self) // world_size, (rank + 1) * len(self) // world_size)

    def batches(self) -> Iterator[dict[str, Tensor]]:
        spec = self.data.spec()
        length = None if spec.tokens is None else spec.tokens.length + (spec.tokens.source_length or 0)
        return sequential(
            self.data,
            batch_size=max(1, _PICTURES // (spec.frames or 1) if length is None else _TOKENS // length),
            rank=self._runtime.rank,
            world_size=self._runtime.world_size,
            device=self._runtime.device,
        )

    def shuffled(self, batch_size: int, key: str) -> Loader:
        return Loader(
            self.data,
            batch_size=batch_size,
            seed=int(bits(key, 0, 1)),
            rank=self._runtime.rank,
            world_size=self._runtime.world_size,
            device=self._runtime.device,
            clips=self._clips,
        )

    def some(self, fraction: float, seed: int) -> SharedSamples:
        return SharedSamples(fraction_of(self.data, fraction, seed), self._runtime, clips=self._clips)


def _features_of_pixels(data: Samples) -> Features:
    return pixels(sequential(data, batch_size=_PICTURES), classes=_classes(data))


def _tell_of(tell: Tell, network: str, what: str) -> None:
    tell(f"{what}, {network}")


def _due(evaluator: Evaluator, done: int, steps_per_epoch: int) -> bool:
    return evaluator.every_epochs is not None and done % (evaluator.every_epochs * steps_per_epoch) == 0


def _classes(data: Samples) -> int | None:
    return None if data.labels is None else len(data.classes)


def check_evaluators(job: Job, train: Samples) -> list[Problem]:
    """What the evaluators miss in the training data or in the algorithm, seen before training rather than after it."""
    problems = []
    labels = None if train.labels is None else torch.tensor(train.labels)
    classifies = ALGORITHMS[job.algorithm.type].class_scores is not Algorithm.class_scores
    algorithm = None
    if job.evaluation:
        with suppress(ValueError):  # said with the algorithm's other problems
            algorithm = build_algorithm(job, train.spec())
    for index, evaluator in enumerate(job.evaluation):
        if isinstance(evaluator, FeatureEvaluator) and evaluator.needs_scores and not classifies:
            what = f"{evaluator.type} judges class scores, and {job.algorithm.type} gives none; choose a probe"
            problems.append(Problem(what, f"evaluation.{index}"))
        elif isinstance(evaluator, FeatureEvaluator) and algorithm is not None and not algorithm.has_features:
            what = f"{evaluator.type} judges features, and {job.algorithm.type} has none; choose another evaluator"
            problems.append(Problem(what, f"evaluation.{index}"))
        try:
            evaluator.check(len(train), labels, _classes(train))
            if isinstance(evaluator, NetworkEvaluator):
                for workers in job.resources.worker_range:
                    evaluator.check_workers(workers)
                if algorithm is not None:
                    sample = next(sequential(train, batch_size=1))
                    evaluator.check_network(algorithm, sample, len(train))
        except ValueError as error:
            problems.append(Problem(str(error), f"evaluation.{index}"))
    return problems


@flushed_denormals()
def evaluate_checkpoint(
    job: Job,
    data: tuple[Samples, Samples | None],
    folder: RunFolder,
    step: int | None,
    runtime: Runtime,
    average: int = 1,
) -> tuple[int, dict[str, float]]:
    """Judge a checkpoint of ``folder`` by the evaluators of ``job``, beside the baselines.

    Args:
        step: which; None: the newest.
        average: judge the mean of so many checkpoints in place of one: it and those before it (Vaswani et al. 2017,
            section 6.1, takes the last 5).

    Returns the checkpoint's step and metrics as the training loop names them.

    Raises:
        InputError: the run has no such checkpoint, or too few, or it is of another architecture.
    """
    if not job.evaluation:
        raise InputError("the job names no evaluators; add some, for example evaluation='[{type: knn}]'")
    store = folder.checkpoints()
    steps = store.steps()
    if not steps:
        raise InputError(Problem("the run has no checkpoint yet", folder.storage.uri))
    chosen = steps[-1] if step is None else step
    algorithm = build_algorithm(job, data[0].spec()).to(runtime.device)
    weights = _mean_weights(algorithm, folder, [*(s for s in steps if s < chosen), chosen][-average:], average, runtime)
    evaluation = Evaluation(job, *data, runtime)
    results = evaluation.baselines(algorithm, _untold)
    algorithm.load_state_dict(weights)
    return chosen, results | evaluation.run(algorithm, chosen, 1, True, _untold)


def _mean_weights(
    algorithm: Algorithm, folder: RunFolder, steps: Sequence[int], wanted: int, runtime: Runtime
) -> dict[str, Tensor]:
    """The mean of the weights of these checkpoints, added up in float64; whole numbers, such as counts of batches, are
    those of the last one."""
    from heliostat.training.checkpoint import check_architecture

    store = folder.checkpoints()
    if len(steps) < wanted:
        what = (
            f"there are {len(steps)} checkpoints to average, not {wanted}; a run keeps as many as checkpoint.keep says"
        )
        raise InputError(Problem(what, "--average"))
    mean: dict[str, Tensor] = {}
    for step in steps:
        saved = store.load(step, runtime.device)["algorithm"]
        check_architecture(algorithm.state_dict(), saved, store.uri(step))
        for name, value in saved.items():
            mean[name] = mean.get(name, 0) + value.double() / len(steps) if value.is_floating_point() else value
    return mean


def _untold(activity: str) -> None:
    """Nobody watches an evaluation from the command line step by step."""
