"""The ``sweep:`` block of a job file: which fields vary, how values are found, what is measured, what is cut short."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self, TypeAlias

from pydantic import AfterValidator, Field, PositiveInt, model_validator

from heliostat.config.job import Section

SWEEP = "sweep"
"""The block's key in a job file."""
Share: TypeAlias = Annotated[float, Field(gt=0, lt=1)]
"""A part of a trial's training, by its steps."""
Finite: TypeAlias = Annotated[float, Field(allow_inf_nan=False)]


def _some(values: list[Any] | dict[str, Any]) -> list[Any] | dict[str, Any]:
    if not values:
        raise ValueError("there is no value to try; name at least one")
    return values


Values: TypeAlias = Annotated[list[Any] | dict[str, Any], AfterValidator(_some)]
"""Possible values; as a mapping, each has a name, by which tables and conditions call it."""


class Choice(Section):
    """One of some values."""

    type: Literal["choice"]
    values: Values


class Grid(Section):
    """Every one of some values: with each of them, everything else is drawn anew."""

    type: Literal["grid"]
    values: Values


class Uniform(Section):
    """A number between two, all equally likely."""

    type: Literal["uniform"]
    low: Finite
    high: Finite

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        _ordered(self.low, self.high)
        return self


class LogUniform(Section):
    """A number between two positive ones, all orders of magnitude equally likely."""

    type: Literal["log-uniform"]
    low: Annotated[Finite, Field(gt=0)]
    high: Finite

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        _ordered(self.low, self.high)
        return self


class Integers(Section):
    """A whole number between two, both included."""

    type: Literal["integers"]
    low: int
    high: int
    step: PositiveInt = 1
    """Distance of two neighbours, from ``low`` on."""
    log: bool = False
    """Whether all orders of magnitude are equally likely."""

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.log and (self.low < 1 or self.step != 1):
            raise ValueError("log: the numbers must be positive, and every one of them possible (step: 1)")
        _ordered(self.low, self.high)
        return self


def _ordered(low: float, high: float) -> None:
    if low >= high:
        raise ValueError(f"low must be below high, but {low} is not below {high}")


Simple: TypeAlias = Annotated[Choice | Grid | Uniform | LogUniform | Integers, Field(discriminator="type")]
"""What varies by itself."""


class Conditional(Section):
    """What varies by the value of another parameter; where that has none of the named values, the job's own stays."""

    type: Literal["conditional"]
    on: str
    """The path of the other parameter."""
    cases: Annotated[dict[str, Simple], Field(min_length=1)]
    """For a value of the other one, or its name: how this one varies."""


Parameter: TypeAlias = Annotated[
    Choice | Grid | Uniform | LogUniform | Integers | Conditional, Field(discriminator="type")
]


class RandomSearch(Section):
    """Each value is drawn by itself."""

    type: Literal["random"] = "random"


class SobolSearch(Section):
    """A scrambled sequence of Sobol': learns nothing, and covers the space more evenly than random draws do."""

    type: Literal["sobol"]


class GridSearch(Section):
    """All combinations of all values."""

    type: Literal["grid"] = "grid"


class OptunaSearch(Section):
    """Values are proposed by one of Optuna's samplers, from what came out of those before."""

    type: Literal["optuna"]
    sampler: Literal["tpe", "gp"] = "tpe"
    """``tpe``: tree-structured Parzen estimator. ``gp``: Gaussian process."""
    startup: PositiveInt = 10
    """Configurations that are drawn at random before anything is modelled."""


Search: TypeAlias = Annotated[RandomSearch | SobolSearch | GridSearch | OptunaSearch, Field(discriminator="type")]


class NoScheduler(Section):
    """Every trial trains to its end."""

    type: Literal["none"] = "none"


class Asha(Section):
    """Asynchronous successive halving (Li et al. 2018, arXiv 1810.05934): at each of some shares of the training, a
    trial goes on only if it is among the best 1/``reduction`` of those that came so far."""

    type: Literal["asha"]
    grace: Share = 0.1
    """The first of these shares; each other is ``reduction`` times the one before."""
    reduction: Annotated[float, Field(gt=1, allow_inf_nan=False)] = 3.0


class MedianStopping(Section):
    """A trial ends when its best value is worse than the median of the others' running means (Golovin et al. 2017)."""

    type: Literal["median"]
    grace: Share = 0.1
    """Share of the training in which no trial is ended."""
    min_trials: PositiveInt = 3
    """How many others must have come as far."""


class PopulationBased(Section):
    """Population-based training (Jaderberg et al. 2017, arXiv 1711.09846), in step: after each interval, when all
    members have come there, the worst ones go on from copies of the best, with changed values."""

    type: Literal["pbt"]
    interval: Share = 0.1
    """Share of the training between two changes."""
    quantile: Annotated[float, Field(gt=0, le=0.5)] = 0.25
    """Share of the members that are replaced, and of those that are copied; at least one of each."""
    resample: Annotated[float, Field(ge=0, le=1)] = 0.25
    """Probability that a value is drawn anew in place of being changed a little."""
    factors: tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]] = (0.8, 1.2)
    """What a number is multiplied by when it is changed a little; of a choice, its neighbours are taken."""


Scheduler: TypeAlias = Annotated[NoScheduler | Asha | MedianStopping | PopulationBased, Field(discriminator="type")]


class Limit(Section):
    """Where a metric must stay; a trial in which it does not is ended."""

    min: Finite | None = None
    max: Finite | None = None
    after: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of the training in which nobody looks."""

    @model_validator(mode="after")
    def _bounded(self) -> Self:
        if self.min is None and self.max is None:
            raise ValueError("give min, max or both")
        return self


class Sweep(Section):
    """A search for the best values of some fields of a job."""

    parameters: Annotated[dict[str, Parameter], Field(min_length=1)]
    """Dotted path of a field of the job, list items counted from 0, and how it varies."""
    metric: str
    """What is compared: any metric of the runs, such as ``eval/knn_top1``, ``eval/return`` or ``train/loss``; its last
    value, never its best."""
    mode: Literal["min", "max"]
    """Whether less or more of it is better."""
    samples: PositiveInt | None = None
    """Configurations that are tried, for each point of the grid parameters. Not given where ``search`` is ``grid``."""
    search: Search = RandomSearch()
    scheduler: Scheduler = NoScheduler()
    seed: Annotated[int, Field(ge=0)] = 0
    """Decides which configurations are tried; the job's own ``seed`` decides what each computes."""
    seeds: PositiveInt | Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)] = 1
    """Runs of each configuration, whose mean is compared: how many, counted up from the job's own seed, or which."""
    concurrent: PositiveInt | None = None
    """Most trials that run at the same time; null: as many as the cluster holds."""
    limits: dict[str, Limit] = Field(default_factory=dict)
    """Bounds of metrics, such as a measure of collapse: ``eval/feature_std: {min: 0.05}``."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        grid = self.search.type == "grid"
        if grid and self.samples is not None:
            raise ValueError("a grid search tries every combination; leave samples out")
        if not grid and self.samples is None:
            raise ValueError("say how many configurations to try: samples")
        if self.scheduler.type == "pbt":
            if self.search.type != "random":
                raise ValueError("pbt draws its first members at random; leave search out")
            if self.samples == 1:
                raise ValueError("pbt needs a population to learn from: samples of at least 2, better 4 or more")
            if self.seeds != 1:
                raise ValueError("pbt compares members that each go their own way; it has no seeds to average over")
        if isinstance(self.seeds, tuple) and len(set(self.seeds)) < len(self.seeds):
            raise ValueError("seeds: one of them is given twice")
        return self


class SweepFile(Section):
    """The part of a job file that is the block."""

    sweep: Sweep
