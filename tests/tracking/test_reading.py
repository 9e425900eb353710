"""The direct reading of SQLite against MLflow's own client, and runs that belong to others."""

from __future__ import annotations

import math
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace

import pytest

from heliostat.errors import InputError
from heliostat.tracking.client import prepare_store
from heliostat.tracking.conditions import parse_conditions
from heliostat.tracking.database import Database
from heliostat.tracking.location import sqlite_path
from heliostat.tracking.records import list_runs, load_runs
from heliostat.tracking.registry import register_model
from heliostat.tracking.run_record import PARENT_TAG, RunRecord
from heliostat.tracking.service import Service
from heliostat.tracking.tracker import Tracker


@pytest.fixture(scope="module")
def family(store: SimpleNamespace) -> SimpleNamespace:
    """A sweep, its three runs, and a run of nobody's; oldest first."""
    client, experiment = store.client, prepare_store(store.uri, "family")
    sweep = client.create_run(experiment, start_time=1000, run_name="sweep-1").info.run_id
    client.log_param(sweep, "sweep.metric", "eval/x")
    trials = []
    for index, value in enumerate((0.3, math.nan, math.inf)):
        tags = {PARENT_TAG: sweep}
        run_id = client.create_run(
            experiment, start_time=2000 + index, run_name=f"trial-{index}", tags=tags
        ).info.run_id
        client.log_param(run_id, "optimization.batch_size", str(2**index))
        client.log_metric(run_id, "eval/x", 1.0, step=0)
        client.log_metric(run_id, "eval/x", value, step=5)
        client.log_metric(run_id, "eval/x", value, step=5)
        client.log_metric(run_id, "system/cpu", 3.0, step=0)
        client.set_terminated(run_id, "FINISHED", 9000)
        trials.append(run_id)
    alone = client.create_run(experiment, start_time=5000, run_name="alone").info.run_id
    gone = client.create_run(experiment, start_time=6000, run_name="gone").info.run_id
    client.delete_run(gone)
    return SimpleNamespace(sweep=sweep, trials=trials, alone=alone, experiment=experiment)


def same(first: RunRecord, second: RunRecord) -> bool:
    return all(repr(getattr(first, f.name)) == repr(getattr(second, f.name)) for f in fields(RunRecord))


def test_sqlite_read_directly_is_what_mlflow_answers(store: SimpleNamespace, family: SimpleNamespace) -> None:
    path = sqlite_path(store.uri)
    assert path is not None
    service = Service(store.client)
    with Database.open(path) as database:
        assert database is not None
        assert database.experiments() == service.experiments()
        experiments = list(database.experiments())
        ours, theirs = database.heads(experiments, None), service.heads(experiments, None)
        assert len(ours) >= 5
        assert sorted(ours, key=lambda head: head.id) == sorted(theirs, key=lambda head: head.id)
        assert [head.name for head in database.heads([family.experiment], 2)] == ["alone", "trial-2"]

        def ordered(records: list[RunRecord]) -> list[RunRecord]:
            return [
                RunRecord(
                    **{**vars(r), **{k: dict(sorted(vars(r)[k].items())) for k in ("parameters", "metrics", "tags")}}
                )
                for r in records
            ]

        pairs = zip(ordered(database.records(ours)), ordered(service.records(ours)), strict=True)
        assert all(same(first, second) for first, second in pairs)
        ids = family.trials
        mine, other = database.histories(ids, ("system/",)), service.histories(ids, ("system/",))
        assert repr({k: dict(sorted(v.items())) for k, v in mine.items()}) == repr(
            {k: dict(sorted(v.items())) for k, v in other.items()}
        )
        assert set(database.histories(ids, ())[ids[0]]) == {"eval/x"}
        for kind, key in (("parameter", "optimization.batch_size"), ("metric", "eval/x"), ("tag", PARENT_TAG)):
            assert repr(sorted(database.column(kind, key, ours).items())) == repr(  # type: ignore[arg-type]
                sorted(service.column(kind, key, theirs).items())  # type: ignore[arg-type]
            )
            assert key in database.keys(kind, ours) & service.keys(kind, theirs)  # type: ignore[arg-type]


def test_a_database_of_other_tables_is_left_to_mlflow(tmp_path: Path) -> None:
    import sqlite3

    sqlite3.connect(tmp_path / "x.db").execute("CREATE TABLE runs (run_uuid TEXT)").connection.commit()
    with Database.open(tmp_path / "x.db") as database:
        assert database is None


def test_runs_of_a_sweep_stand_below_it_and_do_not_count(store: SimpleNamespace, family: SimpleNamespace) -> None:
    names = [run.name for run in list_runs(store.uri, "family", limit=2)]
    assert names == ["alone", "sweep-1", "trial-2", "trial-1", "trial-0"]
    assert [run.name for run in list_runs(store.uri, "family", limit=1)] == ["alone"]
    chosen = list_runs(store.uri, "family", conditions=parse_conditions(["optimization.batch_size>=2"]))
    assert [run.name for run in chosen] == ["trial-2", "trial-1"]


def test_a_sweep_stands_for_its_runs(store: SimpleNamespace, family: SimpleNamespace) -> None:
    assert [run.name for run in load_runs(store.uri, ["sweep-1"], "family")] == ["trial-0", "trial-1", "trial-2"]
    one = load_runs(store.uri, ["sweep-1"], "family", parse_conditions(["optimization.batch_size=4"]))
    assert [run.id for run in one] == [family.trials[2]]


def test_a_model_is_registered_once_and_on_request(store: SimpleNamespace, tmp_path: Path) -> None:
    checkpoint = (tmp_path / "checkpoint").as_uri()
    tracker = Tracker(
        store.uri, "registered", "trained-1", parameters={}, tags={}, system_metrics=False, spool=None, interval=0.01
    )
    tracker.link_model("trained-1", checkpoint, 5, {"eval/x": 1.0})
    assert tracker.finish("FINISHED", 30).pending == 0
    first = register_model(store.uri, "trained-1", "digits", "champion", "registered")
    again = register_model(store.uri, "trained-1", "digits", None, "registered")
    assert (first.version, first.known, again.version, again.known) == ("1", False, "1", True)
    version = store.client.get_model_version_by_alias("digits", "champion")
    assert (version.source, version.run_id) == (checkpoint, tracker.run_id)
    store.client.create_run(prepare_store(store.uri, "registered"), run_name="bare")
    with pytest.raises(InputError, match="has no model"):
        register_model(store.uri, "bare", "digits", None, "registered")
    with pytest.raises(InputError):
        register_model(store.uri, "trained-1", "a/b:c", None, "registered")
