from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from heliostat_algorithms.evaluation import KNN, Features
from heliostat_algorithms.evaluation import knn as module


def votes_by_hand(
    train: list[list[float]], labels: list[int], query: list[float], classes: int, k: int, temperature: float
) -> list[float]:
    """Votes of each class, from the definition, in plain float64."""

    def cosine(a: list[float], b: list[float]) -> float:
        return sum(x * y for x, y in zip(a, b, strict=True)) / math.hypot(*a) / math.hypot(*b)

    near = sorted(range(len(train)), key=lambda i: -cosine(train[i], query))[:k]
    votes = [0.0] * classes
    for i in near:
        votes[labels[i]] += math.exp(cosine(train[i], query) / temperature)
    return votes


@pytest.mark.parametrize("k", [1, 4, 15])
@pytest.mark.parametrize("temperature", [0.07, 1.0])
def test_accuracy_is_that_of_votes_counted_by_hand(noise: Any, k: int, temperature: float) -> None:
    train, test = noise(40, classes=8, dimension=3), noise(60, classes=8, dimension=3, seed=1)
    top1 = top5 = 0
    for query, label in zip(test.values.tolist(), test.labels.tolist(), strict=True):
        votes = votes_by_hand(train.values.tolist(), train.labels.tolist(), query, 8, k, temperature)
        order = sorted(range(8), key=lambda c: (-votes[c], c))
        top1 += order[0] == label
        top5 += label in order[:5] and votes[label] > 0
    metrics = KNN(k=k, temperature=temperature).evaluate(train, test, seed=0)
    assert metrics == pytest.approx({"knn_top1": top1 / 60, "knn_top5": top5 / 60})


def test_two_weaker_neighbours_outvote_one_where_the_temperature_is_high() -> None:
    bank = torch.tensor([[1.0, 0.0], [0.9, 0.3], [0.9, -0.3]])
    train = Features(bank, torch.tensor([0, 1, 1]), 2)
    test = Features(torch.tensor([[1.0, 0.0]]), torch.tensor([0]), 2)
    assert KNN(k=3, temperature=1.0).evaluate(train, test, 0) == {"knn_top1": 0.0}
    assert KNN(k=3, temperature=0.01).evaluate(train, test, 0) == {"knn_top1": 1.0}


def test_a_tie_goes_to_the_lower_class() -> None:
    train = Features(torch.tensor([[1.0, 0.0], [1.0, 0.0]]), torch.tensor([1, 0]), 2)
    test = Features(torch.tensor([[2.0, 0.0], [2.0, 0.0]]), torch.tensor([0, 1]), 2)
    assert KNN(k=2).evaluate(train, test, 0) == {"knn_top1": 0.5}


def test_classes_without_a_vote_are_not_in_the_top_5() -> None:
    train = Features(torch.eye(6), torch.tensor([5, 5, 5, 5, 5, 5]), 6)
    test = Features(torch.eye(6), torch.arange(6), 6)
    assert KNN(k=2).evaluate(train, test, 0) == {"knn_top1": pytest.approx(1 / 6), "knn_top5": pytest.approx(1 / 6)}


@pytest.mark.parametrize("temperature", [1e-3, 1e-6])
def test_a_low_temperature_does_not_overflow(blobs: Any, temperature: float) -> None:
    train, test = blobs(70), blobs(70, seed=1)
    nearest = KNN(k=1).evaluate(train, test, 0)["knn_top1"]
    assert KNN(k=20, temperature=temperature).evaluate(train, test, 0)["knn_top1"] == pytest.approx(nearest, abs=0.03)


def test_separate_clouds_are_told_apart_and_noise_is_at_chance(blobs: Any, noise: Any) -> None:
    easy = KNN().evaluate(blobs(350, distance=30.0), blobs(140, distance=30.0, seed=1), 0)
    assert easy == {"knn_top1": 1.0, "knn_top5": 1.0}
    chance = KNN().evaluate(noise(700), noise(1400, seed=1), 0)["knn_top1"]
    assert chance == pytest.approx(1 / 7, abs=0.04)


def test_neither_scale_nor_order_nor_chunks_matter(blobs: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    train, test = blobs(140, distance=2.0), blobs(105, distance=2.0, seed=1)
    expected = KNN().evaluate(train, test, 0)
    assert 0.3 < expected["knn_top1"] < 1.0
    order, test_order = torch.randperm(140), torch.randperm(105)
    shuffled = Features(7.5 * train.values[order], train.labels[order], 7)
    test_shuffled = Features(test.values[test_order], test.labels[test_order], 7)
    monkeypatch.setattr(module, "_SIMILARITIES", 140 * 4)  # 4 rows at a time
    assert KNN().evaluate(shuffled, test_shuffled, 0) == pytest.approx(expected)


def test_more_neighbours_than_samples_is_an_error(blobs: Any) -> None:
    with pytest.raises(ValueError, match="k = 20 neighbours, but there are only 14"):
        KNN().evaluate(blobs(14), blobs(14), 0)
    with pytest.raises(ValueError, match="k = 20"):
        KNN().check(19, torch.zeros(19, dtype=torch.int64), 2)
    KNN().check(20, torch.zeros(20, dtype=torch.int64), 2)


@pytest.mark.parametrize("wrong", [{"k": 0}, {"temperature": 0.0}, {"temperature": float("nan")}])
def test_wrong_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        KNN(**wrong)
