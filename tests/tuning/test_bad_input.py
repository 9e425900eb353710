"""What is wrong with a sweep is told before anything starts: all of it, with lines and the nearest right name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from heliostat.config.loading import load, load_document
from heliostat.errors import InputError
from heliostat.tracking.location import StoreError
from heliostat.tuning import launch
from heliostat.tuning.plan import Plan, check, gather
from heliostat.tuning.study import Study

Problems = Callable[..., list[str]]
GOOD: dict[str, Any] = {
    "parameters": {"algorithm.temperature": {"type": "choice", "values": [0.1, 0.5]}},
    "metric": "eval/knn_top1",
    "mode": "max",
    "samples": 4,
}


@pytest.fixture
def job_file(tmp_path: Path, tiny_text: str) -> Callable[..., Path]:
    """Writes the tiny job with a sweep block."""

    def write(**block: Any) -> Path:
        file = tmp_path / "tiny.yaml"
        knn = "evaluation:\n  - {type: knn, k: 5, every_epochs: 1}"
        text = tiny_text.replace("evaluation: []", knn).replace("steps: 12", "epochs: 4")
        file.write_text(f"{text}sweep: {json.dumps({**GOOD, **block})}\n")
        return file

    return write


@pytest.fixture
def problems(job_file: Callable[..., Path], tmp_path: Path) -> Problems:
    """What is said of a block."""

    def told(*overrides: str, data: bool = False, **block: Any) -> list[str]:
        def checked() -> None:
            plan = Plan.of(load_document(job_file(**block), [f"output={tmp_path}/runs", *overrides]))
            check(plan)
            if data:
                gather(plan)

        with pytest.raises(InputError) as caught:
            checked()
        assert not (tmp_path / "runs").exists()
        return [str(problem) for problem in caught.value.problems]

    return told


def one(problems: list[str]) -> str:
    assert len(problems) == 1, problems
    return problems[0]


def varied(path: str, **parameter: Any) -> dict[str, Any]:
    return {"parameters": {path: parameter}}


def choice(path: str, *values: Any) -> dict[str, Any]:
    return varied(path, type="choice", values=list(values))


def test_a_sound_sweep_is_accepted(job_file: Callable[..., Path]) -> None:
    plan = Plan.of(load_document(job_file()))
    check(plan)
    assert gather(plan).total_steps == 88


@pytest.mark.parametrize(
    ("block", "what"),
    [
        (choice("algorithm.temprature", 0.1), "Did you mean 'temperature'?"),
        (choice("algoritm.temperature", 0.1), "Did you mean 'algorithm'?"),
        (choice("algorithm.temperature"), "no value to try"),
        (varied("algorithm.temperature", type="grid", values=[]), "no value to try"),
        (choice("algorithm.temperature", -1.0), "temperature"),
        (varied("algorithm.temperature", type="uniform", low=0.5, high=0.1), "low must be below high"),
        (varied("algorithm.temperature", type="log-uniform", low=0.0, high=0.1), "greater than 0"),
        (varied("algorithm.temperature", type="unifrom", low=0.1, high=0.2), "Did you mean 'uniform'?"),
        (varied("algorithm.temperature", values=[0.1]), "must say its type. Valid: choice, conditional"),
        (varied("algorithm.temperature", type="uniform", low=0.1, hi=0.2), "hi"),
        (choice("output", "a", "b"), "where a run is recorded"),
        ({"metric": "eval/nn_top1"}, "Did you mean 'eval/knn_top1'?"),
        ({"metric": "knn_top1"}, "Did you mean 'eval/knn_top1'?"),
        ({"metric": "baseline/untrained/knn_top1"}, "before the training"),
        ({"limits": {"evl/knn_top1": {"min": 0.1}}}, "Did you mean 'eval/knn_top1'?"),
        ({"limits": {"eval/knn_top1": {}}}, "give min, max or both"),
        ({"mode": "best"}, "max"),
        ({"samples": None}, "how many configurations"),
        ({"search": {"type": "grid"}}, "leave samples out"),
        ({"scheduler": {"type": "pbt"}, "samples": 1}, "samples of at least 2"),
        ({"scheduler": {"type": "pbt"}, "seeds": 2}, "no seeds to average"),
        ({"scheduler": {"type": "asah"}}, "Did you mean 'asha'?"),
        ({"scheduler": {"type": "pbt"}, **choice("optimization.batch_size", 32, 64)}, "cannot change"),
        ({"seeds": [1, 1]}, "given twice"),
        ({"seeds": 2, **choice("seed", 1, 2)}, "seed is a parameter here"),
        ({"samples": None, "search": {"type": "grid"}, **varied("seed", type="uniform", low=0, high=1)}, "listed"),
        ({"smaples": 4}, "Did you mean 'samples'?"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said(problems: Problems, block: dict[str, Any], what: str) -> None:
    told = problems(**block)
    assert any(what in problem for problem in told), told
    assert any("tiny.yaml:" in problem for problem in told), told


def test_everything_is_said_at_once(problems: Problems) -> None:
    parameters = {
        "algorithm.temprature": {"type": "choice", "values": [1]},
        "optimization.optimizer.learning_rate": {"type": "choice", "values": [1.0, -3.0]},
        "optimization.epochs": {
            "type": "conditional",
            "on": "algorithm.temp",
            "cases": {"1": {"type": "choice", "values": [1]}},
        },
    }
    told = "\n".join(problems(parameters=parameters, metric="eval/knn_top3"))
    for part in ("temprature", "learning_rate", "no parameter of the sweep", "knn_top3"):
        assert part in told


def test_values_that_are_wrong_together_are_named(problems: Problems) -> None:
    parameters = {
        "optimization.batch_size": {"type": "grid", "values": [64, 62]},
        "resources.workers": {"type": "grid", "values": [1, 4]},
    }
    told = problems("resources.runtime=ray", parameters=parameters, search={"type": "grid"}, samples=None)
    assert any("together, optimization.batch_size = 62, resources.workers = 4" in problem for problem in told)


def test_a_rule_needs_the_metric_on_the_way(problems: Problems) -> None:
    told = one(problems("evaluation.0.every_epochs=null", scheduler={"type": "asha"}))
    assert "every_epochs" in told


def test_a_population_is_compared_where_its_metric_is_measured(problems: Problems) -> None:
    told = one(problems(data=True, scheduler={"type": "pbt", "interval": 0.3}))
    assert "every 26 steps" in told
    assert "an interval of 0.25 would fit" in told


def test_members_of_a_population_have_the_same_network(problems: Problems) -> None:
    told = problems(data=True, scheduler={"type": "pbt", "interval": 0.25}, **choice("algorithm.projection_dim", 8, 16))
    assert "other weights" in one(told)


def test_a_run_of_the_job_leaves_the_block_aside_but_not_its_mistakes(job_file: Callable[..., Path]) -> None:
    assert load(job_file())
    with pytest.raises(InputError, match="Did you mean 'samples'"):
        load(job_file(smaples=3))


class Silent:
    def show(self, study: Study, notices: list[str]) -> None:
        """Nothing."""


def test_a_server_that_does_not_answer_stops_the_sweep_before_anything_starts(
    job_file: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    started: list[object] = []
    monkeypatch.setattr(ray, "init", lambda **settings: started.append(settings))
    overrides = [f"output={tmp_path}/runs", "tracking.uri=http://127.0.0.1:9"]
    with pytest.raises(StoreError):
        launch.start(Plan.of(load_document(job_file(), overrides)), Silent())
    assert not started
    assert not (tmp_path / "runs").exists()


def test_what_is_left_of_another_sweep_of_the_name_is_not_continued(
    job_file: Callable[..., Path], tmp_path: Path
) -> None:
    (tmp_path / "runs/mine-000").mkdir(parents=True)
    overrides = [f"output={tmp_path}/runs", f"tracking.uri=sqlite:///{tmp_path}/mlflow.db"]
    with pytest.raises(InputError, match="mine-000"):
        launch.start(Plan.of(load_document(job_file(), overrides)), Silent(), "mine")
