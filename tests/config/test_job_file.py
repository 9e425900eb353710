"""The job file: what is accepted, and what is said of what is not."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from heliostat.config.loading import AnyJob, dump, load, load_document, parse, parse_any, schema
from heliostat.config.registry import ALGORITHMS, AlgorithmConfig, members
from heliostat.config.reinforcement import ReinforcementJob
from heliostat.config.sweep import SWEEP
from heliostat.errors import InputError
from heliostat.tuning import plan as sweeps

JOBS = sorted((Path(__file__).parents[2] / "jobs").rglob("*.yaml"))
SMALL = """\
name: small
algorithm:
  type: simclr
  backbone: {type: resnet18, stem: cifar}
data:
  train: {source: digits, split: train}
optimization:
  optimizer: {type: lars, learning_rate: 0.3}
  batch_size: 256
  epochs: 20
"""


def jobs_of(path: Path) -> dict[str, AnyJob]:
    """The jobs of a file by their stages' names."""
    loaded = load(path)
    return {"": loaded} if isinstance(loaded, ReinforcementJob) else {stage.name: stage.job for stage in loaded}


def problems(*overrides: str, text: str = SMALL) -> list[str]:
    with pytest.raises(InputError) as caught:
        parse(text, "small.yaml", overrides)
    return [str(problem) for problem in caught.value.problems]


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.stem)
def test_every_job_file_is_valid_and_begins_with_its_command(path: Path) -> None:
    first, second = path.read_text().splitlines()[:2]
    verb = "sweep" if SWEEP in load_document(path).data else "run"
    assert first.startswith(f"# heliostat {verb} jobs/{path.relative_to(path.parents[1])}")
    assert second.startswith("# ")
    assert all(job.name == f"{path.stem}{stage and '-'}{stage}" for stage, job in jobs_of(path).items())


SWEEPS = [path for path in JOBS if SWEEP in load_document(path).data]


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_every_sweep_is_sound_with_each_of_its_values(path: Path) -> None:
    plan = sweeps.Plan.of(load_document(path))
    sweeps.check(plan)
    assert plan.sweep.metric.startswith("eval/")
    assert {path.parent.name for path in SWEEPS} == {"tuning"}
    assert sweeps.gather(plan).total_steps > 0


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.stem)
def test_a_resolved_job_loads_as_the_same_job(path: Path) -> None:
    for job in jobs_of(path).values():
        assert parse_any(dump(job), "resolved.yaml") == job


def test_the_design_s_example_is_valid() -> None:
    text = """
name: simclr-cifar10
seed: 0
algorithm:    {type: simclr, backbone: {type: resnet18, stem: cifar}, temperature: 0.5}
data:         {train: {source: cifar10, split: train}, test: {source: cifar10, split: test}}
optimization: {optimizer: {type: lars, learning_rate: 0.3, per: 256, weight_decay: 1.0e-6},
               schedule: {type: cosine, warmup_epochs: 10}, batch_size: 4096, epochs: 800, precision: bf16}
evaluation:   [{type: knn, every_epochs: 10}, {type: linear, at: end}]
resources:    {workers: 8, gpus_per_worker: 1}
checkpoint:   {every_epochs: 10, keep: 2}
tracking:     {experiment: cifar10}
"""
    job = parse(text, "design.yaml")
    assert job.algorithm.backbone.stem == "cifar"
    assert job.optimization.optimizer.weight_decay == 1e-6
    assert [e.type for e in job.evaluation] == ["knn", "linear"]


def test_defaults_are_the_dataclasses_own() -> None:
    job = parse(SMALL.replace("  backbone: {type: resnet18, stem: cifar}\n", ""), "small.yaml")
    assert job.algorithm == ALGORITHMS["simclr"].Config()
    assert job.resources.worker_range == range(1, 2)


def test_overrides_beat_the_file() -> None:
    job = parse(SMALL, "small.yaml", ["algorithm.temperature=0.2", "resources.workers=[1,4]", "seed=7"])
    assert job.algorithm.temperature == 0.2
    assert list(job.resources.worker_range) == [1, 2, 3, 4]
    assert job.seed == 7


def test_an_unknown_key_names_its_line_and_the_nearest() -> None:
    found = problems(text=SMALL.replace("batch_size: 256", "batch_sise: 256"))
    assert "small.yaml:9: unknown key 'batch_sise' in optimization. Did you mean 'batch_size'?" in found
    assert any("'batch_size' is missing in optimization" in each for each in found)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("algorithm.temprature=0.1", "unknown key 'temprature' in algorithm. Did you mean 'temperature'?"),
        ("algorithm.backbone.stm=cifar", "unknown key 'stm' in algorithm.backbone. Did you mean 'stem'?"),
        ("algorithm.augmentation.blur.sgma=[1,2]", "Did you mean 'sigma'?"),
        ("optimization.optimizer.weight_deacy=0", "Did you mean 'weight_decay'?"),
        ("data.train.splt=test", "Did you mean 'split'?"),
        ("resurces={workers: 2}", "unknown key 'resurces' in the job. Did you mean 'resources'?"),
        ("evaluation=[{type: knn, kk: 3}]", "unknown key 'kk' in evaluation.0"),
        ("algorithm.type=simlcr", "unknown type 'simlcr'. Did you mean 'simclr'?"),
        ("algorithm.backbone.type=resnet81", "algorithm.backbone: unknown type 'resnet81'. Did you mean 'resnet18'?"),
        ("data.train.source=cifar-10", "unknown source 'cifar-10'. Did you mean 'cifar10'?"),
        ("optimization.optimizer.type=adamww", "unknown type 'adamww'. Did you mean 'adamw'?"),
        ("evaluation=[{type: kn}]", "evaluation.0: unknown type 'kn'. Did you mean 'knn'?"),
        ("evaluation=[{k: 3}]", "evaluation.0 must say its type"),
        ("optimization.batch_size='256'", "optimization.batch_size must be a valid integer, not \"256\""),
        ("optimization.batch_size=256.5", "optimization.batch_size must be a valid integer"),
        ("optimization.batch_size=true", "optimization.batch_size must be a valid integer"),
        ("optimization.batch_size=0", "optimization.batch_size must be greater than 0, not 0"),
        ("optimization.batch_size=-8", "optimization.batch_size must be greater than 0, not -8"),
        ("algorithm.temperature=warm", "algorithm.temperature must be a valid number, not \"warm\""),
        ("algorithm.temperature=0", "temperature is 0.0; it must be above 0"),
        ("algorithm.augmentation.flip=1.5", "flip is 1.5"),
        ("algorithm.augmentation.crop_area=[0.9, 0.1]", "crop_area"),
        ("optimization.optimizer.momentum=1", "momentum is 1.0"),
        ("optimization.precision=fp8", "optimization.precision must be 'fp32', 'bf16' or 'fp16'"),
        ("optimization.steps=5", "either 'epochs' or 'steps', not both"),
        ("optimization.epochs=null", "either 'epochs' or 'steps', not both"),
        ("resources.workers=0", "resources.workers"),
        ("resources.workers=[4,2]", "the minimum comes first"),
        ("resources={runtime: local, workers: 2}", "the local runtime is one process"),
        ("name=a/b", "name"),
        ("seed=-1", "seed must be greater than or equal to 0"),
        ("data.train=null", "data.train"),
        ("checkpoint.keep=0", "checkpoint.keep must be greater than 0"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said(override: str, said: str) -> None:
    found = [each for each in problems(override) if said in each]
    assert found, problems(override)
    assert f"command line, '{override}'" in found[0] or override.split("=")[0].split(".")[0] in found[0]


def test_all_problems_come_at_once_each_with_its_line() -> None:
    text = SMALL.replace("name: small", "nme: small").replace("stem: cifar", "stem: cifra").replace("256", "many")
    found = problems(text=text)
    assert len(found) == 4, found
    assert [each.split(": ")[0] for each in sorted(found)] == [
        "small.yaml:1", "small.yaml:1", "small.yaml:4", "small.yaml:9",
    ]  # fmt: skip


def test_a_missing_file_names_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "simclr.yaml").write_text(SMALL)
    with pytest.raises(InputError, match=r"no such job file. Did you mean 'simclr.yaml'\?"):
        load(tmp_path / "simcrl.yaml")


def test_a_file_that_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="cannot be read"):
        load(tmp_path / "job.yaml")


def test_a_job_cannot_be_changed() -> None:
    job = parse(SMALL, "small.yaml")
    with pytest.raises(ValueError, match="frozen"):
        job.seed = 3  # type: ignore[misc]
    with pytest.raises(dataclasses.FrozenInstanceError):
        job.algorithm.temperature = 1.0  # type: ignore[misc]


def _as_editor_sees(text: str) -> Any:
    return json.loads(json.dumps(yaml.safe_load(text)))


def test_the_schema_accepts_the_job_files_and_refuses_mistakes() -> None:
    validator = jsonschema.Draft202012Validator(schema())
    validator.check_schema(schema())
    for path in JOBS:
        for job in jobs_of(path).values():
            validator.validate(job.resolved())
        validator.validate(_as_editor_sees(path.read_text()))
    staged = {"name": "x", "stages": {"pretrain": {"optimization": {"epochs": 3}}, "again": None}}
    validator.validate(staged)
    assert not validator.is_valid({**staged, "stages": {"pretrain": {"optimisation": {}}}})
    for wrong in ("batch_sise: 3", "batch_size: many", "precision: fp9"):
        document = _as_editor_sees(SMALL + f"  {wrong}\n")
        assert not validator.is_valid(document), wrong


def test_the_schema_explains_keys() -> None:
    definitions = schema()["$defs"]
    assert "over all workers" in definitions["Optimization"]["properties"]["batch_size"]["description"]
    assert {"resnet18", "resnet34", "resnet50"} <= {
        tag for name in definitions for tag in [definitions[name].get("properties", {}).get("type", {}).get("const")]
    }


def test_the_registry_and_the_union_name_the_same_algorithms() -> None:
    assert members(AlgorithmConfig) == {name: cls.Config for name, cls in ALGORITHMS.items()}
