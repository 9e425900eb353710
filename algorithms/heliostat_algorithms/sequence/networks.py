"""All networks of sequences that a job file can name."""

from __future__ import annotations

from typing import Annotated, TypeAlias

from heliostat_algorithms.algorithm import OneOf
from heliostat_algorithms.sequence.decoder import TransformerDecoder
from heliostat_algorithms.sequence.infini_attention import InfiniAttention

SequenceNetworkConfig: TypeAlias = Annotated[TransformerDecoder | InfiniAttention, OneOf()]
"""Any network, told apart by ``type``: transformer, infini-attention."""
