"""One step of training, for every algorithm: per turn prepare - forward - backward - update."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from heliostat.config.job import Job
from heliostat.data.loader import Loader
from heliostat.training.gradient_cache import Ways, cached_backward
from heliostat.training.profiling import Phase, Profiler
from heliostat.training.runtime import Runtime
from heliostat.training.sharding import blocks
from heliostat.training.state import TrainingState
from heliostat_algorithms.algorithm import Batch, Clock, Inputs, Step
from heliostat_algorithms.collectives import norms, own_part
from heliostat_algorithms.comparing import Comparing
from heliostat_algorithms.randomness import Random

NEVER = 2**62
"""In place of a step that did not come."""
_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Progressed:
    """One step's loss and metrics on this worker, with the rate they were made at."""

    step: Step
    learning_rate: float
    gradient_norm: Tensor | None


class Stepper:
    """Makes the steps of one job on one worker.

    Args:
        job: what to do.
        state: is moved on.
        loader: gives the batches.
        runtime: where this worker runs.
        total_steps: of the training.
    """

    def __init__(self, job: Job, state: TrainingState, loader: Loader, runtime: Runtime, total_steps: int) -> None:
        self.job, self.state, self.loader, self.runtime, self.total_steps = job, state, loader, runtime, total_steps
        self._compile()
        self.modules = {player: self._parallel(player) for player in state.players}
        self.profiler: Profiler | None = None
        """Follows the steps, where there is one."""
        self.first_bad = torch.tensor(NEVER, device=runtime.device)
        """The first step whose loss on this worker was not finite."""

    def _compile(self) -> None:
        if self.job.resources.compile:
            for network in _called(self.state.algorithm):
                # A network by itself; its blocks as well, where it is asked for something else than its forward pass.
                for part in (network, *blocks(network)):
                    # In place: the names of parameters stay those of the paper's modules. Not by ``part.compile()``,
                    # which does nothing, and says nothing, where ``forward`` is torch's own, as a Sequential's is.
                    part.forward = torch.compile(part.forward)

    def _parallel(self, player: str) -> nn.Module:
        """The algorithm as it runs in the turns of a player, whose gradients alone are averaged over workers."""
        algorithm = self.state.algorithm
        if self.runtime.world_size == 1 or self.state.mesh is not None:
            return algorithm  # alone, or with its own way of averaging
        # Looking for unused parameters also keeps DDP from regrouping its buckets after the first step. With three
        # workers or more the grouping decides the order of a sum, so a resumed run would differ from an uninterrupted
        # one in the last bit.
        with self.state.playing(player):
            return DistributedDataParallel(algorithm, broadcast_buffers=False, find_unused_parameters=True)

    def clock(self, step: int) -> Clock:
        """The time at which the step of this number (from 0) is made."""
        return Clock(
            step=step,
            total_steps=self.total_steps,
            steps_per_epoch=self.loader.steps_per_epoch,
            batch_size=self.job.optimization.batch_size,
        )

    def advance(self, step: int, *, measure: bool = False) -> Progressed:
        """Make one step, of one update or, with several players, several; ``measure`` also computes the gradient's
        norm."""
        clock, state, optimization = self.clock(step), self.state, self.job.optimization
        learning_rate = state.peak_learning_rate * optimization.schedule.multiplier(clock)
        optimization.optimizer.adjust(state.optimizer, clock, learning_rate)
        state.algorithm.train()
        with torch.no_grad():
            state.algorithm.before_step(clock)
        made: dict[str, Step] = {}
        norms: dict[str, Tensor | None] = {}
        for number, turn in enumerate(state.turns):
            # Of several updates of one player, the last one is shown.
            made[turn.player], norms[turn.player] = self.update(replace(clock, turn=turn), number, measure)
        with torch.no_grad():
            state.algorithm.after_step(clock)
        return Progressed(_together(made), learning_rate, _total(norms.values()))

    def update(self, clock: Clock, number: int, measure: bool) -> tuple[Step, Tensor | None]:
        """Take one of the step's turns: move the parameters of its player. Returns loss and metrics of this worker's
        rows and, where it was computed, the gradient's norm."""
        state, turn = self.state, clock.turn
        module = self.modules[turn.player]
        with state.playing(turn.player):
            state.optimizer.zero_grad(set_to_none=True)
            phase = partial(self._phase, step=clock.step)
            with phase("data"):
                parts = [
                    partial(self._prepared, batch, rows, clock, number)
                    for batch, rows in self._parts(clock.step, turn.minibatch)
                ]
            if len(parts) > 1 and isinstance(state.algorithm, Comparing):
                ways = Ways(self._autocast, partial(_unsynchronised, module), phase)
                mean = cached_backward(state.algorithm, module, parts, clock, state.scaler, ways)
            else:
                mean = self._backward(module, parts, clock)
            with phase("optimizer"):
                state.scaler.unscale_(state.optimizer)
                state.algorithm.after_backward(clock)
                gradient_norm = None
                if measure or self.job.optimization.clip_gradient_norm is not None:
                    gradient_norm = self._clip()
                state.scaler.step(state.optimizer)
                state.scaler.update()
        bad = ~torch.isfinite(mean.loss)
        self.first_bad = torch.where(bad, self.first_bad.clamp(max=clock.step), self.first_bad)
        return mean, gradient_norm

    def _prepared(self, batch: Batch, rows: range, clock: Clock, number: int) -> Inputs:
        """What the network sees of these rows in the turn of this number; the same each time it is asked."""
        random = Random(self.job.seed, clock.step, rows, self.runtime.device)
        with self._phase("prepare", clock.step), torch.no_grad():
            drawn = random if number == 0 else random.within(f"turn {number}")
            return self._formatted(self.state.algorithm.prepare(batch, clock, drawn))

    def _backward(self, module: nn.Module, parts: Sequence[Callable[[], Inputs]], clock: Clock) -> Step:
        """Add up the gradients of the parts, whose mean is this worker's loss."""
        losses: list[Step] = []
        for number, part in enumerate(parts):
            inputs = part()
            with nullcontext() if number == len(parts) - 1 else _unsynchronised(module):
                with self._phase("forward", clock.step), self._autocast():
                    made: Step = module(inputs, clock)
                with self._phase("backward", clock.step):
                    self.state.scaler.scale(made.loss / len(parts)).backward()  # type: ignore[no-untyped-call]
            losses.append(Step(made.loss.detach(), {name: value.detach() for name, value in made.metrics.items()}))
        return _mean(losses)

    def _phase(self, name: Phase, step: int) -> AbstractContextManager[None]:
        return nullcontext() if self.profiler is None else self.profiler.phase(name, step)

    def _clip(self) -> Tensor:
        """Shorten gradients to the job's limit, if it has one. Returns the norm of the whole gradient before."""
        limit, per = self.job.optimization.clip_gradient_norm, self.job.optimization.clip_per
        parameters = [p for p in self.state.algorithm.trainable() if p.grad is not None]
        gradients = [own_part(p.grad) for p in parameters if p.grad is not None]
        lengths = norms(gradients, parameters)
        total: Tensor = torch.linalg.vector_norm(lengths)
        if limit is not None:
            factors = (limit / ((total if per == "all" else lengths) + 1e-6)).clamp(max=1)
            torch._foreach_mul_(gradients, factors if per == "all" else list(factors.unbind()))
        return total

    def _parts(self, step: int, minibatch: int) -> Iterator[tuple[Batch, range]]:
        """This worker's rows of a minibatch of the step, in as many equal parts as the job accumulates."""
        batch, rows, parts = self.loader.batch(step, minibatch), self.loader.rows(), self.job.optimization.accumulate
        size = len(rows) // parts
        for start in range(0, len(rows), size):
            yield {name: value[start : start + size] for name, value in batch.items()}, rows[start : start + size]

    def _formatted(self, inputs: Inputs) -> Inputs:
        if not self.job.resources.channels_last:
            return inputs
        return {n: x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x for n, x in inputs.items()}

    def _autocast(self) -> AbstractContextManager[object]:
        dtype = _DTYPES.get(self.job.optimization.precision)
        return nullcontext() if dtype is None else torch.autocast(self.runtime.device.type, dtype)


def _called(module: nn.Module) -> Iterator[nn.Module]:
    """The outermost modules inside that have a forward pass; others only hold some together."""
    for child in module.children():
        if type(child).forward is nn.Module.forward:
            yield from _called(child)
        else:
            yield child


def _unsynchronised(module: nn.Module) -> AbstractContextManager[object]:
    """Gradients of all parts but the last stay on the worker: their sum is reduced once. Not where weights are spread:
    whole gradients are what their workers have no room for."""
    return module.no_sync() if isinstance(module, DistributedDataParallel) else nullcontext()


def _mean(steps: list[Step]) -> Step:
    """Parts of equal size, so their plain mean is the mean over the worker's rows."""
    if len(steps) == 1:
        return steps[0]
    loss = torch.stack([step.loss for step in steps]).mean()
    return Step(loss, {name: torch.stack([step.metrics[name] for step in steps]).mean() for name in steps[0].metrics})


def _together(made: Mapping[str, Step]) -> Step:
    """What the players of a step saw: the sum of their losses, and each loss and metric under the player's name."""
    if len(made) == 1:
        return next(iter(made.values()))
    metrics = {f"{player}_loss": step.loss for player, step in made.items()}
    metrics |= {f"{player}_{name}": value for player, step in made.items() for name, value in step.metrics.items()}
    return Step(torch.stack([step.loss for step in made.values()]).sum(), metrics)


def _total(norms: Iterable[Tensor | None]) -> Tensor | None:
    """The norm of the gradients of all players together."""
    known = [norm for norm in norms if norm is not None]
    if len(known) < 2:
        return known[0] if known else None
    total: Tensor = torch.linalg.vector_norm(torch.stack(known))
    return total
