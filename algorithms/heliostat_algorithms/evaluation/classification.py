"""How often a method that classifies by itself is right: fine-tuned networks, distilled students, supervised ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from heliostat_algorithms.evaluation.evaluator import FeatureEvaluator, Features, accuracies, ranks


@dataclass(frozen=True, kw_only=True)
class Classification(FeatureEvaluator):
    """Accuracy of the method's own class scores on the test set; nothing is fitted.

    Metrics: ``classification_top1`` and, for more than five classes, ``classification_top5``.
    """

    type: Literal["classification"] = "classification"

    needs_labels: ClassVar[bool] = True
    needs_scores: ClassVar[bool] = True

    @property
    def higher_is_better(self) -> Mapping[str, bool]:
        return {"classification_top1": True, "classification_top5": True}

    def evaluate(self, train: Features, test: Features, seed: int) -> dict[str, float]:
        self._require(train, test)
        if test.scores is None:
            raise ValueError("classification judges class scores, and this method gives none; choose a probe")
        labels, classes = test.labelled()
        return accuracies(ranks(test.scores, labels), classes, "classification")
