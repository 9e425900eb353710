"""The memory of a sweep, and what follows from it: what runs next, which is best, where a resumed one goes on."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from heliostat.config.sweep import Sweep
from heliostat.errors import InputError
from heliostat.training.storage import Storage
from heliostat.tuning.journal import Journal
from heliostat.tuning.search import build
from heliostat.tuning.space import Space
from heliostat.tuning.study import Study, Trial

UNIFORM = {"u": {"type": "uniform", "low": 0.0, "high": 1.0}}


def study_in(folder: Path, seeds: tuple[int, ...] = (0,), **block: Any) -> Study:
    settings = {"parameters": UNIFORM, "metric": "eval/x", "mode": "max", "samples": 3, **block}
    sweep = Sweep.model_validate(settings)
    journal = Journal(Storage(str(folder)))
    study = Study("s", sweep, seeds, build(sweep, Space(sweep.parameters)), journal)
    study.restore(journal.read())
    return study


def begun(study: Study) -> Trial:
    trial = study.next()
    assert trial is not None
    study.start(trial.name)
    return trial


def finish(study: Study, trial: Trial, value: float) -> None:
    study.end(trial.name, "finished", value, 10, "")


def test_a_line_cut_off_by_a_crash_is_forgotten(tmp_path: Path) -> None:
    journal = Journal(Storage(str(tmp_path)))
    journal.append({"event": "a", "x": 0.1 + 0.2})
    journal.append({"event": "b"})
    file = tmp_path / "journal.jsonl"
    file.write_bytes(file.read_bytes() + b'{"event": "c", "val')
    again = Journal(Storage(str(tmp_path)))
    assert again.read() == [{"event": "a", "x": 0.1 + 0.2}, {"event": "b"}]
    again.append({"event": "d"})
    assert [event["event"] for event in Journal(Storage(str(tmp_path))).read()] == ["a", "b", "d"]


@pytest.mark.parametrize("line", [b"\x80\x04\x95pickle", b"[1, 2]", b'{"other": 1}', b"hello"])
def test_a_foreign_file_is_refused_with_its_line(tmp_path: Path, line: bytes) -> None:
    (tmp_path / "journal.jsonl").write_bytes(b'{"event": "configuration"}\n' + line + b"\n")
    with pytest.raises(InputError, match="line 2"):
        Journal(Storage(str(tmp_path))).read()


def test_events_that_do_not_follow_from_each_other_are_refused(tmp_path: Path) -> None:
    (tmp_path / "journal.jsonl").write_text(
        '{"event": "report", "trial": "t-9", "step": 1, "share": 0.1, "value": 1}\n'
    )
    with pytest.raises(InputError, match="event 1"):
        study_in(tmp_path)


def test_after_a_kill_between_any_two_lines_the_study_goes_on_to_the_same_end(tmp_path: Path) -> None:
    def work(study: Study) -> dict[str, tuple[str, float | None]]:
        while not study.exhausted:
            trial = begun(study)
            study.report(trial.name, 5, 0.5, trial.assigned["u"] / 2)
            if trial.number == 1:
                study.end(trial.name, "failed", None, 5, "no luck")
            else:
                finish(study, trial, trial.assigned["u"])
        return {name: (trial.status, trial.value) for name, trial in study.trials.items()}

    whole = work(study_in(tmp_path))
    lines = (tmp_path / "journal.jsonl").read_bytes().splitlines(keepends=True)
    assert len(lines) == 9
    for kept in range(len(lines)):
        folder = tmp_path / str(kept)
        folder.mkdir()
        (folder / "journal.jsonl").write_bytes(b"".join(lines[:kept]))
        resumed = study_in(folder)
        over = {name for name, trial in resumed.trials.items() if trial.over}
        assert work(resumed) == whole
        text = (folder / "journal.jsonl").read_text()
        for name in over:  # nothing that was over is done again
            assert text.count(f'"event": "end", "trial": "{name}"') == 1


def test_the_mean_over_seeds_is_what_counts(tmp_path: Path) -> None:
    study = study_in(tmp_path, (0, 1), samples=2)
    values = {"s-000-s0": 1.0, "s-000-s1": 0.0, "s-001-s0": 0.6, "s-001-s1": 0.7}
    while not study.exhausted:
        trial = begun(study)
        finish(study, trial, values[trial.name])
        assert study.of(trial.number)[0].assigned == trial.assigned
    best = study.best()
    assert best is not None
    assert best.value == pytest.approx(0.65)
    assert [trial.seed for trial in best.trials] == [0, 1]


def test_less_may_be_better_and_the_earlier_of_equals_wins(tmp_path: Path) -> None:
    study = study_in(tmp_path, mode="min")
    for value in (2.0, 1.0, 1.0):
        finish(study, begun(study), value)
    best = study.best()
    assert best is not None
    assert (best.trials[0].name, best.value) == ("s-001", 1.0)


def test_a_configuration_that_was_ended_early_gets_no_further_seeds(tmp_path: Path) -> None:
    study = study_in(tmp_path, (0, 1), samples=2, scheduler={"type": "asha"})
    one, other = begun(study), begun(study)
    assert (one.name, other.name) == ("s-000-s0", "s-001-s0")  # further seeds wait for the first one's fate
    study.end(one.name, "pruned", None, 3, "asha")
    finish(study, other, 1.0)
    assert study.trials["s-000-s1"].status == "pruned"
    assert begun(study).name == "s-001-s1"


def test_a_value_that_is_no_number_is_a_failure(tmp_path: Path) -> None:
    study = study_in(tmp_path)
    trial = begun(study)
    finish(study, trial, math.nan)
    assert trial.status == "failed"
    assert "nan" in trial.message
    assert study.best() is None
