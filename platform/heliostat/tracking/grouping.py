"""Puts runs of one experiment with several seeds together: the unit of a comparison is a setting, not a run."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from heliostat.errors import InputError, Problem
from heliostat.tracking.conditions import hint
from heliostat.tracking.run_record import RunRecord

SEED = "seed"
"""The parameter that makes runs of one setting differ."""
_SUFFIX = re.compile(r"-[0-9a-f]{6}$")  # of a run's name, made by chance


@dataclass(frozen=True)
class Group:
    """Runs that stand together as one column."""

    label: str
    runs: tuple[RunRecord, ...]
    """Those that count, by seed."""
    left_out: tuple[RunRecord, ...] = ()
    """Those that belong here and do not count; ``notes`` say why."""
    notes: tuple[str, ...] = ()
    by_seed: bool = True
    """Whether the runs differ in the seed alone."""

    @property
    def seeds(self) -> tuple[str, ...]:
        """Seeds of the runs that count, where they have one."""
        return tuple(run.parameters[SEED] for run in self.runs if SEED in run.parameters)

    @property
    def over(self) -> str:
        """What an interval is over."""
        return "seeds" if self.by_seed else "runs"


def matters(name: str) -> bool:
    """Whether a parameter can change what comes out of a run: how it is called and where it is written cannot."""
    return name not in ("name", "output") and not name.startswith("tracking.")


def single(runs: Sequence[RunRecord]) -> tuple[Group, ...]:
    """Each run by itself."""
    return tuple(Group(run.name, (run,)) for run in runs)


def fold_seeds(runs: Sequence[RunRecord]) -> tuple[Group, ...]:
    """Runs whose parameters differ in the seed alone together, in the order of their first runs.

    Where some runs of a group are finished, those that are not do not count. A run is a function of its job and its
    seed, so that of several with the same seed the latest counts: to count all would feign more seeds than there are.
    """
    groups: dict[tuple[tuple[str, str], ...], list[RunRecord]] = {}
    for run in runs:
        key = tuple(sorted((k, v) for k, v in run.parameters.items() if k != SEED and matters(k)))
        # Without a seed, or parameters at all, nobody knows what two runs have in common.
        whole = (*key, ("", "" if SEED in run.parameters else run.id))
        groups.setdefault(whole, []).append(run)
    return _labelled([_counted(members) for members in groups.values()])


def group_by(runs: Sequence[RunRecord], names: Sequence[str]) -> tuple[Group, ...]:
    """Runs with the same values of some parameters together, whatever else differs.

    Raises:
        InputError: no run has such a parameter.
    """
    known = {name for run in runs for name in run.parameters}
    problems = [
        Problem(f"No run has a parameter '{name}'.{hint(name, known)}", "--group-by")
        for name in names
        if name not in known
    ]
    if problems:
        raise InputError(problems)
    groups: dict[tuple[str, ...], list[RunRecord]] = {}
    for run in runs:
        groups.setdefault(tuple(run.parameters.get(name, "-") for name in names), []).append(run)
    found = []
    for values, members in groups.items():
        short = _short_names(names)
        label = ", ".join(f"{short[name]}={value}" for name, value in zip(names, values, strict=True))
        counted, others, notes = _finished(members)
        found.append(Group(label, tuple(counted), tuple(others), tuple(notes), by_seed=False))
    return tuple(found)


def differing(groups: Sequence[Group]) -> dict[str, tuple[str | None, ...]]:
    """Parameters of which groups have different values, or runs of one group: then the values joined by commas."""
    names = sorted({name for group in groups for run in group.runs for name in run.parameters if matters(name)})
    found = {}
    for name in names:
        values = tuple(_common(group, name) for group in groups)
        if len(set(values)) > 1 and (name != SEED or all(len(group.runs) == 1 for group in groups)):
            found[name] = values
    return found


def _common(group: Group, name: str) -> str | None:
    values = list(dict.fromkeys(run.parameters.get(name) for run in group.runs))
    if len(values) == 1:
        return values[0]
    shown = ", ".join("-" if value is None else value for value in values[:4])
    return shown + (f" and {len(values) - 4} more" if len(values) > 4 else "")


def _counted(members: Sequence[RunRecord]) -> Group:
    runs, left_out, notes = _finished(members)
    latest: dict[str, RunRecord] = {}
    for run in sorted(runs, key=lambda run: run.start):
        latest[run.parameters.get(SEED, run.id)] = run
    repeated = [run for run in runs if run not in latest.values()]
    if repeated:
        seeds = ", ".join(dict.fromkeys(run.parameters[SEED] for run in repeated))
        notes.append(f"the latest run of each seed counts; not: {_names(repeated)} (seed {seeds} again)")
    counted = sorted(latest.values(), key=lambda run: _number(run.parameters.get(SEED, "")))
    return Group(counted[0].name, tuple(counted), (*left_out, *repeated), tuple(notes))


def _finished(members: Sequence[RunRecord]) -> tuple[list[RunRecord], list[RunRecord], list[str]]:
    """The runs that count, those that do not, and what to say of them."""
    finished = [run for run in members if run.status == "FINISHED"]
    if not finished or len(finished) == len(members):
        notes = [] if finished or len(members) == 1 else ["none of these runs is finished: values so far"]
        return list(members), [], notes
    others = [run for run in members if run.status != "FINISHED"]
    said = ", ".join(f"{run.name} ({run.status.lower()})" for run in others)
    return finished, others, [f"{len(others)} of {len(members)} runs do not count, as they are not finished: {said}"]


def _labelled(groups: Sequence[Group]) -> tuple[Group, ...]:
    """Groups of several runs named after the job and what sets them apart from others of the job."""
    stems: dict[str, list[int]] = {}
    for index, group in enumerate(groups):
        stems.setdefault(_SUFFIX.sub("", group.label), []).append(index)
    labels: dict[int, str] = {}
    for stem, indices in stems.items():
        if all(len(groups[index].runs) == 1 for index in indices):
            continue  # a run's own name says which it is
        if len(indices) == 1:
            labels[indices[0]] = stem
            continue
        apart = differing([groups[index] for index in indices])
        short = _short_names(list(apart))
        for number, index in enumerate(indices, 1):
            if 0 < len(apart) <= 2:
                values = [f"{short[name]}={row[number - 1] or '-'}" for name, row in apart.items()]
                labels[index] = f"{stem} {', '.join(values)}"
            else:
                labels[index] = f"{stem} {number}"
    return tuple(_renamed(group, labels.get(index, group.label)) for index, group in enumerate(groups))


def _renamed(group: Group, label: str) -> Group:
    return Group(label, group.runs, group.left_out, group.notes, group.by_seed)


def _short_names(names: Sequence[str]) -> Mapping[str, str]:
    """The last parts of names, as many as tell them apart."""
    short = {}
    for name in names:
        parts = name.split(".")
        for count in range(1, len(parts) + 1):
            short[name] = ".".join(parts[-count:])
            if sum(other == name or other.endswith("." + short[name]) for other in names) == 1:
                break
    return short


def _names(runs: Sequence[RunRecord]) -> str:
    shown = ", ".join(run.name for run in runs[:4])
    return shown + (f" and {len(runs) - 4} more" if len(runs) > 4 else "")


def _number(text: str) -> tuple[float, str]:
    try:
        return float(text), text
    except ValueError:
        return float("inf"), text
