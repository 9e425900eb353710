"""Learning: the agent, its optimiser, and updates from sampled transitions."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from torch import Tensor, nn

from heliostat.errors import RunError
from heliostat.reinforcement.agent import build_agent, device_for
from heliostat.reinforcement.environments.spec import EnvironmentSpec
from heliostat.reinforcement.shard import Sampled
from heliostat_algorithms.randomness import Random
from heliostat_algorithms.reinforcement.dqn import Losses, Transitions
from heliostat_algorithms.reinforcement.replay.batch import ReplayBatch
from heliostat_algorithms.reinforcement.replay.sampling import importance_weights

if TYPE_CHECKING:
    from heliostat.config.reinforcement import ReinforcementJob

Feedback = tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.float64]]
"""Slots, generations and priorities (N,), as a shard takes them."""


@dataclass(frozen=True)
class Shares:
    """What the coordinator knew of the shards when it asked for samples."""

    mass: tuple[float, ...]
    """Share of the whole mass that each shard was taken to have: how likely a sample falls to it."""
    items: int
    """Transitions in all shards."""


@dataclass(frozen=True)
class LearnerReport:
    """What the coordinator is told of some updates."""

    updates: int
    metrics: dict[str, float]
    """Means over the updates."""
    age: float
    """Mean age of the samples in steps that their shard took in since."""
    seconds: float
    diverged: int | None
    """The first update whose loss is not finite; None where there is none."""


class Learner:
    """One of the data-parallel learners of a job; all hold the same weights.

    Args:
        job: the run's job.
        spec: its environment's.
        rank: which of the learners.

    Raises:
        RunError: it should have a GPU, and torch sees none.
    """

    def __init__(self, job: ReinforcementJob, spec: EnvironmentSpec, rank: int = 0) -> None:
        self._job, self._rank, self._world_size = job, rank, job.resources.learners
        self._device = device_for(job.resources.gpus_per_learner, "gpus_per_learner")
        # Channels last: an update of the Nature network takes a tenth less time, on CPUs; the same but for rounding.
        self.agent = build_agent(job, spec).to(self._device).train()
        self.agent.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # unknown to torch's stubs
        optimization = job.optimization
        self._parameters = [p for p in self.agent.parameters() if p.requires_grad]
        self.optimizer = optimization.optimizer.build(self.agent.parameter_groups(), optimization.batch_size)

    # Several learners

    def address(self) -> str:
        """Where this learner can be met by the others: its own host and a free port."""
        import socket

        with socket.socket() as probe:
            probe.bind(("", 0))
            port = probe.getsockname()[1]
        return f"tcp://{_own_address()}:{port}"

    def join(self, address: str) -> None:
        """Meet the other learners; returns when all are there."""
        from heliostat.training.ray_cluster import listen_where_ray_does

        listen_where_ray_does()
        backend = "nccl" if self._device.type == "cuda" else "gloo"
        dist.init_process_group(backend, init_method=address, rank=self._rank, world_size=self._world_size)

    # Learning

    def update(self, first: int, count: int, progress: float, shares: Shares, *sampled: Sampled) -> tuple[Any, ...]:
        """Make ``count`` updates.

        Args:
            first: number of the first of them, from 1.
            progress: share of the run's steps that are played.
            shares: what the samples were drawn by.
            sampled: what each shard gave.

        Returns:
            A :class:`LearnerReport`, and for each shard its :data:`Feedback`, or None without priorities.
        """
        began = time.perf_counter()
        prioritized = self._job.algorithm.prioritization is not None
        beta = self._job.algorithm.importance.at(progress)
        told: dict[str, list[Tensor]] = {"loss": []}
        feedback: list[list[Feedback]] = [[] for _ in sampled]
        starts = [0] * len(sampled)
        for number in range(count):
            parts: list[ReplayBatch] = []
            shards: list[int] = []
            for shard, given in enumerate(sampled):
                rows = range(starts[shard], starts[shard] + given.counts[number])
                starts[shard] = rows.stop
                if given.batch is not None and len(rows):
                    parts.append(given.batch.rows(rows))
                    shards.append(shard)
            batch = ReplayBatch.concatenated(parts)
            mine, weight = self._rows(len(batch)), None
            if prioritized:
                chances = [
                    shares.mass[shard] * part.priority_mass / sampled[shard].mass
                    for shard, part in zip(shards, parts, strict=True)
                ]
                chance = np.minimum(np.concatenate(chances), 1.0)
                weight = importance_weights(chance, max(1, shares.items), beta)[mine.start : mine.stop]
            made = self._advance(first + number, batch.rows(mine), weight, mine)
            told["loss"].append(made.loss.detach())
            for name, metric in made.metrics.items():
                told.setdefault(name, []).append(metric)
            if prioritized:
                priorities = made.priority.double().cpu().numpy()
                owner = np.repeat(shards, [len(part) for part in parts])[mine.start : mine.stop]
                for shard in shards:
                    chosen = np.flatnonzero(owner == shard)
                    if len(chosen):
                        here = chosen + mine.start
                        feedback[shard].append((batch.slot[here], batch.generation[here], priorities[chosen]))
        values = {name: torch.stack(tensors).double().cpu().numpy() for name, tensors in told.items()}
        bad = np.flatnonzero(~np.isfinite(values["loss"]))
        report = LearnerReport(
            updates=count,
            metrics={name: float(array.mean()) for name, array in values.items()},
            age=float(np.concatenate([given.batch.age for given in sampled if given.batch is not None]).mean()),
            seconds=time.perf_counter() - began,
            diverged=first + int(bad[0]) if len(bad) else None,
        )
        return (report, *(_joined(parts) for parts in feedback))

    def _rows(self, batch: int) -> range:
        """This learner's rows of a batch."""
        size = batch // self._world_size
        return range(self._rank * size, (self._rank + 1) * size)

    def _advance(self, number: int, batch: ReplayBatch, weight: npt.NDArray[np.float64] | None, rows: range) -> Losses:
        optimization = self._job.optimization
        transitions = Transitions(
            observation=self._seen(batch.observation),
            action=self._tensor(batch.action),
            reward=self._tensor(batch.reward),
            bootstrap=self._tensor(batch.bootstrap),
            next_observation=self._seen(batch.next_observation),
            weight=None if weight is None else self._tensor(weight.astype(np.float32)),
        )
        random = Random(self._job.seed, number, rows, self._device, "learn/")
        for parameter in self._parameters:  # zero_grad of the optimiser takes longer than a small layer
            parameter.grad = None
        made: Losses = self.agent(transitions, random)
        torch.autograd.backward(made.loss)
        if self._world_size > 1:
            self._average_gradients()
        if optimization.clip_gradient_norm is not None:
            nn.utils.clip_grad_norm_(self._parameters, optimization.clip_gradient_norm, foreach=True)
        self.optimizer.step()
        self.agent.after_update(number)
        return made

    def _seen(self, observation: npt.NDArray[Any]) -> Tensor:
        tensor = self._tensor(observation)
        return tensor.contiguous(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor

    def _tensor(self, array: npt.NDArray[Any]) -> Tensor:
        # What comes out of the object store cannot be written to, which torch warns of; nothing here writes.
        tensor = torch.from_numpy(array if array.flags.writeable else array.copy())
        return tensor.to(self._device, non_blocking=True)

    def _average_gradients(self) -> None:
        """One message for all gradients: the networks are small."""
        gradients = [p.grad for p in self._parameters if p.grad is not None]
        flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
        dist.all_reduce(flat)
        flat.div_(self._world_size)
        pieces = torch.split(flat, [gradient.numel() for gradient in gradients])
        torch._foreach_copy_(gradients, [piece.view_as(g) for piece, g in zip(pieces, gradients, strict=True)])

    # State

    def acting_state(self) -> dict[str, Tensor]:
        """Copies of what rollouts need."""
        return {name: value.detach().cpu().clone() for name, value in self.agent.acting_state().items()}

    def state(self) -> dict[str, Any]:
        """Agent and optimiser, as a checkpoint stores them."""
        return {
            "agent": {name: value.detach().cpu().clone() for name, value in self.agent.state_dict().items()},
            "optimizer": _copied(self.optimizer.state_dict()),
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Take over a checkpoint's state.

        Raises:
            RunError: it is of another agent.
        """
        try:
            self.agent.load_state_dict(state["agent"])
            self.optimizer.load_state_dict(state["optimizer"])
        except (RuntimeError, ValueError, KeyError) as error:
            raise RunError(f"the checkpoint is of another agent: {error}") from None


def _joined(parts: list[Feedback]) -> Feedback | None:
    if not parts:
        return None
    slots, generations, priorities = zip(*parts, strict=True)
    return np.concatenate(slots), np.concatenate(generations), np.concatenate(priorities)


def _copied(value: Any) -> Any:
    """Plain data with tensors of its own, on the CPU."""
    if isinstance(value, Tensor):
        return value.detach().cpu().clone()
    if isinstance(value, dict):
        return {key: _copied(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_copied(inner) for inner in value)
    return value


def _own_address() -> str:
    """The address by which other nodes reach this process."""
    import ray

    return str(ray.util.get_node_ip_address())  # type: ignore[no-untyped-call]
