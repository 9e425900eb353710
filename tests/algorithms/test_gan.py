"""The GAN: its losses, the discriminator that theory predicts, and what each player may move."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Normal

from heliostat_algorithms.algorithm import Clock, DataSpec, Turn, Wish
from heliostat_algorithms.generative.gan import GAN, discriminator_loss, generator_loss
from heliostat_algorithms.generative.networks import Convolutional, FullyConnected
from heliostat_algorithms.randomness import Random

CLOCK = Clock(step=0, total_steps=10, steps_per_epoch=5, batch_size=4)
POINTS = DataSpec(image_shape=(1, 1, 2), classes=8, points=True)
SMALL = FullyConnected(hidden=(8,), activation="relu")


def built(data: DataSpec = POINTS, **config: Any) -> GAN:
    torch.manual_seed(0)
    return GAN(GAN.Config(**{"generator": SMALL, "discriminator": SMALL, "noise_dim": 3, **config}), data)


def test_losses_are_those_of_the_game() -> None:
    generator = torch.Generator().manual_seed(0)
    real, fake = torch.randn(2, 7, dtype=torch.float64, generator=generator)
    d, g = real.sigmoid(), fake.sigmoid()
    torch.testing.assert_close(discriminator_loss(real, fake), -d.log().mean() - (1 - g).log().mean())
    torch.testing.assert_close(generator_loss(fake, saturating=True), (1 - g).log().mean())
    torch.testing.assert_close(generator_loss(fake, saturating=False), -g.log().mean())
    sure = torch.full((1,), -200.0, requires_grad=True)  # D rejects all: one loss has a gradient, the other has none
    assert float(torch.autograd.grad(generator_loss(sure, saturating=False), sure)[0]) == -1
    assert float(torch.autograd.grad(generator_loss(sure, saturating=True), sure)[0]) == 0


def quantiles(of: Normal, count: int = 20_001) -> Tensor:
    return of.icdf((torch.arange(count, dtype=torch.float64) + 0.5) / count)


def test_the_value_at_the_best_discriminator_is_the_jensen_shannon_divergence() -> None:
    p, q = (Normal(torch.tensor(m, dtype=torch.float64), s) for m, s in ((0.0, 1.0), (1.5, 0.7)))

    def logit(x: Tensor) -> Tensor:
        return p.log_prob(x) - q.log_prob(x)  # D = p / (p + q)

    x = torch.linspace(-12, 12, 200_001, dtype=torch.float64)
    mixture = torch.logaddexp(p.log_prob(x), q.log_prob(x)) - math.log(2)
    divergences = [torch.trapezoid(of.log_prob(x).exp() * (of.log_prob(x) - mixture), x) for of in (p, q)]
    expected = -math.log(4) + float(sum(divergences))  # 2 JSD = KL(p||m) + KL(q||m)
    value = -float(discriminator_loss(logit(quantiles(p)), logit(quantiles(q))))
    assert value == pytest.approx(expected, abs=1e-4)
    for change in (0.05, -0.05):  # and no other discriminator does better
        assert -float(discriminator_loss(logit(quantiles(p)) + change, logit(quantiles(q)) + change)) < value


def test_a_trained_discriminator_is_the_ratio_of_densities() -> None:
    p, q = Normal(0.0, 1.0), Normal(1.5, 0.7)
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(1, 32), nn.Tanh(), nn.Linear(32, 1))
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    for step in range(1200):
        random = Random(0, step, range(512))
        real, fake = random.normal("real", 1), 1.5 + 0.7 * random.normal("fake", 1)
        optimizer.zero_grad()
        discriminator_loss(network(real)[:, 0], network(fake)[:, 0]).backward()
        optimizer.step()
    x = torch.linspace(-2, 3, 101)
    expected = (p.log_prob(x) - q.log_prob(x)).sigmoid()
    with torch.no_grad():
        found = network(x[:, None])[:, 0].sigmoid()
    assert float((found - expected).abs().mean()) < 0.03
    assert float(expected.max() - expected.min()) > 0.9


def test_where_samples_are_the_data_one_half_is_the_best_answer() -> None:
    samples = torch.randn(64, 1, 1, 2, generator=torch.Generator().manual_seed(0))
    model = built()
    for parameter in model.discriminator.parameters():
        nn.init.zeros_(parameter)
    logits = model.logits(samples)
    assert torch.equal(logits.sigmoid(), torch.full((64,), 0.5))
    loss = discriminator_loss(logits, model.logits(samples))
    assert float(loss.detach()) == pytest.approx(math.log(4))
    for gradient in torch.autograd.grad(loss, list(model.discriminator.parameters())):
        torch.testing.assert_close(gradient, torch.zeros_like(gradient))


def test_turns_and_what_they_see() -> None:
    config = GAN.Config(discriminator_steps=3)
    assert GAN.turns(config) == (
        Turn("discriminator", 0),
        Turn("discriminator", 1),
        Turn("discriminator", 2),
        Turn("generator", 2),
    )
    model, batch = built(), {"point": torch.tensor([[1.0, 2.0], [3.0, 4.0]])}
    random = Random(0, 0, range(2))
    seen = model.prepare(batch, replace(CLOCK, turn=Turn("discriminator")), random)
    assert torch.equal(seen["real"], batch["point"].view(2, 1, 1, 2))
    assert set(model.prepare(batch, replace(CLOCK, turn=Turn("generator")), random)) == {"noise"}
    assert float(seen["noise"].abs().max()) <= 1
    groups = model.parameter_groups()
    assert {group.player for group in groups} == {"generator", "discriminator"}
    assert sum(len(group.parameters) for group in groups) == len(list(model.parameters()))
    rates = {g.player: g.learning_rate_scale for g in built(discriminator_rate=0.5).parameter_groups()}
    assert rates == {"generator": 1.0, "discriminator": 0.5}


def test_pictures_come_in_the_range_of_pictures() -> None:
    networks = Convolutional(channels=(4, 8), batch_norm=True, initialization="dcgan", encoder_activation="leaky-relu")
    model = built(DataSpec(image_shape=(3, 8, 8), classes=None), generator=networks, discriminator=networks)
    images = torch.randint(0, 256, (6, 3, 8, 8), dtype=torch.uint8)
    clock = replace(CLOCK, turn=Turn("discriminator"))
    inputs = model.prepare({"image": images}, clock, Random(0, 0, range(6)))
    torch.testing.assert_close((inputs["real"] + 1) / 2, images / 255)
    step = model(inputs, clock)
    assert set(step.metrics) == {"on_data", "on_samples"}
    made = model.eval().sample(Wish(count=6, given={"image": images}), Random(0, -1, range(6)))
    for panels in made.values():
        assert float(panels.images.detach().min()) >= 0  # type: ignore[union-attr]
        assert float(panels.images.detach().max()) <= 1  # type: ignore[union-attr]
    assert not GAN.is_separable(model.config)
    assert GAN.is_separable(built().config)


def test_points_are_shown_in_the_plane() -> None:
    given = {"point": torch.zeros(5, 2)}
    made = built().sample(Wish(count=2, given=given), Random(0, -1, range(2)))["samples"]
    assert made.points.shape == (1000, 2)  # type: ignore[union-attr]
    line = built(DataSpec(image_shape=(1, 1, 3), classes=None, points=True))
    assert line.sample(Wish(count=2, given=given), Random(0, -1, range(2))) == {}


@pytest.mark.parametrize(
    ("config", "says"), [({"discriminator_steps": 0}, "discriminator_steps"), ({"discriminator_rate": 0.0}, "rate")]
)
def test_wrong_settings_are_refused(config: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        GAN.Config(**config)
