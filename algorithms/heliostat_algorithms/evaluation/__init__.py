"""How good a representation is, or what is generated: evaluators on frozen features, on frozen tokens, and of the
network itself.

Each evaluator is a config and its method in one; ``EvaluatorConfig`` is the union that a job file's ``evaluation``
lists.
"""

from __future__ import annotations

from typing import Annotated, TypeAlias

from heliostat_algorithms.algorithm import OneOf
from heliostat_algorithms.evaluation.attentive import AttentiveProbe
from heliostat_algorithms.evaluation.classification import Classification
from heliostat_algorithms.evaluation.collapse import Collapse, diagnose
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
from heliostat_algorithms.evaluation.knn import KNN
from heliostat_algorithms.evaluation.linear import LinearProbe
from heliostat_algorithms.evaluation.retrieval import Neighbours, Retrieval, neighbours
from heliostat_algorithms.evaluation.video_motion import VideoMotion

EvaluatorConfig: TypeAlias = Annotated[
    KNN
    | LinearProbe
    | FewLabelProbe
    | Retrieval
    | AttentiveProbe
    | FineTuning
    | Classification
    | Collapse
    | VideoMotion,
    OneOf(),
]
"""Any evaluator, told apart by ``type``: knn, linear, few-label, retrieval, attentive, fine-tune, classification,
collapse, video-motion."""

__all__ = [
    "KNN",
    "AttentiveProbe",
    "Batches",
    "Classification",
    "Collapse",
    "Evaluator",
    "EvaluatorConfig",
    "FeatureEvaluator",
    "Features",
    "FewLabelProbe",
    "FineTuning",
    "LinearProbe",
    "Neighbours",
    "NetworkEvaluator",
    "Retrieval",
    "SampleSet",
    "VideoMotion",
    "concatenate",
    "diagnose",
    "extract",
    "neighbours",
    "pixels",
]
