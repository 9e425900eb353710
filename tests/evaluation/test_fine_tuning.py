from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heliostat.data.images import ImageData
from heliostat.training.evaluation import SharedSamples
from heliostat.training.runtime import SilentRuntime
from heliostat_algorithms.algorithm import Algorithm, Batch, Clock, DataSpec, Inputs, Step
from heliostat_algorithms.backbones import ResNet18, ViTTiny
from heliostat_algorithms.backbones.batch_norm import synchronize_batch_norm
from heliostat_algorithms.collectives import rank, world_size
from heliostat_algorithms.encoder import Encoder
from heliostat_algorithms.evaluation import FineTuning, LinearProbe, extract, training
from heliostat_algorithms.evaluation.fine_tuning import _Classifier
from heliostat_algorithms.randomness import Random
from heliostat_algorithms.representation.dino import DINO
from heliostat_algorithms.representation.moco import MoCo

SPEC = DataSpec(image_shape=(1, 8, 8), classes=2)


class Layers(Encoder):
    """Two linear layers with batch normalisation between them, in float64."""

    def __init__(self) -> None:
        super().__init__()
        self.feature_dim = 6
        self.first, self.norm, self.second = nn.Linear(64, 16), nn.BatchNorm1d(16), nn.Linear(16, 6)
        self.double()

    def forward(self, images: Tensor) -> Tensor:
        h: Tensor = self.second(F.gelu(self.norm(self.first(images.flatten(1)))))
        return h

    def sequence(self, images: Tensor) -> Tensor:
        return self(images).unsqueeze(1)


class Toy(Algorithm):
    """An encoder that, like a teacher, has no gradients, and a head that nobody fine-tunes."""

    def __init__(self) -> None:
        super().__init__(None, SPEC)
        self.student = Layers()
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)
        self.head = nn.Linear(6, 3)

    def prepare(self, batch: Batch, clock: Clock, random: Random) -> Inputs:
        raise AssertionError("fine-tuning asks for features only")

    def forward(self, inputs: Inputs, clock: Clock) -> Step:
        raise AssertionError("fine-tuning asks for features only")

    def encoder(self) -> Encoder:
        return self.teacher

    def whole(self, images: Tensor) -> Tensor:
        assert images.dtype == torch.uint8
        return images.double() / 255


class Headless(Toy):
    def encoder(self) -> None:  # type: ignore[override]
        return None


def halves(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Images (N, 1, 8, 8) whose class is whether the brighter side is also the one with the bright spot: neither pixel
    tells it by itself."""
    random = torch.Generator().manual_seed(seed)
    side, spot = (torch.randint(2, (count,), generator=random) for _ in range(2))
    images = torch.randint(60, (count, 1, 8, 8), generator=random)
    images[:, 0, 3:] += 120 * side.view(-1, 1, 1)
    images[:, 0, :3] += 120 * spot.view(-1, 1, 1)
    return images.to(torch.uint8), (side == spot).long()


def shared(count: int, seed: int) -> SharedSamples:
    images, labels = halves(count, seed)
    data = ImageData(images=images.numpy(), labels=labels.numpy(), classes=("different", "same"), name="made up")
    return SharedSamples(data, SilentRuntime(torch.device("cpu"), rank(), world_size()))


def toy() -> Toy:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Toy()


QUICK = FineTuning(epochs=2, batch_size=16, warmup_epochs=0.5, learning_rate=1e-3, crop_area=None, flip=0.0)


def named(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> list[str]:
    """Names of the tensors that are the same, to the last bit."""
    assert one.keys() == other.keys()
    return [name for name, value in one.items() if torch.equal(value, other[name])]


def test_training_the_network_beats_a_probe_on_it() -> None:
    algorithm, train, test = toy(), shared(256, 0), shared(200, 1)
    tuning = FineTuning(epochs=20, batch_size=32, learning_rate=5e-3, crop_area=None, flip=0.5)
    found = tuning.judge(algorithm, train, test, 0)
    assert set(found) == {"fine_tune_top1"}
    assert found["fine_tune_top1"] > 0.95
    frozen = [extract(algorithm, one.batches(), classes=2) for one in (train, test)]
    assert LinearProbe().evaluate(*frozen, 0)["linear_top1"] < 0.8


def test_the_algorithm_the_modes_and_the_generator_are_left_alone() -> None:
    algorithm = toy().train()
    algorithm.teacher.eval()
    algorithm.head.weight.grad = torch.ones_like(algorithm.head.weight)
    before, wanted = named(algorithm), [p.requires_grad for p in algorithm.parameters()]
    state = torch.get_rng_state()
    first = FineTuning(epochs=2, batch_size=32).judge(algorithm, shared(64, 0), shared(20, 1), 0)
    assert torch.equal(torch.get_rng_state(), state)
    assert len(same(before, algorithm.state_dict())) == len(before)  # running statistics, too
    assert [p.requires_grad for p in algorithm.parameters()] == wanted
    assert (algorithm.training, algorithm.student.training, algorithm.teacher.training) == (True, True, False)
    assert [p.grad is not None for p in algorithm.parameters()].count(True) == 1
    torch.rand(5)
    assert FineTuning(epochs=2, batch_size=32).judge(algorithm, shared(64, 0), shared(20, 1), 0) == first


def test_the_copy_s_encoder_moves_and_nothing_else() -> None:
    network = _Classifier(toy(), 2)
    before = named(network.algorithm)
    QUICK._train(network, shared(64, 0), 0)
    unmoved = same(before, network.algorithm.state_dict())
    assert sorted(unmoved) == sorted(name for name in before if not name.startswith("teacher."))
    assert network.weight.abs().min() > 0


def test_training_follows_its_description() -> None:
    """Against plain supervised training in float64."""
    tuning = FineTuning(epochs=3, batch_size=24, warmup_epochs=1, learning_rate=0.01, weight_decay=0.1,
                        crop_area=None, flip=0.0)  # fmt: skip
    train = shared(80, 0)
    network = _Classifier(toy(), 2)
    tuning._train(network, train, 5)

    encoder = copy.deepcopy(toy().teacher).requires_grad_(True).train()
    linear = nn.Linear(6, 2).double()
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    every = [*encoder.parameters(), *linear.parameters()]
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in every if p.ndim == 2], "weight_decay": 0.1},
            {"params": [p for p in every if p.ndim == 1], "weight_decay": 0.0},
        ],
        foreach=False,
    )
    loader = train.shuffled(24, "5:evaluation/fine_tune")
    assert loader.steps_per_epoch == 3
    for step in range(9):
        scale = step / 3 if step < 3 else 0.5 * (1 + math.cos(math.pi * (step - 3) / 6))
        for group in optimizer.param_groups:
            group["lr"] = 0.01 * scale
        batch = loader.batch(step)
        optimizer.zero_grad()
        F.cross_entropy(linear(encoder(batch["image"].double() / 255)), batch["label"]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    torch.testing.assert_close(network.weight, linear.weight, atol=1e-10, rtol=0)
    for name, value in network.algorithm.teacher.state_dict().items():  # type: ignore[operator, union-attr]
        torch.testing.assert_close(value, encoder.state_dict()[name], atol=1e-10, rtol=0)


def test_a_dino_teacher_learns() -> None:
    config = DINO.Config(backbone=ViTTiny(patch_size=4, width=16, depth=1, heads=2), prototypes=8, head_hidden=8,
                         head_bottleneck=4, drop_path=0.0)  # fmt: skip
    network = _Classifier(DINO(config, SPEC), 2)
    before = named(network.algorithm)
    QUICK._train(network, shared(64, 0), 0)
    moved = set(before) - set(same(before, network.algorithm.state_dict()))
    assert moved == {name for name in before if name.startswith("teacher_backbone.")}


def test_grouped_batch_normalisation_takes_the_whole_batch() -> None:
    backbone = ResNet18(width=4, stem="cifar", zero_init_residual=False)
    algorithm = MoCo(MoCo.Config(backbone=backbone, projection_dim=4, queue_size=8), SPEC)
    assert algorithm.grouped
    assert 0 <= QUICK.judge(algorithm, shared(32, 0), shared(10, 1), 0)["fine_tune_top1"] <= 1
    network = _Classifier(algorithm, 2)
    network.algorithm.train()
    batch = next(iter(shared(16, 0).batches()))
    network(batch)
    running = network.algorithm.backbone.bn1.running_mean  # type: ignore[union-attr]
    plain = copy.deepcopy(algorithm.backbone.conv1)(algorithm.whole(batch["image"]))
    torch.testing.assert_close(running, 0.1 * plain.mean(dim=(0, 2, 3)))


def test_augmented_images_stay_images() -> None:
    images = shared(40, 0).data.images  # type: ignore[attr-defined]
    batch = {"image": torch.from_numpy(images.copy()), "label": torch.arange(40)}
    random = Random(0, 0, range(40))
    cropped = FineTuning(crop_area=(0.3, 0.5))._augmented(batch, random)
    assert cropped["image"].dtype == torch.uint8
    assert cropped["image"].shape == batch["image"].shape
    assert torch.equal(cropped["label"], batch["label"])
    changed = (cropped["image"] != batch["image"]).flatten(1).any(dim=1)
    assert changed.all()
    assert FineTuning(crop_area=None, flip=0.0)._augmented(batch, random) is batch
    flipped = FineTuning(crop_area=None, flip=0.5)._augmented(batch, random)["image"]
    mirrored = [torch.equal(one, other.flip(2)) for one, other in zip(flipped, batch["image"], strict=True)]
    kept = [torch.equal(one, other) for one, other in zip(flipped, batch["image"], strict=True)]
    assert all(a != b for a, b in zip(mirrored, kept, strict=True))
    assert 8 < sum(mirrored) < 32


@pytest.mark.parametrize("crop_area", [None, (0.3, 0.9)])
def test_all_frames_of_a_clip_are_moved_alike(crop_area: tuple[float, float] | None) -> None:
    frame = torch.from_numpy(shared(12, 0).data.images.copy())  # type: ignore[attr-defined]
    clips = frame.unsqueeze(1).expand(12, 3, 1, 8, 8)
    found = FineTuning(crop_area=crop_area)._augmented({"video": clips}, Random(0, 4, range(12)))["video"]
    assert found.shape == clips.shape
    assert all(torch.equal(found[:, 0], found[:, t]) for t in range(3))
    assert not torch.equal(found[:, 0], frame)


def test_draws_are_those_of_the_row_of_the_global_batch() -> None:
    batch = {"image": torch.from_numpy(shared(12, 0).data.images.copy())}  # type: ignore[attr-defined]
    whole = FineTuning()._augmented(batch, Random(0, 2, range(12)))["image"]
    part = FineTuning()._augmented({"image": batch["image"][8:]}, Random(0, 2, range(8, 12)))["image"]
    assert torch.equal(whole[8:], part)


def test_few_labels_are_a_share_of_each_class(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: set[int] = set()
    forward = Layers.forward

    def spy(self: Layers, images: Tensor) -> Tensor:
        if self.training:
            seen.update(int(image.sum() * 255 + 0.5) for image in images)
        return forward(self, images)

    monkeypatch.setattr(Layers, "forward", spy)
    few = FineTuning(epochs=8, batch_size=8, crop_area=None, flip=0.0, train_fraction=0.1)
    few.judge(toy(), shared(160, 0), shared(20, 1), 0)
    assert 8 <= len(seen) <= 17


def test_more_than_five_classes_have_a_top_5(samples: Any) -> None:
    images, _ = halves(60, 0)
    many = samples(images, torch.arange(60) % 6, 6)
    assert set(QUICK.judge(toy(), many, many, 0)) == {"fine_tune_top1", "fine_tune_top5"} == set(QUICK.higher_is_better)


def test_an_algorithm_without_encoder_is_refused() -> None:
    headless = Headless()
    for ask in (
        lambda: QUICK.check_network(headless, {}, 100),
        lambda: QUICK.judge(headless, shared(40, 0), shared(20, 1), 0),
    ):
        with pytest.raises(ValueError, match="fine-tune trains an encoder, and Headless has none"):
            ask()
    QUICK.check_network(toy(), {}, 100)


def test_batches_fit_the_samples_and_the_workers() -> None:
    labels = torch.zeros(100, dtype=torch.int64)
    FineTuning(batch_size=100).check(100, labels, 2)
    with pytest.raises(ValueError, match=r"batches of 64, but there are only 50 .*train_fraction 0.5 of 100"):
        FineTuning(batch_size=64, train_fraction=0.5).check(100, labels, 2)
    with pytest.raises(ValueError, match="batches of 128, but there are only 64"):
        FineTuning().judge(toy(), shared(64, 0), shared(20, 1), 0)
    FineTuning(batch_size=128).check_workers(4)
    with pytest.raises(ValueError, match="3 workers cannot share fine-tune's batch of 128 equally; 129 would do"):
        FineTuning(batch_size=128).check_workers(3)


def test_divergence_is_an_error() -> None:
    with pytest.raises(ArithmeticError, match="diverged at a learning rate of 1e"):
        FineTuning(epochs=2, batch_size=16, learning_rate=1e300, warmup_epochs=0).judge(
            toy(), shared(64, 0), shared(20, 1), 0
        )


def test_labels_are_asked_for(samples: Any) -> None:
    images, labels = halves(32, 0)
    with pytest.raises(ValueError, match="needs labels"):
        QUICK.judge(toy(), samples(images, None, 2), shared(20, 1), 0)
    with pytest.raises(ValueError, match="differ in classes: 2 and 3"):
        QUICK.judge(toy(), shared(32, 0), samples(images, labels, 3), 0)


@pytest.mark.parametrize(
    "wrong",
    [
        {"epochs": 0},
        {"batch_size": 0},
        {"learning_rate": 0.0},
        {"weight_decay": -0.1},
        {"warmup_epochs": 20.0},
        {"warmup_epochs": -1.0},
        {"crop_area": (0.0, 1.0)},
        {"crop_area": (0.9, 0.5)},
        {"flip": 1.5},
        {"train_fraction": 0.0},
        {"every_epochs": 0},
    ],
)
def test_wrong_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        FineTuning(**wrong)


def tune_together() -> dict[str, Any]:
    tuning = FineTuning(epochs=3, batch_size=16, learning_rate=0.01)
    algorithm = synchronize_batch_norm(toy(), "cpu")
    network = _Classifier(algorithm, 2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "_BUCKET", 100)  # several exchanges of gradients in a step
        tuning._train(network, shared(50, 0), 0)
    metrics = tuning.judge(algorithm, shared(50, 0), shared(21, 1), 0)
    return {"metrics": metrics, "weight": network.weight.detach(), "state": named(network.algorithm)}


def test_two_workers_find_what_one_does(on_workers: Any) -> None:
    alone = tune_together()
    results = on_workers(tune_together, 2)
    for result in results:
        assert result["metrics"] == alone["metrics"]
        torch.testing.assert_close(result["weight"], alone["weight"], atol=1e-9, rtol=0)
        assert torch.equal(result["weight"], results[0]["weight"])
        for name, value in result["state"].items():
            torch.testing.assert_close(value, alone["state"][name], atol=1e-9, rtol=0)
