from __future__ import annotations

import json
import logging
import math
import pickle
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from heliostat.errors import InputError
from heliostat.tracking.backlog import Backlog
from heliostat.tracking.client import prepare_store
from heliostat.tracking.location import StoreError, display_uri, resolve_uri, scrub
from heliostat.tracking.tracker import Tracker


def until(condition: Callable[[], Any], seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


# Which store


def test_address_is_absolute_wherever_it_comes_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert resolve_uri(None) == f"sqlite:///{tmp_path}/mlflow.db"
    assert resolve_uri("sqlite:///sub/../x.db?timeout=5") == f"sqlite:///{tmp_path}/x.db?timeout=5"
    assert resolve_uri("sqlite:////data/x.db") == "sqlite:////data/x.db"
    assert resolve_uri("http://host:5000/") == "http://host:5000"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///other.db")
    assert resolve_uri(None) == f"sqlite:///{tmp_path}/other.db"
    assert resolve_uri("http://host:1") == "http://host:1"


@pytest.mark.parametrize(
    ("uri", "hint"),
    [
        ("./mlruns", "sqlite:///"),
        ("file:///data/mlruns", "sqlite:////data/mlflow.db"),
        ("sqlite://", "names no file"),
        ("sqlite:///:memory:", "gone when the process ends"),
        ("http://", "names no host"),
        ("http://host:port", "not an address"),
        ("http://[::1", "not an address"),
        ("redis://host/0", "no kind of store"),
        ("postgresql://host", "names no database"),
    ],
)
def test_wrong_address_is_refused_with_the_right_one(uri: str, hint: str) -> None:
    with pytest.raises(InputError, match=hint):
        resolve_uri(uri)


def test_secrets_are_never_shown() -> None:
    uri = "postgresql+psycopg2://ada:s3cr%40t@db:5432/runs?sslmode=require&sslpassword=hush"
    assert display_uri(uri) == "postgresql+psycopg2://ada:***@db:5432/runs?sslmode=require&sslpassword=***"
    assert display_uri("https://ghp_abc@host/x") == "https://***@host/x"
    assert display_uri("sqlite:////data/x.db") == "sqlite:////data/x.db"
    assert display_uri("http://ada:hush@[::1") == "http://***@[::1"
    assert scrub("cannot reach s3cr%40t with hush", uri) == "cannot reach *** with ***"
    with pytest.raises(InputError) as caught:
        resolve_uri("redis://ada:hush@host")
    assert "hush" not in str(caught.value)


def test_store_is_prepared_once_with_files_beside_it(store: SimpleNamespace) -> None:
    assert prepare_store(store.uri, "tests") == store.experiment_id
    location = store.client.get_experiment(store.experiment_id).artifact_location
    assert location == (store.folder / "mlartifacts" / "tests").as_uri()
    with pytest.raises(InputError, match="name"):
        prepare_store(store.uri, "..")


_FIRST_USE = """
import sys
import mlflow.store.tracking.sqlalchemy_store
from heliostat.tracking.client import prepare_store
print("ready", flush=True)
sys.stdin.readline()
print(prepare_store(sys.argv[1], "tests"))
"""


def test_two_runs_may_use_a_new_store_at_the_same_moment(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _FIRST_USE, f"sqlite:///{tmp_path}/mlflow.db"]
    runs = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    for run in runs:
        assert run.stdout is not None
        assert run.stdout.readline() == "ready\n"
    for run in runs:
        assert run.stdin is not None
        run.stdin.write("go\n")
        run.stdin.flush()
    (one, error), (other, others_error) = (run.communicate(timeout=120) for run in runs)
    assert one.strip(), error
    assert other == one, others_error
    assert not list(tmp_path.glob("*lock*"))


def test_deleted_experiment_and_absent_server_are_told_apart(store: SimpleNamespace) -> None:
    store.client.delete_experiment(prepare_store(store.uri, "deleted"))
    with pytest.raises(InputError, match="was deleted"):
        prepare_store(store.uri, "deleted")
    with pytest.raises(StoreError, match="does not answer") as caught:
        prepare_store("http://ada:hush@127.0.0.1:9", "tests")
    assert "hush" not in str(caught.value)


# What is stored


def test_everything_reaches_the_store(store: SimpleNamespace, track: Any, tmp_path: Path) -> None:
    picture = tmp_path / "plot.png"
    picture.write_bytes(b"png")
    tracker = track(parameters={"a": 1, "b": True, "c": None, "d": 1e-6, "e": ""}, tags={"t": "v"})
    tracker.log_metrics({"train/loss": 2.0, "lr": 0.1}, step=0)
    tracker.log_metrics({"train/loss": 1.0}, step=5)
    tracker.log_text("seed: 0", "job.yaml")
    tracker.log_artifact(picture, "files")
    tracker.log_figure(picture, "features")
    tracker.log_dataset("digits", "f" * 64, "sklearn", "train", 1797)
    tracker.set_tags({"later": "1"})
    status = tracker.finish("FINISHED", 20)
    assert (status.pending, status.failures, status.last_error, status.refused) == (0, 0, None, 0)

    run = store.client.get_run(tracker.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params == {"a": "1", "b": "true", "c": "null", "d": "1e-06", "e": ""}
    assert run.data.tags.items() >= {"t": "v", "later": "1"}.items()
    assert store.points(tracker.run_id, "train/loss") == [(0, 2.0), (5, 1.0)]
    paths = {
        file.path for folder in ("", "files", "figures") for file in store.client.list_artifacts(tracker.run_id, folder)
    }
    assert paths >= {"job.yaml", "files/plot.png", "figures/features.png"}
    (dataset,) = run.inputs.dataset_inputs
    assert (dataset.dataset.name, dataset.dataset.digest) == ("digits", "f" * 36)
    assert json.loads(dataset.dataset.profile) == {"num_rows": 1797}
    assert dataset.tags[0].value == "train"


def test_non_finite_values_do_not_take_the_batch_with_them(store: SimpleNamespace, track: Any) -> None:
    tracker = track()
    tracker.log_metrics({"loss": math.nan, "high": math.inf, "low": -math.inf, "fine": 1.0}, step=3)
    assert tracker.finish("FINISHED", 20).refused == 0
    stored = store.client.get_run(tracker.run_id).data.metrics
    assert math.isnan(stored["loss"])
    assert stored["fine"] == 1.0
    assert stored["high"] > 1e308
    assert stored["low"] < -1e308


def test_one_bad_name_costs_one_point(store: SimpleNamespace, track: Any, caplog: pytest.LogCaptureFixture) -> None:
    tracker = track(parameters={"bad#name": 1, "good": 2})
    for step in range(20):
        tracker.log_metrics({"x": step, f"y#{step}": 0.0} if step == 7 else {"x": step}, step)
    tracker.log_artifact("/nowhere/at/all.png")
    status = tracker.finish("FINISHED", 20)
    assert (status.refused, status.pending) == (3, 0)
    assert store.points(tracker.run_id, "x") == [(step, step) for step in range(20)]
    assert store.client.get_run(tracker.run_id).data.params == {"good": "2"}
    assert "y#7" in caplog.text
    assert "/nowhere/at/all.png" in caplog.text


def test_limits_of_a_request(store: SimpleNamespace, track: Any, network: Any) -> None:
    tracker = track(
        parameters={f"p{i}": i for i in range(250)}, tags={f"t{i}": str(i) for i in range(150)}, connect=network.connect
    )
    for step in range(30):
        tracker.log_metrics({f"m{i}": step for i in range(100)}, step)
    status = tracker.finish("FINISHED", 20)
    assert (status.pending, status.refused, status.failures) == (0, 0, 0)
    run = store.client.get_run(tracker.run_id)
    assert run.data.params == {f"p{i}": str(i) for i in range(250)}
    assert run.data.tags.items() >= {(f"t{i}", str(i)) for i in range(150)}
    assert run.data.metrics == {f"m{i}": 29.0 for i in range(100)}
    assert len(store.points(tracker.run_id, "m0")) == 30
    assert network.calls.count("log_batch") < 12


def test_long_values_are_cut_visibly_and_kept_whole(store: SimpleNamespace, track: Any) -> None:
    value = "abcdefghij" * 1000
    tracker = track(parameters={"long": value})
    tracker.finish("FINISHED", 20)
    stored = store.client.get_run(tracker.run_id).data.params["long"]
    assert len(stored) == 6000
    assert stored.endswith("... [10000 characters; whole in parameters/long.txt]")
    path = store.client.download_artifacts(tracker.run_id, "parameters/long.txt")
    assert Path(path).read_text() == value


def test_checkpoint_is_linked_once_without_a_second_point(store: SimpleNamespace, track: Any, network: Any) -> None:
    tracker = track(connect=network.connect)
    network.lose_answers_of = {"create_logged_model": 1, "log_outputs": 1}
    tracker.log_metrics({"eval/knn_top1": 0.5}, step=10)
    tracker.link_model("simclr", "s3://bucket/checkpoint-10", 10, {"eval/knn_top1": 0.5, "eval/rank": 3.0})
    status = tracker.finish("FINISHED", 20)
    assert (status.pending, status.refused, status.failures) == (0, 0, 2)
    (model,) = store.client.search_logged_models(
        [store.experiment_id], filter_string=f"source_run_id = '{tracker.run_id}' AND metrics.`eval/knn_top1` > 0.4"
    )
    assert model.tags["heliostat.checkpoint"] == "s3://bucket/checkpoint-10"
    assert {metric.key: metric.value for metric in model.metrics} == {"eval/knn_top1": 0.5, "eval/rank": 3.0}
    (output,) = store.client.get_run(tracker.run_id).outputs.model_outputs
    assert (output.model_id, output.step) == (model.model_id, 10)
    assert store.points(tracker.run_id, "eval/knn_top1") == [(10, 0.5)]
    assert store.points(tracker.run_id, "eval/rank") == [(10, 3.0)]


def test_system_metrics_go_on_where_they_stopped(
    store: SimpleNamespace, track: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.05")
    key = "system/cpu_utilization_percentage"
    first = track(system_metrics=True)
    until(lambda: first.run_id and len(store.points(first.run_id, key)) >= 2)
    first.finish("KILLED", 20)
    before = len(store.points(first.run_id, key))
    second = track(system_metrics=True, run_id=first.run_id)
    until(lambda: len(store.points(first.run_id, key)) >= before + 2)
    second.finish("FINISHED", 20)
    assert [step for step, _ in store.points(first.run_id, key)] == [*range(len(store.points(first.run_id, key)))]


# What goes wrong


def test_store_that_is_away_at_the_start_gets_everything_later(
    store: SimpleNamespace, track: Any, network: Any, caplog: pytest.LogCaptureFixture
) -> None:
    network.down = True
    with caplog.at_level(logging.WARNING, "heliostat.tracking"):
        tracker = track(connect=network.connect, parameters={"p": 1})
        for step in range(5):
            tracker.log_metrics({"x": step}, step)
        until(lambda: tracker.status().failures >= 3)
        assert tracker.run_id is None
        assert tracker.status().pending == 5
        network.down = False
        until(lambda: tracker.run_id and tracker.status().pending == 0)
        network.down = True
        tracker.log_metrics({"x": 5}, 5)
        until(lambda: tracker.status().pending and tracker.status().last_error)
        network.down = False
        status = tracker.finish("FINISHED", 20)
    assert status.pending == 0
    assert status.last_error == "no route to host"
    assert store.points(tracker.run_id, "x") == [(step, step) for step in range(6)]
    lines = [record.message for record in caplog.records]
    assert sum("is back" in line for line in lines) == sum("does not take metrics" in line for line in lines) >= 1


def test_lost_answers_repeat_nothing(store: SimpleNamespace, track: Any, network: Any) -> None:
    network.lose_answers_of = {"create_run": 2, "log_batch": 3, "log_inputs": 1, "set_terminated": 1}
    tracker = track(connect=network.connect, parameters={"p": 1}, tags={"only": "here"})
    tracker.log_dataset("digits", "abc", "sklearn", "train", 1)
    for step in range(100):
        tracker.log_metrics({"x": step, "y": -step}, step)
    status = tracker.finish("FINISHED", 20)
    assert status.pending == 0
    assert status.failures >= 5
    runs = store.client.search_runs([store.experiment_id], "tags.only = 'here'")
    assert [run.info.run_id for run in runs] == [tracker.run_id]
    assert runs[0].info.status == "FINISHED"
    assert len(runs[0].inputs.dataset_inputs) == 1
    for key, sign in (("x", 1), ("y", -1)):
        assert store.points(tracker.run_id, key) == [(step, sign * step) for step in range(100)]


def test_resumed_run_repeats_no_point_and_marks_changes(store: SimpleNamespace, track: Any) -> None:
    first = track(parameters={"kept": 1, "changed": "a"})
    for step in range(10):
        first.log_metrics({"x": step}, step)
    first.finish("KILLED", 20)
    assert store.client.get_run(first.run_id).info.status == "KILLED"

    second = track(parameters={"kept": 1, "changed": "b", "new": 2}, run_id=first.run_id)
    for step in range(6, 14):  # from the checkpoint at step 6
        second.log_metrics({"x": step}, step)
    until(lambda: store.client.get_run(first.run_id).info.status == "RUNNING")
    status = second.finish("FINISHED", 20)
    assert second.run_id == first.run_id
    assert (status.refused, status.failures, status.skipped) == (0, 0, 4)
    run = store.client.get_run(first.run_id)
    assert store.points(first.run_id, "x") == [(step, step) for step in range(14)]
    assert run.data.params == {"kept": "1", "changed": "a", "new": "2"}
    assert {key: value for key, value in run.data.tags.items() if "changed" in key} == {
        "heliostat.changed.changed": "b"
    }
    assert run.info.status == "FINISHED"


def test_restarted_workers_repeat_no_point_in_one_process(store: SimpleNamespace, track: Any) -> None:
    tracker = track()
    for step in [*range(8), *range(4, 10)]:
        tracker.log_metrics({"x": step}, step)
    assert tracker.finish("FINISHED", 20).skipped == 4
    assert store.points(tracker.run_id, "x") == [(step, step) for step in range(10)]


def test_what_could_not_be_sent_stays_in_the_spool(
    store: SimpleNamespace, track: Any, network: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spool = tmp_path / "spool.jsonl"
    network.down = True
    first = track(spool, connect=network.connect)
    first.log_metrics({"x": 1.0, "bad": math.nan}, 0)
    status = first.finish("FINISHED", 0.1)
    assert status.pending == 3  # two points, and that the run is over
    assert "3 events" in caplog.text
    for line in spool.read_text().splitlines():
        json.loads(line, parse_constant=pytest.fail)  # NaN is no JSON
    with pytest.raises(RuntimeError, match="closed"):
        first.log_metrics({"x": 1.0}, 1)

    network.down = False
    second = track(spool, connect=network.connect)
    assert second.finish("FINISHED", 20).pending == 0
    assert store.points(second.run_id, "x") == [(0, 1.0)]
    assert math.isnan(store.client.get_run(second.run_id).data.metrics["bad"])
    assert list(tmp_path.iterdir()) == []


def test_killed_process_leaves_a_spool_that_a_resumed_one_sends(
    store: SimpleNamespace, track: Any, tmp_path: Path
) -> None:
    spool = tmp_path / "spool.jsonl"
    script = """
import os, sys
from pathlib import Path
from heliostat.tracking.tracker import Tracker
def away(uri):
    raise ConnectionError("away")
tracker = Tracker(sys.argv[1], "tests", "killed", parameters={}, tags={}, system_metrics=False,
                  spool=Path(sys.argv[2]), connect=away)
for step in range(20):
    tracker.log_metrics({"x": step}, step)
    if step == 9:
        tracker.persist()
os.kill(os.getpid(), 9)
"""
    killed = subprocess.run([sys.executable, "-c", script, store.uri, str(spool)], check=False)
    assert killed.returncode == -9
    tracker = track(spool)
    for step in range(5, 20):  # its last checkpoint was before the last point that was saved
        tracker.log_metrics({"x": step}, step)
    assert tracker.finish("FINISHED", 20).pending == 0
    assert store.points(tracker.run_id, "x") == [(step, step) for step in range(20)]


def test_identity_survives_in_the_spool(store: SimpleNamespace, track: Any, tmp_path: Path) -> None:
    spool = tmp_path / "spool.jsonl"
    first = track(spool)
    first.log_metrics({"x": 0.0}, 0)
    first.finish("FAILED", 20)
    second = track(spool)
    assert second.run_id == first.run_id
    with pytest.raises(InputError, match="own spool"):
        track(spool, run_id="0" * 32)
    second.finish("FINISHED", 20)
    assert store.client.get_run(first.run_id).info.status == "FINISHED"


def test_memory_is_bounded_and_nothing_is_dropped(
    store: SimpleNamespace, track: Any, network: Any, tmp_path: Path
) -> None:
    network.down = True
    spool = tmp_path / "spool.jsonl"
    first = track(spool, connect=network.connect, limit=50)
    for step in range(333):
        first.log_metrics({"x": step}, step)
    assert len(first._backlog._memory) <= 50
    assert first.status().pending == 333
    first.finish("KILLED", 0.05)
    network.down = False
    second = track(spool, connect=network.connect, limit=50)
    second.log_metrics({"x": 333}, 333)
    assert second.finish("FINISHED", 20).pending == 0
    assert store.points(second.run_id, "x") == [(step, step) for step in range(334)]
    assert list(tmp_path.iterdir()) == []


def test_backlog_keeps_its_order_through_disk_memory_and_a_kill(tmp_path: Path) -> None:
    spool = tmp_path / "s"
    backlog = Backlog(spool, limit=10)
    sent = []
    for number in range(100):
        backlog.append({"n": number})
        if number % 3 == 0:
            head = backlog.peek(2)
            sent += [event["n"] for event in head]
            backlog.drop(len(head))
        if number == 61:
            backlog.persist()
            with (tmp_path / "s.overflow").open("ab") as file:
                file.write(b'{"n": 6')  # the kill came in the middle of a line
            backlog = Backlog(spool, limit=10)
    while head := backlog.peek(7):
        sent += [event["n"] for event in head]
        backlog.drop(len(head))
    assert sent == [*range(100)]
    assert len(backlog) == 0


def test_spool_that_is_something_else_is_left_alone(tmp_path: Path, track: Any) -> None:
    spool = tmp_path / "notes.txt"
    spool.write_text("dear diary\n")
    with pytest.raises(InputError, match="not a file of waiting metrics"):
        track(spool)
    assert spool.read_text() == "dear diary\n"


def test_full_disk_loses_nothing_and_stops_nothing(
    store: SimpleNamespace, track: Any, network: Any, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    network.down = True
    tracker = track(tmp_path / "file" / "spool", connect=network.connect, limit=5)  # no folder can be made there
    for step in range(20):
        tracker.log_metrics({"x": step}, step)
    tracker.persist()
    assert "disk" in tracker.status().last_error or "saved" in tracker.status().last_error
    network.down = False
    assert tracker.finish("FINISHED", 20).pending == 0
    assert len(store.points(tracker.run_id, "x")) == 20


def test_a_file_that_does_not_go_through_lets_others_pass(
    store: SimpleNamespace, track: Any, network: Any, tmp_path: Path
) -> None:
    network.lose_answers_of = {"log_text": 10**6}
    tracker = track(connect=network.connect)
    tracker.log_text("x", "x.txt")
    tracker.log_metrics({"x": 1.0}, 0)
    until(lambda: tracker.run_id and store.points(tracker.run_id, "x"))
    assert tracker.status().pending == 1
    network.lose_answers_of = {}
    assert tracker.finish("FINISHED", 20).pending == 0


def test_deleted_run_keeps_its_points_waiting(store: SimpleNamespace, track: Any) -> None:
    tracker = track()
    until(lambda: tracker.run_id)
    store.client.delete_run(tracker.run_id)
    tracker.log_metrics({"x": 1.0}, 0)
    until(lambda: "was deleted" in (tracker.status().last_error or ""))
    assert tracker.status().refused == 0
    store.client.restore_run(tracker.run_id)
    assert tracker.finish("FINISHED", 20).pending == 0
    assert store.points(tracker.run_id, "x") == [(0, 1.0)]


def test_real_client_gives_up_on_a_closed_port_and_training_goes_on() -> None:
    tracker = Tracker(
        "http://ada:hush@127.0.0.1:9", "tests", "far", parameters={}, tags={}, system_metrics=False, spool=None
    )
    tracker.log_metrics({"x": 1.0}, 0)
    until(lambda: tracker.status().last_error)
    status = tracker.finish("FAILED", 0.2)
    assert status.pending == 2
    assert status.last_error is not None
    assert "hush" not in status.last_error


def test_import_is_light_and_arguments_cross_processes() -> None:
    code = "import sys, heliostat.tracking.tracker; print([m for m in ('mlflow', 'torch', 'ray') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
    assert pickle.loads(pickle.dumps(Tracker)) is Tracker  # noqa: S301 - our own bytes
