from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from heliostat_algorithms.evaluation import Features, Retrieval, neighbours
from heliostat_algorithms.evaluation import retrieval as module
from heliostat_algorithms.randomness import permutation


def by_hand(train: Features, test: Features, ks: tuple[int, ...], order: list[int]) -> dict[str, float]:
    """The metrics from their definitions, sample by sample; ``order`` decides between equal similarities."""

    def cosine(a: list[float], b: list[float]) -> float:
        length = math.hypot(*a) * math.hypot(*b)
        return sum(x * y for x, y in zip(a, b, strict=True)) / length if length else 0.0

    bank, labels = train.values.tolist(), train.labels.tolist()  # type: ignore[union-attr]
    found: dict[str, list[float]] = {}
    for query, label in zip(test.values.tolist(), test.labels.tolist(), strict=True):  # type: ignore[union-attr]
        # Rounded: samples that point the same way are equally similar.
        ranking = sorted(range(len(bank)), key=lambda i: (-round(cosine(bank[i], query), 5), order.index(i)))
        right = [labels[i] == label for i in ranking]
        for k in ks:
            found.setdefault(f"retrieval_recall_{k}", []).append(float(any(right[:k])))
            if k > 1:
                found.setdefault(f"retrieval_precision_{k}", []).append(sum(right[:k]) / k)
        places = [place for place, same in enumerate(right, start=1) if same]
        precisions = [count / place for count, place in enumerate(places, start=1)]
        found.setdefault("retrieval_map", []).append(sum(precisions) / len(places) if places else 0.0)
    return {name: sum(values) / len(values) for name, values in found.items()}


@pytest.mark.parametrize("rows", [1 << 22, 40 * 7])
def test_metrics_are_those_counted_by_hand(noise: Any, monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    monkeypatch.setattr(module, "_SIMILARITIES", rows)  # all at once, or 7 test samples at a time
    train, test = noise(40, classes=5, dimension=3), noise(30, classes=5, dimension=3, seed=1)
    expected = by_hand(train, test, (1, 3, 40), list(range(40)))
    assert 0.1 < expected["retrieval_recall_1"] < expected["retrieval_recall_3"] < 1
    assert Retrieval(k=(1, 3, 40)).evaluate(train, test, 0) == pytest.approx(expected)


@pytest.mark.parametrize("seed", range(4))
def test_equal_similarities_are_ordered_by_the_seed(seed: int) -> None:
    """Whole numbers, so that parallel samples are equally similar to the last bit once they are normalised."""
    axes = torch.eye(4)
    train = Features(axes.repeat_interleave(3, dim=0), torch.tensor([0, 1, 1, 0, 2, 0, 1, 2, 0, 2, 2, 1]), 3)
    test = Features(torch.cat([2 * axes, axes + axes.roll(1, dims=0)]), torch.tensor([0, 1, 2, 0, 1, 2, 0, 1]), 3)
    order = permutation(f"{seed}:evaluation/retrieval", 12).tolist()
    assert Retrieval(k=(1, 2, 4)).evaluate(train, test, seed) == pytest.approx(by_hand(train, test, (1, 2, 4), order))


def test_a_collapsed_encoder_is_at_chance_though_the_data_is_sorted() -> None:
    labels = torch.arange(10).repeat_interleave(40)
    constant = Features(torch.full((400, 8), 0.7), labels, 10)
    found = [Retrieval(k=(1, 10)).evaluate(constant, constant, seed) for seed in range(30)]
    for name in ("retrieval_recall_1", "retrieval_precision_10", "retrieval_map"):
        assert sum(each[name] for each in found) / len(found) == pytest.approx(0.1, abs=0.015), name


def test_separate_clouds_are_told_apart(blobs: Any) -> None:
    found = Retrieval().evaluate(blobs(350, distance=30.0), blobs(140, distance=30.0, seed=1), 0)
    assert set(found.values()) == {1.0}
    assert set(found) == set(Retrieval().higher_is_better)


def test_a_class_without_training_samples_counts_as_nothing_found() -> None:
    train = Features(torch.eye(2), torch.tensor([0, 0]), 2)
    test = Features(torch.eye(2), torch.tensor([0, 1]), 2)
    found = Retrieval(k=(1, 2)).evaluate(train, test, 0)
    assert set(found.values()) == {0.5}


def test_a_row_of_zeros_is_like_any_other(noise: Any) -> None:
    train = noise(20, classes=4)
    train.values[3] = 0
    assert all(math.isfinite(value) for value in Retrieval().evaluate(train, train, 0).values())


def test_neighbours_are_the_nearest_of_some_test_samples(blobs: Any) -> None:
    train, test = blobs(70, distance=2.0), blobs(30, distance=2.0, seed=1)
    found = neighbours(train, test, seed=0, queries=4, k=3)
    assert (found.queries.shape, found.nearest.shape, found.right.shape) == ((4,), (4, 3), (4, 3))
    assert len(set(found.queries.tolist())) == 4
    for query, nearest, right in zip(found.queries.tolist(), found.nearest.tolist(), found.right.tolist(), strict=True):
        cosines = torch.cosine_similarity(train.values, test.values[query : query + 1])
        assert nearest == cosines.argsort(descending=True)[:3].tolist()
        assert right == [bool(train.labels[i] == test.labels[query]) for i in nearest]
    again, other = (neighbours(test, test, seed=seed, queries=4) for seed in (0, 1))  # another encoder, other draws
    assert again.queries.tolist() == found.queries.tolist() != other.queries.tolist()
    assert neighbours(blobs(7), test, seed=0, k=20).nearest.shape == (8, 7)


@pytest.mark.parametrize("wrong", [(), (0,), (5, -1)])
def test_wrong_settings_are_refused(wrong: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="k must list"):
        Retrieval(k=wrong)


def test_more_neighbours_than_samples_is_an_error(blobs: Any) -> None:
    with pytest.raises(ValueError, match="k = 10 neighbours, but there are only 9"):
        Retrieval().check(9, torch.zeros(9, dtype=torch.int64), 2)
    with pytest.raises(ValueError, match="only 7"):
        Retrieval().evaluate(blobs(7), blobs(7), 0)
