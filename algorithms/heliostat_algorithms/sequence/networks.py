"""All networks of sequences that a job file can name."""

from __future__ import annotations

from typing import Annotated, TypeAlias

from heliostat_algorithms.algorithm import OneOf
from heliostat_algorithms.sequence.decoder import TransformerDecoder
from heliostat_algorithms.sequence.mamba import Mamba
from heliostat_algorithms.sequence.s4 import S4, S4D

SequenceNetworkConfig: TypeAlias = Annotated[TransformerDecoder | S4 | S4D | Mamba, OneOf()]
"""Any network, told apart by ``type``: transformer, s4, s4d, mamba."""
