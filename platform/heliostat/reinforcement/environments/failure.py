"""What is raised when an environment does what it must not."""

from __future__ import annotations

from heliostat.errors import RunError


class EnvironmentFailure(RunError):  # noqa: N818 - the name of the interface: it is the environment that failed
    """An environment raised, hung, or gave what it did not declare. It cannot be stepped any further.

    Args:
        environment: its name.
        what: what it did.
        lane: where, if that is known.
        action: what it was asked to do then.
    """

    def __init__(self, environment: str, what: str, lane: int | None = None, action: int | None = None) -> None:
        self.environment, self.what, self.lane, self.action = environment, what, lane, action
        super().__init__(environment, what, lane, action)  # the arguments from which it is rebuilt in other processes

    def __str__(self) -> str:
        lane = "" if self.lane is None else f", lane {self.lane}"
        action = "" if self.action is None else f", action {self.action}"
        return f"environment {self.environment}{lane}{action}: {self.what}"
