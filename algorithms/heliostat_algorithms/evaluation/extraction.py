"""Features of a data set: an algorithm's, or the raw pixels."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from heliostat_algorithms.algorithm import Algorithm, Batch
from heliostat_algorithms.evaluation.evaluator import Features, concatenate
from heliostat_algorithms.randomness import Random

EVALUATION_STEP = -1
"""The step of the random streams behind view pairs; training counts from 0."""


def extract(
    algorithm: Algorithm,
    batches: Iterable[Batch],
    *,
    classes: int | None = None,
    network: Callable[[Tensor], Tensor] | None = None,
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
        batches: ``image`` (B, C, H, W) uint8 and, where there are labels, ``label`` (B,) int64.
        classes: how many classes; None leaves labels out.
        network: in place of ``algorithm.features``: one of its ``other_features``, which come without scores.
        pair_seed: where given, also features of two views of each sample, drawn with this seed, for methods that have
            views.
        first_row: the place of the first sample in the whole set; views depend on a sample's place.
        device: where to compute; by default where the algorithm's parameters are.

    Raises:
        ValueError: no batch, features that are not (B, D), or not finite.
    """
    if device is None:
        device = next((parameter.device for parameter in algorithm.parameters()), torch.device("cpu"))
    parts, row = [], first_row
    with _evaluating(algorithm), torch.no_grad(), torch.autocast(torch.device(device).type, enabled=False):
        for batch in batches:
            images = batch["image"].to(device)
            pairs = None
            if pair_seed is not None:
                on_device = {name: values.to(device) for name, values in batch.items()}
                random = Random(pair_seed, EVALUATION_STEP, range(row, row + len(images)), device)
                pairs = algorithm.view_pair(on_device, random)
            scores = algorithm.class_scores(images) if network is None and classes is not None else None
            parts.append(
                Features(
                    _collected((network or algorithm.features)(images)),
                    _labels(batch, classes),
                    classes,
                    None if pairs is None else (_collected(pairs[0]), _collected(pairs[1])),
                    None if scores is None else _collected(scores),
                )
            )
            row += len(images)
    return concatenate(parts)


def pixels(batches: Iterable[Batch], *, classes: int | None = None) -> Features:
    """The images themselves, flattened to (N, C * H * W) in [0, 1]: the baseline that a representation has to beat.

    Raises:
        ValueError: no batch, or images that are not uint8.
    """
    parts = []
    for batch in batches:
        images = batch["image"]
        if images.dtype != torch.uint8:
            raise ValueError(f"stored images must be uint8, not {images.dtype}")
        parts.append(Features(_collected(images.flatten(start_dim=1)) / 255, _labels(batch, classes), classes))
    return concatenate(parts)


def _labels(batch: Batch, classes: int | None) -> Tensor | None:
    return None if classes is None else batch["label"].cpu()


def _collected(features: Tensor) -> Tensor:
    return features.detach().to("cpu", torch.float32)


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode; afterwards each part is in its own mode again, which a teacher need not share with its
    student."""
    training = [part for part in module.modules() if part.training]
    module.eval()
    try:
        yield
    finally:
        for part in training:
            part.training = True
