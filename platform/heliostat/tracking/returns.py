"""Returns of agents over seeds and games: what ``heliostat_algorithms.evaluation.returns`` makes of compared runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from heliostat.tracking.comparison import Comparison
from heliostat.tracking.grouping import SEED, Group, fold_seeds
from heliostat.tracking.run_record import RunRecord

if TYPE_CHECKING:
    from heliostat.reinforcement.environments.spec import ReferenceScores
    from heliostat_algorithms.evaluation.returns import Estimate

GAME = "environment.game"
_METRICS = ("eval/return", "rollout/return")
"""Judged episodes before those that were learned from."""
NOTE = (
    "Interquartile mean of the returns, one per seed, with its 95 % interval by the stratified bootstrap (2,000 "
    "draws); of fewer than about ten seeds that interval is too narrow. "
    "Human-normalised: 0 is random play, 1 a human tester."
)


@dataclass(frozen=True)
class Returns:
    """How well one group plays."""

    label: str
    metric: str
    count: int
    """Returns, one per seed and game."""
    middle: Estimate | None
    """Interquartile mean; None of a single return, which has no interval."""
    human: Estimate | None
    """The same of human-normalised returns; None of games without published references."""
    games: int = 1


def returns(comparison: Comparison) -> list[Returns]:
    """Of each group that plays, then of settings over several games where all games have equally many seeds."""
    found = [each for group in comparison.groups if (each := _of_group(group)) is not None]
    return found + _over_games(comparison)


def unequal(comparison: Comparison) -> list[str]:
    """Settings whose games have different numbers of seeds, so that there is no value over games."""
    told = []
    for label, games in _settings(comparison):
        if len({len(runs) for runs in games.values()}) > 1:
            counts = ", ".join(f"{game} {len(runs)}" for game, runs in games.items())
            told.append(f"{label}: games have different numbers of seeds ({counts}), so that they are not put together")
    return told


def _of_group(group: Group) -> Returns | None:
    metric = next((name for name in _METRICS if any(name in run.metrics for run in group.runs)), None)
    if metric is None or not any("environment.type" in run.parameters for run in group.runs):
        return None
    scores = [run.metrics[metric] for run in group.runs if metric in run.metrics]
    references = [_reference(run) for run in group.runs if metric in run.metrics]
    human = None
    if all(reference is not None for reference in references):
        human = _middle([r.normalized(score) for r, score in zip(references, scores, strict=True) if r is not None])
    return Returns(group.label, metric, len(scores), _middle(scores), human)


def _over_games(comparison: Comparison) -> list[Returns]:
    found = []
    for label, games in _settings(comparison):
        counts = {len(runs) for runs in games.values()}
        if len(counts) != 1 or counts == {1}:
            continue
        metric = next((name for name in _METRICS if all(name in r.metrics for rs in games.values() for r in rs)), None)
        if metric is None:
            continue
        table = [
            [reference.normalized(run.metrics[metric]) for run in runs if (reference := _reference(run)) is not None]
            for runs in games.values()
        ]
        if all(len(column) in counts for column in table):
            rows = list(map(list, zip(*table, strict=True)))
            total = len(games) * counts.pop()
            found.append(Returns(f"{label} over {len(games)} games", metric, total, None, _middle(rows), len(games)))
    return found


def _settings(comparison: Comparison) -> list[tuple[str, dict[str, list[RunRecord]]]]:
    """Runs of several games that differ in game and seed alone: a label, and the runs of each game by seed."""
    playing = [run for run in comparison.runs if GAME in run.parameters and SEED in run.parameters]
    if not playing:
        return []
    # As seeds of one setting: the game takes the seed's place.
    disguised = [
        replace(run, parameters={**run.parameters, SEED: f"{run.parameters[SEED]} {run.parameters[GAME]}", GAME: "any"})
        for run in playing
    ]
    original = {run.id: run for run in playing}
    settings = []
    for group in fold_seeds(disguised):
        games: dict[str, list[RunRecord]] = {}
        for run in group.runs:
            games.setdefault(original[run.id].parameters[GAME], []).append(original[run.id])
        if len(games) > 1:
            settings.append((group.label, games))
    return settings


def _reference(run: RunRecord) -> ReferenceScores | None:
    from heliostat.reinforcement.environments.atari_scores import ATARI_SCORES

    return ATARI_SCORES.get(run.parameters.get(GAME, ""))


def _middle(scores: Sequence[float] | list[list[float]]) -> Estimate | None:
    """The interquartile mean of (R,) or (R, G) scores; None where there are fewer than two runs or one is not
    finite."""
    import numpy as np

    table = np.asarray(scores, np.float64)
    if len(table) < 2 or not np.isfinite(table).all():
        return None
    from heliostat_algorithms.evaluation.returns import bootstrap

    return bootstrap(table)
