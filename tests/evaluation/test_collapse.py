from __future__ import annotations

import math
from typing import Any

import numpy
import pytest
import torch

from heliostat_algorithms.evaluation import Collapse, Features, diagnose
from heliostat_algorithms.evaluation.collapse import alignment, feature_std, rankme, uniformity


def unit(values: torch.Tensor) -> list[Any]:
    return [row / numpy.linalg.norm(row) for row in values.double().numpy()]


@pytest.mark.parametrize("shape", [(30, 8), (8, 30)])
def test_rankme_by_the_formula(shape: tuple[int, int]) -> None:
    values = torch.randn(shape, generator=torch.Generator().manual_seed(0)) @ torch.diag(
        torch.logspace(0, -3, shape[1])
    )
    singular = numpy.linalg.svd(values.double().numpy(), compute_uv=False)
    entropy = 0.0
    for sigma in singular:
        p = sigma / sum(singular) + 1e-7
        entropy -= p * math.log(p)
    assert rankme(values) == pytest.approx(math.exp(entropy), rel=1e-9)


def test_rankme_of_known_spectra() -> None:
    assert rankme(torch.eye(12)) == pytest.approx(12, rel=1e-4)
    assert rankme(torch.diag(torch.tensor([1.0, 1.0, 1.0, 0.0]))) == pytest.approx(3, rel=1e-4)
    assert rankme(torch.ones(20, 6)) == pytest.approx(1, abs=1e-4)
    assert rankme(torch.zeros(20, 6)) == pytest.approx(1, abs=1e-4)


def test_rankme_ignores_scale_basis_and_order() -> None:
    values = torch.randn(40, 6, generator=torch.Generator().manual_seed(0)) @ torch.diag(torch.arange(1.0, 7.0))
    basis, _ = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(1)).double())
    changed = 37 * values.flip(0).double() @ basis
    assert rankme(changed) == pytest.approx(rankme(values), rel=1e-9)


def test_feature_std_by_the_formula(noise: Any) -> None:
    values = noise(25).values + 0.5
    columns = numpy.stack(unit(values)).T
    expected = sum(math.sqrt(sum((x - c.mean()) ** 2 for x in c) / 25) for c in columns) / 16 * 4
    assert feature_std(values) == pytest.approx(expected)


def test_feature_std_is_one_for_isotropic_and_zero_for_equal_rows() -> None:
    isotropic = torch.cat([torch.eye(5), -torch.eye(5)])
    assert feature_std(isotropic) == pytest.approx(1.0)
    assert feature_std(torch.arange(1.0, 10.0).outer(torch.ones(4))) == pytest.approx(0.0, abs=1e-12)  # lengths differ


def test_uniformity_by_the_formula(noise: Any) -> None:
    rows = unit(noise(15).values)
    terms = [math.exp(-2 * float(((rows[i] - rows[j]) ** 2).sum())) for i in range(15) for j in range(i)]
    assert uniformity(noise(15).values) == pytest.approx(math.log(sum(terms) / len(terms)), rel=1e-9)


def test_uniformity_of_known_sets() -> None:
    assert uniformity(torch.ones(9, 3)) == pytest.approx(0.0, abs=1e-12)
    assert uniformity(torch.tensor([[3.0, 0.0], [-1.0, 0.0]])) == pytest.approx(-8.0)  # opposite: d^2 = 4


def test_alignment_by_the_formula(noise: Any) -> None:
    first, second = noise(12).values, noise(12, seed=1).values
    pairs = zip(unit(first), unit(second), strict=True)
    expected = sum(float(((a - b) ** 2).sum()) for a, b in pairs) / 12
    assert alignment(first, second) == pytest.approx(expected)
    assert alignment(first, 3 * first) == pytest.approx(0.0, abs=1e-12)
    assert alignment(first, -first) == pytest.approx(4.0)


def test_what_is_measured_on_which_set(noise: Any) -> None:
    train, test = noise(50), noise(40, seed=1)
    metrics = Collapse().evaluate(train, test, 0)
    assert metrics == pytest.approx(
        {
            "rankme": rankme(train.values),
            "rank_share": rankme(train.values) / 16,
            "feature_std": feature_std(train.values),
            "uniformity": uniformity(test.values),
        }
    )
    paired = Features(test.values, pairs=(test.values, train.values[:40]))
    assert Collapse().evaluate(train, paired, 0)["alignment"] == alignment(test.values, train.values[:40])


def test_rank_share_is_of_what_the_samples_allow(noise: Any) -> None:
    train = noise(10, dimension=64)
    metrics = Collapse().evaluate(train, train, 0)
    assert metrics["rank_share"] == pytest.approx(metrics["rankme"] / 10)
    assert metrics["rank_share"] > 0.8


def test_at_most_so_many_samples_are_used(noise: Any) -> None:
    train = noise(200, dimension=64)
    few = Collapse(samples=20).evaluate(train, train, 0)
    assert few["rankme"] <= 20
    assert Collapse(samples=20).evaluate(train, train, 1)["rankme"] != few["rankme"]
    assert Collapse(samples=200).evaluate(train, train, 0) == pytest.approx(Collapse().evaluate(train, train, 1))


def test_a_healthy_representation_has_no_diagnosis(noise: Any, blobs: Any) -> None:
    for data in (noise(200, dimension=64), blobs(200, distance=20.0), Features(noise(200).values.relu())):
        assert diagnose(Collapse().evaluate(data, data, 0)) is None


@pytest.mark.parametrize("spread", [0.0, 1e-7, 1e-3])
def test_a_complete_collapse_is_named(spread: float) -> None:
    values = torch.ones(100, 32) + spread * torch.randn(100, 32, generator=torch.Generator().manual_seed(0))
    message = diagnose(Collapse().evaluate(Features(values), Features(values), 0))
    assert message is not None
    assert "has collapsed" in message
    assert "learning rate" in message


def test_a_collapse_to_zero_is_named() -> None:
    zero = Features(torch.zeros(50, 16))
    assert "has collapsed" in str(diagnose(Collapse().evaluate(zero, zero, 0)))


def test_a_dimensional_collapse_is_named() -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(300, 2, generator=generator) @ torch.randn(2, 128, generator=generator)
    metrics = Collapse().evaluate(Features(values), Features(values), 0)
    assert metrics["feature_std"] > 0.5  # which the standard deviation alone would miss
    assert "few of its dimensions (effective rank 2.0" in str(diagnose(metrics))


def test_wrong_input_is_refused(noise: Any) -> None:
    with pytest.raises(ValueError, match="samples"):
        Collapse(samples=1)
    with pytest.raises(ValueError, match="at least 2 training"):
        Collapse().evaluate(noise(1), noise(5), 0)
