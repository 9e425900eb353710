"""The training loop: the only one, for every algorithm that learns from a data set, in every runtime.

It is read top to bottom: build, restore, then per step and turn prepare - forward - backward - update, and between
steps what the job asks for: points of curves, evaluations, checkpoints. A step is a function of (job, step, weights):
sample order, views and schedules come from the clock, so the loop needs no state beyond the checkpoint's to continue
where it stopped.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from heliostat.config.job import Job
from heliostat.config.registry import ALGORITHMS
from heliostat.data.loader import Loader
from heliostat.errors import InputError, RunError
from heliostat.training.checkpoint import CheckpointError
from heliostat.training.collapse import watch
from heliostat.training.datasets import Datasets, minibatches, total_steps
from heliostat.training.evaluation import Evaluation
from heliostat.training.gradient_cache import Ways, cached_backward
from heliostat.training.monitor import Outcome, Progress
from heliostat.training.origin import begin_from, find_origin, spec_facts
from heliostat.training.pictures import keep_pictures, keep_samples
from heliostat.training.profiling import STEPS, Phase, Profiler
from heliostat.training.run_folder import RunFolder
from heliostat.training.runtime import Runtime
from heliostat.training.state import TrainingState
from heliostat_algorithms.algorithm import Batch, Clock, Inputs, Step
from heliostat_algorithms.collectives import mean_over_workers
from heliostat_algorithms.comparing import Comparing
from heliostat_algorithms.randomness import Random

_NEVER = 2**62
_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Progressed:
    """One step's loss and metrics on this worker, with the rate they were made at."""

    step: Step
    learning_rate: float
    gradient_norm: Tensor | None


class TrainingLoop:
    """Trains one job on one worker.

    Args:
        job: what to do.
        data: the samples, shared by all workers of a node.
        runtime: where this worker runs and whom it tells.
        folder: the run's files.
        pause_at: end after this many steps, with a checkpoint, as if a stop had been asked for then.
        profile: also measure where the time of some of the first steps goes.
    """

    def __init__(
        self,
        job: Job,
        data: Datasets,
        runtime: Runtime,
        folder: RunFolder,
        pause_at: int | None = None,
        *,
        profile: bool = False,
    ) -> None:
        self.job, self.runtime, self.folder, self.pause_at = job, runtime, folder, pause_at
        self._profile = profile
        self.profiler: Profiler | None = None
        self.checkpoints = folder.checkpoints(job.checkpoint.keep)
        self.loader = Loader(
            data.train,
            batch_size=job.optimization.batch_size,
            seed=job.seed,
            rank=runtime.rank,
            world_size=runtime.world_size,
            device=runtime.device,
            clips=ALGORITHMS[job.algorithm.type].video,
            minibatches=minibatches(job),
        )
        self.total_steps = total_steps(job, self.loader.steps_per_epoch)
        self.spec = data.train.spec()
        self.state = TrainingState(job, self.spec, runtime.device, runtime.world_size)
        self._compile()
        self.modules = {player: self._parallel(player) for player in self.state.players}
        self.evaluation = Evaluation(job, data.train, data.test, runtime)
        self._first_bad = torch.tensor(_NEVER, device=runtime.device)
        self._failed_saves = 0
        self._unsound: set[int] = set()  # steps whose checkpoint cannot be read
        self._warned = False  # whether a checkpoint was made because nodes will be taken away
        self._mark = (time.perf_counter(), 0)  # when the last point of the curves was made, and after how many steps

    def _compile(self) -> None:
        if self.job.resources.compile:
            for part in self.state.algorithm.children():
                part.compile()  # in place: the names of parameters stay those of the paper's modules

    def _parallel(self, player: str) -> nn.Module:
        """The algorithm as it runs in the turns of a player, whose gradients alone are averaged over workers."""
        algorithm = self.state.algorithm
        if self.runtime.world_size == 1:
            return algorithm
        # Looking for unused parameters also keeps DDP from regrouping its buckets after the first step. With three
        # workers or more the grouping decides the order of a sum, so a resumed run would differ from an uninterrupted
        # one in the last bit.
        with self.state.playing(player):
            return DistributedDataParallel(algorithm, broadcast_buffers=False, find_unused_parameters=True)

    # One step

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
            made[turn.player], norms[turn.player] = self._update(replace(clock, turn=turn), number, measure)
        with torch.no_grad():
            state.algorithm.after_step(clock)
        return Progressed(_together(made), learning_rate, _total(norms.values()))

    def _update(self, clock: Clock, number: int, measure: bool) -> tuple[Step, Tensor | None]:
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
        self._first_bad = torch.where(bad, self._first_bad.clamp(max=clock.step), self._first_bad)
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
        norms = torch._foreach_norm([p.grad for p in parameters if p.grad is not None])
        total: Tensor = torch.linalg.vector_norm(torch.stack(list(norms)))
        if limit is not None and per == "all":
            nn.utils.clip_grads_with_norm_(parameters, limit, total, foreach=True)
        elif limit is not None:
            for parameter, norm in zip(parameters, norms, strict=True):
                nn.utils.clip_grads_with_norm_([parameter], limit, norm)
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

    # The run

    def restore(self, at_most: int | None = None) -> int:
        """Load the newest sound checkpoint (up to a step), and return the number of steps done; 0 if there is none."""
        step = 0
        for step in reversed([s for s in self.checkpoints.steps() if at_most is None or s <= at_most]):
            try:
                saved = self.checkpoints.load(step, self.runtime.device)
            except InputError as error:
                self._unsound.add(step)
                if self.runtime.rank == 0:
                    self.runtime.notice(f"checkpoint of step {step} is passed over: {error}")
                continue
            self.state.load_state_dict(saved, self.checkpoints.uri(step))
            break
        else:
            step = 0
        if self.runtime.world_size > 1:
            found = torch.tensor([step, -step], device=self.runtime.device)
            torch.distributed.all_reduce(found, torch.distributed.ReduceOp.MAX)
            if found.sum() != 0:
                where = self.folder.storage.uri
                raise RunError(f"workers see different checkpoints in {where}: do all nodes share this folder?")
        return step

    def begin(self) -> None:
        """Take over the run that the job begins from, if it names one; only where there is no checkpoint yet."""
        if self.job.begin is None:
            return
        origin = find_origin(self.job.begin, self.job.output)
        begin_from(self.state, origin, self.runtime.device)
        if self.runtime.rank == 0:
            self.runtime.notice(f"beginning from {origin.uri}")

    def run(self) -> Outcome:
        """Train to the end, or until somebody asks to stop or the loss is no longer finite."""
        outcome = self._train()
        if self.runtime.rank == 0:
            self.runtime.conclude(outcome)
        return outcome

    def _train(self) -> Outcome:
        self._announce()
        start = self.restore()
        if start == 0:
            self._baselines()
            self.begin()
        elif self.runtime.rank == 0:
            self.runtime.notice(f"continuing from the checkpoint of step {start}")
        self._begin_profile(start)
        self._mark = (time.perf_counter(), start)
        for step in range(start, self.total_steps):
            outcome = self.turn(step)
            if outcome is not None:
                return outcome
        return self._finish()

    def _announce(self) -> None:
        """Say what of the data is not used, and log it."""
        if self.runtime.rank != 0:
            return
        data, dropped = self.loader.data, self.loader.dropped_per_epoch
        if dropped:
            self.runtime.notice(
                f"{dropped} of {len(data)} samples fill no batch of {self.loader.batch_size} and are left out of each "
                "epoch, other ones each time"
            )
        if data.corrupt:
            named = "; ".join(f"{item.where}: {item.why}" for item in data.corrupt[:5])
            more = f"; and {len(data.corrupt) - 5} more" if len(data.corrupt) > 5 else ""
            kind = "images" if self.spec.frames is None else "videos"
            self.runtime.notice(
                f"{len(data.corrupt)} training {kind} cannot be decoded and are left out: {named}{more}"
            )
        self.runtime.log({"data/dropped_per_epoch": dropped, "data/corrupt_images": len(data.corrupt)}, 0)

    def turn(self, step: int) -> Outcome | None:
        """Make a step and do what is due after it: points of curves, evaluations, a checkpoint. Returns why to end."""
        done = step + 1
        last = done == self.total_steps
        pause = done == self.pause_at
        report = done % self.job.tracking.every_steps == 0 or last or pause or self._due(done)
        with nullcontext() if self.profiler is None else self.profiler.step(step):
            made = self.advance(step, measure=report)
        self._keep_profile(step)
        if not report:
            return None
        metrics, first_bad, stop = self._agree(made)
        stop = stop or pause
        since, before = self._mark
        samples = (done - before) * self.loader.samples_per_step
        metrics["perf/samples_per_second"] = samples / (time.perf_counter() - since)
        self._show(done, metrics)
        if first_bad < _NEVER:
            return self._non_finite(first_bad)
        collapse = watch(self.state, metrics, done, self.total_steps)
        if collapse is not None and collapse.first and self.runtime.rank == 0:
            self.runtime.notice(f"the representation has collapsed: {collapse.reason}")
        if collapse is not None and collapse.lasting and self.job.optimization.stop_on_collapse:
            problem = self._save(done)
            saved = f"; and {problem}" if problem else ""
            message = f"stopped, because the representation has collapsed: {collapse.reason}{saved}"
            return Outcome("failed", done, message, collapsed=True)
        if not last and self.evaluation.due(done, self.loader.steps_per_epoch):
            self._evaluate(done, at_end=False)
        if not last and self._samples_due(done):
            self._sample(done)
        if last or stop or self._preempted() or self._due(done):
            problem = self._save(done)
            if last and problem:
                return Outcome("failed", done, f"training ended, but {problem}")
            if stop and not last:
                return Outcome("interrupted", done, problem or "")
        self._mark = (time.perf_counter(), done)
        return None

    def _begin_profile(self, start: int) -> None:
        if not self._profile:
            return
        if self.total_steps - start < STEPS:
            if self.runtime.rank == 0:
                self.runtime.notice(f"no profile: it takes {STEPS} steps, and {self.total_steps - start} are left")
            return
        self.profiler = Profiler(
            start,
            rank=self.runtime.rank,
            world_size=self.runtime.world_size,
            device=self.runtime.device,
            precision=self.job.optimization.precision,
            count=not self.job.resources.compile,
        )

    def _keep_profile(self, step: int) -> None:
        """Store the profile once it is whole."""
        if self.profiler is None or not self.profiler.due(step):
            return
        elements = sum(p.numel() for p in self.state.algorithm.trainable())
        profile = self.profiler.result(self.loader.samples_per_step, elements)
        if self.runtime.rank == 0:
            try:
                self.folder.storage.write_json("profile.json", profile.as_data())
                self.folder.storage.replace("trace.json.gz", self.profiler.trace or b"")
            except OSError as error:  # training does not depend on it
                self.runtime.notice(f"the profile could not be written: {error}")
            self.runtime.log(profile.metrics(), step + 1)
        self.profiler = None

    def _finish(self) -> Outcome:
        results = self._evaluate(self.total_steps, at_end=True)
        if self.runtime.rank == 0:
            storage = self.folder.storage
            if storage.exists("baselines.json"):
                results = {**storage.read_json("baselines.json"), **results}
            try:
                storage.write_json("results.json", results)
            except OSError as error:
                problem = (
                    f"training ended and its last checkpoint is saved, but the results could not be written: {error}"
                )
                return Outcome("failed", self.total_steps, problem, results)
            try:
                shown = self.evaluation.shown
                keep_pictures(self.state.algorithm, shown, self.folder, self.runtime.device, self.evaluation.retrieved)
            except OSError as error:  # the numbers are safe
                self.runtime.notice(f"pictures could not be written: {error}")
            evaluated = {name: value for name, value in results.items() if name.startswith("eval/")}
            uri = self.checkpoints.uri(self.total_steps)
            self.runtime.link_checkpoint(self.folder.name, uri, self.total_steps, evaluated)
        return Outcome("finished", self.total_steps, results=results)

    def _due(self, done: int) -> bool:
        """Whether the job wants a checkpoint or an evaluation after this many steps."""
        checkpoint, steps_per_epoch = self.job.checkpoint, self.loader.steps_per_epoch
        by_steps = checkpoint.every_steps is not None and done % checkpoint.every_steps == 0
        by_epochs = checkpoint.every_epochs is not None and done % (checkpoint.every_epochs * steps_per_epoch) == 0
        return by_steps or by_epochs or self._samples_due(done) or self.evaluation.due(done, steps_per_epoch)

    def _samples_due(self, done: int) -> bool:
        sample = self.job.sample
        return sample is not None and done % (sample.every_epochs * self.loader.steps_per_epoch) == 0

    def _sample(self, done: int) -> None:
        """Show what a generative method makes by now; on rank 0, the others go on."""
        if self.job.sample is None or self.runtime.rank != 0:
            return
        data, count = self.evaluation.shown, self.job.sample.count
        try:
            keep_samples(self.state.algorithm, data, self.folder, self.runtime.device, count=count, step=done)
        except OSError as error:  # training does not depend on it
            self.runtime.notice(f"samples could not be written: {error}")

    def _preempted(self) -> bool:
        """Whether nodes will be taken away, the first time that it is told: what is saved now need not be made again by
        the workers that replace these."""
        warning = self.runtime.preemption()
        if warning is None or self._warned:
            return False
        self._warned = True
        if self.runtime.rank == 0:
            self.runtime.notice(f"{warning}; saving a checkpoint now")
        return True

    def _agree(self, made: Progressed) -> tuple[dict[str, float], int, bool]:
        """Average the metrics over workers, and settle together whether the loss went bad or a stop was asked for."""
        values = {"loss": made.step.loss, **made.step.metrics}
        means = mean_over_workers(torch.stack([value.double().mean() for value in values.values()]))
        flags = torch.stack([-self._first_bad, torch.tensor(int(self.runtime.stop_requested())).to(self._first_bad)])
        if self.runtime.world_size > 1:
            torch.distributed.all_reduce(flags, torch.distributed.ReduceOp.MAX)
        metrics = {f"train/{name}": value for name, value in zip(values, means.tolist(), strict=True)}
        metrics["train/learning_rate"] = made.learning_rate
        if made.gradient_norm is not None:
            metrics["train/gradient_norm"] = float(made.gradient_norm)
        if self.state.scaler.is_enabled():  # it falls when a step was skipped because gradients overflowed
            metrics["train/loss_scale"] = self.state.scaler.get_scale()
        first_bad, stop = flags.tolist()
        return metrics, -first_bad, bool(stop)

    def _show(self, done: int, metrics: dict[str, float]) -> None:
        if self.runtime.rank != 0:
            return
        metrics["train/epoch"] = done / self.loader.steps_per_epoch
        self.runtime.log(metrics, done)
        self.runtime.progress(
            Progress(
                step=done,
                total_steps=self.total_steps,
                epoch=metrics["train/epoch"],
                loss=metrics["train/loss"],
                samples_per_second=metrics["perf/samples_per_second"],
            )
        )

    def _save(self, done: int) -> str | None:
        """Save on rank 0; the others wait. Returns why it could not be saved, None if it was."""
        problem = None
        if self.runtime.rank == 0:
            about = {
                "run": self.folder.name,
                "algorithm": self.job.algorithm.type,
                "world_size": self.runtime.world_size,
                "data": spec_facts(self.spec),
            }
            try:
                self.checkpoints.save(done, self.state.state_dict(), about, replace=done in self._unsound)
                self.runtime.checkpoint_saved()
            except CheckpointError as error:
                self._failed_saves += 1
                problem = str(error)
                self.runtime.notice(f"{problem}; training goes on from memory and saves again at the next checkpoint")
                self.runtime.log({"checkpoint/failed_saves": float(self._failed_saves)}, done)
        if self.runtime.world_size > 1:
            torch.distributed.barrier()
        return problem

    # Judging

    def _baselines(self) -> None:
        if not self.job.evaluation:
            return
        results = self.evaluation.baselines(self.state.algorithm, self._activity(0))
        if self.runtime.rank == 0:
            self.runtime.log(results, 0)
            self.folder.storage.write_json("baselines.json", results)

    def _evaluate(self, done: int, *, at_end: bool) -> dict[str, float]:
        results = self.evaluation.run(
            self.state.algorithm, done, self.loader.steps_per_epoch, at_end, self._activity(done)
        )
        if self.runtime.rank == 0:
            self.runtime.log(results, done)
        return results

    def _activity(self, done: int) -> Callable[[str], None]:
        """How the evaluation tells what it is doing."""
        epoch = done / self.loader.steps_per_epoch

        def tell(activity: str) -> None:
            if self.runtime.rank == 0:
                self.runtime.progress(Progress(done, self.total_steps, epoch, activity))

        return tell

    def _non_finite(self, step: int) -> Outcome:
        """Name the step, its samples and how to look at it again."""
        samples = self.loader.indices(step).tolist()
        name = f"non-finite-step-{step}.json"
        if self.runtime.rank == 0:
            self.folder.storage.write_json(
                name, {"step": step, "epoch": step / self.loader.steps_per_epoch, "samples": samples}
            )
        shown = ", ".join(map(str, samples[:12])) + (f", ... ({len(samples)} in {name})" if len(samples) > 12 else "")
        message = (
            f"the loss was not finite at step {step}; its batch held the training samples {shown}. "
            f"Look at that step again with: heliostat replay {self.folder.storage.uri} --step {step}"
        )
        return Outcome("failed", step, message)


def _unsynchronised(module: nn.Module) -> AbstractContextManager[object]:
    """Gradients of all parts but the last stay on the worker: their sum is reduced once."""
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
