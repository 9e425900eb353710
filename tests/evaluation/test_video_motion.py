"""The tracker and its distances, against videos whose motion is known, and what is judged of a method."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from scipy.stats import wasserstein_distance
from torch import Tensor

from heliostat_algorithms.algorithm import DataSpec
from heliostat_algorithms.backbones.video_unet import VideoUNetConfig
from heliostat_algorithms.diffusion import DDIM
from heliostat_algorithms.evaluation import VideoMotion
from heliostat_algorithms.evaluation.video_motion import brightness, centres, speeds, wasserstein
from heliostat_algorithms.generative.video_diffusion import VideoDiffusion
from heliostat_algorithms.randomness import Random

NETWORK = VideoUNetConfig(width=4, multipliers=(1,), blocks=1, attention=(), head_width=4, norm_groups=2)


def dot(row: list[int], column: list[int], size: int = 12) -> Tensor:
    """(1, T, 1, S, S): one bright pixel."""
    video = torch.zeros(1, len(row), 1, size, size)
    for n, (i, j) in enumerate(zip(row, column, strict=True)):
        video[0, n, 0, i, j] = 1
    return video


def test_centres_and_brightness() -> None:
    video = dot([2, 4, 6], [1, 1, 5])
    assert centres(video).tolist() == [[[2, 1], [4, 1], [6, 5]]]
    assert brightness(video).tolist() == [[1, 1, 1]]
    assert torch.equal(centres(video + 0.1), centres(video.clamp(min=0.1)))  # the ground does not count
    assert centres(0 * video).tolist() == [[[5.5, 5.5]] * 3]
    assert centres(video.expand(-1, -1, 3, -1, -1)).tolist() == centres(video).tolist()


def test_speeds_do_not_mind_a_wall() -> None:
    straight = dot([0, 3, 6, 9], [0, 0, 0, 0])
    assert speeds(straight).tolist() == pytest.approx([3])
    thrown_back = dot([4, 7, 10, 9, 6, 3], [0, 4, 8, 10, 6, 2])
    assert speeds(thrown_back).tolist() == pytest.approx([5])  # 3 down and 4 across


def test_wasserstein_against_scipy() -> None:
    rng = np.random.default_rng(0)
    for n, m in ((5, 5), (7, 30), (200, 13)):
        a, b = rng.normal(size=n), rng.exponential(size=m)
        assert wasserstein(torch.tensor(a), torch.tensor(b)) == pytest.approx(wasserstein_distance(a, b))
    assert wasserstein(torch.tensor([1.0, 2.0]), torch.tensor([2.0, 1.0])) == 0


class Clips:
    """A few videos as a sample set of one worker."""

    classes = 2

    def __init__(self, count: int, seed: int) -> None:
        random = Random(seed, 0, range(count))
        start, step = random.integers("start", 4).tolist(), random.integers("step", 2).tolist()
        rows = [dot([s + n * (1 + k) for n in range(4)], [3] * 4, 16) for s, k in zip(start, step, strict=True)]
        self.video = (torch.cat(rows) * 255).to(torch.uint8)
        self.label = torch.tensor(step)

    def __len__(self) -> int:
        return len(self.video)

    def part(self) -> range:
        return range(len(self))

    def batches(self) -> Iterator[dict[str, Tensor]]:
        for first in range(0, len(self), 5):
            here = slice(first, first + 5)
            yield {"video": self.video[here], "label": self.label[here], "index": torch.arange(len(self))[here]}


class Copyist(VideoDiffusion):
    """Shows what it was given to show, whatever it is asked."""

    shown: Tensor

    def videos(self, count: int, random: Random, label: Tensor | None = None, **_: object) -> Tensor:  # type: ignore[override]
        return self.shown[random.rows.start : random.rows.stop]

    def extend(  # type: ignore[override]
        self, videos: Tensor, random: Random, frames: int, label: Tensor | None = None, *, method: str, **_: object
    ) -> Tensor:
        first = random.rows.start
        made = self.shown[first : first + len(videos)]
        return made if method == "guided" else torch.cat([videos, torch.zeros_like(made[:, videos.shape[1] :])], 1)


def build(kind: type[VideoDiffusion] = VideoDiffusion, frames: int | None = 4) -> VideoDiffusion:
    config = VideoDiffusion.Config(network=NETWORK, sampler=DDIM(steps=2))
    return kind(config, DataSpec(image_shape=(1, 16, 16), classes=2, frames=frames))


def test_what_is_counted() -> None:
    test, train = Clips(16, 1), Clips(23, 2)
    method = build(Copyist)
    method.shown = test.video.float() / 255
    found = VideoMotion(videos=16, continued=16).judge(method, train, test, 0)  # type: ignore[arg-type]
    data = speeds(test.video.float() / 255)
    assert found["motion_speed_mean"] == found["motion_data_speed_mean"] == pytest.approx(float(data.mean()))
    assert found["motion_speed_std"] == pytest.approx(float(data.std(correction=0)))
    assert found["motion_speed_distance"] == 0
    places = torch.arange(16) * 23 // 16
    chance = wasserstein(speeds(train.video.float() / 255)[places], data)
    assert found["motion_data_speed_distance"] == pytest.approx(chance)
    assert found["motion_whole"] == 1
    assert found["motion_guided_error"] == found["motion_guided_distance"] == 0
    assert found["motion_replaced_error"] == pytest.approx((1 / 256) ** 0.5)  # a dark frame lacks one pixel
    assert found["motion_still_error"] == pytest.approx((2 / 256) ** 0.5)  # a still one also shows a wrong one
    assert found["motion_still_distance"] == pytest.approx(float((1.5 * data).mean()))
    method.shown = method.shown * 0
    found = VideoMotion(videos=16, continued=4).judge(method, train, test, 0)  # type: ignore[arg-type]
    assert found["motion_whole"] == found["motion_speed_mean"] == 0


def test_it_runs_and_leaves_the_method_as_it_was() -> None:
    method, test = build().train(), Clips(7, 1)
    before = {name: value.clone() for name, value in method.state_dict().items()}
    judge = VideoMotion(videos=9, continued=20, batch_size=4, known=3)  # more than there are
    first, second = (judge.judge(method, Clips(8, 2), test, 0) for _ in range(2))  # type: ignore[arg-type]
    assert first == second
    assert all(np.isfinite(list(first.values())))
    assert method.training
    assert all(torch.equal(value, before[name]) for name, value in method.state_dict().items())
    assert set(judge.higher_is_better) <= set(first)


def test_what_it_cannot_judge_is_refused() -> None:
    clips = {"video": torch.zeros(1, 4, 1, 16, 16, dtype=torch.uint8)}
    with pytest.raises(ValueError, match="nothing is left to make"):
        VideoMotion(known=4).check_network(build(), clips, 10)
    with pytest.raises(ValueError, match="single images"):
        VideoMotion().check_network(build(frames=None), {"image": torch.zeros(1, 1, 16, 16)}, 10)
    with pytest.raises(ValueError, match="and Linear makes none"):
        VideoMotion().check_network(torch.nn.Linear(1, 1), clips, 10)  # type: ignore[arg-type]
    for field in ("videos", "continued", "known", "steps", "batch_size"):
        with pytest.raises(ValueError, match=field):
            VideoMotion(**{field: 0})
