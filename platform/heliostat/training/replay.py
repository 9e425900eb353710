"""One step of a run, made again in this process. Possible because a step is a function of (job, step, weights)."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import torch

from heliostat.errors import InputError, Problem
from heliostat.training import launch
from heliostat.training.denormals import flushed_denormals
from heliostat.training.loop import TrainingLoop
from heliostat.training.run_folder import RunFolder
from heliostat.training.runtime import SilentRuntime
from heliostat.training.stepping import Progressed


@dataclass(frozen=True)
class Gradient:
    """One parameter's gradient."""

    parameter: str
    norm: float
    finite: bool


@dataclass(frozen=True)
class StepReport:
    """What was seen."""

    step: int
    start: int
    """The checkpoint's step from which it was reached."""
    samples: list[int]
    """Training samples of the global batch, in order."""
    metrics: dict[str, float]
    gradients: list[Gradient]
    """Those that are not finite first, then by falling norm."""
    anomaly: str | None
    """Which operation of the backward pass made the first NaN, as torch's anomaly detection tells."""

    def as_data(self) -> dict[str, Any]:
        """For JSON."""
        return dataclasses.asdict(self)


@flushed_denormals()
def replay_step(folder: RunFolder, step: int) -> StepReport:
    """Make a step again from the newest checkpoint at or before it.

    Raises:
        InputError: the run has no such step.
    """
    job = folder.job()
    job = job.model_copy(update={"evaluation": ()})
    data = launch.load(launch.settled(job))
    loop = TrainingLoop(job, data, SilentRuntime(launch.device(job)), folder)
    if not 0 <= step < loop.total_steps:
        raise InputError(Problem(f"the run has steps 0 to {loop.total_steps - 1}, not {step}", "--step"))
    start = _reach(loop, step)
    anomaly = None
    try:
        with torch.autograd.set_detect_anomaly(True):
            made, gradients = _advance(loop, step)
    except RuntimeError as error:  # how anomaly detection reports; the step is made once more to have its numbers
        anomaly = str(error)
        loop = TrainingLoop(job, data, loop.runtime, folder)
        _reach(loop, step)
        made, gradients = _advance(loop, step)
    metrics = {"loss": float(made.step.loss), "learning_rate": made.learning_rate}
    metrics |= {name: float(value) for name, value in made.step.metrics.items()}
    gradients.sort(key=lambda g: (g.finite, -g.norm if math.isfinite(g.norm) else 0.0))
    return StepReport(step, start, loop.loader.indices(step).tolist(), metrics, gradients, anomaly)


def _advance(loop: TrainingLoop, step: int) -> tuple[Progressed, list[Gradient]]:
    """Make the step, and look at the gradients of each update in it: the next one throws them away."""
    seen: dict[str, Gradient] = {}

    def look(*of: object) -> None:
        for name, parameter in loop.state.algorithm.named_parameters():
            if parameter.grad is not None:
                finite = bool(torch.isfinite(parameter.grad).all())
                seen[name] = Gradient(name, float(parameter.grad.norm()), finite)

    hook = loop.state.optimizer.register_step_pre_hook(look)
    try:
        made = loop.advance(step, measure=True)
    finally:
        hook.remove()
    look()  # where the loss scale let the optimiser skip its step
    return made, list(seen.values())


def _reach(loop: TrainingLoop, step: int) -> int:
    """Bring a new loop to where it makes this step; returns the checkpoint's step from which it came."""
    start = loop.restore(at_most=step)
    if start == 0:
        loop.begin()
    for earlier in range(start, step):
        loop.advance(earlier)
    return start
