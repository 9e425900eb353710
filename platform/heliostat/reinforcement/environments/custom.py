"""Environments of the user's own, by the place they are imported from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from heliostat.errors import InputError, nearest
from heliostat.reinforcement.environments.config import Environment, check_lanes
from heliostat.reinforcement.environments.gymnasium_ import GymnasiumLane
from heliostat.reinforcement.environments.lanes import Lanes
from heliostat.reinforcement.environments.vector import VectorEnvironment

if TYPE_CHECKING:
    import gymnasium


class CustomEnvironment(Environment):
    """A class or function that can be imported and makes a ``gymnasium.Env``."""

    type: Literal["custom"]
    factory: str = Field(pattern=r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*$")
    """``package.module:callable``. Called once for each lane."""
    arguments: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments of the call."""
    stack: int = Field(default=1, ge=1)
    """The newest frames that the network sees together."""

    def make(
        self, count: int, seeds: Sequence[int], threads: int = 1, evaluation: bool = False, render: bool = False
    ) -> VectorEnvironment:
        check_lanes(count, seeds)
        arguments = ({"render_mode": "rgb_array"} if render else {}) | self.arguments
        make_lane = partial(GymnasiumLane, self.factory, partial(_made, self.factory, arguments), self.stack)
        return Lanes(self.factory, make_lane, seeds, self.timeout_s)


def _made(factory: str, arguments: dict[str, Any]) -> gymnasium.Env[Any, Any]:
    import gymnasium

    environment = _imported(factory)(**arguments)
    if not isinstance(environment, gymnasium.Env):
        raise InputError(f"{factory} made a {type(environment).__name__}; it must make a gymnasium.Env")
    return environment


def _imported(factory: str) -> Callable[..., Any]:
    module_name, name = factory.split(":")
    try:
        module = import_module(module_name)
    except ModuleNotFoundError as error:
        raise InputError(
            f"{factory} cannot be imported: {error}; install its package, or add its folder to PYTHONPATH"
        ) from error
    if not hasattr(module, name):
        names = [known for known, value in vars(module).items() if callable(value) and not known.startswith("_")]
        raise InputError(f"the module {module_name} has no '{name}'.{nearest(name, names)}")
    found = getattr(module, name)
    if not callable(found):
        raise InputError(f"{factory} is a {type(found).__name__}; it must be a class or a function")
    return found  # type: ignore[no-any-return]  # callable, as was just seen
