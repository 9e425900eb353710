"""Ray Tune's view of which trials go on: pruning by Ray's own rules, and a population in step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, MedianStoppingRule, TrialScheduler

from heliostat.config.sweep import Asha, MedianStopping, Sweep


@dataclass(frozen=True)
class Standing:
    """A trial as Ray's rules know it: by a name that outlives the driver."""

    trial_id: str


def rule(sweep: Sweep) -> TrialScheduler | None:
    """Ray's scheduler for the sweep; None where nothing is pruned."""
    common: dict[str, Any] = {"time_attr": "share", "metric": "value", "mode": sweep.mode}
    match sweep.scheduler:
        case Asha(grace=grace, reduction=reduction):
            common |= {"max_t": 1, "grace_period": grace, "reduction_factor": reduction}
            return ASHAScheduler(**common, stop_last_trials=False)
        case MedianStopping(grace=grace, min_trials=least):
            common |= {"grace_period": grace, "min_samples_required": least}
            # Without enough others a trial goes on rather than make room for one that waits.
            common |= {"min_time_slice": math.inf}
            return MedianStoppingRule(**common)
    return None


class Pruning(FIFOScheduler):
    """Lets one of Ray's rules decide, and asks the trial to end by itself, so that its record is closed.

    Args:
        rule: Ray's scheduler.
        counts: whether a trial, by name, is compared with others: not the further seeds of a configuration that has
            come through.
        end: asks a trial, by name, to end, because of what it was at a share of its training.
        past: (name, share, value) of what was reported before this process, in that order. The rule sees it first and
            decides as it did then: a trial that was to end, and whose driver died before it had, is asked again.
    """

    _metric = "value"

    def __init__(
        self,
        rule: TrialScheduler,
        counts: Callable[[str], bool],
        end: Callable[[str, float], None],
        past: Iterable[tuple[str, float, float]],
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._rule, self._counts, self._end = rule, counts, end
        self._known: set[str] = set()
        self._ended: set[str] = set()
        for name, share, value in past:
            self._judge(None, name, share, value)

    def _judge(self, controller: Any, name: str, share: float, value: float) -> None:
        if share >= 1 or name in self._ended or not self._counts(name):  # what has come to its end is not ended early
            return
        standing: Any = Standing(name)
        if name not in self._known:
            self._known.add(name)
            self._rule.on_trial_add(controller, standing)
        decision = self._rule.on_trial_result(controller, standing, {"share": share, "value": value})
        if decision == TrialScheduler.STOP:
            self._ended.add(name)
            self._end(name, share)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Ray calls it with each report."""
        if not result["final"] and "value" in result:
            self._judge(tune_controller, trial.config["order"]["name"], result["share"], result["value"])
        return TrialScheduler.CONTINUE


class Population(FIFOScheduler):
    """All members stand still at the same steps; when the last has come there, some are replaced and all go on.

    In step, what comes out is a function of the job and the seed. Ray's own scheduler for this draws from a global
    generator, and in its synchronous mode has nobody who goes on when a member fails while the others wait.

    Args:
        turn: given the (step, value) of each member that stands still, by name, gives the new order of each.
    """

    _metric = "value"

    def __init__(self, turn: Callable[[dict[str, tuple[int, float]]], dict[str, dict[str, Any]]]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._turn = turn
        self._standing: dict[str, tuple[int, float]] = {}

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Ray calls it with each report."""
        if result["final"] or "share" in result:  # over, or only telling how far it is on its last leg
            return TrialScheduler.CONTINUE
        self._standing[trial.config["order"]["name"]] = result["step"], result["value"]
        tune_controller.pause_trial(trial, should_checkpoint=False)
        self._go_on(tune_controller)
        return TrialScheduler.NOOP

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        """A member that ended is not waited for."""
        self._go_on(tune_controller, without=trial)

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        """Nor is one that failed for good; one that is started again is no longer standing."""
        if trial.status not in ("PENDING", "RUNNING") or not trial.should_recover():
            self._go_on(tune_controller, without=trial)

    def _go_on(self, controller: Any, without: Any = None) -> None:
        live = [trial for trial in controller.get_live_trials() if trial is not without]
        names = {trial.config["order"]["name"]: trial for trial in live}
        if not names or not names.keys() <= self._standing.keys():
            return
        orders = self._turn({name: self._standing[name] for name in names})
        for name, order in orders.items():
            names[name].set_config({**names[name].config, "order": order})
        self._standing.clear()

    def choose_trial_to_run(self, tune_controller: Any) -> Any:
        """Those that have not come to the common step yet."""
        for status in ("PENDING", "PAUSED"):
            for trial in tune_controller.get_trials():
                if trial.status == status and trial.config["order"]["name"] not in self._standing:
                    return trial
        return None
