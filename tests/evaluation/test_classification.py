"""Accuracy of a method's own class scores."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from heliostat_algorithms.algorithm import Algorithm, Batch, Clock, DataSpec, Inputs, Step
from heliostat_algorithms.evaluation import Classification, Features, concatenate, extract
from heliostat_algorithms.randomness import Random


def features(scores: list[list[float]] | None, labels: list[int], classes: int) -> Features:
    table = None if scores is None else torch.tensor(scores)
    return Features(torch.zeros(len(labels), 2), torch.tensor(labels), classes, scores=table)


def test_counts_how_often_the_highest_score_is_the_label() -> None:
    test = features([[0.1, 0.9, 0.0], [0.8, 0.1, 0.1], [0.2, 0.3, 0.5], [0.4, 0.4, 0.2]], [1, 0, 0, 1], 3)
    found = Classification().evaluate(test, test, 0)
    assert found == {"classification_top1": 0.5}  # of equal scores the first class wins


def test_counts_the_first_five_of_many_classes() -> None:
    scores = [[float(c == 3) + c / 100 for c in range(7)]] * 3
    test = features(scores, [3, 2, 1], 7)  # order of the classes: 3, 6, 5, 4, 2, 1, 0
    assert Classification().evaluate(test, test, 0) == {
        "classification_top1": pytest.approx(1 / 3),
        "classification_top5": pytest.approx(2 / 3),
    }


def test_needs_scores_of_the_right_shape() -> None:
    test = features(None, [0, 1], 2)
    with pytest.raises(ValueError, match="this method gives none"):
        Classification().evaluate(test, test, 0)
    with pytest.raises(ValueError, match=r"must be \(2, 2\)"):
        features([[0.1, 0.2, 0.3]] * 2, [0, 1], 2)
    with pytest.raises(ValueError, match="or class scores"):
        concatenate([features(None, [0], 2), features([[0.0, 1.0]], [0], 2)])


class Mean(Algorithm):
    """Scores by the mean grey level."""

    def prepare(self, batch: Batch, clock: Clock, random: Random) -> Inputs:
        return {}

    def forward(self, inputs: Inputs, clock: Clock) -> Step:
        return Step(torch.zeros(()))

    def features(self, images: Tensor) -> Tensor:
        return images.float().mean(dim=(2, 3))

    def class_scores(self, images: Tensor) -> Tensor:
        mean = self.features(images)[:, 0]
        return torch.stack([100 - mean, mean - 100], dim=1)


def test_scores_are_extracted_beside_the_features() -> None:
    images = torch.tensor([10, 200, 90, 110], dtype=torch.uint8).view(4, 1, 1, 1).expand(4, 1, 2, 2).contiguous()
    batches = [
        {"image": images[:3], "label": torch.tensor([0, 1, 1])},
        {"image": images[3:], "label": torch.tensor([1])},
    ]
    algorithm = Mean(None, DataSpec(image_shape=(1, 2, 2), classes=2))
    found = extract(algorithm, batches, classes=2)
    assert found.scores is not None
    assert found.scores[:, 1].tolist() == [-90, 100, -10, 10]
    assert Classification().evaluate(found, found, 0) == {"classification_top1": 0.75}
    doubled = extract(algorithm, batches, classes=2, network=lambda x: 2 * algorithm.features(x))
    assert doubled.scores is None
    assert torch.equal(doubled.values, 2 * found.values)
