"""Features of a data set: an algorithm's, or the raw pixels.

A clip is one sample. An algorithm with ``video`` is given it whole; to others its frames are images, the clip's
features and class scores are the means of theirs, and its tokens are those of all frames.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from heliostat_algorithms.algorithm import Algorithm, Batch
from heliostat_algorithms.evaluation.evaluator import Features, concatenate
from heliostat_algorithms.randomness import Random

EVALUATION_STEP = -1
"""The step of the random streams behind view pairs; training counts from 0."""


Network = Callable[[Tensor], Tensor]
"""Images or clips (B, ...) uint8 to features, tokens or scores of each."""


def sample_features(algorithm: Algorithm, batch: Batch) -> Tensor:
    """(B, D) of a batch on the algorithm's device."""
    shown, frames = _shown(algorithm, batch)
    return _mean_over_frames(algorithm.features(shown), frames)


def sample_tokens(algorithm: Algorithm, batch: Batch) -> Tensor:
    """(B, N, D) of a batch on the algorithm's device; N counts the tokens of all frames."""
    shown, frames = _shown(algorithm, batch)
    tokens = algorithm.token_features(shown)
    return tokens.reshape(len(tokens) // frames, -1, tokens.shape[2])


def _shown(algorithm: Algorithm, batch: Batch) -> tuple[Tensor, int]:
    """Images or clips as the algorithm takes them, and how many of them belong to each sample."""
    if "video" not in batch:
        return batch["tokens" if "tokens" in batch else "image"], 1
    clips = batch["video"]
    return (clips, 1) if algorithm.video else (clips.flatten(0, 1), clips.shape[1])


def _mean_over_frames(values: Tensor, frames: int) -> Tensor:
    return values if frames == 1 else values.view(-1, frames, values.shape[1]).mean(dim=1)


def extract(
    algorithm: Algorithm,
    batches: Iterable[Batch],
    *,
    classes: int | None = None,
    network: Network | None = None,
    pair_seed: int | None = None,
    first_row: int = 0,
    device: torch.device | str | None = None,
) -> Features:
    """Run ``algorithm.features`` over some batches, in evaluation mode and float32, and collect the rows on the CPU,
    with the algorithm's class scores where it has them.

    The modes of all modules are as before afterwards. Workers that share a set each take a contiguous part; their
    features, joined in order by ``concatenate``, are those that one worker would compute.

    Args:
        algorithm: the network.
        batches: ``image`` (B, C, H, W) or ``video`` (B, T, C, H, W) uint8 and, where there are labels, ``label`` (B,)
            int64.
        classes: how many classes; None leaves labels out.
        network: in place of ``algorithm.features``: one of its ``other_features``, which come without scores.
        pair_seed: where given, also features of two views of each sample, drawn with this seed, for methods that have
            views; where frames are images, of the middle frame.
        first_row: the place of the first sample in the whole set; views depend on a sample's place.
        device: where to compute; by default where the algorithm's parameters are.

    Raises:
        ValueError: no batch, features that are not (B, D), or not finite.
    """
    device = device_of(algorithm) if device is None else torch.device(device)
    parts, row = [], first_row
    with evaluating(algorithm):
        for stored in batches:
            batch = {name: values.to(device) for name, values in stored.items()}
            shown, frames = _shown(algorithm, batch)
            features = _mean_over_frames((network or algorithm.features)(shown), frames)
            pairs = None
            if pair_seed is not None:
                random = Random(pair_seed, EVALUATION_STEP, range(row, row + len(features)), device)
                pairs = algorithm.view_pair(as_trained(algorithm, batch), random)
            scores = algorithm.class_scores(shown) if network is None and classes is not None else None
            parts.append(
                Features(
                    _collected(features),
                    _labels(batch, classes),
                    classes,
                    None if pairs is None else (_collected(pairs[0]), _collected(pairs[1])),
                    None if scores is None else _collected(_mean_over_frames(scores, frames)),
                )
            )
            row += len(features)
    return concatenate(parts)


def as_trained(algorithm: Algorithm, batch: Batch) -> Batch:
    """The batch as the algorithm trains on it; of clips, the middle frame where it takes images."""
    if "video" not in batch or algorithm.video:
        return batch
    clips = batch["video"]
    others = {name: values for name, values in batch.items() if name != "video"}
    return {**others, "image": clips[:, clips.shape[1] // 2]}


def pixels(batches: Iterable[Batch], *, classes: int | None = None) -> Features:
    """The images or clips themselves, flattened and in [0, 1]: the baseline that a representation has to beat.

    Raises:
        ValueError: no batch, or images that are not uint8.
    """
    parts = []
    for batch in batches:
        images = batch["video"] if "video" in batch else batch["image"]
        if images.dtype != torch.uint8:
            raise ValueError(f"stored images must be uint8, not {images.dtype}")
        parts.append(Features(_collected(images.flatten(start_dim=1)) / 255, _labels(batch, classes), classes))
    return concatenate(parts)


def _labels(batch: Batch, classes: int | None) -> Tensor | None:
    return None if classes is None else batch["label"].cpu()


def _collected(features: Tensor) -> Tensor:
    return features.detach().to("cpu", torch.float32)


def device_of(algorithm: Algorithm) -> torch.device:
    """Where its parameters are; the CPU where it has none."""
    return next((parameter.device for parameter in algorithm.parameters()), torch.device("cpu"))


@contextmanager
def evaluating(algorithm: Algorithm) -> Iterator[None]:
    """Evaluation mode, no gradient and no autocast; afterwards each part is in its own mode again, which a teacher need
    not share with its student."""
    training = [part for part in algorithm.modules() if part.training]
    algorithm.eval()
    try:
        with torch.no_grad(), torch.autocast(device_of(algorithm).type, enabled=False):
            yield
    finally:
        for part in training:
            part.training = True
