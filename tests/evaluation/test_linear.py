from __future__ import annotations

import math
from typing import Any

import numpy
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from heliostat_algorithms.evaluation import Features, LinearProbe, logistic
from heliostat_algorithms.evaluation import linear as module
from heliostat_algorithms.evaluation.linear import LBFGS, SGD, standardize
from heliostat_algorithms.randomness import permutation

QUICK_SGD = SGD(epochs=30, batch_size=64, learning_rates=(0.1, 0.01))


def objective(weight: Any, bias: Any, features: Any, labels: list[int], l2: float) -> float:
    """Mean cross-entropy + l2 / 2 |W|^2, sample by sample in float64."""
    total = 0.0
    for x, label in zip(features, labels, strict=True):
        logits = [float(numpy.dot(x, weight[:, c]) + bias[c]) for c in range(weight.shape[1])]
        top = max(logits)
        total += top + math.log(sum(math.exp(z - top) for z in logits)) - logits[label]
    return total / len(labels) + l2 / 2 * float((numpy.asarray(weight) ** 2).sum())


@pytest.mark.parametrize("l2", [1.0, 1e-2, 1e-4])
@pytest.mark.parametrize("classes", [2, 5])
def test_logistic_regression_is_that_of_scikit_learn(blobs: Any, classes: int, l2: float) -> None:
    data = blobs(120, classes=classes, dimension=6, distance=1.5)
    ours = logistic.fit(data.values[None], data.labels[None], classes, l2, tolerance=1e-9)
    x, y = data.values.double().numpy(), data.labels.numpy()
    theirs = LogisticRegression(C=1 / (l2 * 120), tol=1e-10, max_iter=10_000)
    if (
        classes == 2
    ):  # scikit-learn has one weight vector w for two classes, of which the softmax's are w / 2 and -w / 2
        theirs.set_params(C=2 / (l2 * 120)).fit(x, y)
        coefficients = numpy.concatenate([-theirs.coef_, theirs.coef_]) / 2
    else:
        coefficients = theirs.fit(x, y).coef_
    numpy.testing.assert_allclose(ours.weight[0].T.numpy(), coefficients, atol=2e-5)
    found = theirs.predict_proba(x)
    numpy.testing.assert_allclose(ours.scores(data.values)[0].softmax(-1).numpy(), found, atol=2e-5)


def test_the_optimum_is_one_of_the_formula(blobs: Any) -> None:
    data = blobs(30, classes=3, dimension=4, distance=1.0)
    fit = logistic.fit(data.values[None], data.labels[None], 3, 0.05, tolerance=1e-9)
    weight, bias = fit.weight[0].numpy(), fit.bias[0, 0].numpy()
    x, y = data.values.double().numpy(), data.labels.tolist()
    best = objective(weight, bias, x, y, 0.05)
    generator = numpy.random.default_rng(0)
    for size in (1e-1, 1e-2, 1e-3):
        for _ in range(10):
            shift, tilt = generator.normal(size=weight.shape), generator.normal(size=bias.shape)
            assert objective(weight + size * shift, bias + size * tilt, x, y, 0.05) > best


def test_problems_solved_together_are_those_solved_alone(blobs: Any) -> None:
    # Their difficulty differs, so that some are done, or back-track, while others go on.
    sets = [blobs(42, distance=distance, seed=seed) for seed, distance in enumerate((0.0, 1.0, 50.0))]
    together = logistic.fit(
        torch.stack([one.values for one in sets]), torch.stack([one.labels for one in sets]), 7, 1e-3, tolerance=1e-8
    )
    for i, one in enumerate(sets):
        alone = logistic.fit(one.values[None], one.labels[None], 7, 1e-3, tolerance=1e-8)
        torch.testing.assert_close(together.weight[i], alone.weight[0], atol=1e-4, rtol=0)


def test_the_start_changes_nothing_but_speed(blobs: Any) -> None:
    data = blobs(70, distance=1.0)
    cold = logistic.fit(data.values[None], data.labels[None], 7, 1e-2, tolerance=1e-9)
    far = logistic.Linear(torch.randn_like(cold.weight), torch.zeros_like(cold.bias))
    warm = logistic.fit(data.values[None], data.labels[None], 7, 1e-2, tolerance=1e-9, start=far)
    torch.testing.assert_close(warm.weight, cold.weight, atol=1e-6, rtol=0)


def test_an_unsolved_problem_is_an_error(blobs: Any) -> None:
    data = blobs(70)
    with pytest.raises(ArithmeticError, match="stopped at a gradient"):
        logistic.fit(data.values[None], data.labels[None], 7, 1e-6, max_iterations=3)
    two = torch.stack([data.values, 3 * data.values]), torch.stack([data.labels, data.labels])
    with pytest.raises(ArithmeticError, match=r"stopped at a gradient of \d"):  # float64 gets no closer; not NaN
        logistic.fit(*two, 7, 1e-2, tolerance=1e-300)
    with pytest.raises(ValueError, match="l2 must be above 0"):
        logistic.fit(data.values[None], data.labels[None], 7, 0.0)


def test_a_class_without_samples_is_never_predicted(blobs: Any) -> None:
    data = blobs(70)
    fit = logistic.fit(data.values[None], data.labels[None], 9, 1e-2, tolerance=1e-5)
    assert int(fit.scores(data.values).argmax(dim=-1).max()) < 7


def test_standardisation_by_the_formula(noise: Any) -> None:
    train, test = noise(50).values + 1000, noise(20, seed=1).values + 1000  # float32 would lose digits
    x = train.double().numpy()
    mean, std = x.mean(axis=0), x.std(axis=0)
    ours, theirs = standardize(train, test)
    numpy.testing.assert_allclose(ours.numpy(), (x - mean) / std, atol=1e-5)
    numpy.testing.assert_allclose(theirs.numpy(), (test.double().numpy() - mean) / std, atol=1e-5)


def test_rounding_noise_in_a_constant_dimension_is_not_blown_up() -> None:
    train = torch.randn(50, 3)
    train[:, 1] = 0.3 + 1e-8 * torch.randn(50)
    train[:, 2] = 0.0
    standard, _ = standardize(train, train)
    assert standard[:, 1:].abs().max() == 0
    assert float(standard[:, 0].std(correction=0)) == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("solver", [LBFGS(), QUICK_SGD])
def test_separate_clouds_are_told_apart_and_noise_is_at_chance(blobs: Any, noise: Any, solver: LBFGS | SGD) -> None:
    probe = LinearProbe(solver=solver)
    easy = probe.evaluate(blobs(350, distance=30.0), blobs(140, distance=30.0, seed=1), 0)
    assert (easy["linear_top1"], easy["linear_top5"]) == (1.0, 1.0)
    chance = probe.evaluate(noise(350), noise(1400, seed=1), 0)["linear_top1"]
    assert chance == pytest.approx(1 / 7, abs=0.04)


@pytest.mark.parametrize("solver", [LBFGS(), QUICK_SGD])
def test_the_scale_of_a_dimension_does_not_matter(blobs: Any, solver: LBFGS | SGD) -> None:
    train, test = blobs(140, distance=1.5), blobs(140, distance=1.5, seed=1)
    scale, shift = torch.logspace(-2, 2, 16), torch.linspace(-5, 5, 16)
    expected = LinearProbe(solver=solver).evaluate(train, test, 0)
    assert 0.2 < expected["linear_top1"] < 1.0
    scaled = [Features(one.values * scale + shift, one.labels, 7) for one in (train, test)]
    assert LinearProbe(solver=solver).evaluate(*scaled, 0) == pytest.approx(expected, abs=0.01)


def test_the_strength_is_chosen_without_the_test_set(blobs: Any, noise: Any) -> None:
    train = blobs(210, distance=1.0)
    chosen = {
        LinearProbe().evaluate(train, test, 0)["linear_l2"]
        for test in (blobs(70, seed=1), noise(70), Features(train.values, train.labels, 7))
    }
    assert len(chosen) == 1
    assert chosen <= set(LBFGS().l2)


def test_the_strength_fits_the_data(blobs: Any) -> None:
    """Here the strongest penalty, which is tried first, sees nothing but the most frequent class."""
    train, test = blobs(420), blobs(420, seed=1)
    kept = (train.labels == 0) | (torch.arange(420) % 4 == 0)
    train = Features(train.values[kept], train.labels[kept], 7)
    grid = (1e3, 1e-2)
    scores = {l2: LinearProbe(solver=LBFGS(l2=(l2,))).evaluate(train, test, 0)["linear_top1"] for l2 in grid}
    assert scores[1e3] < 0.3 < 0.6 < scores[1e-2]
    picked = LinearProbe(solver=LBFGS(l2=grid)).evaluate(train, test, 0)
    assert (picked["linear_l2"], picked["linear_top1"]) == (1e-2, scores[1e-2])


def test_equal_strengths_are_decided_for_the_cautious_one(blobs: Any) -> None:
    train, test = blobs(140, distance=30.0), blobs(70, distance=30.0, seed=1)
    assert LinearProbe().evaluate(train, test, 0)["linear_l2"] == max(LBFGS().l2)
    assert LinearProbe(solver=QUICK_SGD).evaluate(train, test, 0)["linear_lr"] == min(QUICK_SGD.learning_rates)


def test_collapsed_features_are_at_chance() -> None:
    labels = torch.arange(140) % 7
    constant = Features(torch.full((140, 8), 0.7), labels, 7)
    assert LinearProbe().evaluate(constant, constant, 0)["linear_top1"] == pytest.approx(1 / 7)


def test_sgd_follows_the_formula(blobs: Any) -> None:
    data = blobs(48, classes=3, dimension=4)
    solver = SGD(batch_size=20, epochs=2)  # batches of 20, 20 and 8
    fits = solver.fit(data.values, data.labels, 3, [0.5, 0.1], "key")
    x = data.values.double().numpy()
    targets = numpy.eye(3)[data.labels.numpy()]
    for i, rate in enumerate((0.5, 0.1)):
        weight, bias = numpy.zeros((4, 3)), numpy.zeros(3)
        weight_speed, bias_speed = numpy.zeros((4, 3)), numpy.zeros(3)
        step = 0
        for epoch in range(2):
            order = permutation(f"key/epoch{epoch}", 48).numpy()
            for rows in (order[:20], order[20:40], order[40:]):
                logits = numpy.exp(x[rows] @ weight + bias)
                error = logits / logits.sum(axis=1, keepdims=True) - targets[rows]
                weight_speed = 0.9 * weight_speed + x[rows].T @ error / len(rows)
                bias_speed = 0.9 * bias_speed + error.mean(axis=0)
                now = rate * 20 / 256 * (1 + math.cos(math.pi * step / 6)) / 2
                weight, bias = weight - now * weight_speed, bias - now * bias_speed
                step += 1
        numpy.testing.assert_allclose(fits.weight[i].numpy(), weight, atol=1e-5)
        numpy.testing.assert_allclose(fits.bias[i, 0].numpy(), bias, atol=1e-5)


def test_sgd_sees_each_sample_once_in_an_epoch_in_an_order_of_its_own(blobs: Any) -> None:
    data = blobs(50, classes=3, dimension=4)
    solver = SGD(batch_size=16, epochs=2)  # the last batch has 2 samples
    first, again, other = (solver.fit(data.values, data.labels, 3, [0.5], key) for key in ("a", "a", "b"))
    assert torch.equal(first.weight, again.weight)
    assert not torch.equal(first.weight, other.weight)
    in_one_batch = SGD(batch_size=50, epochs=1)
    first, other = (in_one_batch.fit(data.values, data.labels, 3, [0.5], key) for key in ("a", "b"))
    torch.testing.assert_close(first.weight, other.weight)


def test_a_diverging_learning_rate_is_not_chosen_and_is_an_error_alone(blobs: Any) -> None:
    train, test = blobs(70), blobs(70, seed=1)
    solver = SGD(learning_rates=(0.05, 1e300), batch_size=32, epochs=10)
    assert LinearProbe(solver=solver).evaluate(train, test, 0)["linear_lr"] == 0.05
    with pytest.raises(ArithmeticError, match="diverged"):
        LinearProbe(solver=SGD(learning_rates=(1e300,), batch_size=32, epochs=10)).evaluate(train, test, 0)


def test_chunks_change_nothing(blobs: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    train, test = blobs(140, distance=1.5), blobs(70, distance=1.5, seed=1)
    expected = LinearProbe().evaluate(train, test, 0)
    monkeypatch.setattr(module, "_SCORES", 21)
    assert LinearProbe().evaluate(train, test, 0) == expected


@pytest.mark.parametrize(
    ("config", "wrong"),
    [
        (LBFGS, {"l2": ()}),
        (LBFGS, {"l2": (1.0, 0.0)}),
        (SGD, {"learning_rates": ()}),
        (SGD, {"learning_rates": (-0.1,)}),
        (SGD, {"batch_size": 0}),
        (SGD, {"epochs": 0}),
        (LinearProbe, {"validation": 0.0}),
        (LinearProbe, {"validation": 1.0}),
    ],
)
def test_wrong_settings_are_refused(config: Any, wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        config(**wrong)


def test_too_few_samples_to_hold_some_out(blobs: Any) -> None:
    with pytest.raises(ValueError, match=r"validation = 0\.1 of 4"):
        LinearProbe().evaluate(blobs(4, classes=2), blobs(4, classes=2), 0)
