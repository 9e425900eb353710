"""How good a representation is: evaluators on frozen features.

Each evaluator is a config and its method in one; ``EvaluatorConfig`` is the union that a job file's ``evaluation``
lists.
"""

from __future__ import annotations

from typing import Annotated, TypeAlias

from heliostat_algorithms.algorithm import OneOf
from heliostat_algorithms.evaluation.classification import Classification
from heliostat_algorithms.evaluation.collapse import Collapse, diagnose
from heliostat_algorithms.evaluation.evaluator import Evaluator, Features, concatenate
from heliostat_algorithms.evaluation.extraction import extract, pixels
from heliostat_algorithms.evaluation.few_label import FewLabelProbe
from heliostat_algorithms.evaluation.knn import KNN
from heliostat_algorithms.evaluation.linear import LinearProbe

EvaluatorConfig: TypeAlias = Annotated[KNN | LinearProbe | FewLabelProbe | Classification | Collapse, OneOf()]
"""Any evaluator, told apart by ``type``: knn, linear, few-label, classification, collapse."""

__all__ = [
    "KNN",
    "Classification",
    "Collapse",
    "Evaluator",
    "EvaluatorConfig",
    "Features",
    "FewLabelProbe",
    "LinearProbe",
    "concatenate",
    "diagnose",
    "extract",
    "pixels",
]
