from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor

from heliostat_algorithms.algorithm import Clock, DataSpec
from heliostat_algorithms.augmentation import GaussianBlur, ViewAugmentation
from heliostat_algorithms.backbones import ResNet18, ResNet50
from heliostat_algorithms.objectives.nt_xent import nt_xent
from heliostat_algorithms.optimizers import Lars
from heliostat_algorithms.randomness import Random
from heliostat_algorithms.representation.simclr import SimCLR

DATA = DataSpec(image_shape=(3, 12, 12), classes=None)
CLOCK = Clock(step=0, total_steps=10, steps_per_epoch=5, batch_size=8)


def config(**options: Any) -> SimCLR.Config:
    return SimCLR.Config(**{"backbone": ResNet18(stem="cifar", width=4), "projection_dim": 6, **options})


def built(**options: Any) -> SimCLR:
    torch.manual_seed(0)
    return SimCLR(config(**options), DATA)


def images(count: int = 8, side: int = 12) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(256, (count, 3, side, side), generator=generator, dtype=torch.uint8)


def test_defaults_are_those_of_the_paper() -> None:
    defaults = SimCLR.Config()
    assert defaults.type == "simclr"
    assert defaults.backbone == ResNet50()
    assert (defaults.projection_layers, defaults.projection_hidden, defaults.projection_dim) == (2, None, 128)
    assert defaults.temperature == 0.1
    assert defaults.augmentation == ViewAugmentation()
    with torch.device("meta"):
        algorithm = SimCLR(defaults, DataSpec(image_shape=(3, 224, 224), classes=1000))
    shapes = [tuple(linear.weight.shape) for linear in algorithm.projection.linears]
    assert shapes == [(2048, 2048), (128, 2048)]


def test_two_views_are_drawn_from_the_step_and_the_rows() -> None:
    algorithm = built(augmentation=ViewAugmentation(size=10))

    def prepare(rows: range, step: int = 3) -> Any:
        return algorithm.prepare({"image": images()[rows.start : rows.stop]}, CLOCK, Random(7, step, rows))

    whole = prepare(range(8))
    assert set(whole) == {"first", "second"}
    for name in ("first", "second"):
        view = whole[name]
        assert (view.shape, view.dtype) == ((8, 3, 10, 10), torch.float32)
        assert float(view.min()) >= 0
        assert float(view.max()) <= 1
        assert torch.equal(view, torch.cat([prepare(range(a, a + 2))[name] for a in range(0, 8, 2)]))
        assert not torch.equal(view, prepare(range(8), step=4)[name])
    assert all((whole["first"][row] != whole["second"][row]).any() for row in range(8))


def test_the_loss_is_nt_xent_of_projections_that_share_a_pass() -> None:
    algorithm = built(temperature=0.3, backbone=ResNet18(stem="cifar", width=4, zero_init_residual=False)).double()
    generator = torch.Generator().manual_seed(5)
    views = torch.rand(16, 3, 12, 12, generator=generator, dtype=torch.float64)
    step = algorithm({"first": views[:8], "second": views[8:]}, CLOCK)

    again = built(temperature=0.3, backbone=ResNet18(stem="cifar", width=4, zero_init_residual=False)).double()
    z = again.projection(again.backbone(views))
    loss, metrics = nt_xent(z[:8], z[8:], 0.3)
    assert step.loss.item() == pytest.approx(loss.item(), rel=1e-12)
    assert step.metrics.keys() == metrics.keys()
    for name, value in metrics.items():
        assert step.metrics[name].item() == pytest.approx(value.item(), rel=1e-12)
    # One pass: the running statistics were moved once.
    assert int(algorithm.backbone.bn1.num_batches_tracked) == 1
    step.loss.backward()
    assert all(parameter.grad is not None for parameter in algorithm.parameters())


def test_features_are_the_representation_before_the_head() -> None:
    algorithm = built().eval()
    algorithm.backbone.bn1.running_mean.fill_(0.2)
    x = images()
    with torch.no_grad():
        found = algorithm.features(x)
        assert found.shape == (8, 32)
        assert torch.equal(found, algorithm.backbone(x.float() / 255))


def test_features_are_taken_at_the_size_of_the_views() -> None:
    algorithm = built(augmentation=ViewAugmentation(size=8)).eval()
    sizes = []
    algorithm.backbone.register_forward_pre_hook(lambda module, inputs: sizes.append(inputs[0]))
    with torch.no_grad():
        algorithm.features(images())
        algorithm.features(images(side=8))
    assert [tuple(x.shape) for x in sizes] == [(8, 3, 8, 8)] * 2
    expected = F.interpolate(images().float(), (8, 8), mode="bilinear", antialias=True) / 255
    torch.testing.assert_close(sizes[0], expected, rtol=0, atol=1e-6)


def test_a_view_pair_holds_features_of_two_views() -> None:
    algorithm = built().eval()
    batch, random = {"image": images()}, Random(7, -1, range(8))
    with torch.no_grad():
        first, second = algorithm.view_pair(batch, random)
        inputs = algorithm.prepare(batch, CLOCK, random)
        assert torch.equal(first, algorithm.backbone(inputs["first"]))
        assert torch.equal(second, algorithm.backbone(inputs["second"]))
    assert not torch.equal(first, second)


def test_every_parameter_is_in_one_group_and_only_weights_are_regularised() -> None:
    algorithm = built()
    groups = algorithm.parameter_groups()
    names = {id(parameter): name for name, parameter in algorithm.named_parameters()}
    found = {names[id(p)]: group.regularized for group in groups for p in group.parameters}
    assert sum(len(group.parameters) for group in groups) == len(found) == len(names)
    free = {name for name, regularized in found.items() if not regularized}
    assert free == {name for name in found if ".bn" in name or "norms" in name or "downsample.1" in name}


def test_training_pulls_views_together() -> None:
    torch.manual_seed(0)
    digits = torch.tensor(load_digits().images[:64] * 15.9, dtype=torch.uint8).unsqueeze(1)
    augmentation = ViewAugmentation(crop_area=(0.6, 1.0), flip=0.0, blur=GaussianBlur(probability=0.0))
    algorithm = SimCLR(
        config(augmentation=augmentation, temperature=0.2), DataSpec(image_shape=(1, 8, 8), classes=None)
    )
    optimizer = Lars(learning_rate=4.0, per=None).build(algorithm.parameter_groups(), 64)
    losses = []
    for step in range(40):
        loss = algorithm(algorithm.prepare({"image": digits}, CLOCK, Random(0, step, range(64))), CLOCK).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-5:]) / 5 < 0.85 * sum(losses[:5]) / 5


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"projection_dim": 0}, "projection_dim is 0"),
        ({"projection_layers": 0}, "projection_layers is 0"),
        ({"projection_hidden": -3}, "projection_hidden is -3"),
    ],
)
def test_numbers_out_of_range_are_refused(bad: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config(**bad)
