"""Video diffusion: what is drawn, the loss, labels and their absence, samples and their continuation."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from heliostat_algorithms.algorithm import Clips, Clock, DataSpec, Panels, Wish
from heliostat_algorithms.backbones.video_unet import VideoUNetConfig
from heliostat_algorithms.diffusion import DDIM, Ancestral
from heliostat_algorithms.generative.video_diffusion import VideoDiffusion
from heliostat_algorithms.randomness import Random

T, B, CLASSES = 4, 6, 3
NETWORK = VideoUNetConfig(width=8, multipliers=(1, 2), blocks=1, attention=(1,), head_width=8, norm_groups=4)
CLOCK = Clock(step=0, total_steps=10, steps_per_epoch=5, batch_size=B)


def method(frames: int | None = T, classes: int | None = CLASSES, random: bool = True, **fields: Any) -> VideoDiffusion:
    """A small network; with random weights unless ``random`` is false: as initialised it predicts 0."""
    fields = {"network": NETWORK, "images": 2, "sampler": DDIM(steps=4), **fields}
    data = DataSpec(image_shape=(1, 8, 8), classes=classes, frames=frames)
    made = VideoDiffusion(VideoDiffusion.Config(**fields), data)
    if random:
        for n, parameter in enumerate(made.network.parameters()):
            parameter.data = 0.2 * Random(n, 0, range(1)).normal("w", *parameter.shape)[0]
        if made.average is not None:
            made.average.load_state_dict(made.network.state_dict())
    return made.eval()


def batch(rows: range = range(B), seed: int = 0) -> dict[str, Tensor]:
    random = Random(seed, 0, rows)
    return {"video": random.integers("pixels", 256, T, 1, 8, 8).to(torch.uint8), "label": random.integers("c", CLASSES)}


def draw(seed: int = 0, rows: range = range(B)) -> Random:
    return Random(seed, 3, rows)


def test_what_is_prepared() -> None:
    made = method(label_drop=0.5)
    stored = batch()
    found = made.prepare(stored, CLOCK, draw())
    assert found["x"].shape == found["eps"].shape == (B, T + 2, 1, 8, 8)
    torch.testing.assert_close(found["x"][:, :T], stored["video"] / 127.5 - 1)
    levels, labels = found["log_snr"], found["label"]
    assert (levels[:, :T] == levels[:, :1]).all()
    assert len(levels[:, T - 1 :].unique()) == 3 * B  # each image has its own
    assert (labels[:, :T] == labels[:, :1]).all()
    for b in range(B):  # each image is a frame of a video of the batch, with that one's label or none
        for n in (T, T + 1):
            givers = [
                v for v in range(B) if (stored["video"][v] / 127.5 - 1 == found["x"][b, n]).flatten(1).all(1).any()
            ]
            assert len(givers) == 1
            assert labels[b, n] in (stored["label"][givers[0]], CLASSES)
    for place in (T, T + 1):  # each video gives one image for each place
        assert len({tuple(row) for row in found["x"][:, place].flatten(1).tolist()}) == B


def test_images_come_from_other_videos_and_differ_from_step_to_step() -> None:
    made, stored = method(images=1), batch()
    own, seen = 0, set()
    for step in range(200):
        x = made.prepare(stored, CLOCK, Random(0, step, range(B)))["x"]
        same = (x[:, :T] == x[:, T:]).flatten(2).all(dim=2)  # (B, T): from the own video
        own += int(same.any(dim=1).sum())
        seen |= {tuple(row) for row in same.nonzero().tolist()}
    assert own / (200 * B) == pytest.approx(1 / B, abs=0.05)
    assert len({frame for _, frame in seen}) == T


def test_times_are_uniform_and_labels_are_dropped_as_often_as_asked() -> None:
    made = method(images=0, label_drop=0.3)
    rows = range(4000)
    stored = {"video": torch.zeros(4000, T, 1, 8, 8, dtype=torch.uint8), "label": torch.zeros(4000, dtype=torch.int64)}
    found = made.prepare(stored, CLOCK, Random(0, 0, rows))
    times = made.config.schedule.time(found["log_snr"][:, 0].double()).sort().values
    even = (torch.arange(4000) + 0.5) / 4000
    assert float((times - even).abs().max()) < 1.63 / math.sqrt(4000)  # Kolmogorov and Smirnov, 1 %
    dropped = float((found["label"][:, 0] == CLASSES).double().mean())
    assert dropped == pytest.approx(0.3, abs=4 * math.sqrt(0.21 / 4000))


@pytest.mark.parametrize(("prediction", "loss"), [("v", None), ("eps", None), ("x", "x"), ("eps", "x"), ("v", "eps")])
def test_the_loss_against_numpy(prediction: Any, loss: Any) -> None:
    made = method(prediction=prediction, loss=loss).double()
    inputs = {
        name: value.double() if value.is_floating_point() else value
        for name, value in made.prepare(batch(), CLOCK, draw()).items()
    }
    inputs["log_snr"] = inputs["log_snr"].clamp(-5, 5)
    x, eps, level = (inputs[name].numpy() for name in ("x", "eps", "log_snr"))
    level = level[..., None, None, None]
    alpha, sigma = (1 / np.sqrt(1 + np.exp(-level)), 1 / np.sqrt(1 + np.exp(level)))
    z = alpha * x + sigma * eps
    said = made.network(torch.from_numpy(z), inputs["log_snr"], inputs["label"], T).detach().numpy()
    guess = {"v": alpha * z - sigma * said, "eps": (z - sigma * said) / alpha, "x": said}[prediction]
    noise = (z - alpha * guess) / sigma
    wrong = {"x": guess - x, "eps": noise - eps, "v": alpha * (noise - eps) - sigma * (guess - x)}[loss or prediction]
    step = made(inputs, CLOCK)
    assert float(step.loss.detach()) == pytest.approx(np.mean(wrong**2), rel=1e-8)
    assert float(step.metrics["video"]) == pytest.approx(np.mean(wrong[:, :T] ** 2), rel=1e-8)
    assert float(step.metrics["image"]) == pytest.approx(np.mean(wrong[:, T:] ** 2), rel=1e-8)


def test_the_loss_of_an_image_is_its_own() -> None:
    made = method()
    inputs = dict(made.prepare(batch(), CLOCK, draw()))
    before = made(inputs, CLOCK).metrics
    inputs["x"] = torch.cat([inputs["x"][:, :T] * 0.1, inputs["x"][:, T:]], dim=1)
    after = made(inputs, CLOCK).metrics
    assert torch.equal(before["image"], after["image"])
    assert not torch.equal(before["video"], after["video"])


def test_the_null_label_is_trained_and_needed_for_guidance() -> None:
    made = method(label_drop=0.5).train()
    made(made.prepare(batch(), CLOCK, draw()), CLOCK).loss.backward()
    table = made.network.embedding.label
    assert table is not None
    assert table.weight.shape[0] == CLASSES + 1
    assert table.weight.grad is not None
    assert table.weight.grad[CLASSES].abs().max() > 0
    with pytest.raises(ValueError, match="the null label is never trained"):
        method(guidance=1.0, label_drop=0.0)
    with pytest.raises(ValueError, match="the null label is never trained"):
        method(label_drop=0.0).denoiser(torch.zeros(1, dtype=torch.int64), 1.0)


def test_the_average_follows_and_is_what_samples_are_drawn_from() -> None:
    made = method(ema=0.9)
    assert made.average is not None
    before = [parameter.clone() for parameter in made.average.parameters()]
    with torch.no_grad():
        for parameter in made.network.parameters():
            parameter.add_(1.0)
    drawn = made.videos(2, draw(rows=range(2)))
    made.after_step(CLOCK)
    for old, now, new in zip(before, made.average.parameters(), made.network.parameters(), strict=True):
        torch.testing.assert_close(now, 0.9 * old + 0.1 * new)
        assert not now.requires_grad
    assert not torch.equal(made.videos(2, draw(rows=range(2))), drawn)
    with torch.no_grad():
        for parameter in made.network.parameters():
            parameter.zero_()
    made.average.load_state_dict(dict(zip(made.average.state_dict(), before, strict=True)))
    assert torch.equal(made.videos(2, draw(rows=range(2))), drawn)  # the network itself has no say
    assert method(ema=None).average is None


def test_samples() -> None:
    made = method()
    label = torch.arange(5) % CLASSES
    random = draw(rows=range(5))
    videos = made.videos(5, random, label)
    assert videos.shape == (5, T, 1, 8, 8)
    assert 0 <= float(videos.min()) < float(videos.max()) <= 1
    assert torch.equal(videos, made.videos(5, random, label))
    assert not torch.equal(videos, made.videos(5, random))
    assert torch.equal(videos, made.videos(5, random, label, guidance=0.0))
    assert not torch.equal(videos, made.videos(5, random, label, guidance=2.0))
    torch.testing.assert_close(made.videos(2, draw(rows=range(3, 5)), label[3:]), videos[3:], atol=1e-5, rtol=0)
    assert made.videos(2, draw(rows=range(2)), frames=T + 3, steps=2, sampler=Ancestral()).shape[1] == T + 3
    unlabelled = method(classes=None)
    assert unlabelled.videos(2, draw(rows=range(2))).shape == (2, T, 1, 8, 8)
    for call, said in (
        (lambda: made.videos(4, random), "5 rows, but 4 videos"),
        (lambda: made.videos(5, random, guidance=1.0), "no label to be guided to"),
        (lambda: unlabelled.videos(5, random, label), "trained without"),
    ):
        with pytest.raises(ValueError, match=said):
            call()


def test_guidance_combines_both_denoisers() -> None:
    made, label = method(), torch.tensor([0, 2])
    z, level = Random(0, 0, range(2)).normal("z", T, 1, 8, 8), torch.tensor(0.4)
    with torch.no_grad():
        guided = made.denoiser(label, 1.5, clip=False)(z, level)
        one, other = (made.denoiser(each, 0.0, clip=False)(z, level) for each in (label, None))
    torch.testing.assert_close(guided, 2.5 * one - 1.5 * other)
    assert made.denoiser(label)(100 * z, level).abs().max() <= 1


@pytest.mark.parametrize("how", ["guided", "replaced"])
def test_known_frames_stay_and_decide_the_others(how: Any) -> None:
    made = method()
    random = draw(rows=range(2))
    one, other = (batch(range(2), seed)["video"].float() / 255 for seed in (0, 1))
    known = torch.tensor([True, False, True, False])
    with torch.no_grad():
        first = made.complete(one, known, random, method=how)
        second = made.complete(other, known, random, method=how)
        hidden = one.clone()
        hidden[:, ~known] = 0.5
        same = made.complete(hidden, known, random, method=how)
    assert torch.equal(first[:, known], one[:, known])
    assert torch.equal(first, same)  # what is not known is not looked at
    assert (first - second)[:, ~known].abs().max() > 1e-3
    for wrong in (torch.ones(T), torch.zeros(T), torch.ones(T + 1)):
        with pytest.raises(ValueError, match="some are, not all"):
            made.complete(one, wrong.bool(), random)


def test_guidance_brings_the_reconstruction_nearer() -> None:
    made = method()
    given = batch(range(2))["video"].float() / 255
    small = torch.nn.functional.avg_pool2d(given.flatten(0, 1), 4).view(2, T, 1, 2, 2)

    def distance(weight: float) -> float:
        with torch.no_grad():
            found = made.enlarge(small, draw(rows=range(2)), weight=weight, steps=20)
        assert found.shape == (2, T, 1, 8, 8)
        shrunk = torch.nn.functional.avg_pool2d(found.flatten(0, 1), 4).view(small.shape)
        return float((shrunk - small).square().mean())

    assert distance(4.0) < 0.7 * distance(0.0)
    with pytest.raises(ValueError, match="do not divide"):
        made.enlarge(small[..., :1].expand(-1, -1, -1, -1, 3), draw(rows=range(2)))


def test_videos_go_on_block_by_block() -> None:
    made = method()
    given = batch(range(2))["video"][:, :3].float() / 255
    random = draw(rows=range(2))
    with torch.no_grad():
        long = made.extend(given, random, 9, overlap=2)
        short = made.extend(given, random, 5, overlap=2)
    assert long.shape == (2, 9, 1, 8, 8)
    assert torch.equal(long[:, :3], given)
    assert torch.equal(long[:, :5], short)  # a longer one begins like a shorter one
    assert not torch.equal(long[:, 3:5], long[:, 5:7])
    with torch.no_grad():
        assert torch.equal(made.extend(given, random, 2), given[:, :2])
        with pytest.raises(ValueError, match="from 1 to 3 known ones"):
            made.extend(given, random, 9, overlap=4)


def test_images_are_videos_of_one_frame() -> None:
    made = method(frames=None)
    stored = {"image": batch()["video"][:, 0], "label": batch()["label"]}
    found = made.prepare(stored, CLOCK, draw())
    assert found["x"].shape == (B, 3, 1, 8, 8)
    assert made(found, CLOCK).loss.isfinite()
    with torch.no_grad():
        assert made.videos(2, draw(rows=range(2))).shape == (2, 1, 1, 8, 8)
        sampled = made.sample(Wish(count=B, given=stored), draw())
    assert set(sampled) == {"samples"}
    assert isinstance(sampled["samples"], Panels)
    assert sampled["samples"].images.shape == (1, B, 1, 8, 8)


def test_what_is_made_for_people() -> None:
    made = method()
    with torch.no_grad():
        found = made.sample(Wish(count=B + 2, given=batch()), draw(rows=range(B + 2)))
    assert set(found) == {"samples", "extensions"}
    samples, extensions = found["samples"], found["extensions"]
    assert isinstance(samples, Clips)
    assert isinstance(extensions, Clips)
    assert samples.videos.shape == extensions.videos.shape == (B + 2, T, 1, 8, 8)
    stored = batch()["video"][:, :2] / 255
    torch.testing.assert_close(extensions.videos[:B, :2], stored)
    torch.testing.assert_close(extensions.videos[B:, :2], stored[:2])  # where too few are stored, some come again
    assert not torch.equal(extensions.videos[0, 2:], extensions.videos[B, 2:])


def test_images_need_the_whole_batch() -> None:
    made = method()
    assert not VideoDiffusion.is_separable(made.config)
    assert VideoDiffusion.is_separable(method(images=0).config)
    with pytest.raises(ValueError, match="cannot be split"):
        made.prepare(batch(range(3)), CLOCK, draw(rows=range(3)))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"images": -1}, "images is -1"),
        ({"label_drop": 1.1}, "label_drop is 1.1"),
        ({"ema": 1.0}, "ema is 1.0"),
        ({"reconstruction_weight": -1.0}, "reconstruction_weight is -1.0"),
        ({"guidance": -2.0}, "guidance is -2.0"),
        (
            {"network": VideoUNetConfig(width=8, multipliers=(1,) * 5, attention=(), head_width=8, norm_groups=8)},
            "of 16",
        ),
    ],
)
def test_wrong_configs_are_refused(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        method(**fields)
