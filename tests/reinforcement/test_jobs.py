"""The job files of reinforcement learning: all are sound, and presets have the numbers that were published."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from heliostat.config.loading import load
from heliostat.config.reinforcement import ReinforcementJob
from heliostat.reinforcement import launch
from heliostat_algorithms.reinforcement.dqn import DQN

JOBS = Path(__file__).parents[2] / "jobs/reinforcement"
PRESETS = ("dqn-2013", "dqn-2015", "double", "dueling", "rainbow", "apex")
ALL = sorted(path.stem for path in JOBS.glob("*.yaml"))


def job_of(name: str) -> ReinforcementJob:
    job = load(JOBS / f"{name}.yaml")
    assert isinstance(job, ReinforcementJob)
    return job


def settings(name: str) -> dict[str, Any]:
    """The resolved job by dotted keys."""

    def flat(value: Any, prefix: str) -> dict[str, Any]:
        if not isinstance(value, dict):
            return {prefix: value}
        found: dict[str, Any] = {}
        for key, inner in value.items():
            found |= flat(inner, f"{prefix}.{key}" if prefix else key)
        return found

    return flat(job_of(name).resolved(), "")


def test_there_are_the_presets() -> None:
    assert {*PRESETS, "cartpole", "minatar-breakout", "pong-small"} <= set(ALL)


@pytest.mark.parametrize("name", ALL)
def test_a_job_is_sound(name: str) -> None:
    job = job_of(name)
    assert launch.check(job) == []
    assert job.name == name
    first, second = (JOBS / f"{name}.yaml").read_text().splitlines()[:2]
    assert first.startswith(f"# heliostat run jobs/reinforcement/{name}.yaml")
    assert second.startswith("# "), "what it is"


@pytest.mark.parametrize("name", [*PRESETS, "minatar-breakout", "pong-small"])
def test_it_says_what_its_memory_takes(name: str) -> None:
    """84 x 84 bytes and a few more for each slot; MinAtar's pictures are 4 x 10 x 10."""
    job = job_of(name)
    frame = 4 * 10 * 10 if name.startswith("minatar") else 84 * 84
    gigabytes = job.replay.capacity * (frame + 40) / 1e9
    text = (JOBS / f"{name}.yaml").read_text()
    assert f"{gigabytes:.2f} GB" in text or f"{gigabytes:.1f} GB" in text


ATARI = {
    "environment.type": "atari",
    "environment.protocol": "nature",
    "environment.frame_skip": 4,
    "environment.stack": 4,
    "environment.sticky_actions": 0,
    "environment.full_action_set": False,
    "algorithm.discount": 0.99,
    "algorithm.reward_clip": 1,
}
"""What all of the papers have."""
NATURE = ATARI | {
    "environment.max_pool": True,
    "environment.no_ops": 30,
    "environment.life_loss": True,
    "environment.max_frames": 30 * 60 * 60,
    "algorithm.network.type": "dqn-2015",
    "algorithm.network.hidden_units": 512,
    "rollout.environments": 1,
    "rollout.calls": 4,
    "rollout.broadcast_updates": 1,
    "replay.capacity": 10**6,
    "replay.samples_per_insert": 32 / 4,
    "optimization.batch_size": 32,
    "optimization.steps": 200 * 10**6 // 4,
    "evaluation.every_steps": 10**6 // 4,
    "evaluation.episodes": 30,
}
HUBER = {
    "algorithm.distribution.type": "scalar",
    "algorithm.distribution.loss": "huber",
    "algorithm.distribution.delta": 1,
}
PLAIN = {
    "algorithm.n_step": 1,
    "algorithm.double": False,
    "algorithm.dueling": False,
    "algorithm.noisy": False,
    "algorithm.prioritization": None,
}
RMSPROP = {
    "optimization.optimizer.type": "rmsprop",
    "optimization.optimizer.centered": True,
    "optimization.optimizer.learning_rate": 0.00025,
    "optimization.optimizer.per": None,
    "optimization.optimizer.decay": 0.95,
    "optimization.optimizer.eps": 0.01 / 32**2,
    "optimization.optimizer.weight_decay": 0,
    "optimization.clip_gradient_norm": None,
}
EPSILON = {
    "algorithm.epsilon.type": "linear",
    "algorithm.epsilon.start": 1,
    "algorithm.epsilon.end": 0.1,
    "algorithm.epsilon.begin": 50_000,
    "algorithm.epsilon.steps": 10**6,
}
DOUBLE = (
    NATURE
    | PLAIN
    | HUBER
    | RMSPROP
    | EPSILON
    | {
        "algorithm.double": True,
        "algorithm.epsilon.end": 0.01,
        "algorithm.target.type": "periodic",
        "algorithm.target.every": 30_000 // 4,
        "replay.minimum": 50_000,
        "evaluation.epsilon": 0.001,
        "environment.evaluation_max_frames": 108_000,
    }
)
PUBLISHED: dict[str, dict[str, Any]] = {
    # Mnih et al. 2013 (1312.5602), sections 4.1 and 5
    "dqn-2013": ATARI
    | PLAIN
    | RMSPROP
    | EPSILON
    | {
        "environment.max_pool": False,
        "environment.no_ops": 0,
        "environment.life_loss": False,
        "algorithm.network.type": "dqn-2013",
        "algorithm.network.hidden_units": 256,
        "algorithm.distribution.type": "scalar",
        "algorithm.distribution.loss": "mse",
        "algorithm.target.type": "none",
        "algorithm.epsilon.begin": 0,
        "optimization.optimizer.centered": False,
        "optimization.batch_size": 32,
        "optimization.steps": 10 * 10**6,
        "rollout.environments": 1,
        "rollout.calls": 1,
        "replay.capacity": 10**6,
        "replay.minimum": 32,
        "replay.samples_per_insert": 32,
        "evaluation.every_steps": 50_000,
        "evaluation.epsilon": 0.05,
    },
    # Mnih et al. 2015, Extended Data Table 1
    "dqn-2015": NATURE
    | PLAIN
    | HUBER
    | RMSPROP
    | EPSILON
    | {
        "algorithm.target.type": "periodic",
        "algorithm.target.every": 10_000,
        "replay.minimum": 50_000,
        "evaluation.epsilon": 0.05,
        "environment.evaluation_max_frames": 5 * 60 * 60,
    },
    # van Hasselt et al. 2015 (1509.06461), the tuned version
    "double": DOUBLE,
    # Wang et al. 2015 (1511.06581), section 4.2
    "dueling": DOUBLE
    | {
        "algorithm.dueling": True,
        "algorithm.dueling_gradient": pytest.approx(1 / 2**0.5, abs=1e-15),
        "optimization.optimizer.learning_rate": 6.25e-5,
        "optimization.clip_gradient_norm": 10,
    },
    # Hessel et al. 2017 (1710.02298), table 1
    "rainbow": NATURE
    | {
        "algorithm.n_step": 3,
        "algorithm.double": True,
        "algorithm.dueling": True,
        "algorithm.noisy": True,
        "algorithm.noisy_sigma": 0.5,
        "algorithm.distribution.type": "c51",
        "algorithm.distribution.atoms": 51,
        "algorithm.distribution.low": -10,
        "algorithm.distribution.high": 10,
        "algorithm.target.type": "periodic",
        "algorithm.target.every": 32_000 // 4 // 4,
        "algorithm.epsilon.type": "constant",
        "algorithm.epsilon.value": 0,
        "algorithm.prioritization.exponent": 0.5,
        "algorithm.importance.start": 0.4,
        "algorithm.importance.end": 1,
        "rollout.initial_priorities": "largest",
        "replay.minimum": 80_000 // 4,
        "optimization.optimizer.type": "adam",
        "optimization.optimizer.learning_rate": 0.0000625,
        "optimization.optimizer.per": None,
        "optimization.optimizer.eps": 1.5e-4,
        "optimization.optimizer.betas": [0.9, 0.999],
        "evaluation.epsilon": 0,
        "environment.evaluation_max_frames": 108_000,
    },
    # Horgan et al. 2018 (1803.00933), section 4.1 and appendix C
    "apex": {name: value for name, value in NATURE.items() if name.split(".")[0] in ("environment", "algorithm")}
    | RMSPROP
    | {
        "environment.max_frames": 50_000,
        "environment.evaluation_max_frames": 108_000,
        "algorithm.n_step": 3,
        "algorithm.double": True,
        "algorithm.dueling": True,
        "algorithm.noisy": False,
        "algorithm.distribution.type": "scalar",
        "algorithm.distribution.loss": "mse",
        "algorithm.target.type": "periodic",
        "algorithm.target.every": 2500,
        "algorithm.epsilon.type": "ape-x",
        "algorithm.epsilon.base": 0.4,
        "algorithm.epsilon.exponent": 7,
        "algorithm.prioritization.exponent": 0.6,
        "algorithm.importance.start": 0.4,
        "algorithm.importance.end": 0.4,
        "rollout.environments": 360,
        "rollout.calls": 50,
        "rollout.initial_priorities": "td-error",
        "resources.actors": 360,
        "resources.learners": 1,
        "replay.capacity": 2 * 10**6,
        "replay.minimum": 50_000,
        "replay.prefetch": 16,
        "optimization.optimizer.learning_rate": 0.00025 / 4,
        "optimization.optimizer.eps": 1.5e-7,
        "optimization.batch_size": 512,
        "optimization.steps": 22_800 * 10**6 // 4,
        "optimization.clip_gradient_norm": 40,
    },
}


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_has_what_was_published(name: str) -> None:
    found = settings(name)
    published = PUBLISHED[name]
    assert {key: found.get(key, "missing") for key in published} == published


def test_ape_x_plays_and_learns_at_the_rates_of_the_paper() -> None:
    """12,500 steps and 19 batches in a second; an actor takes new weights every 400 frames, of which it plays 139."""
    found = settings("apex")
    assert found["replay.samples_per_insert"] == pytest.approx(19 * 512 / 12_500, rel=0.01)
    assert found["rollout.broadcast_updates"] == pytest.approx(400 / 139 * 19, abs=1)


@pytest.mark.parametrize(("name", "parameters"), [("dqn-2013", 676_000), ("dqn-2015", 1_686_000)])
def test_networks_have_the_published_size(name: str, parameters: int) -> None:
    """With Breakout's four actions; worked out from the papers' layers: filters * (inputs + 1) and so on."""
    agent = DQN(job_of(name).algorithm, (4, 84, 84), 4)
    count = sum(parameter.numel() for parameter in agent.online.parameters())
    if name == "dqn-2013":
        expected = 16 * (4 * 64 + 1) + 32 * (16 * 16 + 1) + 256 * (32 * 81 + 1) + 4 * 257
    else:
        expected = 32 * (4 * 64 + 1) + 64 * (32 * 16 + 1) + 64 * (64 * 9 + 1) + 512 * (64 * 49 + 1) + 4 * 513
    assert count == expected == pytest.approx(parameters, rel=0.01)


def test_the_smaller_jobs_fit_two_cores() -> None:
    for name in ("cartpole", "minatar-breakout", "pong-small"):
        job = job_of(name)
        resources = job.resources
        cpus = resources.actors * resources.cpus_per_actor + resources.learners * resources.cpus_per_learner
        assert cpus <= 2
        assert resources.gpus_per_learner == resources.gpus_per_actor == 0
    assert job_of("minatar-breakout").optimization.steps <= 300_000
