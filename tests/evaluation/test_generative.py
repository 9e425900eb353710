"""Evaluators of generative methods, on models whose numbers are known."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from heliostat.data.images import ImageData
from heliostat.data.points import ring
from heliostat.data.samples import Samples
from heliostat.training.evaluation import SharedSamples
from heliostat.training.runtime import SilentRuntime
from heliostat_algorithms.algorithm import Algorithm, Batch, Clock, DataSpec, Inputs, Step
from heliostat_algorithms.collectives import rank, world_size
from heliostat_algorithms.evaluation import ClassifierFrechet, ConditionalLikelihood, Likelihood, ModeCoverage
from heliostat_algorithms.evaluation.frechet import frechet, share_among
from heliostat_algorithms.evaluation.likelihood import log_mean_exp
from heliostat_algorithms.randomness import Random


class Stub(Algorithm):
    """Trains on nothing."""

    def __init__(self) -> None:
        super().__init__(None, DataSpec(image_shape=(1, 8, 8), classes=2))
        self.anchor = nn.Parameter(torch.zeros(1))

    def prepare(self, batch: Batch, clock: Clock, random: Random) -> Inputs:
        raise AssertionError("it is judged only")

    def forward(self, inputs: Inputs, clock: Clock) -> Step:
        raise AssertionError("it is judged only")


class Weighing(Stub):
    """Gives each sample weights that depend on its place in the set and on the draws."""

    def elbo(self, batch: Batch, random: Random) -> Tensor:
        return -batch["index"].double() - random.uniform("elbo").double()

    def log_weights(self, batch: Batch, draws: int, random: Random) -> Tensor:
        return -batch["index"].double()[:, None] + random.normal("weights", draws).double()

    def conditional_log_weights(self, batch: Batch, draws: int, random: Random, *, importance: bool) -> Tensor:
        return self.log_weights(batch, draws, random) + (1.0 if importance else 0.0)

    def baseline_log_likelihood(self, batch: Batch, random: Random) -> Tensor:
        return -3 * batch["index"].double()


class Making(Stub):
    """Makes given samples, over and over."""

    def __init__(self, samples: Tensor) -> None:
        super().__init__()
        self.samples = samples

    def generate(self, random: Random) -> Tensor:
        return self.samples[torch.tensor(list(random.rows), dtype=torch.int64) % len(self.samples)]


def digits(count: int, seed: int = 0) -> ImageData:
    """Two classes that are easily told apart: bright above, or below."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 2
    images = torch.randint(0, 100, (count, 1, 8, 8), generator=generator)
    for half in (0, 1):
        images[labels == half, :, 4 * half : 4 * half + 4] += 150
    return ImageData(
        images=images.to(torch.uint8).numpy(), labels=labels.numpy(), classes=("up", "down"), name="halves"
    )


def shared(data: Samples) -> SharedSamples:
    return SharedSamples(data, SilentRuntime(torch.device("cpu"), rank(), world_size()))


def test_likelihoods_are_means_over_the_samples() -> None:
    train, test = shared(digits(8)), shared(digits(101))
    found = Likelihood(draws=7).judge(Weighing(), train, test, seed=3)
    random = Random(3, -1, range(101)).within("likelihood")
    expected = float((log_mean_exp(random.normal("weights", 7).double()) - torch.arange(101)).mean())
    assert found["iwae_7"] == pytest.approx(expected)
    assert found["elbo"] == pytest.approx(float(-50 - random.uniform("elbo").double().mean()))
    assert found["bound_gap"] == pytest.approx(found["iwae_7"] - found["elbo"])
    some = Likelihood(draws=7, samples=10).judge(Weighing(), train, test, seed=3)
    assert some["elbo"] == pytest.approx(float(-4.5 - random.uniform("elbo")[:10].double().mean()))


def test_conditional_likelihoods_are_negative_means() -> None:
    found = ConditionalLikelihood(draws=5).judge(Weighing(), shared(digits(8)), shared(digits(20)), seed=0)
    assert found["cnll_mc_5"] == pytest.approx(found["cnll_is_5"] + 1)
    assert found["cnll_baseline"] == pytest.approx(3 * 9.5)


def judged_together() -> dict[str, Any]:
    train, test = shared(digits(64)), shared(digits(41, seed=1))
    images = torch.from_numpy(digits(30, seed=2).images) / 255
    points = ring("train", samples=400, modes=4, radius=1.0, deviation=0.05)
    made = torch.tensor(points.points[:50])
    return {
        **Likelihood(draws=7).judge(Weighing(), train, test, seed=3),
        **ConditionalLikelihood(draws=3, samples=9).judge(Weighing(), train, test, seed=3),
        **ClassifierFrechet(batch_size=16, features=8).judge(Making(images), train, test, seed=3),
        **ModeCoverage(samples=100).judge(Making(made), shared(points), shared(points), seed=3),
    }


@pytest.mark.parametrize("workers", [2, 4])
def test_any_number_of_workers_finds_the_same(workers: int, on_workers: Any) -> None:
    alone = judged_together()
    for found in on_workers(judged_together, workers):
        assert found == pytest.approx(alone, rel=1e-3, abs=1e-3)


def test_a_diverged_network_has_no_likelihood() -> None:
    class Broken(Weighing):
        def elbo(self, batch: Batch, random: Random) -> Tensor:
            return super().elbo(batch, random) * math.nan

    with pytest.raises(ValueError, match="diverged"):
        Likelihood(draws=2).judge(Broken(), shared(digits(8)), shared(digits(8)), seed=0)


def on_a_ring(angles: list[float], off: float = 0.0) -> Tensor:
    return torch.tensor([[(2 + off) * math.cos(a), (2 + off) * math.sin(a)] for a in angles])


def coverage(made: Tensor) -> dict[str, float]:
    data = ring("train", samples=8000, modes=8, radius=2.0, deviation=0.02)
    return ModeCoverage(samples=800).judge(Making(made), shared(data), shared(data), seed=0)


def test_modes_are_counted() -> None:
    eighth = math.pi / 4
    everywhere = coverage(on_a_ring([n * eighth for n in range(8)]))
    assert everywhere == pytest.approx({"modes": 8, "high_quality": 1.0, "mode_kl": 0.0})
    two = coverage(on_a_ring([0, eighth]))
    assert two == pytest.approx({"modes": 2, "high_quality": 1.0, "mode_kl": math.log(4)})
    assert coverage(on_a_ring([n * eighth for n in range(8)], off=0.07)) == {"modes": 0, "high_quality": 0.0}
    assert coverage(on_a_ring([0], off=0.05))["high_quality"] == 1
    half = coverage(torch.cat([on_a_ring([0]), torch.zeros(1, 2)]))
    assert half == pytest.approx({"modes": 1, "high_quality": 0.5, "mode_kl": math.log(8)})


def test_what_is_drawn_from_the_ring_is_of_high_quality() -> None:
    other = ring("test", samples=800, modes=8, radius=2.0, deviation=0.02)
    found = coverage(torch.tensor(other.points))
    assert found["modes"] == 8
    assert found["high_quality"] == pytest.approx(1 - math.exp(-4.5), abs=0.01)  # of a Gaussian in the plane
    assert found["mode_kl"] < 0.02


def test_the_frechet_distance_of_gaussians_is_exact() -> None:
    def with_moments(mean: Tensor, root: Tensor) -> Tensor:
        """Features with exactly these moments."""
        x = torch.randn(500, len(mean), dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        x = x - x.mean(0)
        x = x @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(x.T))).T
        return x @ root.T + mean

    generator = torch.Generator().manual_seed(0)
    means, roots = (
        torch.randn(2, 4, dtype=torch.float64, generator=generator),
        [torch.diag(torch.rand(4).double() + 0.5)] * 2,
    )
    roots[1] = torch.diag(torch.tensor([0.3, 1.0, 2.0, 0.7], dtype=torch.float64))
    one, other = (with_moments(mean, root) for mean, root in zip(means, roots, strict=True))
    expected = (means[0] - means[1]).square().sum() + (roots[0] - roots[1]).square().sum()  # where they commute
    assert frechet(one, other) == pytest.approx(float(expected))
    skewed = [torch.randn(4, 4, dtype=torch.float64, generator=generator) for _ in range(2)]
    one, other = (with_moments(mean, root) for mean, root in zip(means, skewed, strict=True))
    covariances = [root @ root.T for root in skewed]
    values = torch.linalg.eigvals(covariances[0] @ covariances[1]).real.clamp(min=0).sqrt().sum()
    spread = covariances[0].trace() + covariances[1].trace() - 2 * values
    assert frechet(one, other) == pytest.approx(float((means[0] - means[1]).square().sum() + spread))
    assert frechet(one, other) == pytest.approx(frechet(other, one))
    assert frechet(one, one) == pytest.approx(0, abs=1e-8)


def test_precision_and_recall_by_hand() -> None:
    others = torch.tensor([[0.0], [1.0], [3.0]])  # with 1 neighbour, radii 1, 1, 2
    rows = torch.tensor([[-0.9], [-1.1], [1.5], [4.9], [5.1]])
    assert share_among(rows, others, 1) == pytest.approx(3 / 5)
    assert share_among(torch.tensor([[-3.1], [6.1]]), others, 2) == 0
    assert share_among(rows, others, 2) == 1  # radii 3, 2 and 3: up to 6


def test_real_pictures_are_nearer_than_others() -> None:
    train, test = shared(digits(256)), shared(digits(128, seed=1))
    evaluator = ClassifierFrechet(batch_size=32, features=8, epochs=4)
    state = torch.random.get_rng_state()
    real = evaluator.judge(Making(torch.from_numpy(digits(128, seed=2).images) / 255), train, test, seed=0)
    again = evaluator.judge(Making(torch.from_numpy(digits(128, seed=2).images) / 255), train, test, seed=0)
    assert torch.equal(torch.random.get_rng_state(), state)
    one_class = evaluator.judge(
        Making(torch.from_numpy(digits(256, seed=2).images[::2].copy()) / 255), train, test, seed=0
    )
    noise = evaluator.judge(Making(torch.rand(128, 1, 8, 8)), train, test, seed=0)
    assert real == again
    assert real["classifier_accuracy"] > 0.95
    assert real["classifier_frechet"] < 0.2 * min(one_class["classifier_frechet"], noise["classifier_frechet"])
    assert one_class["classifier_precision"] > 0.5
    assert one_class["classifier_recall"] < 0.7 < real["classifier_recall"]


def refused() -> Iterator[tuple[Any, Any, str]]:
    image, point = {"image": torch.zeros(1, 1, 8, 8)}, {"point": torch.zeros(1, 2)}
    yield Likelihood(), image, "says nothing"
    yield ConditionalLikelihood(), image, "says nothing"
    yield ModeCoverage(), point, "makes none"
    yield ClassifierFrechet(), image, "makes none"


@pytest.mark.parametrize(("evaluator", "sample", "says"), list(refused()))
def test_methods_that_cannot_be_judged_are_refused(evaluator: Any, sample: Batch, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        evaluator.check_network(Stub(), sample, 4)


def test_data_that_cannot_be_judged_are_refused() -> None:
    making = Making(torch.zeros(1, 2))
    with pytest.raises(ValueError, match="are pictures"):
        ModeCoverage().check_network(making, {"image": torch.zeros(1, 1, 8, 8)}, 4)
    with pytest.raises(ValueError, match="the data are none"):
        ClassifierFrechet().check_network(making, {"point": torch.zeros(1, 2)}, 4)
    with pytest.raises(ValueError, match="batches of 128"):
        ClassifierFrechet().check(100, torch.zeros(100, dtype=torch.int64), 2)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Likelihood(draws=0),
        lambda: ConditionalLikelihood(samples=0),
        lambda: ModeCoverage(radius=0.0),
        lambda: ModeCoverage(min_share=2.0),
        lambda: ClassifierFrechet(neighbours=0),
        lambda: ClassifierFrechet(neighbour_samples=3),
    ],
)
def test_wrong_settings_are_refused(make: Any) -> None:
    with pytest.raises(ValueError, match=r"must be|neighbours"):
        make()
