"""What may be said of a comparison, in sentences."""

from __future__ import annotations

from collections.abc import Sequence

from heliostat.tracking.comparison import Comparison, MetricRow
from heliostat.tracking.statistics import LEVEL, TEST

_NAMED = 6


def conclusions(comparison: Comparison, row: MetricRow | None) -> list[str]:
    """On one metric: which group is best, and from which others it can be told apart; then what to mind."""
    sentences = _on(comparison, row) if row is not None and row.direction is not None else []
    for group in comparison.groups:
        sentences += [f"{group.label}: {note}." for note in group.notes]
    if any(not group.by_seed for group in comparison.groups):
        sentences.append("Runs of a group differ in more than the seed, so that intervals are over settings as well.")
    return sentences


def _on(comparison: Comparison, row: MetricRow) -> list[str]:
    verdicts = [each.verdict.finding if each and each.verdict else None for each in row.cells]

    def named(*findings: str) -> list[str]:
        return [
            f"{group.label} ({each.count})"
            for group, each, finding in zip(comparison.groups, row.cells, verdicts, strict=True)
            if finding in findings and each is not None
        ]

    best, same, worse, unknown = map(named, ("best", "within noise", "worse", "unknown"))
    single = [each is not None and each.count == 1 for each in row.cells]
    sentences = []
    if best:
        sentences.append(f"{row.name}, in brackets the number of {_over(comparison)}: best is {_list(best)}.")
    if same:
        sentences.append(f"Within noise of it: {_list(same)}.")
    if worse:
        sentences.append(f"Worse (p < {LEVEL:g}): {_list(worse)}.")
    if same or worse:
        sentences.append(f"{TEST}.")
    if unknown and all(single):
        sentences.append("One run per setting: whether a difference is noise cannot be said. Run several seeds.")
    elif unknown:
        sentences.append(f"Cannot be said, as one run has no noise to compare with: {_list(unknown)}.")
    elif not best and len(comparison.groups) == 1 and all(single):
        sentences.append("One run: how much depends on the seed cannot be said.")
    return sentences


def _over(comparison: Comparison) -> str:
    return "seeds" if all(group.by_seed for group in comparison.groups) else "runs"


def _list(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
