"""Which configuration is tried next. What is proposed depends on the seed, the configuration's number and the outcomes
so far, never on a generator's hidden state: a resumed sweep proposes what it would have proposed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias

from heliostat.config.sweep import Choice, Grid, Integers, LogUniform, OptunaSearch, Simple, Sweep, Uniform
from heliostat.tuning.space import Assignment, Space, options
from heliostat_algorithms.randomness import bits

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler
    from optuna.trial import Trial

Verdict: TypeAlias = Literal["finished", "pruned", "failed"]
"""How a configuration ended."""


class Search(Protocol):
    """Proposes configurations, numbered from 0."""

    total: int
    """How many there will be."""

    def propose(self, number: int) -> Assignment:
        """The values of a new configuration."""

    def recall(self, number: int, assigned: Assignment) -> None:
        """Take in a configuration that was proposed before the sweep was resumed; in the order of their numbers."""

    def tell(self, number: int, verdict: Verdict, value: float | None, points: Sequence[tuple[int, float]]) -> None:
        """Take in how one ended: its value, or the points (step, value) that were seen before it was ended."""


def build(sweep: Sweep, space: Space) -> Search:
    """The search that a sweep asks for."""
    if isinstance(sweep.search, OptunaSearch):
        return Proposed(sweep, space)
    if sweep.search.type == "sobol":
        return Sobol(sweep, space)
    return Listed(sweep, space)


class Listed:
    """Random and grid search: configurations are a function of seed and number, whatever came out."""

    def __init__(self, sweep: Sweep, space: Space) -> None:
        self._seed, self._space = sweep.seed, space
        self._grid = space.grid(everything=sweep.search.type == "grid")
        self.total = len(self._grid) * (sweep.samples or 1)

    def propose(self, number: int) -> Assignment:
        """Grid points in turn; with the first sample of each, then with the second."""
        return self._space.draw(self._seed, number, self._grid[number % len(self._grid)])

    def recall(self, number: int, assigned: Assignment) -> None:
        """Nothing depends on it."""

    def tell(self, number: int, verdict: Verdict, value: float | None, points: Sequence[tuple[int, float]]) -> None:
        """Nothing depends on it."""


class Sobol(Listed):
    """Points that cover the space more evenly than random ones do: a scrambled sequence of Sobol', by scipy."""

    def propose(self, number: int) -> Assignment:
        """The sequence's point of this number; each path has a coordinate of its own, used or not."""
        from scipy.stats import qmc

        paths = self._space.order
        engine = qmc.Sobol(len(paths), scramble=True, rng=self._seed)
        if number:
            engine.fast_forward(number)
        point = dict(zip(paths, engine.random(1)[0].tolist(), strict=True))
        return self._space.assigned(point.__getitem__, self._grid[number % len(self._grid)])


class Proposed:
    """One of Optuna's samplers, made anew for each configuration with a seed of its own."""

    def __init__(self, sweep: Sweep, space: Space) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        assert isinstance(sweep.search, OptunaSearch)
        self._settings, self._seed, self._space = sweep.search, sweep.seed, space
        self.total = sweep.samples or 0
        self._study = optuna.create_study(direction="maximize" if sweep.mode == "max" else "minimize")
        self._asked: dict[int, Trial] = {}

    def propose(self, number: int) -> Assignment:
        """Ask the sampler."""
        return self._ask(number)

    def recall(self, number: int, assigned: Assignment) -> None:
        """Ask again, with the answer given: the sampler is then as it was."""
        parameters: dict[str, Any] = {}
        for path, value in assigned.items():
            simple = self._space.simple(path, assigned)
            if simple is not None:
                listed = options(simple) if isinstance(simple, Choice | Grid) else None
                parameters[self._name(path, assigned)] = value if listed is None else listed.index(value)
        self._study.enqueue_trial(parameters)
        self._ask(number)

    def tell(self, number: int, verdict: Verdict, value: float | None, points: Sequence[tuple[int, float]]) -> None:
        """Tell the sampler; what was pruned counts as worse than what was not."""
        from optuna.trial import TrialState

        trial = self._asked[number]
        for step, seen in dict(points).items():
            trial.report(seen, step)
        state = {"finished": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "failed": TrialState.FAIL}[verdict]
        self._study.tell(trial, value if verdict == "finished" else None, state=state)

    def _ask(self, number: int) -> Assignment:
        self._study.sampler = self._sampler(int(bits(f"{self._seed}:sweep/optuna", number, 1).item()) & (2**31 - 1))
        trial = self._asked[number] = self._study.ask()
        assigned: Assignment = {}
        for path in self._space.order:
            simple = self._space.simple(path, assigned)
            if simple is not None:
                assigned[path] = _suggest(trial, self._name(path, assigned), simple)
        return assigned

    def _name(self, path: str, assigned: Assignment) -> str:
        """Optuna wants one range for each name, so each case has its own."""
        case = self._space.case(path, assigned)
        return f"{path} [{case}]" if case else path

    def _sampler(self, seed: int) -> BaseSampler:
        from optuna import samplers

        match self._settings.sampler:
            case "tpe":
                return samplers.TPESampler(seed=seed, n_startup_trials=self._settings.startup, constant_liar=True)
            case "gp":
                return samplers.GPSampler(seed=seed, n_startup_trials=self._settings.startup)


def _suggest(trial: Trial, name: str, simple: Simple) -> Any:
    match simple:
        case Choice() | Grid():
            listed = options(simple) or []
            return listed[trial.suggest_categorical(name, range(len(listed)))]
        case Integers():
            return trial.suggest_int(name, simple.low, simple.high, step=simple.step, log=simple.log)
        case Uniform() | LogUniform():
            return trial.suggest_float(name, simple.low, simple.high, log=isinstance(simple, LogUniform))
