"""Jobs of reinforcement learning: what is accepted, and what is said of what is not."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from heliostat.cli.app import main
from heliostat.config.loading import dump, load, parse, parse_any
from heliostat.config.registry import AGENTS
from heliostat.config.reinforcement import ReinforcementJob
from heliostat.errors import InputError, require
from heliostat.reinforcement import launch

MakeJob = Callable[..., ReinforcementJob]
LEAST = """\
name: least
algorithm:
  type: dqn
environment: {type: gymnasium, id: CartPole-v1}
replay:
  capacity: 1000
  minimum: 100
  samples_per_insert: 8
optimization:
  optimizer: {type: adam, learning_rate: 0.001}
  batch_size: 32
  steps: 500
"""


def least(*overrides: str, text: str = LEAST) -> ReinforcementJob:
    job = parse_any(text, "least.yaml", overrides)
    assert isinstance(job, ReinforcementJob)
    return job


def problems(*overrides: str, text: str = LEAST) -> list[str]:
    with pytest.raises(InputError) as caught:
        parse_any(text, "least.yaml", overrides)
    return [str(problem) for problem in caught.value.problems]


# What is accepted


def test_what_is_left_out_has_the_algorithm_s_own_defaults() -> None:
    job = least()
    assert job.algorithm == AGENTS["dqn"].Config()
    assert (job.resources.runtime, job.resources.actors, job.resources.lockstep) == ("ray", 1, False)
    assert job.rollout.initial_priorities == "largest"
    assert job.evaluation.every_steps is None
    assert job.checkpoint.replay


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("algorithm.prioritization={exponent: 0.5}", "rollout.initial_priorities=td-error", "resources.actors=3"),
        ("algorithm.distribution={type: c51, high: 20.0}", "algorithm.noisy=true", "algorithm.n_step=3"),
        ("environment={type: atari, game: pong}", "evaluation.every_steps=100", "checkpoint.every_steps=100"),
        ("environment={type: custom, factory: 'a.b:C', arguments: {x: [1, {y: null}]}}", "replay.tolerance=2.5"),
    ],
    ids=["least", "ape-x", "rainbow", "atari", "custom"],
)
def test_a_resolved_job_loads_as_the_same_job(overrides: tuple[str, ...], tmp_path: Path) -> None:
    job = least(*overrides)
    path = tmp_path / "job.yaml"
    path.write_text(dump(job))
    assert load(path) == job
    assert parse_any(dump(job, width=40), "narrow.yaml") == job
    assert yaml.safe_load(dump(job)) == job.resolved()  # plain data: nothing of Python


def test_partly_written_settings_are_completed_with_the_defaults_around_them() -> None:
    """``epsilon: {end: 0.01}`` is DQN's schedule with another end, and ``network`` of another type is that type's."""
    job = least("algorithm.epsilon={type: linear, end: 0.01}", "algorithm.network={type: dqn-2015, hidden_units: 8}")
    default = AGENTS["dqn"].Config()
    assert job.algorithm.epsilon == dataclasses.replace(default.epsilon, end=0.01)  # type: ignore[type-var]
    assert job.algorithm.network == dataclasses.replace(default.network, hidden_units=8)  # type: ignore[type-var]
    mlp = least("algorithm.network={type: mlp}").algorithm.network
    assert type(mlp).__name__ == "Mlp"
    assert least("algorithm.prioritization={}").algorithm.prioritization.exponent == 0.6  # type: ignore[union-attr]


def test_null_for_what_is_optional() -> None:
    job = least("algorithm.reward_clip=null", "algorithm.prioritization=null", "evaluation.every_steps=null")
    assert job.algorithm.reward_clip is None
    assert job.algorithm.prioritization is None


def test_lockstep_is_local_or_without_overlap() -> None:
    assert least("resources.runtime=local").resources.lockstep
    assert least("resources.overlap=false").resources.lockstep
    assert not least("resources.actors=2").resources.lockstep


# What is said of what is not


def test_an_unknown_key_names_its_line_and_the_nearest() -> None:
    found = problems(text=LEAST.replace("minimum: 100", "minium: 100"))
    assert "least.yaml:7: unknown key 'minium' in replay. Did you mean 'minimum'?" in found
    assert any("'minimum' is missing in replay" in each for each in found)


def test_all_problems_of_form_are_told_at_once() -> None:
    found = problems("seed=-1", "replay.capacity=many", "environment.idd=3", "resources.actors=0", "rollout.calls=1.5")
    for said in (
        "seed must be",
        "replay.capacity must be",
        "'idd' in environment",
        "resources.actors",
        "rollout.calls",
    ):
        assert any(said in each for each in found), (said, found)
    assert len(found) == 5


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("algorithm.type=dqm", "unknown type 'dqm'. Did you mean 'dqn'?"),
        ("algorithm.discuont=0.9", "unknown key 'discuont' in algorithm. Did you mean 'discount'?"),
        ("algorithm.discount=1.5", "discount is 1.5; it must be from 0 to 1"),
        ("algorithm.n_step=0", "n_step is 0; it must be at least 1"),
        ("algorithm.epsilon={type: linaer}", "unknown type 'linaer'. Did you mean 'linear'?"),
        ("algorithm.network.type=dqn-2016", "unknown type 'dqn-2016'. Did you mean 'dqn-2015'?"),
        ("algorithm.prioritization={exponent: 2}", "exponent is 2.0; it must be from 0 to 1"),
        ("algorithm.prioritization={exponant: 1}", "Did you mean 'exponent'?"),
        ("environment.type=gymnasum", "unknown type 'gymnasum'. Did you mean 'gymnasium'?"),
        ("environment={type: minatar, game: breakot}", "environment.game must be 'asterix', 'breakout'"),
        ("environment={id: CartPole-v1}", "environment must say its type"),
        ("environment.timeout_s=0", "environment.timeout_s must be greater than 0, not 0"),
        ("environment={type: custom, factory: nothing}", "factory"),
        ("optimization.optimizer.type=adm", "unknown type 'adm'. Did you mean 'adam'?"),
        ("optimization.epochs=3", "unknown key 'epochs' in optimization"),
        ("optimization.steps='500'", 'optimization.steps must be a valid integer, not "500"'),
        ("replay.samples_per_insert=0", "replay.samples_per_insert must be greater than 0"),
        ("replay.samples_per_insert=.inf", "replay.samples_per_insert"),
        ("replay.tolerance=-1", "replay.tolerance must be greater than 0"),
        ("replay.tolerance=.inf", "replay.tolerance"),
        ("replay.tolerance=.nan", "replay.tolerance"),
        ("environment.timeout_s=.inf", "environment.timeout_s"),
        ("rollout.initial_priorities=td", "rollout.initial_priorities must be 'largest' or 'td-error'"),
        ("evaluation.epsilon=2", "evaluation.epsilon must be less than or equal to 1"),
        ("evaluation=[]", "evaluation"),
        ("resources={runtime: local, actors: 2}", "the local runtime is one process, but actors is 2; use ray"),
        ("resources={runtime: local, shards: 2}", "the local runtime is one process, but shards is 2; use ray"),
        ("resources={runtime: local, learners: 2}", "the local runtime is one process, but learners is 2; use ray"),
        ("resources.workers=2", "unknown key 'workers' in resources"),
        ("checkpoint.every_epochs=1", "every_epochs: there are no epochs here; give every_steps"),
        ("data={train: {source: digits}}", "unknown key 'data' in the job"),
        ("name=a/b", "name"),
    ],
)
def test_what_is_wrong_and_what_would_be_right(override: str, said: str) -> None:
    found = problems(override)
    assert any(said in each for each in found), found
    assert len(found) == 1, found


def test_an_environment_does_not_go_with_an_algorithm_for_data() -> None:
    assert any("unknown key 'environment'" in each for each in problems("algorithm={type: simclr}"))
    assert any("'environment' is missing" in each for each in problems(text=LEAST.replace("environment:", "data:")))


def test_where_training_on_data_is_needed_the_other_kind_is_refused() -> None:
    with pytest.raises(InputError, match="this is a job of reinforcement learning"):
        parse(LEAST, "least.yaml")


# The schema


@pytest.fixture
def schema(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """What ``heliostat validate --schema`` prints."""
    monkeypatch.setattr(sys, "argv", ["heliostat", "validate", "--schema"])
    with pytest.raises(SystemExit) as end:
        main()
    assert not end.value.code
    found = json.loads(capsys.readouterr().out)
    jsonschema.Draft202012Validator.check_schema(found)
    return found


def test_the_schema_accepts_what_is_right_and_refuses_what_is_wrong(schema: Any) -> None:
    validator = jsonschema.Draft202012Validator(schema)
    right = yaml.safe_load(LEAST)
    assert not list(validator.iter_errors(right))
    assert not list(validator.iter_errors(least("algorithm.prioritization={}", "resources.actors=2").resolved()))
    for section, key, value in (
        ("replay", "minium", 3),
        ("replay", "capacity", 0),
        ("rollout", "calls", "four"),
        ("environment", "type", "gymnasum"),
        ("environment", "ids", "CartPole-v1"),
        ("algorithm", "type", "dqm"),
        ("algorithm", "n_step", "three"),
        ("resources", "workers", 2),
        ("optimization", "epochs", 3),
    ):
        wrong = json.loads(json.dumps(right))
        wrong.setdefault(section, {})[key] = value
        assert list(validator.iter_errors(wrong)), (section, key)
    for section in ("replay", "environment", "optimization", "algorithm", "name"):
        assert list(validator.iter_errors({key: value for key, value in right.items() if key != section})), section


# What only a look at the environment, or at several sections, can tell


def test_a_job_without_faults(small: MakeJob) -> None:
    assert launch.check(small()) == []


def test_all_that_is_wrong_is_found_at_once(small: MakeJob) -> None:
    job = small(
        "environment.id=CartPol-v1",
        "rollout={environments: 2, initial_priorities: td-error}",
        "resources={actors: 3, shards: 7, learners: 5}",
        "replay={capacity: 100, minimum: 90, samples_per_insert: 8}",
        "optimization.batch_size=128",
        "tracking.uri=http://me:secret@example.org",
    )
    found = {(problem.where, problem.what) for problem in launch.check(job)}
    for where, said in (
        ("environment", "Did you mean 'CartPole-v1'?"),
        ("resources.actors", "2 environments are too few for 3 actors"),
        ("resources.shards", "2 environments are too few for 7 shards"),
        ("replay.capacity", "7 shards cannot share 100 slots equally; 98 would do"),
        ("optimization.batch_size", "5 learners cannot share a batch of 128 equally; 130 would do"),
        ("optimization.batch_size", "a batch of 128 is larger than the memory of 100"),
        ("replay.minimum", "learning would begin with 90 steps, fewer than a batch of 128; 128 would do"),
        ("rollout.initial_priorities", "uniform replay has no priorities"),
        ("tracking.uri", "password"),
    ):
        assert any(where == at and said in what for at, what in found), (where, said, found)
    assert len(found) == 9
    with pytest.raises(InputError) as caught:
        require(launch.check(job))
    assert len(caught.value.problems) == 9


@pytest.mark.parametrize(
    ("override", "where", "said"),
    [
        ("environment.id=CartPole-v9", "environment", "CartPole-v9"),
        ("environment.id=Pendulum-v1", "environment", "continuous"),
        ("environment={type: atari, game: pongg}", "environment", "Did you mean 'pong'?"),
        ("environment={type: custom, factory: 'no.such:Thing'}", "environment", "cannot be imported"),
        (
            "replay={capacity: 2000, minimum: 2001, samples_per_insert: 4}",
            "replay.minimum",
            "but the memory holds 2000",
        ),
        ("algorithm.network={type: dqn-2015}", "algorithm.network", "observations have the shape (4,)"),
        ("replay={capacity: 28, minimum: 16, samples_per_insert: 4}", "replay.capacity", "at least 32 slots in all"),
        ("resources={actors: 5, overlap: true}", "resources.actors", "4 environments are too few for 5 actors"),
        ("resources={shards: 3}", "replay.capacity", "3 shards cannot share 2000 slots equally; 2001 would do"),
        ("resources={learners: 3}", "optimization.batch_size", "3 learners cannot share a batch of 16 equally; 15"),
        ("optimization.batch_size=65", "replay.minimum", "fewer than a batch of 65"),
        ("rollout.initial_priorities=td-error", "rollout.initial_priorities", "give algorithm.prioritization"),
    ],
)
def test_one_thing_that_is_wrong_is_the_only_one_named(small: MakeJob, override: str, where: str, said: str) -> None:
    job = small(override, "algorithm.n_step=7") if "28" in override else small(override)
    found = launch.check(job)
    assert [problem.where for problem in found] == [where], found
    assert said in found[0].what


def test_the_smallest_memory_that_is_accepted_can_be_made(small: MakeJob) -> None:
    """What ``check`` lets through does not fail later: 5 lanes in 2 shards, stacks of 2, 3-step returns."""
    from heliostat.reinforcement.shard import ReplayShard
    from heliostat.training.storage import Storage

    changes = ["rollout.environments=5", "resources.shards=2", "environment.stack=2", "algorithm.n_step=3"]
    smallest = 2 * 3 * (2 + 3)
    right = small(*changes, f"replay={{capacity: {smallest}, minimum: 16, samples_per_insert: 4}}")
    assert launch.check(right) == []
    for index in range(2):
        ReplayShard(right, right.environment.spec(), index, Storage(right.output))
    wrong = small(*changes, f"replay={{capacity: {smallest - 2}, minimum: 16, samples_per_insert: 4}}")
    assert [problem.where for problem in launch.check(wrong)] == ["replay.capacity"]


def test_settings_that_nothing_here_would_use_are_refused(small: MakeJob) -> None:
    """There is no schedule of the weight decay: a job that asks for one would silently get none."""
    found = launch.check(small("optimization.optimizer={type: adam, learning_rate: 0.1, final_weight_decay: 0.4}"))
    assert [problem.where for problem in found] == ["optimization.optimizer.final_weight_decay"]


def test_a_run_too_short_to_learn_anything_is_refused(small: MakeJob) -> None:
    found = launch.check(small("optimization.steps=64"))
    assert [problem.where for problem in found] == ["optimization.steps"]
    assert launch.check(small("optimization.steps=68")) == []  # one update at least


def test_refusals_leave_nothing_behind(small: MakeJob, tmp_path: Path, nobody: Any) -> None:
    with pytest.raises(InputError):
        launch.start(small("environment.id=CartPol-v1"), nobody, "never")
    assert not (tmp_path / "runs").exists()
    assert not (tmp_path / "mlflow.db").exists()
