"""The agent of a job and where it computes, the same way wherever it is needed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from heliostat.config.registry import AGENTS
from heliostat.errors import RunError
from heliostat.reinforcement.environments.spec import EnvironmentSpec
from heliostat_algorithms.randomness import bits
from heliostat_algorithms.reinforcement.dqn import DQN

if TYPE_CHECKING:
    from heliostat.config.reinforcement import ReinforcementJob


def build_agent(job: ReinforcementJob, spec: EnvironmentSpec) -> DQN:
    """The agent with its initial weights, which depend on the job's seed alone; torch's own generator is left as it
    was.

    Raises:
        ValueError: its network cannot see such observations.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(bits(f"{job.seed}:weights", 0, 1).item()))
        return AGENTS[job.algorithm.type](job.algorithm, spec.observation_shape, spec.actions)


def device_for(gpus: float, key: str) -> torch.device:
    """Where a member with so many GPUs computes.

    Args:
        gpus: how many the job gives it.
        key: where the job says so, for errors.

    Raises:
        RunError: it should have one, and torch sees none. To compute on the CPU instead would be a hundred times as
            slow without a word.
    """
    if not gpus:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise RunError(f"resources.{key} is {gpus:g}, but torch sees no GPU on this node: is its torch built for CUDA?")
    return torch.device("cuda")
