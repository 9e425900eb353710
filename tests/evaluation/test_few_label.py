from __future__ import annotations

import math
from typing import Any

import numpy
import pytest
import torch
from scipy import stats
from sklearn.linear_model import LogisticRegression

from heliostat_algorithms.evaluation import Features, FewLabelProbe
from heliostat_algorithms.evaluation import few_label as module
from heliostat_algorithms.evaluation.few_label import center_and_normalize, draw
from heliostat_algorithms.evaluation.interval import half_width, student_t

UNEVEN = torch.tensor([0] * 30 + [1] * 12 + [2] * 10)[torch.randperm(52, generator=torch.Generator().manual_seed(0))]


def test_a_draw_is_balanced_and_without_repetition() -> None:
    rows = draw(UNEVEN, 3, 10, seed=0, trial=0)
    assert rows.shape == (3, 10)
    assert len(rows.unique()) == 30
    for number in range(3):
        assert (UNEVEN[rows[number]] == number).all()


def test_smaller_draws_are_part_of_larger_ones() -> None:
    assert torch.equal(draw(UNEVEN, 3, 2, seed=0, trial=4), draw(UNEVEN, 3, 10, seed=0, trial=4)[:, :2])


def test_draws_differ_between_trials_and_seeds_only() -> None:
    assert torch.equal(draw(UNEVEN, 3, 5, seed=1, trial=1), draw(UNEVEN, 3, 5, seed=1, trial=1))
    different = {tuple(draw(UNEVEN, 3, 5, seed, trial).flatten().tolist()) for seed in range(4) for trial in range(5)}
    assert len(different) == 20


def test_every_sample_is_equally_likely() -> None:
    counts = torch.zeros(52)
    for trial in range(2000):
        counts[draw(UNEVEN, 3, 1, seed=0, trial=trial).flatten()] += 1
    for number in range(3):
        assert stats.chisquare(counts[number == UNEVEN].numpy()).pvalue > 1e-3


def test_features_are_normalised_by_the_formula(noise: Any) -> None:
    train, test = noise(20).values + 2, noise(10, seed=1).values + 2
    unit = [x / numpy.linalg.norm(x) for x in train.double().numpy()]
    mean = sum(unit) / 20
    for ours, values in zip(center_and_normalize(train, test), (train, test), strict=True):
        for row, x in zip(ours.numpy(), values.double().numpy(), strict=True):
            centred = x / numpy.linalg.norm(x) - mean
            numpy.testing.assert_allclose(row, centred / numpy.linalg.norm(centred), atol=1e-12)


def test_rows_that_differ_by_rounding_only_become_zero() -> None:
    same = torch.full((10, 4), 0.3) + 1e-8 * torch.randn(10, 4)
    train, test = center_and_normalize(same, torch.cat([same, torch.eye(4)]))
    assert train.abs().max() == 0
    assert test[:10].abs().max() == 0
    torch.testing.assert_close(test[10:].norm(dim=-1), torch.ones(4, dtype=torch.float64))


@pytest.mark.parametrize("classifier", ["logistic", "class-mean"])
def test_accuracy_is_that_of_trials_done_one_by_one(blobs: Any, classifier: Any) -> None:
    train, test = blobs(105, distance=2.0), blobs(105, distance=2.0, seed=1)
    probe = FewLabelProbe(labels_per_class=(1, 4), trials=5, classifier=classifier, l2=0.01)
    metrics = probe.evaluate(train, test, seed=7)
    x, test_x = (values.numpy() for values in center_and_normalize(train.values, test.values))
    for n in (1, 4):
        tops = []
        for trial in range(5):
            rows = draw(train.labels, 7, n, 7, trial)
            if classifier == "logistic":
                model = LogisticRegression(C=1 / (0.01 * 7 * n), tol=1e-8, max_iter=1000)
                chosen = model.fit(x[rows.flatten()], numpy.repeat(numpy.arange(7), n)).predict(test_x)
            else:
                means = x[rows].mean(axis=1)
                chosen = (test_x @ (means / numpy.linalg.norm(means, axis=1, keepdims=True)).T).argmax(axis=1)
            tops.append(float((chosen == test.labels.numpy()).mean()))
        assert metrics[f"few_label_{n}_top1"] == pytest.approx(sum(tops) / 5, abs=0.003)  # a sample on the border
        low, high = stats.t.interval(0.95, 4, loc=0, scale=stats.sem(tops))
        assert metrics[f"few_label_{n}_interval"] == pytest.approx((high - low) / 2, abs=0.003)


@pytest.mark.parametrize("classifier", ["logistic", "class-mean"])
def test_separate_clouds_are_told_apart_and_noise_is_at_chance(blobs: Any, noise: Any, classifier: Any) -> None:
    probe = FewLabelProbe(classifier=classifier)
    easy = probe.evaluate(blobs(350, distance=60.0), blobs(140, distance=60.0, seed=1), 0)
    assert easy["few_label_1_top1"] == 1.0
    assert easy["few_label_1_interval"] == 0.0
    hard = probe.evaluate(noise(350), noise(700, seed=1), 0)
    for n in (1, 5, 10):
        assert hard[f"few_label_{n}_top1"] == pytest.approx(1 / 7, abs=0.03)


@pytest.mark.parametrize("classifier", ["logistic", "class-mean"])
def test_what_all_samples_share_does_not_matter_much(blobs: Any, classifier: Any) -> None:
    """Raw pixels and untrained networks have a large common part; the rule must see past it."""
    train, test = blobs(140, distance=3.0), blobs(140, distance=3.0, seed=1)
    plain = FewLabelProbe(classifier=classifier).evaluate(train, test, 0)
    shift = 20 * torch.ones(16)
    shifted = FewLabelProbe(classifier=classifier).evaluate(
        *(Features(one.values + shift, one.labels, 7) for one in (train, test)), 0
    )
    for n in (1, 5, 10):
        assert shifted[f"few_label_{n}_top1"] > plain[f"few_label_{n}_top1"] - 0.06
        assert plain[f"few_label_{n}_top1"] > 2 / 7


def test_more_labels_help(blobs: Any) -> None:
    metrics = FewLabelProbe().evaluate(blobs(210, distance=3.0), blobs(210, distance=3.0, seed=1), 0)
    assert metrics["few_label_1_top1"] + 0.05 < metrics["few_label_5_top1"] < metrics["few_label_10_top1"]


def test_collapsed_features_are_at_chance() -> None:
    constant = Features(torch.full((140, 8), 0.7), torch.arange(140) % 7, 7)
    metrics = FewLabelProbe().evaluate(constant, constant, 0)
    assert metrics["few_label_10_top1"] == pytest.approx(1 / 7)


def test_all_representations_are_given_the_same_samples(blobs: Any) -> None:
    """An orthogonal change of basis is the same representation; other draws would give other numbers."""
    train, test = blobs(140, distance=1.5), blobs(140, distance=1.5, seed=1)
    basis, _ = torch.linalg.qr(torch.randn(16, 16, generator=torch.Generator().manual_seed(5)))
    turned = [Features(one.values @ basis, one.labels, 7) for one in (train, test)]
    probe = FewLabelProbe(labels_per_class=(2,))
    expected = probe.evaluate(train, test, 0)
    assert probe.evaluate(*turned, 0) == pytest.approx(expected, abs=1e-3)
    assert probe.evaluate(train, test, 1)["few_label_2_top1"] != expected["few_label_2_top1"]


def test_batches_of_trials_change_nothing(blobs: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    train, test = blobs(140, distance=2.0), blobs(140, distance=2.0, seed=1)
    expected = FewLabelProbe(trials=5).evaluate(train, test, 0)
    monkeypatch.setattr(module, "_MEMORY", 1)
    assert FewLabelProbe(trials=5).evaluate(train, test, 0) == pytest.approx(expected, abs=2e-3)


def test_a_class_with_too_few_samples_is_named() -> None:
    with pytest.raises(ValueError, match="11 labels per class, but class 2 has only 10"):
        FewLabelProbe(labels_per_class=(1, 11)).check(52, UNEVEN, 3)
    with pytest.raises(ValueError, match="class 3 has only 0"):
        FewLabelProbe(labels_per_class=(1,)).check(52, UNEVEN, 4)
    FewLabelProbe().check(52, UNEVEN, 3)


@pytest.mark.parametrize("wrong", [{"labels_per_class": ()}, {"labels_per_class": (0, 1)}, {"trials": 1}, {"l2": 0.0}])
def test_wrong_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        FewLabelProbe(**wrong)


@pytest.mark.parametrize("degrees", [1, 2, 3, 4, 5, 9, 19, 30, 99, 1000])
@pytest.mark.parametrize("confidence", [0.5, 0.9, 0.95, 0.999])
def test_the_quantile_of_student_t(degrees: int, confidence: float) -> None:
    expected = stats.t.ppf((1 + confidence) / 2, degrees)
    assert student_t(confidence, degrees) == pytest.approx(expected, rel=1e-9)


def test_the_interval_of_a_mean() -> None:
    values = [0.61, 0.58, 0.7, 0.66]
    low, high = stats.t.interval(0.9, 3, loc=numpy.mean(values), scale=stats.sem(values))
    assert half_width(values, 0.9) == pytest.approx((high - low) / 2)
    assert half_width([0.25, 0.25]) == 0.0
    assert half_width([0.0, 1.0]) == pytest.approx(12.706204736 / 2)
    assert math.isfinite(half_width([0.1] * 20))


@pytest.mark.parametrize("arguments", [(0.0, 3), (1.0, 3), (0.95, 0)])
def test_impossible_quantiles_are_refused(arguments: tuple[float, int]) -> None:
    with pytest.raises(ValueError, match="student_t needs"):
        student_t(*arguments)
    with pytest.raises(ValueError, match="at least 2"):
        half_width([1.0])
