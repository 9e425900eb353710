"""Video Diffusion Models, Ho, Salimans, Gritsenko, Chan, Norouzi and Fleet 2022 (arXiv 2204.03458).

A network learns to take noise out of videos of T frames, at all levels of noise; sampling begins with noise alone. Read
``diffusion.process`` beside section 2, ``backbones.video_unet`` beside section 3, ``diffusion.conditioning`` beside
section 3.1. Here they come together: training on videos and on independent images at once (section 3), samples with and
without labels, longer videos (extension in time), frames between frames (super-resolution in time) and larger ones
(super-resolution in space).

Data without frames are videos of one frame: then this is image diffusion.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from heliostat_algorithms.algorithm import Algorithm, Batch, Clips, Clock, DataSpec, Inputs, Panels, Sampled, Step, Wish
from heliostat_algorithms.backbones.video_unet import VideoUNet, VideoUNetConfig
from heliostat_algorithms.collectives import gather_rows
from heliostat_algorithms.diffusion.conditioning import (
    Weight,
    classifier_free,
    clipped,
    reconstruction_guided,
    replacement,
)
from heliostat_algorithms.diffusion.process import CosineSchedule, Space, diffuse, squared_error, to_x
from heliostat_algorithms.diffusion.samplers import DDIM, Denoiser, Sampler, SamplerConfig, generate
from heliostat_algorithms.randomness import Random
from heliostat_algorithms.teachers import follow, teacher_of

Method = Literal["guided", "replaced"]
"""How known frames are kept to: with the gradient of their reconstruction (the paper), or by replacement alone."""


class VideoDiffusion(Algorithm):
    """Video diffusion (Ho et al. 2022): noise taken out of videos, step by step."""

    video = True

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """The paper's choices where it names them."""

        type: Literal["video-diffusion"] = "video-diffusion"
        network: VideoUNetConfig = field(default_factory=VideoUNetConfig)
        """The 3-D U-Net."""
        schedule: CosineSchedule = field(default_factory=CosineSchedule)
        """How noise grows with time; in training, times are uniform."""
        prediction: Space = "v"
        """What the network predicts: eps or v in the paper."""
        loss: Space | None = None
        """In which space the squared error is measured, which weighs the levels of noise; null: that of
        ``prediction``. Where noise and data differ by large factors (eps for v or x, x for v or eps) a weight may reach
        1e8 at the end of the schedule; then cut it off earlier."""
        images: int = 0
        """Independent images that are appended to each video, 0, 4 or 8 in the paper: frames of random videos of the
        batch, each with noise and label of its own."""
        conditional: bool = True
        """Learn labels, where the data has some."""
        label_drop: float = 0.1
        """Share of the labels that are replaced by the null label, so that the network learns to do without; needed for
        classifier-free guidance."""
        ema: float | None = 0.9999
        """Share of the old average of all weights that stays in each step; samples are drawn from the average. Lower it
        for short trainings. null: without."""
        sampler: SamplerConfig = field(default_factory=DDIM)
        """How samples are drawn, where nothing else is said."""
        guidance: float = 0.0
        """w of classifier-free guidance where nothing else is said; 0: the conditional model as it is."""
        reconstruction_weight: float = 1.0
        """w_r of reconstruction guidance where nothing else is said. The paper finds that larger ones make better
        samples."""

        def __post_init__(self) -> None:
            if self.images < 0:
                raise ValueError(f"images is {self.images}; it cannot be negative")
            if not 0 <= self.label_drop <= 1:
                raise ValueError(f"label_drop is {self.label_drop}; it is a share, from 0 to 1")
            if self.ema is not None and not 0 <= self.ema < 1:
                raise ValueError(f"ema is {self.ema}; it must be at least 0 and below 1, or null for none")
            if self.reconstruction_weight < 0:
                raise ValueError(f"reconstruction_weight is {self.reconstruction_weight}; it cannot be negative")
            _check_guidance(self.guidance, self.label_drop)

    def __init__(self, config: Config, data: DataSpec) -> None:
        super().__init__(config, data)
        self.config = config
        self.of_clips = data.frames is not None
        """Whether the data are clips; images otherwise."""
        self.frames = data.frames or 1
        """T, of the videos that are trained on and sampled."""
        self.image_shape = data.image_shape
        channels, *sides = data.image_shape
        if any(side % config.network.divisor for side in sides):
            raise ValueError(
                f"frames of {sides[0]} x {sides[1]} pixels cannot be halved {len(config.network.multipliers) - 1} "
                f"times, as the network's multipliers ask for; sides must be multiples of {config.network.divisor}"
            )
        self.classes = data.classes if config.conditional else None
        """How many labels the network knows, beside the null label; None for a network without labels."""
        self.network = VideoUNet(config.network, channels, self.classes)
        self.average = None if config.ema is None else teacher_of(self.network)

    @classmethod
    def is_separable(cls, config: Config) -> bool:
        """Whether the loss is a plain mean over samples: without images that come from other samples of the batch."""
        return config.images == 0

    # Training

    def prepare(self, batch: Batch, clock: Clock, random: Random) -> Inputs:
        """``x`` (B, F, C, H, W): the video in [-1, 1] and behind it the images, F = T + ``images``; ``eps``, noise of
        that shape; ``log_snr`` (B, F), one for all frames of the video and one for each image; for a network with
        labels ``label`` (B, F) int64, of which some are the null label.

        Raises:
            ValueError: images are drawn from the whole batch, and only a part of it is here.
        """
        videos, labels = self._stored(batch), batch.get("label") if self.classes is not None else None
        count = self.config.images
        images, image_labels = self._images(videos, labels, random, clock.batch_size)
        times = random.uniform("time", 1 + count)
        inputs = {
            "x": _scaled(torch.cat([videos, images], dim=1)),
            "eps": random.normal("noise", self.frames + count, *self.image_shape),
            "log_snr": self._per_frame(self.config.schedule.log_snr(times)),
        }
        if labels is not None and self.classes is not None:
            own = torch.cat([labels.unsqueeze(1), image_labels], dim=1)
            dropped = random.bernoulli("drop", self.config.label_drop, 1 + count)
            inputs["label"] = self._per_frame(own.masked_fill(dropped, self.classes))
        return inputs

    def _stored(self, batch: Batch) -> Tensor:
        """(B, T, C, H, W) uint8."""
        return batch["video"] if self.of_clips else batch["image"].unsqueeze(1)

    def _per_frame(self, values: Tensor) -> Tensor:
        """(B, 1 + images) -> (B, F): the first column for each frame of the video."""
        return torch.cat([values[:, :1].expand(-1, self.frames), values[:, 1:]], dim=1)

    def _images(self, videos: Tensor, labels: Tensor | None, random: Random, batch_size: int) -> tuple[Tensor, Tensor]:
        """(B, images, C, H, W), random frames of random videos of the global batch, and their labels (B, images).

        Each video gives one random frame for each place behind a video; a random order of all videos says to whom.
        """
        count = self.config.images
        frame = random.integers("image frame", self.frames, count)
        given = videos[torch.arange(len(videos), device=videos.device).unsqueeze(1), frame]
        if count == 0:
            return given, frame
        everyone = gather_rows(given)
        if len(everyone) != batch_size:
            raise ValueError("images come from the whole batch; it cannot be split (accumulate)")
        rows = slice(random.rows.start, random.rows.stop)
        giver = random.shared().within("giver").bits("order", count, batch_size)[0].argsort(dim=1, stable=True)
        giver = giver[:, rows].T  # (B, images)
        place = torch.arange(count, device=giver.device)
        theirs = frame if labels is None else gather_rows(labels)[giver]
        return everyone[giver, place], theirs

    def forward(self, inputs: Inputs, clock: Clock) -> Step:
        """The mean squared error over all frames, of the video and of the images alike."""
        c, x, eps, log_snr = self.config, inputs["x"], inputs["eps"], inputs["log_snr"]
        z = diffuse(x, eps, log_snr)
        made = self.network(z, log_snr, inputs.get("label"), self.frames).to(x.dtype)
        with torch.autocast(x.device.type, enabled=False):
            errors = squared_error(made, x, eps, log_snr, c.prediction, c.loss or c.prediction)
        metrics = {}
        if c.images:
            metrics = {
                "video": errors[:, : self.frames].detach().mean(),
                "image": errors[:, self.frames :].detach().mean(),
            }
        return Step(errors.mean(), metrics)

    def after_step(self, clock: Clock) -> None:
        """The average follows the weights that have just moved."""
        if self.average is not None and self.config.ema is not None:
            follow(self.average, self.network, self.config.ema)

    # Sampling

    def denoiser(self, label: Tensor | None = None, guidance: float | None = None, clip: bool = True) -> Denoiser:
        """(z (B, T, C, H, W), log-SNR ()) -> x, by the average of the weights where there is one.

        Args:
            label: (B,) int64; None: the null label.
            guidance: w; needs labels. None: the config's, where there are labels.
            clip: keep x in [-1, 1].

        Raises:
            ValueError: labels or guidance that the network was not trained for.
        """
        if label is not None and self.classes is None:
            raise ValueError("labels were given to a network that was trained without")
        if guidance is None:
            guidance = 0.0 if label is None else self.config.guidance
        elif guidance and label is None:
            raise ValueError(f"guidance is {guidance}, but there is no label to be guided to")
        _check_guidance(guidance, self.config.label_drop)
        denoise: Denoiser = partial(self._denoised, label)
        if guidance:
            denoise = classifier_free(denoise, partial(self._denoised, None), guidance)
        return clipped(denoise) if clip else denoise

    def _denoised(self, label: Tensor | None, z: Tensor, log_snr: Tensor) -> Tensor:
        network = self.network if self.average is None else self.average
        levels = log_snr.to(z.dtype).expand(z.shape[:2])
        labels = None
        if self.classes is not None:
            label = torch.full((len(z),), self.classes, device=z.device) if label is None else label
            labels = label.unsqueeze(1).expand(z.shape[:2])
        return to_x(self.config.prediction, network(z, levels, labels), z, log_snr)

    def videos(
        self,
        count: int,
        random: Random,
        label: Tensor | None = None,
        *,
        frames: int | None = None,
        steps: int | None = None,
        sampler: Sampler | None = None,
        guidance: float | None = None,
    ) -> Tensor:
        """(count, T, C, H, W) in [0, 1]: new videos. Call it in evaluation mode, without gradient.

        Args:
            random: draws for ``count`` rows.
            label: (count,) int64, what they shall show; None: anything.
            frames: T; None: as many as the videos of training have.
            steps: of the sampler, in place of its own.
            sampler: None: the config's.
            guidance: w of classifier-free guidance; None: the config's.

        Raises:
            ValueError: arguments that do not fit each other or the training.
        """
        shape = (frames or self.frames, *self.image_shape)
        return _shown(self._generated(self.denoiser(label, guidance), (count, *shape), random, steps, sampler))

    def complete(
        self,
        videos: Tensor,
        known: Tensor,
        random: Random,
        label: Tensor | None = None,
        *,
        method: Method = "guided",
        weight: Weight | None = None,
        steps: int | None = None,
        sampler: Sampler | None = None,
        guidance: float | None = None,
    ) -> Tensor:
        """(B, T, C, H, W) in [0, 1]: videos of which some frames are known, with the others made anew. Frames known at
        the beginning: extension in time; every other one: super-resolution in time.

        Args:
            videos: (B, T, C, H, W) in [0, 1]; what unknown frames hold does not matter.
            known: (T,) bool.
            method: known frames are replaced by draws of the forward process either way; ``guided`` also moves the
                others along the gradient of the reconstruction.
            weight: w_r; None: the config's.

        Raises:
            ValueError: no frame, or all are known, or as ``videos``.
        """
        if known.shape != videos.shape[1:2] or not bool(known.any()) or bool(known.all()):
            raise ValueError(
                f"known must say of each of {videos.shape[1]} frames whether it is known; some are, not all"
            )
        x = 2.0 * videos - 1.0
        where = known.to(x.device).view(-1, 1, 1, 1)
        denoise = self.denoiser(label, guidance, clip=False)
        if method == "guided":
            observe: Callable[[Tensor], Tensor] = lambda made: torch.where(where, made, 0.0)  # noqa: E731
            denoise = reconstruction_guided(denoise, observe, observe(x), self._weight(weight))
        fix = replacement(x, where)
        made = self._generated(clipped(denoise), tuple(x.shape), random, steps, sampler, fix)
        return torch.where(where, videos, _shown(made))

    def extend(
        self, videos: Tensor, random: Random, frames: int, label: Tensor | None = None, *, overlap: int | None = None,
        method: Method = "guided", weight: Weight | None = None, steps: int | None = None,
        sampler: Sampler | None = None, guidance: float | None = None,
    ) -> Tensor:  # fmt: skip
        """(B, ``frames``, C, H, W) in [0, 1]: videos that go on. Block by block, each of the length of training, whose
        first frames are the last ones of what is there.

        Args:
            videos: (B, K, C, H, W) in [0, 1].
            frames: of the result, those of ``videos`` included.
            overlap: most known frames of a block; None: half of it.
            method, weight: see ``complete``; the others: ``videos``.

        Raises:
            ValueError: as ``complete``; or a network that was trained on single frames.
        """
        overlap = self.frames // 2 if overlap is None else overlap
        if not 0 < overlap < self.frames or not videos.shape[1]:
            raise ValueError(
                f"a block of {self.frames} frames, as in training, goes on from 1 to {self.frames - 1} known ones, "
                f"not from {min(overlap, videos.shape[1])}"
            )
        done, block = videos, 0
        while done.shape[1] < frames:
            seen = done[:, -overlap:]
            held = seen.shape[1]
            padded = torch.cat([seen, seen.new_zeros(len(seen), self.frames - held, *seen.shape[2:])], dim=1)
            made = self.complete(
                padded, torch.arange(self.frames) < held, random.within(f"block {block}"), label, method=method,
                weight=weight, steps=steps, sampler=sampler, guidance=guidance,
            )  # fmt: skip
            done, block = torch.cat([done, made[:, held:]], dim=1), block + 1
        return done[:, :frames]

    def enlarge(
        self,
        small: Tensor,
        random: Random,
        label: Tensor | None = None,
        *,
        weight: Weight | None = None,
        steps: int | None = None,
        sampler: Sampler | None = None,
        guidance: float | None = None,
    ) -> Tensor:
        """(B, T, C, H, W) in [0, 1]: videos of the size of training that look like ``small`` when they are shrunk, by
        reconstruction guidance alone: super-resolution in space.

        Args:
            small: (B, T, C, h, w) in [0, 1]; h and w divide H and W. Shrinking takes means.

        Raises:
            ValueError: sizes that do not divide, or as ``videos``.
        """
        height, width = self.image_shape[1:]
        if height % small.shape[3] or width % small.shape[4]:
            raise ValueError(f"frames of {tuple(small.shape[3:])} pixels do not divide those of {(height, width)}")
        window = (height // small.shape[3], width // small.shape[4])

        def shrink(x: Tensor) -> Tensor:
            return F.avg_pool2d(x.flatten(0, 1), window).view(*x.shape[:3], *small.shape[3:])

        denoise = reconstruction_guided(
            self.denoiser(label, guidance, clip=False), shrink, 2.0 * small - 1.0, self._weight(weight)
        )
        shape = (*small.shape[:3], height, width)
        return _shown(self._generated(clipped(denoise), shape, random, steps, sampler))

    def _weight(self, weight: Weight | None) -> Weight:
        return self.config.reconstruction_weight if weight is None else weight

    def _generated(
        self,
        denoise: Denoiser,
        shape: tuple[int, ...],
        random: Random,
        steps: int | None,
        sampler: Sampler | None,
        fix: Callable[[Tensor, Tensor, Random], Tensor] | None = None,
    ) -> Tensor:
        """In [-1, 1]."""
        sampler = self.config.sampler if sampler is None else sampler
        sampler = sampler if steps is None else dataclasses.replace(sampler, steps=steps)
        z = random.normal("z", *shape[1:]).to(next(self.parameters()))
        if len(z) != shape[0]:
            raise ValueError(f"the draws have {len(z)} rows, but {shape[0]} videos are asked for")
        return generate(denoise, z, sampler, self.config.schedule, random, fix)

    def sample(self, wish: Wish, random: Random) -> Mapping[str, Sampled]:
        """``samples``: new videos or, from images, new images, with the labels of some stored ones where the network
        knows labels; ``extensions`` of videos: the first half of stored ones, and how they go on by reconstruction
        guidance."""
        rows = torch.arange(wish.count) % len(next(iter(wish.given.values())))
        given = {name: values[rows.to(values.device)] for name, values in wish.given.items()}
        label = given["label"] if self.classes is not None else None
        made = self.videos(wish.count, random.within("samples"), label)
        if not self.of_clips:
            return {"samples": Panels.grid(made.squeeze(1))}
        found: dict[str, Sampled] = {"samples": Clips(made)}
        if self.frames > 1:
            begun = self._stored(given)[:, : self.frames // 2].float() / 255
            found["extensions"] = Clips(self.extend(begun, random.within("extensions"), self.frames, label))
        return found


def _check_guidance(guidance: float, label_drop: float) -> None:
    if not guidance >= -1:
        raise ValueError(f"guidance is {guidance}; at -1 labels are ignored, less leads away from them")
    if guidance and not label_drop:
        raise ValueError(f"guidance is {guidance}, but label_drop is 0: the null label is never trained")


def _scaled(videos: Tensor) -> Tensor:
    """uint8 to [-1, 1]."""
    return videos.float() / 127.5 - 1.0


def _shown(x: Tensor) -> Tensor:
    """[-1, 1], and a little beyond, to [0, 1]."""
    return (0.5 * x + 0.5).clamp(0.0, 1.0)
