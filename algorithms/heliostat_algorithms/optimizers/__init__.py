"""Optimisers: LARS and DQN's RMSProp, written here, and torch's own, each with its config."""

from __future__ import annotations

from typing import Annotated, TypeAlias

from heliostat_algorithms.algorithm import OneOf
from heliostat_algorithms.optimizers.configs import Adam, AdamW, Lars, RmsProp, Sgd
from heliostat_algorithms.optimizers.lars import LARS
from heliostat_algorithms.optimizers.rmsprop import RMSProp

OptimizerConfig: TypeAlias = Annotated[Lars | Sgd | Adam | AdamW | RmsProp, OneOf()]
"""Any optimiser, told apart by ``type``: lars, sgd, adam, adamw, rmsprop."""

__all__ = ["LARS", "Adam", "AdamW", "Lars", "OptimizerConfig", "RMSProp", "RmsProp", "Sgd"]
