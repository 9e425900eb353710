"""Optimisers: LARS, written here, and torch's own, each with its config."""

from __future__ import annotations

from typing import Annotated, TypeAlias

from heliostat_algorithms.algorithm import OneOf
from heliostat_algorithms.optimizers.configs import AdamW, Lars, Sgd
from heliostat_algorithms.optimizers.lars import LARS

OptimizerConfig: TypeAlias = Annotated[Lars | Sgd | AdamW, OneOf()]
"""Any optimiser, told apart by ``type``: lars, sgd, adamw."""

__all__ = ["LARS", "AdamW", "Lars", "OptimizerConfig", "Sgd"]
