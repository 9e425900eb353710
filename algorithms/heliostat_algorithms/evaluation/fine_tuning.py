"""Fine-tuning: what a representation is worth as a start for supervised training of the whole network.

Encoder and a linear classifier are trained end to end: AdamW with cosine and warm-up, one learning rate for all layers,
random crops and flips. That is the core of what MAE's code does (2111.06377, appendix A.1), without its decay of the
learning rate from layer to layer, mixing of images, erasing and stochastic depth, which need hundreds of epochs.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heliostat_algorithms.algorithm import Algorithm, Batch, Clock
from heliostat_algorithms.augmentation import ViewAugmentation
from heliostat_algorithms.augmentation.color import ColorJitter
from heliostat_algorithms.augmentation.filters import GaussianBlur
from heliostat_algorithms.backbones.batch_norm import assigned
from heliostat_algorithms.collectives import world_size
from heliostat_algorithms.evaluation.evaluator import NetworkEvaluator, SampleSet, ranks
from heliostat_algorithms.evaluation.extraction import device_of, evaluating, sample_features
from heliostat_algorithms.evaluation.training import accuracies_over_workers, add_gradients, decayed
from heliostat_algorithms.randomness import Random
from heliostat_algorithms.schedules import Cosine


@dataclass(frozen=True, kw_only=True)
class FineTuning(NetworkEvaluator):
    """Trains a copy of the encoder with a linear classifier on labels, then counts how often it is right.

    All parameters of the encoder are trained, also of a teacher and of layers that pretraining keeps fixed. Batch
    normalisation takes the statistics of the whole batch. The same budget on the untrained network, which is supervised
    training from scratch, is the baseline to compare with. The settings are not chosen on data: where an accuracy is to
    be the best possible one, fine-tune in a job of its own.

    Metrics: ``fine_tune_top1`` and, for more than five classes, ``fine_tune_top5``, of the weights after the last step.

    Cost: ``epochs`` epochs of supervised training in float32, shared by all workers, and a copy of the algorithm with
    gradients and AdamW's moments in memory; twice in a run, for the baseline. The most expensive evaluator by far:
    mind ``every_epochs``.
    """

    type: Literal["fine-tune"] = "fine-tune"
    epochs: int = 20
    """Passes over the labelled samples."""
    batch_size: int = 128
    """Samples in a step, over all workers, who share them equally. The samples left over are others in each epoch."""
    learning_rate: float = 5e-4
    """Peak learning rate, used as it is."""
    weight_decay: float = 0.05
    """MAE: 0.05. Not for biases and norms."""
    warmup_epochs: float = 1.0
    """Epochs over which the learning rate rises from 0."""
    crop_area: tuple[float, float] | None = (0.2, 1.0)
    """Smallest and largest share of an image that a random crop covers; null: whole images."""
    flip: float = 0.5
    """Share of the images that are mirrored left to right; 0 for digits and text."""
    train_fraction: float = 1.0
    """Share of the training samples of each class whose labels are known; the others are not used."""

    needs_labels: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.epochs < 1 or self.batch_size < 1:
            raise ValueError(f"epochs and batch_size must be at least 1, not {self.epochs} and {self.batch_size}")
        if not 0 < self.learning_rate < math.inf:
            raise ValueError(f"learning_rate must be above 0 and finite, not {self.learning_rate}")
        if not 0 <= self.weight_decay < math.inf:
            raise ValueError(f"weight_decay cannot be negative, but is {self.weight_decay}")
        if not 0 <= self.warmup_epochs < self.epochs:
            raise ValueError(f"warmup_epochs must be at least 0 and below epochs, not {self.warmup_epochs}")
        if self.crop_area is not None and not 0 < self.crop_area[0] <= self.crop_area[1] <= 1:
            raise ValueError(
                f"crop_area must be two shares above 0 and at most 1, the smaller first, or null, not {self.crop_area}"
            )
        if not 0 <= self.flip <= 1:
            raise ValueError(f"flip must be a share from 0 to 1, not {self.flip}")
        if not 0 < self.train_fraction <= 1:
            raise ValueError(f"train_fraction must be a share above 0 and at most 1, not {self.train_fraction}")

    @property
    def higher_is_better(self) -> Mapping[str, bool]:
        return {"fine_tune_top1": True, "fine_tune_top5": True}

    def check(self, samples: int, labels: Tensor | None, classes: int | None) -> None:
        super().check(samples, labels, classes)
        used = round(self.train_fraction * samples)
        if used < self.batch_size:
            raise ValueError(
                f"fine-tune takes batches of {self.batch_size}, but there are only {used} training samples"
                + (f" (train_fraction {self.train_fraction:g} of {samples})" if used < samples else "")
            )

    def check_network(self, algorithm: Algorithm, sample: Batch, samples: int) -> None:
        if algorithm.encoder() is None:
            raise ValueError(f"fine-tune trains an encoder, and {type(algorithm).__name__} has none")

    def check_workers(self, workers: int) -> None:
        if self.batch_size % workers:
            fits = max(workers, round(self.batch_size / workers) * workers)
            raise ValueError(
                f"{workers} workers cannot share fine-tune's batch of {self.batch_size} equally; {fits} would do"
            )

    def judge(self, algorithm: Algorithm, train: SampleSet, test: SampleSet, seed: int) -> dict[str, float]:
        classes = self._classes(train, test)
        known = train.some(self.train_fraction, seed)
        if len(known) < self.batch_size:
            raise ValueError(f"fine-tune takes batches of {self.batch_size}, but there are only {len(known)} samples")
        self.check_workers(world_size())
        if algorithm.encoder() is None:
            raise ValueError(f"fine-tune trains an encoder, and {type(algorithm).__name__} has none")
        network = _Classifier(algorithm, classes)
        self._train(network, known, seed)
        with evaluating(network.algorithm):
            found = [ranks(network(batch), batch["label"]) for batch in test.batches()]
        return accuracies_over_workers(found, classes, "fine_tune", device_of(algorithm))

    def _train(self, network: _Classifier, samples: SampleSet, seed: int) -> None:
        batches = samples.shuffled(self.batch_size, f"{seed}:evaluation/fine_tune")
        schedule = Cosine(warmup_epochs=self.warmup_epochs)
        optimizer = torch.optim.AdamW(decayed(network.trained, self.weight_decay))
        device = device_of(network.algorithm)
        steps = self.epochs * batches.steps_per_epoch
        network.algorithm.train()
        for step in range(steps):
            clock = Clock(
                step=step, total_steps=steps, steps_per_epoch=batches.steps_per_epoch, batch_size=self.batch_size
            )
            for group in optimizer.param_groups:
                group["lr"] = self.learning_rate * schedule.multiplier(clock)
            random = Random(seed, step, batches.rows(), device).within("evaluation/fine_tune")
            batch = self._augmented(batches.batch(step), random)
            with torch.enable_grad(), torch.autocast(device.type, enabled=False):
                scores = network(batch)
                loss = F.cross_entropy(scores, batch["label"], reduction="sum") / self.batch_size
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
            add_gradients(network.trained)
            optimizer.step()
            # All workers have the same weights, and so agree on what is raised.
            if (step + 1) % batches.steps_per_epoch == 0 and not network.weight.isfinite().all():
                raise ArithmeticError(
                    f"fine-tuning diverged at a learning rate of {self.learning_rate:g}; choose a smaller one"
                )

    @torch.no_grad()
    def _augmented(self, batch: Batch, random: Random) -> Batch:
        """The batch with each image cropped and flipped, uint8 again; all frames of a clip alike."""
        if self.crop_area is None and self.flip == 0:
            return batch
        name = "video" if "video" in batch else "image"
        pictures = batch[name]
        if name == "image":
            return {**batch, name: self._moved(pictures, random)}
        return {**batch, name: torch.stack([self._moved(frame, random) for frame in pictures.unbind(dim=1)], dim=1)}

    def _moved(self, images: Tensor, random: Random) -> Tensor:
        """(B, C, H, W) uint8 -> one random view of each, of the same size."""
        if self.crop_area is None:
            mirrored = random.bernoulli("flip", self.flip).to(images.device).view(-1, 1, 1, 1)
            return torch.where(mirrored, images.flip(3), images)
        views = ViewAugmentation(
            crop_area=self.crop_area,
            flip=self.flip,
            jitter=ColorJitter(probability=0.0),
            greyscale=0.0,
            blur=GaussianBlur(probability=0.0),
        )
        return views(images, random).mul_(255).round_().to(torch.uint8)


class _Classifier:
    """A copy of the algorithm whose encoder can be trained, and a linear classifier that begins at zero."""

    def __init__(self, algorithm: Algorithm, classes: int) -> None:
        self.algorithm = copy.deepcopy(algorithm).requires_grad_(False)
        encoder = self.algorithm.encoder()
        if encoder is None:
            raise ValueError(f"{type(algorithm).__name__} has no encoder")
        encoder.requires_grad_(True)
        for parameter in self.algorithm.parameters():
            parameter.grad = None
        like = next(encoder.parameters())
        self.weight = nn.Parameter(like.new_zeros(classes, encoder.feature_dim))
        self.bias = nn.Parameter(like.new_zeros(classes))
        self.trained = [*encoder.parameters(), self.weight, self.bias]

    def __call__(self, batch: Batch) -> Tensor:
        """Class scores (B, classes), in float32 at least."""
        # Where batch normalisation takes groups of rows, as MoCo's, the batch is one group.
        with assigned(self.algorithm, 1):
            features = sample_features(self.algorithm, batch)
        scores = F.linear(features, self.weight, self.bias)
        return scores.to(torch.promote_types(scores.dtype, torch.float32))
