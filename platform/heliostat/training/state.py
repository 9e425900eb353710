"""Everything that training changes, built from a job, saved and restored as one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor

from heliostat.config.job import Job
from heliostat.config.registry import ALGORITHMS
from heliostat.training.checkpoint import check_architecture
from heliostat.training.sharding import check_sharding, gathered, mesh_of, shard, spread
from heliostat_algorithms.algorithm import Algorithm, DataSpec
from heliostat_algorithms.backbones.batch_norm import synchronize_batch_norm
from heliostat_algorithms.backbones.checkpointing import checkpoint_blocks
from heliostat_algorithms.randomness import bits


def build_algorithm(job: Job, data: DataSpec) -> Algorithm:
    """The algorithm with its initial weights, which depend on the job's seed alone; torch's own generator is left as it
    was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(bits(f"{job.seed}:weights", 0, 1).item()))
        return ALGORITHMS[job.algorithm.type](job.algorithm, data)


class TrainingState:
    """Algorithm (with teachers and queues, which are its buffers), optimiser and loss scale.

    Args:
        job: the run's job.
        data: shape and classes of the samples.
        device: where training happens.
        world_size: workers that share each batch; above 1, batch statistics are taken over all of them.
    """

    def __init__(self, job: Job, data: DataSpec, device: torch.device, world_size: int) -> None:
        self._job, self._data = job, data
        algorithm = build_algorithm(job, data)
        if world_size > 1:
            algorithm = synchronize_batch_norm(algorithm, device.type)
        if job.resources.activation_checkpointing and not checkpoint_blocks(algorithm):
            raise ValueError(
                f"activation_checkpointing is for Vision Transformers and ResNets, and {job.algorithm.type} has neither"
            )
        if job.resources.channels_last:
            algorithm = algorithm.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.turns = algorithm.turns(job.algorithm)
        if job.resources.strategy == "fsdp":
            check_sharding(algorithm, len({turn.player for turn in self.turns}))
            if world_size > 1:
                shard(algorithm, device, world_size, in_two_steps=job.optimization.accumulate > 1)
        self.algorithm: Algorithm = algorithm.to(device)
        self.mesh = mesh_of(algorithm)
        """The workers over which all weights are spread, each holding some rows; None where each holds everything."""
        groups = algorithm.parameter_groups()
        """The updates of a step."""
        self.players = {
            turn.player: [p for g in groups if g.player == turn.player for p in g.parameters] for turn in self.turns
        }
        """Each player's parameters. All players share one optimiser, which passes over parameters without gradients:
        what it does in a player's turns is what an optimiser of that player's own would do."""
        if sum(map(len, self.players.values())) != sum(len(group.parameters) for group in groups):
            raise ValueError(f"parameter groups of players that have no turn: {', '.join(self.players)} have one")
        optimization = job.optimization
        self.kind: str = optimization.optimizer.type
        """Which optimiser it is."""
        self.optimizer = optimization.optimizer.build(groups, optimization.batch_size)
        self.peak_learning_rate = optimization.optimizer.peak_learning_rate(optimization.batch_size)
        self.collapsed_points = 0
        """Points of the curves in a row at which the representation was found collapsed."""
        self.scaler = torch.amp.GradScaler(device.type, enabled=optimization.precision == "fp16")

    @contextmanager
    def playing(self, player: str) -> Iterator[None]:
        """Hold the parameters of all other players still: no gradient is computed for them, though it passes through
        them."""
        others = [parameter for other, own in self.players.items() if other != player for parameter in own]
        for parameter in others:
            parameter.requires_grad_(False)
        try:
            yield
        finally:
            for parameter in others:
                parameter.requires_grad_(True)

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain data only."""
        return {
            "algorithm": self.algorithm.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "collapsed_points": self.collapsed_points,
        }

    def load_state_dict(self, state: Mapping[str, Any], where: str) -> None:
        """Take over a checkpoint's state; ``where`` names it in errors.

        Raises:
            InputError: it is of another architecture.
        """
        check_architecture(self.algorithm.state_dict(), state["algorithm"], where)
        weights, optimizer = state["algorithm"], state["optimizer"]
        if self.mesh is not None:
            weights, optimizer = self._spread(weights, optimizer, self.mesh)
        self.algorithm.load_state_dict(weights)
        self.optimizer.load_state_dict(optimizer)
        self.scaler.load_state_dict(state["scaler"])
        self.collapsed_points = state["collapsed_points"]

    def _spread(
        self, weights: Mapping[str, Any], optimizer: Mapping[str, Any], mesh: DeviceMesh
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Of a saved state what this worker holds: of parameters, and of what the optimiser knows of each of their
        elements."""
        own = self.algorithm.state_dict()
        placed = {n: spread(x, mesh) if isinstance(own[n], DTensor) else x for n, x in weights.items()}
        shapes = [p.shape for group in self.optimizer.param_groups for p in group["params"]]
        known = {
            number: {name: spread(x, mesh) if x.shape == shapes[number] else x for name, x in values.items()}
            for number, values in optimizer["state"].items()
        }
        return placed, {**optimizer, "state": known}

    def whole(self) -> Algorithm:
        """The algorithm with all of its weights on this worker; where they are spread, a copy, for which all workers
        ask together."""
        if self.mesh is None:
            return self.algorithm
        algorithm = build_algorithm(self._job, self._data).to(next(self.algorithm.parameters()).device)
        algorithm.load_state_dict(gathered(self.algorithm.state_dict()))
        return algorithm
