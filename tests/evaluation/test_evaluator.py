from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from heliostat_algorithms.evaluation import (
    KNN,
    AttentiveProbe,
    Collapse,
    Features,
    FewLabelProbe,
    FineTuning,
    LinearProbe,
    Retrieval,
    concatenate,
)
from heliostat_algorithms.evaluation.evaluator import accuracies, ranks

EVALUATORS = [KNN, LinearProbe, FewLabelProbe, Retrieval, Collapse]


def test_ranks_count_the_classes_above_the_true_one() -> None:
    scores = torch.tensor([[0.1, 0.9, 0.5], [0.1, 0.9, 0.5], [0.1, 0.9, 0.5]])
    assert ranks(scores, torch.tensor([1, 2, 0])).tolist() == [0, 1, 2]


def test_equal_scores_are_no_better_than_guessing() -> None:
    labels = torch.arange(4)
    assert ranks(torch.zeros(4, 4), labels).tolist() == [0, 1, 2, 3]


def test_nan_scores_are_wrong_whatever_the_label() -> None:
    assert ranks(torch.full((3, 3), torch.nan), torch.arange(3)).tolist() == [3, 3, 3]
    own_is_fine = torch.tensor([[1.0, torch.nan]])
    assert ranks(own_is_fine, torch.tensor([0])).tolist() == [1]


def test_ranks_of_several_classifiers_at_once() -> None:
    scores = torch.tensor([[[3.0, 1.0], [1.0, 3.0]], [[1.0, 3.0], [3.0, 1.0]]])
    assert ranks(scores, torch.tensor([0, 1])).tolist() == [[0, 0], [1, 1]]


def test_top5_is_reported_only_where_it_says_something() -> None:
    found = torch.tensor([0, 4, 5, 0])
    assert accuracies(found, 6, "x") == {"x_top1": 0.5, "x_top5": 0.75}
    assert accuracies(found, 5, "x") == {"x_top1": 0.5}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"values": torch.zeros(3)}, "non-empty"),
        ({"values": torch.zeros(0, 3)}, "non-empty"),
        ({"values": torch.tensor([[1.0], [torch.nan], [torch.inf]])}, "2 of 3 rows"),
        ({"values": torch.zeros(2, 1), "labels": torch.tensor([0, 1])}, "classes"),
        ({"values": torch.zeros(2, 1), "labels": torch.tensor([0]), "classes": 2}, "labels must be"),
        ({"values": torch.zeros(2, 1), "labels": torch.tensor([0.0, 1.0]), "classes": 2}, "int64"),
        ({"values": torch.zeros(2, 1), "labels": torch.tensor([0, 2]), "classes": 2}, r"in \[0, 2\)"),
        ({"values": torch.zeros(2, 1), "labels": torch.tensor([-1, 1]), "classes": 2}, r"in \[0, 2\)"),
        ({"values": torch.zeros(2, 1), "pairs": (torch.zeros(2, 1), torch.zeros(1, 1))}, "one shape"),
        ({"values": torch.zeros(2, 1), "pairs": (torch.zeros(2, 1), torch.full((2, 1), torch.nan))}, "view features"),
    ],
)
def test_features_that_do_not_fit_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Features(**arguments)


def test_concatenate_joins_rows_in_order() -> None:
    parts = [
        Features(torch.full((n, 2), float(n)), torch.full((n,), n), 4, (torch.zeros(n, 2), torch.ones(n, 2)))
        for n in (1, 3, 2)
    ]
    whole = concatenate(parts)
    assert whole.values[:, 0].tolist() == [1.0, 3.0, 3.0, 3.0, 2.0, 2.0]
    assert whole.labels is not None
    assert whole.labels.tolist() == [1, 3, 3, 3, 2, 2]
    assert whole.classes == 4
    assert whole.pairs is not None
    assert whole.pairs[0].shape == whole.pairs[1].shape == (6, 2)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([], "no batch"),
        ([Features(torch.zeros(1, 2)), Features(torch.zeros(1, 3))], "dimension"),
        ([Features(torch.zeros(1, 2), torch.tensor([0]), 2), Features(torch.zeros(1, 2), None, 2)], "none has"),
        ([Features(torch.zeros(1, 2), torch.tensor([0]), n) for n in (2, 3)], "same classes"),
    ],
)
def test_parts_that_do_not_fit_are_refused(parts: list[Features], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        concatenate(parts)


@pytest.mark.parametrize("evaluator", [*EVALUATORS, AttentiveProbe, FineTuning])
def test_every_evaluator_takes_when_it_runs(evaluator: Any) -> None:
    config = TypeAdapter(evaluator).validate_python({"type": evaluator().type, "every_epochs": 5, "at": "end"})
    assert config == evaluator(every_epochs=5)
    with pytest.raises(ValueError, match="every_epochs"):
        evaluator(every_epochs=0)
    with pytest.raises(ValidationError):
        TypeAdapter(evaluator).validate_python({"at": "start"})


def test_the_solver_of_a_job_file_becomes_its_config() -> None:
    config = TypeAdapter(LinearProbe).validate_python({"type": "linear", "solver": {"type": "sgd", "epochs": 3}})
    assert config.solver.type == "sgd"
    assert config.solver.epochs == 3


@pytest.mark.parametrize("evaluator", EVALUATORS)
def test_metrics_that_rank_are_reported_and_finite(evaluator: Any, blobs: Any) -> None:
    train, test = blobs(140), blobs(70, seed=1)
    metrics = evaluator().evaluate(train, test, seed=0)
    assert set(evaluator().higher_is_better) <= set(metrics)
    assert all(math.isfinite(value) for value in metrics.values())


@pytest.mark.parametrize("evaluator", [KNN, LinearProbe, FewLabelProbe, Retrieval])
def test_labels_are_asked_for(evaluator: Any, blobs: Any) -> None:
    unlabelled = Features(torch.randn(70, 16))
    assert evaluator.needs_labels
    with pytest.raises(ValueError, match="needs labels"):
        evaluator().evaluate(unlabelled, unlabelled, seed=0)
    with pytest.raises(ValueError, match="differ in classes"):
        evaluator().evaluate(blobs(140), blobs(70, classes=3), seed=0)


@pytest.mark.parametrize("evaluator", EVALUATORS)
def test_train_and_test_must_come_from_one_encoder(evaluator: Any, blobs: Any) -> None:
    with pytest.raises(ValueError, match="differ in dimension: 16 and 8"):
        evaluator().evaluate(blobs(140), blobs(70, dimension=8), seed=0)


@pytest.mark.parametrize("evaluator", EVALUATORS)
def test_the_same_arguments_give_the_same_numbers(evaluator: Any, blobs: Any) -> None:
    train, test = blobs(140, distance=1.0), blobs(70, distance=1.0, seed=1)
    first = evaluator().evaluate(train, test, seed=3)
    torch.rand(7)  # the global generator has no part in it
    torch.manual_seed(torch.seed() % 1000)
    state = torch.get_rng_state()
    assert evaluator().evaluate(train, test, seed=3) == first
    assert torch.equal(torch.get_rng_state(), state)
