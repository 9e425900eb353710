"""What all entries ``environment:`` of a job file have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict, Field

from heliostat.errors import InputError
from heliostat.reinforcement.environments.failure import EnvironmentFailure
from heliostat.reinforcement.environments.spec import EnvironmentSpec
from heliostat.reinforcement.environments.vector import VectorEnvironment


class Environment(BaseModel, ABC):
    """An environment that can be made as often as needed."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    timeout_s: float = Field(default=60.0, gt=0, allow_inf_nan=False)
    """Seconds that the environment may take to be made, to be reset and for a step of all lanes; then it counts as
    hung."""

    def check(self) -> list[str]:
        """What is wrong; empty if all is well."""
        try:
            self.spec()
        except InputError as error:
            return [str(problem) for problem in error.problems]
        return []

    def spec(self) -> EnvironmentSpec:
        """Its shapes and names, from one that is made and closed again.

        Raises:
            InputError: it cannot be made, or is not of the kind that can be learned here.
        """
        try:
            environment = self.make(1, (0,))
        except EnvironmentFailure as failure:
            raise InputError(str(failure)) from failure
        try:
            return environment.spec
        finally:
            environment.close()

    @abstractmethod
    def make(
        self, count: int, seeds: Sequence[int], threads: int = 1, evaluation: bool = False, render: bool = False
    ) -> VectorEnvironment:
        """``count`` lanes.

        Args:
            seeds: one for each, 0 or above; its episodes follow from it.
            threads: of the emulator; environments written in Python have one.
            evaluation: whether scores are measured; some have another time limit then.
            render: whether ``render`` will be called, which can cost.

        Raises:
            InputError: it cannot be made, or is not of the kind that can be learned here.
            EnvironmentFailure: making it takes too long.
            ValueError: ``count`` is not positive, or there are more or fewer seeds.
        """


def check_lanes(count: int, seeds: Sequence[int]) -> None:
    """Whether lanes and seeds belong together.

    Raises:
        ValueError: they do not.
    """
    if count < 1 or len(seeds) != count:
        raise ValueError(f"there is at least one lane and a seed for each; got {count} lanes and {len(seeds)} seeds")
