"""Job files that chain several runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from heliostat.config.loading import Stage, load
from heliostat.errors import InputError

COMMON = """\
name: chain
algorithm: {type: simclr, backbone: {type: resnet18, stem: cifar}, temperature: 0.5}
data:
  train: {source: digits, split: train}
optimization:
  optimizer: {type: lars, learning_rate: 1.0, momentum: 0.8}
  schedule: {type: constant}
  batch_size: 64
  steps: 10
"""
STAGES = """\
stages:
  first:
    optimization: {batch_size: 128}
  second:
    optimization:
      optimizer: {type: adamw, learning_rate: 0.001}
      steps: 20
    data: {train_fraction: 0.1}
  third:
    begin: null
    algorithm: {temperature: 0.2}
"""


def stages(tmp_path: Path, text: str, *overrides: str) -> tuple[Stage, ...]:
    path = tmp_path / "chain.yaml"
    path.write_text(text)
    return load(path, overrides)


def test_a_file_without_stages_is_one(tmp_path: Path) -> None:
    (only,) = stages(tmp_path, COMMON)
    assert (only.name, only.follows, only.job.name) == ("", None, "chain")


def test_each_stage_is_the_common_part_with_its_own_laid_over_it(tmp_path: Path) -> None:
    first, second, third = stages(tmp_path, COMMON + STAGES)
    assert [stage.job.name for stage in (first, second, third)] == ["chain-first", "chain-second", "chain-third"]
    assert [stage.follows for stage in (first, second, third)] == [None, "first", None]
    assert (first.job.optimization.batch_size, first.job.optimization.steps) == (128, 10)
    assert (second.job.optimization.batch_size, second.job.optimization.steps) == (64, 20)
    assert second.job.data.train_fraction == 0.1
    assert second.job.data.train == first.job.data.train
    assert third.job.algorithm.temperature == 0.2
    assert third.job.algorithm.backbone == first.job.algorithm.backbone


def test_a_mapping_with_its_own_type_replaces_the_common_one(tmp_path: Path) -> None:
    _, second, third = stages(tmp_path, COMMON + STAGES)
    assert second.job.optimization.optimizer.type == "adamw"  # and LARS's momentum, which AdamW has not, is no error
    assert third.job.optimization.optimizer.momentum == 0.8


def test_overrides_reach_all_stages_or_one(tmp_path: Path) -> None:
    changes = ("seed=7", "optimization.steps=5", "stages.first.optimization.batch_size=32")
    first, second, third = stages(tmp_path, COMMON + STAGES, *changes)
    assert [stage.job.seed for stage in (first, second, third)] == [7, 7, 7]
    assert [stage.job.optimization.steps for stage in (first, second, third)] == [5, 20, 5]
    assert [stage.job.optimization.batch_size for stage in (first, second, third)] == [32, 64, 64]


@pytest.mark.parametrize(
    ("begin", "follows"), [("null", None), ("{run: other}", None), ("{optimizer: true}", "first"), ("{}", "first")]
)
def test_a_stage_follows_the_one_before_unless_it_names_another_run(
    tmp_path: Path, begin: str, follows: str | None
) -> None:
    text = COMMON + f"stages:\n  first: {{}}\n  second: {{begin: {begin}}}\n"
    second = stages(tmp_path, text)[1]
    assert second.follows == follows
    assert (second.job.begin is not None and second.job.begin.optimizer) == ("optimizer" in begin)


def problems(tmp_path: Path, text: str) -> list[str]:
    with pytest.raises(InputError) as caught:
        stages(tmp_path, text)
    return [str(problem).removeprefix(f"{tmp_path}/") for problem in caught.value.problems]


def test_what_is_wrong_in_one_stage_has_its_line_and_name(tmp_path: Path) -> None:
    text = COMMON + STAGES.replace("batch_size: 128", "batch_sise: 128").replace("temperature: 0.2", "temperature: 0")
    assert problems(tmp_path, text) == [
        "chain.yaml:12: stage first: unknown key 'batch_sise' in optimization. Did you mean 'batch_size'?",
        "chain.yaml:20: stage third: algorithm: temperature is 0.0; it must be above 0",
    ]


def test_what_is_wrong_in_the_common_part_is_said_once(tmp_path: Path) -> None:
    found = problems(tmp_path, COMMON.replace("source: digits", "source: digit") + STAGES)
    assert len(found) == 1
    assert found[0].startswith("chain.yaml:4: data.train: unknown source 'digit'. Did you mean 'digits'?")


@pytest.mark.parametrize(
    ("part", "said"),
    [
        ("stages: []", "stages is a mapping of names"),
        ("stages: {}", "stages is a mapping of names"),
        ("stages: {Pre train: null}", "no name of a stage"),
        ("stages: {a: 3}", "it is a mapping"),
        ("stages: {a: {name: b}}", "a stage is named by its key"),
    ],
)
def test_stages_that_are_none(tmp_path: Path, part: str, said: str) -> None:
    (found,) = problems(tmp_path, COMMON + part + "\n")
    assert said in found
    assert found.startswith("chain.yaml:10")
