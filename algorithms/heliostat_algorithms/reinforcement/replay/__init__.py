"""Replay: experience in rings of single frames, sampled uniformly or by priority."""

from __future__ import annotations

from heliostat_algorithms.reinforcement.replay.batch import ReplayBatch
from heliostat_algorithms.reinforcement.replay.buffer import ReplayBuffer
from heliostat_algorithms.reinforcement.replay.limiter import SamplesPerInsert
from heliostat_algorithms.reinforcement.replay.prioritization import Prioritization
from heliostat_algorithms.reinforcement.replay.sampling import (
    ImportanceExponent,
    allocate,
    importance_weights,
    stratified,
)
from heliostat_algorithms.reinforcement.replay.steps import Steps
from heliostat_algorithms.reinforcement.replay.sum_tree import SumTree

__all__ = [
    "ImportanceExponent",
    "Prioritization",
    "ReplayBatch",
    "ReplayBuffer",
    "SamplesPerInsert",
    "Steps",
    "SumTree",
    "allocate",
    "importance_weights",
    "stratified",
]
