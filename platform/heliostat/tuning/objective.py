"""What a sweep compares: which metrics its runs report, and whether they do so when somebody wants to know."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from heliostat.config.job import Job
from heliostat.config.loading import AnyJob
from heliostat.config.sweep import SWEEP, PopulationBased
from heliostat.errors import Problem, nearest

if TYPE_CHECKING:
    from heliostat.tuning.plan import Plan

_TRAINING = ("train", "eval", "perf", "data", "system")
_REINFORCEMENT = ("train", "eval", "rollout", "replay", "limiter", "checkpoint", "run", "system")
"""How names of metrics begin, of either kind of run."""


def _evaluations(job: AnyJob) -> Iterator[tuple[str, bool]]:
    """Names ``eval/...`` that a job gives, and whether also on the way."""
    if isinstance(job, Job):
        for evaluator in job.evaluation:
            for name in evaluator.higher_is_better:
                yield f"eval/{name}", evaluator.every_epochs is not None
        return
    names = ["return", "return_interval", "episode_length"]
    names += ["human_normalized"] if job.environment.spec().reference is not None else []
    names += ["mean_max_q"] if job.evaluation.held_out_states else []
    yield from ((f"eval/{name}", job.evaluation.every_steps is not None) for name in names)


def check_metrics(plan: Plan) -> list[Problem]:
    """Whether the runs report what is compared and what has limits; names below ``train/`` and the like are known only
    once a run reports them."""
    sweep = plan.sweep
    if plan.sweeps("evaluation") or plan.sweeps("environment"):
        return []  # names differ from trial to trial
    problems = _check_metric(plan, sweep.metric, ("metric",), sweep.scheduler.type)
    for name in sweep.limits:
        problems += _check_metric(plan, name, ("limits", name), "a limit")
    return problems


def _check_metric(plan: Plan, name: str, key: tuple[str, ...], who: str) -> list[Problem]:
    """``who`` wants to know a metric on the way; "none" only at the end."""
    known, where = dict(_evaluations(plan.job)), plan.document.place((SWEEP, *key))
    section = name.partition("/")[0]
    sections = _TRAINING if isinstance(plan.job, Job) else _REINFORCEMENT
    if section == "baseline":
        return [Problem(f"{name} is known before the training; nothing can be learned from it", where)]
    if "/" not in name or section not in sections:
        also = ", ".join(f"{each}/..." for each in sections if each != "eval")
        return [Problem(f"no run has a metric '{name}'.{nearest(name, known) if known else ''} Others: {also}", where)]
    if section != "eval":
        return []
    own = f"eval/{name.rsplit('/', 1)[-1]}"  # eval/student/knn_top1 is the same measure of another network
    if own not in known:
        hint = nearest(name, known) if known else " The job has no evaluators."
        return [Problem(f"the job gives no metric '{name}'.{hint}", where)]
    if who != "none" and not known[own]:
        every = "every_epochs" if isinstance(plan.job, Job) else "every_steps"
        what = f"{who} needs {name} on the way, and it is evaluated at the end alone: give its evaluation {every}"
        return [Problem(what, where)]
    return []


def boundaries(settings: PopulationBased, total_steps: int) -> range:
    """The steps at which the members of a population stand still."""
    every = max(1, round(settings.interval * total_steps))
    return range(every, total_steps, every)


def check_boundaries(plan: Plan, total_steps: int, steps_per_epoch: int | None) -> list[Problem]:
    """Whether the members of a population know their metric when they are compared.

    Args:
        total_steps: of a trial.
        steps_per_epoch: None of agents.
    """
    settings = plan.sweep.scheduler
    if not isinstance(settings, PopulationBased):
        return []
    every, period = boundaries(settings, total_steps).step, _period(plan, steps_per_epoch)
    if every % period == 0:
        return []
    right = max(1, round(every / period)) * period / total_steps
    what = (
        f"members are compared every {every} steps, and {plan.sweep.metric} is measured every {period}; an interval of "
        f"{right:.4g} would fit"
    )
    return [Problem(what, plan.document.place((SWEEP, "scheduler", "interval")))]


def _period(plan: Plan, steps_per_epoch: int | None) -> int:
    """Steps between two values of the metric."""
    job, metric = plan.job, plan.sweep.metric
    if not isinstance(job, Job):
        return (job.evaluation.every_steps or 1) if metric.startswith("eval/") else job.tracking.every_steps
    own = metric.rsplit("/", 1)[-1]
    measured = [e.every_epochs for e in job.evaluation if own in e.higher_is_better and e.every_epochs is not None]
    if not metric.startswith("eval/") or not measured or steps_per_epoch is None:
        return 1  # a run that stands still records its curves
    return min(measured) * steps_per_epoch
