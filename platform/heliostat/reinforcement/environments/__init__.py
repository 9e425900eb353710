"""Environments: the worlds that agents act in, all behind one interface.

An entry ``environment:`` of a job file (``EnvironmentConfig``) tells which, and makes any number of its lanes as a
``VectorEnvironment``. Four kinds: ``atari``, ``gymnasium``, ``minatar`` and ``custom``.
"""

from __future__ import annotations

from typing import Annotated, TypeAlias

from pydantic import Field

from heliostat.reinforcement.environments.atari import AtariEnvironment
from heliostat.reinforcement.environments.custom import CustomEnvironment
from heliostat.reinforcement.environments.failure import EnvironmentFailure
from heliostat.reinforcement.environments.gymnasium_ import GymnasiumEnvironment
from heliostat.reinforcement.environments.minatar_ import MinAtarEnvironment
from heliostat.reinforcement.environments.spec import EnvironmentSpec, ReferenceScores
from heliostat.reinforcement.environments.vector import Played, VectorEnvironment

__all__ = [
    "AtariEnvironment",
    "CustomEnvironment",
    "EnvironmentConfig",
    "EnvironmentFailure",
    "EnvironmentSpec",
    "GymnasiumEnvironment",
    "MinAtarEnvironment",
    "Played",
    "ReferenceScores",
    "VectorEnvironment",
]

EnvironmentConfig: TypeAlias = Annotated[
    AtariEnvironment | GymnasiumEnvironment | MinAtarEnvironment | CustomEnvironment, Field(discriminator="type")
]
"""Any of them, told apart by ``type``."""
