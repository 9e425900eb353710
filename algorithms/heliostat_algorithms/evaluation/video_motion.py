"""Whether generated videos move as the data does, for videos of one bright object on a dark ground.

A plain tracker, the centre of brightness, measures how fast the object of a video flies. Applied to generated and to
held-out videos alike, it tells whether a model has recovered the distribution of speeds; how wrong the tracker itself
is, is in both. How well held-out videos go on from their first frames is measured frame by frame: objects that fly
straight leave little to chance.

These are measures of such videos alone. They say nothing of how videos look otherwise, and are no FVD.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from heliostat_algorithms.algorithm import Algorithm, Batch
from heliostat_algorithms.collectives import sum_over_workers
from heliostat_algorithms.evaluation.evaluator import NetworkEvaluator, SampleSet
from heliostat_algorithms.evaluation.extraction import EVALUATION_STEP, device_of, evaluating
from heliostat_algorithms.randomness import Random

_GROUND = 0.2
"""Brightness below which a pixel belongs to the dark ground: generated ones are not quite black."""
_WHOLE = (0.5, 1.5)
"""How much of the brightness of the faintest and of the brightest held-out frame a whole object has."""


@runtime_checkable
class MakesVideos(Protocol):
    """What is judged here; see ``generative.video_diffusion``."""

    frames: int
    classes: int | None

    def videos(self, count: int, random: Random, label: Tensor | None = None, *, steps: int | None = None) -> Tensor:
        """(count, T, C, H, W) in [0, 1]."""

    def extend(
        self,
        videos: Tensor,
        random: Random,
        frames: int,
        label: Tensor | None = None,
        *,
        method: Any = ...,
        steps: int | None = None,
    ) -> Tensor:
        """(B, frames, C, H, W) in [0, 1], from (B, K, C, H, W)."""


@dataclass(frozen=True, kw_only=True)
class VideoMotion(NetworkEvaluator):
    """Compares speeds in generated and in held-out videos, and how well held-out videos are continued.

    Metrics, speeds in pixels per frame:

    - ``motion_speed_mean`` and ``motion_speed_std`` of generated videos, ``motion_data_speed_mean`` and
      ``motion_data_speed_std`` of all held-out ones;
    - ``motion_speed_distance``: Wasserstein-1 between both, and ``motion_data_speed_distance``, between as many
      training videos and the held-out ones: what chance alone does;
    - ``motion_whole``: share of generated videos in which each frame holds about as much brightness as frames of the
      data do; where it is low, the tracker tracks something else than an object, and speeds mean little;
    - ``motion_guided_error``, ``motion_replaced_error``, ``motion_still_error``: root of the mean squared error, of
      pixels from 0 to 1, of the frames that follow the first ``known`` ones: by reconstruction guidance, by
      replacement, and where the last known frame is repeated; ``..._distance`` is the mean distance of the centres, in
      pixels.

    Cost: ``videos`` samples and twice ``continued`` continuations, of which the guided ones cost about three times as
    much; twice in a run, for the untrained network.
    """

    type: Literal["video-motion"] = "video-motion"
    videos: int = 256
    """Samples whose speed is measured."""
    continued: int = 64
    """Held-out videos that are continued; all, where there are fewer."""
    known: int | None = None
    """Frames of a continued video that are given; null: half of them."""
    steps: int | None = None
    """Of the sampler; null: as the job's algorithm says."""
    batch_size: int = 64
    """Videos that are made at a time on each worker."""

    needs_labels: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("videos", "continued", "known", "steps", "batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1")

    @property
    def higher_is_better(self) -> Mapping[str, bool]:
        lower = ("speed_distance", "guided_error", "replaced_error", "guided_distance", "replaced_distance")
        return {"motion_whole": True} | {f"motion_{name}": False for name in lower}

    def check_network(self, algorithm: Algorithm, sample: Batch, samples: int) -> None:
        if not isinstance(algorithm, MakesVideos):
            raise ValueError(f"{self.type} judges methods that make videos, and {type(algorithm).__name__} makes none")
        if algorithm.frames < 2 or "video" not in sample:
            raise ValueError(f"{self.type} measures how things move, and the data are single images")
        if self.known is not None and self.known >= algorithm.frames:
            raise ValueError(
                f"known is {self.known}, but videos have {algorithm.frames} frames; nothing is left to make"
            )

    def judge(self, algorithm: Algorithm, train: SampleSet, test: SampleSet, seed: int) -> dict[str, float]:
        self.check_network(algorithm, next(iter(test.batches()), {"video": torch.empty(0)}), len(train))
        assert isinstance(algorithm, MakesVideos)
        with evaluating(algorithm):
            return self._speeds(algorithm, train, test, seed) | self._continuations(algorithm, test, seed)

    def _speeds(self, algorithm: Algorithm, train: SampleSet, test: SampleSet, seed: int) -> dict[str, float]:
        assert isinstance(algorithm, MakesVideos)
        device = device_of(algorithm)
        held_out = _Chosen(test, self.videos, device)
        some = _Chosen(train, self.videos, device)
        faint, bright = _WHOLE[0] * held_out.brightness[0], _WHOLE[1] * held_out.brightness[1]
        made, whole = (torch.zeros(self.videos, dtype=torch.float64, device=device) for _ in range(2))
        for rows in held_out.parts(self.batch_size):
            random = Random(seed, EVALUATION_STEP, rows, device, scope="motion/samples/")
            label = None if algorithm.classes is None else held_out.labels(rows)
            videos = algorithm.videos(len(rows), random, label, steps=self.steps)
            here, light = slice(rows.start, rows.stop), brightness(videos)
            made[here] = speeds(videos)
            whole[here] = ((light >= faint) & (light <= bright)).all(dim=1).double()
        made, whole = sum_over_workers(made), sum_over_workers(whole)
        return {
            "motion_speed_mean": float(made.mean()),
            "motion_speed_std": float(made.std(correction=0)),
            "motion_data_speed_mean": float(held_out.speeds.mean()),
            "motion_data_speed_std": float(held_out.speeds.std(correction=0)),
            "motion_speed_distance": wasserstein(made, held_out.speeds),
            "motion_data_speed_distance": wasserstein(some.speeds[some.places], held_out.speeds),
            "motion_whole": float(whole.mean()),
        }

    def _continuations(self, algorithm: Algorithm, test: SampleSet, seed: int) -> dict[str, float]:
        assert isinstance(algorithm, MakesVideos)
        device, total = device_of(algorithm), algorithm.frames
        known = total // 2 if self.known is None else self.known
        count = min(self.continued, len(test))
        held_out = _Chosen(test, count, device)

        def still(rows: range, given: Tensor) -> Tensor:
            return torch.cat([given, given[:, -1:].expand(-1, total - known, -1, -1, -1)], dim=1)

        def going_on(method: str) -> Callable[[range, Tensor], Tensor]:
            def made(rows: range, given: Tensor) -> Tensor:
                random = Random(seed, EVALUATION_STEP, rows, device, scope="motion/continued/")  # the same for both
                label = None if algorithm.classes is None else held_out.labels(rows)
                return algorithm.extend(given, random, total, label, method=method, steps=self.steps)

            return made

        found = {}
        for name, make in (("guided", going_on("guided")), ("replaced", going_on("replaced")), ("still", still)):
            errors, distances = (torch.zeros(count, dtype=torch.float64, device=device) for _ in range(2))
            for rows in held_out.parts(self.batch_size):
                true = held_out.videos(rows)
                made = make(rows, true[:, :known])
                here = slice(rows.start, rows.stop)
                errors[here] = (made - true)[:, known:].double().square().flatten(1).mean(dim=1)
                distances[here] = (centres(made) - centres(true))[:, known:].norm(dim=2).mean(dim=1)
            found[f"motion_{name}_error"] = float(sum_over_workers(errors).mean().sqrt())
            found[f"motion_{name}_distance"] = float(sum_over_workers(distances).mean())
        return found


class _Chosen:
    """``count`` videos of a set, evenly spaced in it; each worker holds those of its part. More than there are: some
    stand for several."""

    def __init__(self, samples: SampleSet, count: int, device: torch.device) -> None:
        self.places = torch.arange(count) * len(samples) // count
        part, self._device = samples.part(), device
        mine = (self.places >= part.start) & (self.places < part.stop)
        numbers = mine.nonzero().flatten()
        self.rows = range(int(numbers[0]), int(numbers[-1]) + 1) if len(numbers) else range(0)
        """Which of the chosen ones this worker holds."""
        wanted = self.places[mine]
        self.speeds = torch.zeros(len(samples), dtype=torch.float64, device=device)
        """(N,) of the whole set, on all workers."""
        frames = torch.zeros(len(samples), 2, dtype=torch.float64, device=device)  # each one's faintest and brightest
        kept, labels, first = [], [], part.start
        for batch in samples.batches():
            videos = batch["video"]
            shown = videos.to(device).float() / 255
            self.speeds[first : first + len(videos)] = speeds(shown)
            frames[first : first + len(videos)] = torch.stack(list(brightness(shown).aminmax(dim=1)), dim=1)
            here = wanted[(wanted >= first) & (wanted < first + len(videos))] - first
            kept.append(videos[here.to(videos.device)])
            labels.append(batch["label"][here.to(videos.device)] if "label" in batch else None)
            first += len(videos)
        self.speeds, frames = sum_over_workers(self.speeds), sum_over_workers(frames)
        self.brightness = float(frames[:, 0].min()), float(frames[:, 1].max())
        """Of the faintest and of the brightest frame of the whole set."""
        self._videos, self._labels = kept, labels

    def parts(self, size: int) -> list[range]:
        """This worker's rows, so many at a time."""
        return [range(n, min(n + size, self.rows.stop)) for n in range(self.rows.start, self.rows.stop, size)]

    def videos(self, rows: range) -> Tensor:
        """(n, T, C, H, W) in [0, 1]."""
        first = self.rows.start
        return torch.cat(self._videos)[rows.start - first : rows.stop - first].to(self._device).float() / 255

    def labels(self, rows: range) -> Tensor:
        """(n,) int64."""
        first, known = self.rows.start, [labels for labels in self._labels if labels is not None]
        return torch.cat(known)[rows.start - first : rows.stop - first].to(self._device)


def _light(videos: Tensor) -> Tensor:
    """(N, T, C, H, W) in [0, 1] -> (N, T, H, W) float64: brightness without that of the ground."""
    light = videos.double().mean(dim=2)
    return torch.where(light < _GROUND, 0.0, light)


def brightness(videos: Tensor) -> Tensor:
    """(N, T, C, H, W) in [0, 1] -> (N, T): brightness of each frame, summed over its pixels."""
    return _light(videos).sum(dim=(2, 3))


def centres(videos: Tensor) -> Tensor:
    """(N, T, C, H, W) in [0, 1] -> (N, T, 2) float64: the centre of brightness of each frame, row and column in pixels;
    the middle of a frame that is dark."""
    light = _light(videos)
    total = light.sum(dim=(2, 3))
    found = []
    for side, other in ((2, 3), (3, 2)):
        size = light.shape[side]
        places = torch.arange(size, dtype=light.dtype, device=light.device)
        moment = light.sum(dim=other) @ places
        found.append(torch.where(total > 0, moment / total.clamp_min(1e-9), 0.5 * (size - 1)))
    return torch.stack(found, dim=2)


def speeds(videos: Tensor) -> Tensor:
    """(N, T, C, H, W) in [0, 1] -> (N,) float64: pixels per frame.

    For each axis the median of the centre's steps, without sign, so that a few steps that a wall cut short do not
    count; then the length of both.
    """
    steps = centres(videos).diff(dim=1).abs()
    speed: Tensor = steps.quantile(0.5, dim=1).norm(dim=1)
    return speed


def wasserstein(a: Tensor, b: Tensor) -> float:
    """Wasserstein-1 between the empirical distributions of two samples (n,) and (m,): the area between their
    distribution functions."""
    a, b = a.double().sort().values, b.double().sort().values
    values = torch.cat([a, b]).sort().values
    below = [torch.searchsorted(x, values[:-1], right=True) / len(x) for x in (a, b)]
    return float(((below[0].double() - below[1].double()).abs() * values.diff()).sum())
