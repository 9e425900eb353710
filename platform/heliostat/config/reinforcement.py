"""A job of reinforcement learning: ``environment:`` in place of ``data:``, and who plays, stores and learns."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from heliostat.config.job import Checkpointing, Section, Tracking
from heliostat.config.registry import AgentConfig
from heliostat.reinforcement.environments import EnvironmentConfig
from heliostat_algorithms.optimizers import OptimizerConfig


class Rollout(Section):
    """How experience is gathered."""

    environments: PositiveInt = 1
    """Copies of the environment that are played at the same time, over all actors."""
    calls: PositiveInt = 4
    """Steps of each copy between two visits to the replay memory. 4 with one copy is DQN's: four steps, one update."""
    broadcast_updates: PositiveInt = 1
    """Updates after which actors are given new weights."""
    initial_priorities: Literal["largest", "td-error"] = "largest"
    """Priority of what is new: the largest so far (prioritised replay), or its temporal-difference error by the actor's
    own weights (Ape-X), for which an actor keeps its last steps back until their outcome is known."""


class Replay(Section):
    """What is remembered, and how often it is learned from."""

    capacity: PositiveInt
    """Slots over all shards: one for each step of an environment, and one for each end of an episode."""
    minimum: PositiveInt
    """Steps in the memory before learning begins; DQN's replay start size."""
    samples_per_insert: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    """Samples learned from for each step played. DQN: 8, as a batch of 32 is learned from every four steps."""
    tolerance: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """Where playing and learning overlap: how many steps either side may run ahead of ``samples_per_insert`` before it
    waits. Null: ten batches' worth, or what all actors play between two visits if that is more."""
    prefetch: PositiveInt = 4
    """Where playing and learning overlap: batches sampled ahead of the learner, whose priorities are as much behind."""


class Learning(Section):
    """How the loss is minimised, and how long."""

    optimizer: OptimizerConfig
    batch_size: PositiveInt
    """Samples in one update over all learners."""
    steps: PositiveInt
    """Length of the run in steps of the environment, counted over all copies; frames are ``frame_skip`` times as
    many."""
    clip_gradient_norm: PositiveFloat | None = None
    """Largest norm of the gradient; a longer one is shortened."""


class ReturnsEvaluation(Section):
    """Episodes played to see how good the agent is; their steps are not learned from."""

    every_steps: PositiveInt | None = None
    """Steps of training between two evaluations; null: only at the end."""
    episodes: PositiveInt = 10
    epsilon: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of random actions: 0.05 in DQN's papers."""
    environments: PositiveInt = 1
    """Copies that play at the same time."""
    max_steps: PositiveInt | None = None
    """Steps after which an episode of an evaluation is broken off; null: as long as the environment lets it go on."""
    held_out_states: Annotated[int, Field(ge=0)] = 0
    """States gathered by random play before the training, whose mean largest Q-value is measured with each evaluation:
    the measure of the paper of 2013. 0: not measured."""


class ReinforcementResources(Section):
    """Where the run is computed. ``overlap`` decides whether a run can be repeated exactly; the rest does not change
    what an actor of each kind computes."""

    runtime: Literal["ray", "local"] = "ray"
    """``ray``: actors of Ray for rollouts, replay shards, learners and evaluation. ``local``: this process, in
    lock-step, without Ray."""
    overlap: bool = True
    """Play and learn at the same time. Without it, actors wait for one another in a fixed order, so that a run is a
    function of its job and seed, the same as in one process."""
    actors: PositiveInt = 1
    """Rollout actors, which share the environments."""
    shards: PositiveInt = 1
    """Replay shards, which share the capacity."""
    learners: PositiveInt = 1
    """Data-parallel learners, which share each batch."""
    cpus_per_actor: PositiveFloat = 1
    """CPUs of a rollout actor; as many threads step its environments."""
    cpus_per_learner: PositiveFloat = 1
    """CPUs of a learner, which computes with as many threads."""
    gpus_per_learner: Annotated[float, Field(ge=0)] = 0
    """GPUs of a learner: 1, or a share of one; 0: it learns on the CPU."""
    gpus_per_actor: Annotated[float, Field(ge=0)] = 0
    """GPUs of a rollout actor for its network: a share of one as a rule; 0: it acts on the CPU."""
    max_failures: Annotated[int, Field(ge=0)] = 10
    """How many dead or hanging actors of all kinds are replaced before the run fails. A lost node counts for each of
    its actors."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.runtime == "local":
            for name in ("actors", "shards", "learners"):
                if getattr(self, name) != 1:
                    raise ValueError(f"the local runtime is one process, but {name} is {getattr(self, name)}; use ray")
        return self

    @property
    def lockstep(self) -> bool:
        """Whether everything happens in a fixed order."""
        return self.runtime == "local" or not self.overlap


class ReplayCheckpointing(Checkpointing):
    """When the state is saved, in steps of the environment. The end always is."""

    replay: bool = True
    """Also save the replay memory: without it a resumed run begins with an empty one, which is said."""

    @model_validator(mode="after")
    def _by_steps(self) -> Self:
        if self.every_epochs is not None:
            raise ValueError("every_epochs: there are no epochs here; give every_steps")
        return self


class SparseTracking(Tracking):
    """What is recorded, and where; curves by steps of the environment."""

    every_steps: PositiveInt = 1000
    """Steps of the environment between two points of the curves."""


class ReinforcementJob(Section):
    """One experiment of reinforcement learning."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,79}$")]
    """Begins the run's name; letters, digits, '.', '_' and '-'."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Decides all that is random: initial weights, exploration, what is sampled, the environments' own dice."""
    algorithm: AgentConfig
    environment: EnvironmentConfig
    rollout: Rollout = Rollout()
    replay: Replay
    optimization: Learning
    evaluation: ReturnsEvaluation = ReturnsEvaluation()
    resources: ReinforcementResources = ReinforcementResources()
    checkpoint: ReplayCheckpointing = ReplayCheckpointing()
    tracking: SparseTracking = SparseTracking()
    output: str = "runs"
    """Folder or URI (s3://, gs://, ...) under which the run's own folder is made."""

    def resolved(self) -> dict[str, Any]:
        """The whole job with its defaults, as plain data that loads as the same job."""
        return self.model_dump(mode="json")
