"""The training loop: the only one, for every algorithm that learns from a data set, in every runtime.

It is read top to bottom: build, restore, then step after step (``stepping``), and between steps what the job asks for:
points of curves, evaluations, checkpoints. A step is a function of (job, step, weights): sample order, views and
schedules come from the clock, so the loop needs no state beyond the checkpoint's to continue where it stopped.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext

import torch

from heliostat.config.job import Job
from heliostat.config.registry import ALGORITHMS
from heliostat.data.loader import Loader
from heliostat.errors import InputError, RunError
from heliostat.training.checkpoint import CheckpointError
from heliostat.training.collapse import watch
from heliostat.training.datasets import Datasets, minibatches, total_steps
from heliostat.training.evaluation import Evaluation
from heliostat.training.monitor import Outcome, Progress
from heliostat.training.origin import begin_from, find_origin, spec_facts
from heliostat.training.pictures import keep_pictures, keep_samples
from heliostat.training.profiling import STEPS, Profiler
from heliostat.training.run_folder import RunFolder
from heliostat.training.runtime import Runtime
from heliostat.training.sharding import load_together, save_together
from heliostat.training.state import TrainingState
from heliostat.training.stepping import NEVER, Progressed, Stepper
from heliostat_algorithms.collectives import mean_over_workers


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
        self.stepper = Stepper(job, self.state, self.loader, runtime, self.total_steps)
        self.evaluation = Evaluation(job, data.train, data.test, runtime)
        self._failed_saves = 0
        self._unsound: set[int] = set()  # steps whose checkpoint cannot be read
        self._warned = False  # whether a checkpoint was made because nodes will be taken away
        self._mark = (time.perf_counter(), 0)  # when the last point of the curves was made, and after how many steps

    def advance(self, step: int, *, measure: bool = False) -> Progressed:
        """Make the step of this number, from 0; ``measure`` also computes the gradient's norm."""
        return self.stepper.advance(step, measure=measure)

    # The run

    def restore(self, at_most: int | None = None) -> int:
        """Load the newest sound checkpoint (up to a step), and return the number of steps done; 0 if there is none."""
        step = 0
        for step in reversed([s for s in self.checkpoints.steps() if at_most is None or s <= at_most]):
            try:
                if self.state.mesh is None:
                    saved = self.checkpoints.load(step, self.runtime.device)
                else:
                    saved = load_together(self.checkpoints, step)
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
        if self.state.mesh is None:
            begin_from(self.state, origin, self.runtime.device)
        else:
            begun = TrainingState(self.job, self.spec, torch.device("cpu"), 1)
            begin_from(begun, origin, "cpu")
            self.state.load_state_dict(begun.state_dict(), origin.uri)
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
        with nullcontext() if self.stepper.profiler is None else self.stepper.profiler.step(step):
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
        if first_bad < NEVER:
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
        self.stepper.profiler = Profiler(
            start,
            rank=self.runtime.rank,
            world_size=self.runtime.world_size,
            device=self.runtime.device,
            precision=self.job.optimization.precision,
            count=not self.job.resources.compile,
        )

    def _keep_profile(self, step: int) -> None:
        """Store the profile once it is whole."""
        profiler = self.stepper.profiler
        if profiler is None or not profiler.due(step):
            return
        elements = sum(p.numel() for p in self.state.algorithm.trainable())
        profile = profiler.result(self.loader.samples_per_step, elements)
        if self.runtime.rank == 0:
            try:
                self.folder.storage.write_json("profile.json", profile.as_data())
                self.folder.storage.replace("trace.json.gz", profiler.trace or b"")
            except OSError as error:  # training does not depend on it
                self.runtime.notice(f"the profile could not be written: {error}")
            self.runtime.log(profile.metrics(), step + 1)
        self.stepper.profiler = None

    def _finish(self) -> Outcome:
        results = self._evaluate(self.total_steps, at_end=True)
        algorithm = self.state.whole()
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
                keep_pictures(algorithm, shown, self.folder, self.runtime.device, self.evaluation.retrieved)
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
        algorithm = self.state.whole()
        if self.job.sample is None or self.runtime.rank != 0:
            return
        data, count = self.evaluation.shown, self.job.sample.count
        try:
            keep_samples(algorithm, data, self.folder, self.runtime.device, count=count, step=done)
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
        stop = torch.tensor(int(self.runtime.stop_requested())).to(self.stepper.first_bad)
        flags = torch.stack([-self.stepper.first_bad, stop])
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
        """Save on rank 0 while the others wait, or all together where each has a part of the state. Returns why it
        could not be saved, None if it was."""
        problem = None
        about = {
            "run": self.folder.name,
            "algorithm": self.job.algorithm.type,
            "world_size": self.runtime.world_size,
            "data": spec_facts(self.spec),
        }
        first, replace = self.runtime.rank == 0, done in self._unsound
        if first:
            self.runtime.before_checkpoint()
        try:
            if self.state.mesh is not None:
                save_together(self.checkpoints, done, self.state.state_dict(), about, replace=replace)
            elif first:
                self.checkpoints.save(done, self.state.state_dict(), about, replace=replace)
        except CheckpointError as error:
            self._failed_saves += 1
            problem = str(error)
            if first:
                self.runtime.notice(f"{problem}; training goes on from memory and saves again at the next checkpoint")
                self.runtime.log({"checkpoint/failed_saves": float(self._failed_saves)}, done)
        if self.runtime.world_size > 1:
            torch.distributed.barrier()
        return problem

    # Judging

    def _baselines(self) -> None:
        if not self.job.evaluation:
            return
        results = self.evaluation.baselines(self.state.whole(), self._activity(0))
        if self.runtime.rank == 0:
            self.runtime.log(results, 0)
            self.folder.storage.write_json("baselines.json", results)

    def _evaluate(self, done: int, *, at_end: bool) -> dict[str, float]:
        results = self.evaluation.run(
            self.state.whole(), done, self.loader.steps_per_epoch, at_end, self._activity(done)
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
