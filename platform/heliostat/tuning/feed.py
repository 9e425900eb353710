"""The study as Ray Tune sees it: a searcher that hands out trials, and a callback that is told what became of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ray import tune
from ray.tune import Callback
from ray.tune.search import Searcher

if TYPE_CHECKING:
    from heliostat.tuning.engine import Engine

_NOTHING = {"memory": 1.0}
"""A byte: Tune does not take a bundle of nothing, and a share of a CPU would be missing to Ray Train's workers."""


def resources(config: dict[str, Any]) -> tune.PlacementGroupFactory:
    """What a trial's process and the actors that it hires take."""
    from heliostat.config.loading import parse_any
    from heliostat.tuning.placement import needs

    bundles = needs(parse_any(config["order"]["job"], "the job")).bundles
    return tune.PlacementGroupFactory([{k: v for k, v in bundle.items() if v} or _NOTHING for bundle in bundles])


class Feed(Searcher):
    """Hands out the study's trials, as many at a time as the cluster holds."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(metric="value", mode="max")
        self._engine = engine

    def suggest(self, trial_id: str) -> Any:
        """Ray asks it for the next trial."""
        engine = self._engine
        if engine.stopping:
            return Searcher.FINISHED
        if sum(trial.status == "running" for trial in engine.study.trials.values()) >= engine.limit:
            return None
        order = engine.next_order()
        if order is None:
            return Searcher.FINISHED if engine.study.exhausted else None
        return {"order": order}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """The callback tells the study."""

    def save(self, checkpoint_path: str) -> None:
        """The journal is the memory; Ray writes none of its own."""


class Events(Callback):
    """Tells the study what trials report and how they end."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: dict[str, Any], **info: Any) -> None:
        """A report."""
        if result["final"] or "share" not in result:
            return
        name, study = trial.config["order"]["name"], self._engine.study
        if "value" in result:
            study.report(name, result["step"], result["share"], result["value"])
        else:
            study.progress(name, result["step"], result["share"])

    def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        """Its process ended by itself."""
        self._engine.conclude(trial.config["order"]["name"], trial.last_result)

    def on_trial_recover(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        """Its process was lost and is replaced."""
        name = trial.config["order"]["name"]
        self._engine.notices.append(f"{name}: its process died; it goes on from its last checkpoint")

    def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        """Its process was lost too often."""
        name = trial.config["order"]["name"]
        message = "its process died more often than resources.max_failures allows"
        self._engine.ended(name, "failed", None, self._engine.study.trials[name].step, message)
