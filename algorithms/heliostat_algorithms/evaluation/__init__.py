"""How good a representation is: evaluators on frozen features, on frozen tokens, and of the network itself; and how
good a generative method is: at finding samples likely, and at making them.

Each evaluator is a config and its method in one; a job file's ``evaluation`` lists some.
"""

from __future__ import annotations

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
from heliostat_algorithms.evaluation.sequences import Perplexity, TokenAccuracy
from heliostat_algorithms.evaluation.video_motion import VideoMotion

__all__ = [
    "KNN",
    "AttentiveProbe",
    "Batches",
    "Classification",
    "ClassifierFrechet",
    "Collapse",
    "ConditionalLikelihood",
    "Evaluator",
    "FeatureEvaluator",
    "Features",
    "FewLabelProbe",
    "FineTuning",
    "Likelihood",
    "LinearProbe",
    "ModeCoverage",
    "Neighbours",
    "NetworkEvaluator",
    "Perplexity",
    "Retrieval",
    "SampleSet",
    "TokenAccuracy",
    "VideoMotion",
    "concatenate",
    "diagnose",
    "extract",
    "neighbours",
    "pixels",
]
