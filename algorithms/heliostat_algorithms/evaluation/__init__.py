"""How good a representation is: evaluators on frozen features, on frozen tokens, and of the network itself; and how
good a generative method is: at finding samples likely, and at making them.

Each evaluator is a config and its method in one; ``EvaluatorConfig`` is the union that a job file's ``evaluation``
lists.
"""

from __future__ import annotations

from typing import Annotated, TypeAlias

from heliostat_algorithms.algorithm import OneOf
from heliostat_algorithms.evaluation.attentive import AttentiveProbe
from heliostat_algorithms.evaluation.classification import Classification
from heliostat_algorithms.evaluation.collapse import Collapse, diagnose
from heliostat_algorithms.evaluation.coverage import ModeCoverage
from heliostat_algorithms.evaluation.evaluator import (
    Batches,
    Evaluator,
    FeatureEvaluator,
    Features,
    NetworkEvaluator,
    SampleSet,
    concatenate,
)
from heliostat_algorithms.evaluation.extraction import extract, pixels
from heliostat_algorithms.evaluation.few_label import FewLabelProbe
from heliostat_algorithms.evaluation.fine_tuning import FineTuning
from heliostat_algorithms.evaluation.frechet import ClassifierFrechet
from heliostat_algorithms.evaluation.knn import KNN
from heliostat_algorithms.evaluation.likelihood import ConditionalLikelihood, Likelihood
from heliostat_algorithms.evaluation.linear import LinearProbe
from heliostat_algorithms.evaluation.retrieval import Neighbours, Retrieval, neighbours

EvaluatorConfig: TypeAlias = Annotated[
    KNN
    | LinearProbe
    | FewLabelProbe
    | Retrieval
    | AttentiveProbe
    | FineTuning
    | Classification
    | Collapse
    | Likelihood
    | ConditionalLikelihood
    | ModeCoverage
    | ClassifierFrechet,
    OneOf(),
]
"""Any evaluator, told apart by ``type``: knn, linear, few-label, retrieval, attentive, fine-tune, classification,
collapse, likelihood, conditional-likelihood, mode-coverage, frechet."""

__all__ = [
    "KNN",
    "AttentiveProbe",
    "Batches",
    "Classification",
    "ClassifierFrechet",
    "Collapse",
    "ConditionalLikelihood",
    "Evaluator",
    "EvaluatorConfig",
    "FeatureEvaluator",
    "Features",
    "FewLabelProbe",
    "FineTuning",
    "Likelihood",
    "LinearProbe",
    "ModeCoverage",
    "Neighbours",
    "NetworkEvaluator",
    "Retrieval",
    "SampleSet",
    "concatenate",
    "diagnose",
    "extract",
    "neighbours",
    "pixels",
]
