"""All evaluators that a job file can name: those of the algorithms, and those that need more than torch."""

from __future__ import annotations

from typing import Annotated, TypeAlias

from heliostat.training.bleu import Bleu
from heliostat_algorithms.algorithm import OneOf
from heliostat_algorithms.evaluation import (
    KNN,
    AttentiveProbe,
    Classification,
    ClassifierFrechet,
    Collapse,
    ConditionalLikelihood,
    FewLabelProbe,
    FineTuning,
    Likelihood,
    LinearProbe,
    ModeCoverage,
    Perplexity,
    Retrieval,
    TokenAccuracy,
    VideoMotion,
)

EvaluatorConfig: TypeAlias = Annotated[
    KNN
    | LinearProbe
    | FewLabelProbe
    | Retrieval
    | AttentiveProbe
    | FineTuning
    | Classification
    | Collapse
    | Perplexity
    | TokenAccuracy
    | Bleu
    | VideoMotion
    | Likelihood
    | ConditionalLikelihood
    | ModeCoverage
    | ClassifierFrechet,
    OneOf(),
]
"""Any evaluator, told apart by ``type``."""
