"""All networks of sequences that a job file can name."""

from __future__ import annotations

from typing import Annotated, TypeAlias

from heliostat_algorithms.algorithm import OneOf
from heliostat_algorithms.sequence.decoder import TransformerDecoder
from heliostat_algorithms.sequence.infini_attention import InfiniAttention
from heliostat_algorithms.sequence.mamba import Mamba
from heliostat_algorithms.sequence.s4 import S4, S4D

SequenceNetworkConfig: TypeAlias = Annotated[TransformerDecoder | InfiniAttention | S4 | S4D | Mamba, OneOf()]
"""Any network, told apart by ``type``: transformer, infini-attention, s4, s4d, mamba."""
