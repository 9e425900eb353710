"""A job: everything that decides what a run computes, typed and validated."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, model_validator

from heliostat.config.evaluators import EvaluatorConfig
from heliostat.config.registry import AlgorithmConfig
from heliostat.data.sources import DataSource
from heliostat_algorithms.optimizers import OptimizerConfig
from heliostat_algorithms.schedules import Cosine, ScheduleConfig


class Section(BaseModel):
    """A part of the job file: unknown keys are errors, values are never converted silently, nothing changes later."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True)


class Data(Section):
    """What is trained on and what is judged on."""

    train: DataSource
    test: DataSource | None = None
    """Held-out data for evaluation; without it, only measures that need no labels can run."""
    train_fraction: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of each class's training samples that is used, at least one; drawn from the job's seed. A smaller share is
    part of a larger one."""


class Optimization(Section):
    """How the loss is minimised."""

    optimizer: OptimizerConfig
    schedule: ScheduleConfig = Cosine()
    batch_size: PositiveInt
    """Samples in one optimiser step over all workers: the global batch, whatever the number of workers."""
    epochs: PositiveInt | None = None
    steps: PositiveInt | None = None
    """Length of the training in optimiser steps, in place of ``epochs``."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Arithmetic of forward and backward; weights and optimiser stay in fp32, fp16 scales its loss."""
    accumulate: PositiveInt = 1
    """Split each worker's rows into this many parts. Exact: where the loss is a mean over samples by adding up, where
    it compares them by caching gradients, at the price of a second forward pass. Refused where it could not be."""
    clip_gradient_norm: PositiveFloat | None = None
    """Largest norm of a gradient; longer ones are shortened."""
    clip_per: Literal["all", "parameter"] = "all"
    """Whose norm: that of all gradients together, or of each parameter's by itself, as in DINO."""
    stop_on_collapse: bool = False
    """End a run whose representation stays collapsed, at the tenth point of its curves in a row. Without it, a collapse
    is told and training goes on."""

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("say how long to train: either 'epochs' or 'steps', not both")
        return self


class Resources(Section):
    """Where and how the run is computed; none of this changes the trajectory beyond floating-point rounding."""

    runtime: Literal["ray", "local"] = "ray"
    """``ray``: a Ray Train worker group. ``local``: this process, without Ray."""
    workers: PositiveInt | tuple[PositiveInt, PositiveInt] = 1
    """Data-parallel workers; ``[min, max]`` lets Ray resize the group while it runs."""
    gpus_per_worker: Annotated[float, Field(ge=0)] = 0
    cpus_per_worker: PositiveFloat = 1
    max_failures: Annotated[int, Field(ge=0)] = 3
    """How many times a lost worker or node is replaced, from the last checkpoint, before the run fails."""
    resize_seconds: PositiveFloat = 60.0
    """With ``workers: [min, max]``: how often Ray looks whether the cluster has room for more workers. A resize goes on
    from the last checkpoint."""
    strategy: Literal["ddp", "fsdp"] = "ddp"
    """``ddp``: each worker holds all weights. ``fsdp``: weights, gradients and the optimiser's state are spread over
    the workers, for networks that fill a device; the same trajectory, with more to send."""
    channels_last: bool = False
    """Memory format of images and convolutions; faster on most accelerators."""
    compile: bool = False
    """Compile the networks with torch.compile."""
    activation_checkpointing: bool = False
    """Keep only the inputs of a backbone's blocks, and compute their insides again in the backward pass: less memory
    for a third more arithmetic; the same gradients."""

    @property
    def worker_range(self) -> range:
        """All worker counts that the run may meet."""
        low, high = (self.workers, self.workers) if isinstance(self.workers, int) else self.workers
        return range(low, high + 1)

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if not self.worker_range:
            raise ValueError(f"workers: the minimum comes first, got {list(self.workers)}")  # type: ignore[arg-type]
        if self.runtime == "local" and self.workers != 1:
            raise ValueError(f"the local runtime is one process, but workers is {self.workers}; use runtime: ray")
        return self


class Checkpointing(Section):
    """When the state is saved. The last step always is."""

    every_epochs: PositiveInt | None = None
    every_steps: PositiveInt | None = None
    keep: PositiveInt = 2
    """How many of the newest checkpoints stay."""


class Tracking(Section):
    """What is recorded, and where."""

    experiment: str = "heliostat"
    uri: str | None = None
    """MLflow store or server; else $MLFLOW_TRACKING_URI, else the SQLite file mlflow.db in the current directory."""
    every_steps: PositiveInt = 10
    """Steps between two points of the training curves; also how often a stop is noticed and the loss is checked."""
    system_metrics: bool = True


class Begin(Section):
    """What a run begins with in place of random weights: what another run learned."""

    run: str | None = None
    """The other run: its folder or URI, or its name below ``output``. Left out in a stage: the stage before."""
    checkpoint: PositiveInt | None = None
    """The step of one of its checkpoints; null: the last one."""
    optimizer: bool = False
    """Also take over the optimiser's state (momentum, moments), to go on with the same parameters."""


class Sampling(Section):
    """Samples of a generative method while it trains, as pictures in the run's ``figures/``, which MLflow is given at
    the end of the run. At the end they are made in any case."""

    every_epochs: PositiveInt
    count: PositiveInt = 16
    """How many, or rows of pictures; the draws are the same each time."""


class Job(Section):
    """One experiment."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,79}$")]
    """Begins the run's name; letters, digits, '.', '_' and '-'."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Decides all that is random: initial weights, sample order, augmentation."""
    algorithm: AlgorithmConfig
    data: Data
    begin: Begin | None = None
    """Another run to begin from: fine-tuning, distillation, continued pretraining."""
    optimization: Optimization
    evaluation: tuple[EvaluatorConfig, ...] = ()
    """Measures of the representation, each also applied to the untrained network."""
    sample: Sampling | None = None
    """Show samples while a generative method trains."""
    resources: Resources = Resources()
    checkpoint: Checkpointing = Checkpointing()
    tracking: Tracking = Tracking()
    output: str = "runs"
    """Folder or URI (s3://, gs://, ...) under which the run's own folder is made."""

    def resolved(self) -> dict[str, Any]:
        """The whole job with its defaults, as plain data that loads as the same job."""
        return self.model_dump(mode="json")
