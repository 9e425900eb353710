"""How close made pictures are to real ones, in the features of a classifier that is trained here and now.

The well-known distance of this kind, FID (Heusel et al. 2017, arXiv 1706.08500), takes the features of one network that
was trained on ImageNet, which has to be downloaded and says little of digits. Here a small classifier learns the data's
own classes first. The numbers are **not** FID: they compare runs on the same data with the same settings of this
evaluator, and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heliostat_algorithms.algorithm import Algorithm, Batch
from heliostat_algorithms.collectives import sum_over_workers, world_size
from heliostat_algorithms.evaluation.evaluator import NetworkEvaluator, SampleSet
from heliostat_algorithms.evaluation.extraction import EVALUATION_STEP, device_of, evaluating
from heliostat_algorithms.evaluation.training import add_gradients
from heliostat_algorithms.generative.protocols import Generator
from heliostat_algorithms.randomness import Random, bits

_PICTURES = 500
"""Made or classified at a time."""


@dataclass(frozen=True, kw_only=True)
class ClassifierFrechet(NetworkEvaluator):
    """Frechet distance, precision and recall of made pictures in the features of a locally trained classifier.

    A small convolutional network learns the classes of the training set, always the same way for the same data and
    seed. As many pictures are made as there are held-out ones, and both are described by its last hidden layer.

    Metrics: ``classifier_frechet``, the squared Frechet distance of two Gaussians with the features' moments,
    |m - m'|^2 + tr(C + C' - 2 (C C')^(1/2)), and ``classifier_frechet_floor``, the same for as many training pictures
    in place of made ones: what a perfect generator would have. ``classifier_precision``, the share of made pictures
    that lie among the real ones, and ``classifier_recall``, the share of real ones that lie among the made
    (Kynkaanniemi et al. 2019, arXiv 1904.06991). ``classifier_accuracy`` of the classifier on held-out pictures says
    what its features are worth.

    Cost: the classifier's training, ``epochs`` passes over the training set, shared by all workers; twice in a run, for
    the untrained network. Distances between all features of ``neighbour_samples`` pictures, on all workers alike.
    """

    type: Literal["frechet"] = "frechet"
    epochs: int = 2
    """Passes of the classifier over the training set."""
    batch_size: int = 128
    """Of the classifier's training, over all workers."""
    learning_rate: float = 1e-3
    """Of the classifier's Adam."""
    features: int = 64
    """Width of the classifier's last hidden layer."""
    neighbours: int = 3
    """k: a picture lies among others where it is nearer to one of them than that one's k-th neighbour."""
    neighbour_samples: int = 2000
    """At most so many made and so many real pictures count for precision and recall."""

    needs_labels: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("epochs", "batch_size", "features", "neighbours"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if not 0 < self.learning_rate < float("inf"):
            raise ValueError(f"learning_rate must be above 0 and finite, not {self.learning_rate}")
        if self.neighbour_samples <= self.neighbours:
            raise ValueError(f"{self.neighbour_samples} pictures have no {self.neighbours} neighbours each")

    @property
    def higher_is_better(self) -> Mapping[str, bool]:
        return {"classifier_frechet": False, "classifier_precision": True, "classifier_recall": True}

    def check(self, samples: int, labels: Tensor | None, classes: int | None) -> None:
        super().check(samples, labels, classes)
        if samples < self.batch_size:
            raise ValueError(f"frechet takes batches of {self.batch_size}, but there are only {samples} samples")

    def check_network(self, algorithm: Algorithm, sample: Batch, samples: int) -> None:
        if not isinstance(algorithm, Generator):
            raise ValueError(f"frechet judges samples, and {type(algorithm).__name__} makes none")
        if "image" not in sample:
            raise ValueError("frechet judges images, and the data are none")

    def check_workers(self, workers: int) -> None:
        if self.batch_size % workers:
            fits = max(workers, round(self.batch_size / workers) * workers)
            raise ValueError(
                f"{workers} workers cannot share frechet's batch of {self.batch_size} equally; {fits} would do"
            )

    def judge(self, algorithm: Algorithm, train: SampleSet, test: SampleSet, seed: int) -> dict[str, float]:
        classes = self._classes(train, test)
        self.check_workers(world_size())
        if not isinstance(algorithm, Generator):
            raise ValueError(f"frechet judges samples, and {type(algorithm).__name__} makes none")
        device = device_of(algorithm)
        classifier = self._trained(train, classes, seed, device)
        count = len(test)
        if count <= self.neighbours:
            raise ValueError(f"{count} held-out pictures have no {self.neighbours} neighbours each")
        with evaluating(algorithm):
            real, right = classifier.describe(test.batches(), test.part().start, count)
            other, _ = classifier.describe(train.batches(), train.part().start, min(len(train), count))
            made, _ = classifier.describe(_made(algorithm, test.part(), seed, device), test.part().start, count)
        few = [rows[: self.neighbour_samples] for rows in (real, made)]
        return {
            "classifier_frechet": frechet(made, real),
            "classifier_frechet_floor": frechet(other, real),
            "classifier_precision": share_among(few[1], few[0], self.neighbours),
            "classifier_recall": share_among(few[0], few[1], self.neighbours),
            "classifier_accuracy": right / count,
        }

    @torch.enable_grad()
    def _trained(self, train: SampleSet, classes: int, seed: int, device: torch.device) -> _Classifier:
        batches = train.shuffled(self.batch_size, f"{seed}:evaluation/frechet")
        channels = batches.batch(0)["image"].shape[1]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(bits(f"{seed}:evaluation/frechet/weights", 0, 1)))
            classifier = _Classifier(channels, self.features, classes).to(device)
        optimizer = torch.optim.Adam(classifier.parameters(), lr=self.learning_rate)
        for step in range(self.epochs * batches.steps_per_epoch):
            batch = batches.batch(step)
            with torch.autocast(device.type, enabled=False):
                scores = classifier(batch["image"].float() / 255)
                loss = F.cross_entropy(scores, batch["label"], reduction="sum") / self.batch_size
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            add_gradients(classifier.parameters())
            optimizer.step()
        return classifier.eval()


class _Classifier(nn.Module):
    """Three convolutions and a hidden layer, for images of any size."""

    def __init__(self, channels: int, features: int, classes: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, 16, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(32, 32, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(4),
            nn.Flatten(),
            nn.Linear(32 * 16, features),
            nn.ReLU(),
        )
        self.last = nn.Linear(features, classes)

    def forward(self, images: Tensor) -> Tensor:
        scores: Tensor = self.last(self.body(images))
        return scores

    def describe(self, batches: Iterable[Batch], first: int, count: int) -> tuple[Tensor, float]:
        """Features (count, D) float64 of the first samples of a set, on all workers, and how many are classified
        rightly.

        Args:
            batches: this worker's samples.
            first: the place of its first one.
        """
        device = self.last.weight.device
        found = torch.zeros(count, self.last.in_features, dtype=torch.float64, device=device)
        right = torch.zeros((), dtype=torch.float64, device=device)
        for batch in batches:
            images = batch["image"][: max(0, count - first)]
            if not len(images):
                break
            features = self.body(images.float() / 255)
            found[first : first + len(images)] = features.double()
            if "label" in batch:
                right += (self.last(features).argmax(dim=1) == batch["label"][: len(images)]).sum()
            first += len(images)
        return sum_over_workers(found), float(sum_over_workers(right))


def _made(algorithm: Generator, part: range, seed: int, device: torch.device) -> Iterable[Batch]:
    """This worker's made pictures, as if they were stored."""
    for start in range(part.start, part.stop, _PICTURES):
        rows = range(start, min(start + _PICTURES, part.stop))
        yield {"image": 255 * algorithm.generate(Random(seed, EVALUATION_STEP, rows, device).within("frechet"))}


def frechet(one: Tensor, other: Tensor) -> float:
    """Squared Frechet distance of two Gaussians with the moments of features (N, D) and (M, D), in closed form (Dowson
    and Landau 1982). tr (C C')^(1/2) is that of (C^(1/2) C' C^(1/2))^(1/2), which is symmetric."""
    one, other = one.double(), other.double()
    covariances = [torch.cov(rows.T).reshape(rows.shape[1], -1) for rows in (one, other)]
    values, vectors = torch.linalg.eigh(covariances[0])
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    product = torch.linalg.eigvalsh(root @ covariances[1] @ root).clamp(min=0).sqrt().sum()
    distance = (one.mean(0) - other.mean(0)).square().sum()
    spread = covariances[0].trace() + covariances[1].trace() - 2 * product
    return max(0.0, float(distance + spread))


def share_among(rows: Tensor, others: Tensor, neighbours: int) -> float:
    """Share of features (N, D) that lie in the ball of one of the others (M, D) at least, whose radius is the distance
    to its ``neighbours``-th nearest among themselves."""
    own = torch.cdist(others, others)
    own.fill_diagonal_(float("inf"))  # not its own neighbour
    radius = own.kthvalue(neighbours, dim=1).values
    return float((torch.cdist(rows, others) <= radius).any(dim=1).double().mean())
