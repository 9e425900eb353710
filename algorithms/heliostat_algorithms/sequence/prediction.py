"""What evaluators ask of algorithms that say tokens."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor

from heliostat_algorithms.algorithm import IGNORED, Batch
from heliostat_algorithms.randomness import Random


class Predictions(NamedTuple):
    """What a method says to a batch when it is told the truth up to each position."""

    logits: Tensor
    """(B, L, V)."""
    targets: Tensor
    """(B, L) int64, ``IGNORED`` where nothing is asked."""


class Predictor(ABC):
    """An algorithm that says a token after each position."""

    @abstractmethod
    def predictions(self, batch: Batch) -> Predictions:
        """For a batch on the algorithm's device. In evaluation mode, without gradient."""


class Translator(ABC):
    """An algorithm that turns one sequence into another."""

    @abstractmethod
    def translate(self, source: Tensor) -> list[list[int]]:
        """(B, S) int64, each row up to END, then PAD -> what each becomes, without BEGIN and END. In evaluation mode,
        without gradient."""


def asked(targets: Tensor) -> Tensor:
    """(B, L) bool: where a target is asked for."""
    return targets != IGNORED


def chosen(logits: Tensor, random: Random | None, temperature: float, top_k: int | None) -> Tensor:
    """(B, V) -> (B,) the next token: the most likely one, or with ``random`` one that is drawn.

    Args:
        random: of as many rows; decides which token it is. None: the most likely one.
        temperature: logits are divided by it.
        top_k: only so many of the most likely ones can be drawn; None: all.
    """
    if random is None:
        return logits.argmax(dim=1)
    scaled = logits.double() / temperature
    if top_k is not None and top_k < scaled.shape[1]:
        scaled = scaled.masked_fill(scaled < scaled.topk(top_k, dim=1).values[:, -1:], -torch.inf)
    shares = scaled.softmax(dim=1).cumsum(dim=1)
    # Rounding may leave the last sum below the draw; argmax of all False is 0, so the end is set to what it should be.
    shares[:, -1] = 1.0
    return (shares > random.uniform("token", 1).to(shares)).int().argmax(dim=1)
