from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from heliostat.cli import compare, doctor, runs, ui
from heliostat.errors import InputError
from heliostat.tracking.client import prepare_store

Call = Callable[..., str]


@pytest.fixture
def call(store: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Call:
    """Calls a verb in an empty directory over the shared store; returns what it writes to standard output."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store.uri)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("COLUMNS", "80")
    app = typer.Typer()
    for verb in (runs.runs, compare.compare, ui.ui, doctor.doctor):
        app.command()(verb)

    def invoke(*arguments: str, code: int = 0) -> str:
        result = CliRunner().invoke(app, arguments)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code == code
        return result.stdout

    return invoke


@pytest.fixture(scope="session")
def listed(store: SimpleNamespace) -> list[str]:
    """Two finished runs and one that goes on, oldest first."""
    experiment = prepare_store(store.uri, "listed")
    names = ["alpha-1", "beta-2", "gamma-3"]
    for index, name in enumerate(names):
        run_id = store.client.create_run(experiment, start_time=10**12 + index, run_name=name).info.run_id
        store.client.log_param(run_id, "temperature", str(index))
        for step in range(3):
            store.client.log_metric(run_id, "eval/knn_top1", 0.5 + index / 10 - step / 100, step=step)
        if index < 2:
            store.client.set_terminated(run_id, "FINISHED", 10**12 + 90_000)
    return names


def test_runs_lists(call: Call, listed: list[str]) -> None:
    text = call("runs", "--experiment", "listed")
    assert text.index("gamma-3") < text.index("beta-2") < text.index("alpha-1")
    assert "running" in text
    assert "knn_top1 58.0%" in text
    data = json.loads(call("runs", "-e", "listed", "--sort", "eval/knn_top1", "-n", "2", "--json"))
    assert [(run["name"], run["metrics"]["eval/knn_top1"]) for run in data] == [
        ("gamma-3", pytest.approx(0.68)),
        ("beta-2", pytest.approx(0.58)),
    ]
    assert json.loads(call("runs", "-e", "listed", "--status", "killed", "--json")) == []
    assert "No such runs" in call("runs", "-e", "listed", "--status", "killed")
    assert "The first 1" in call("runs", "-e", "listed", "-n", "1")
    with pytest.raises(InputError, match="There is no tracking store"):
        call("runs", "--uri", "sqlite:///other.db")


def test_compare_writes_what_it_says(call: Call, listed: list[str], tmp_path: Path) -> None:
    text = call("compare", "alpha", "beta-2", "-e", "listed")
    assert "* 58.0%" in text
    assert "temperature" in text
    assert "comparison.html" in text
    assert "comparison.png" in text
    assert (tmp_path / "comparison.html").read_text().startswith("<!doctype html>")
    assert (tmp_path / "comparison.png").read_bytes().startswith(b"\x89PNG")
    call("compare", "alpha", "beta", "-e", "listed", "--html", "a.html", "--png", "b.png")
    assert {path.name for path in tmp_path.iterdir()} >= {"a.html", "b.png"}


def test_compare_json_writes_nothing_else(call: Call, listed: list[str], tmp_path: Path) -> None:
    data = json.loads(call("compare", "alpha", "beta", "-e", "listed", "--json"))
    assert data["parameters"] == {"temperature": ["0", "1"]}
    assert [cell["value"] for cell in data["metrics"]["eval/knn_top1"]["groups"]] == pytest.approx([0.48, 0.58])
    assert list(tmp_path.iterdir()) == []


def test_compare_without_names_takes_the_latest_finished(call: Call, listed: list[str]) -> None:
    data = json.loads(call("compare", "-e", "listed", "--json"))
    assert [run["name"] for run in data["runs"]] == ["beta-2", "alpha-1"]


def test_compare_checks_its_files_before_it_works(call: Call, listed: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        call("compare", "alpha", "--html", "no/a.html", "--png", "no/b.png")
    assert len(caught.value.problems) == 2


def test_doctor_finds_a_machine_that_works(call: Call, store: SimpleNamespace) -> None:
    findings = {finding["name"]: finding for finding in json.loads(call("doctor", "--json"))}
    assert {"python", "torch", "ray", "mlflow", "heliostat", "cpus", "memory", "disk here", "tracking store"} <= set(
        findings
    )
    assert findings["tracking store"]["level"] == "ok"
    assert store.uri in findings["tracking store"]["found"]
    assert not [finding for finding in findings.values() if finding["level"] != "ok" and not finding["advice"]]
    assert "tracking store" in call("doctor")


def test_doctor_says_what_is_wrong(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://ada:hush@127.0.0.1:9")
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")
    text = call("doctor", "--json", code=1)
    findings = {finding["name"]: finding for finding in json.loads(text)}
    assert {name for name, finding in findings.items() if finding["level"] == "problem"} == {
        "tracking store",
        "ray cluster",
    }
    assert "hush" not in text
    assert "2 problems" in call("doctor", code=1)


@pytest.fixture
def busy_port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_ui_refuses_what_it_cannot_serve(call: Call, busy_port: int) -> None:
    with pytest.raises(InputError, match=rf"127\.0\.0\.1:{busy_port} cannot be used .*--port {busy_port + 1}"):
        call("ui", "--port", str(busy_port))
    with pytest.raises(InputError, match="has pages already"):
        call("ui", "--uri", "http://127.0.0.1:9")
    with pytest.raises(InputError, match="There is no tracking store"):
        call("ui", "--uri", "sqlite:///other.db")


def test_ui_hands_the_store_over_without_showing_its_password(
    call: Call, monkeypatch: pytest.MonkeyPatch, busy_port: int
) -> None:
    started: list[Any] = []

    class Server:
        pid = 0

        def __init__(self, command: list[str], env: dict[str, str], start_new_session: bool) -> None:
            started.append((command, env))
            assert start_new_session
            self.interrupted = False

        def wait(self, timeout: float | None = None) -> int:
            if not self.interrupted:
                self.interrupted = True
                raise KeyboardInterrupt
            return 0

    signals: list[tuple[int, int]] = []
    monkeypatch.setattr(subprocess, "Popen", Server)
    monkeypatch.setattr(os, "killpg", lambda *which: signals.append(which))
    uri = "postgresql://ada:hush@db/runs"
    text = call("ui", "--uri", uri, "--port", str(busy_port), "--host", "127.0.0.2")
    ((command, environment),) = started
    assert command[1:4] == ["-m", "mlflow", "server"]
    assert command[command.index("--host") + 1] == "127.0.0.2"
    assert environment["MLFLOW_BACKEND_STORE_URI"] == uri
    assert "hush" not in text + " ".join(command)
    assert f"http://127.0.0.2:{busy_port}" in text
    assert "has ended" in text
    assert signals == [(0, signal.SIGTERM)]


@pytest.mark.slow
def test_ui_answers_and_ends_quietly(store: SimpleNamespace, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    code = "import sys, typer; from heliostat.cli.ui import ui; sys.argv[0] = 'ui'; typer.run(ui)"
    process = subprocess.Popen(
        [sys.executable, "-c", code, "--port", str(port), "--uri", store.uri],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        for _ in range(120):
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as answer:
                    assert answer.read() == b"OK"
                break
            except OSError:
                time.sleep(0.5)
        else:
            pytest.fail("the server never answered")
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    finally:
        if process.poll() is None:
            process.terminate()
            process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert f"http://127.0.0.1:{port}" in out
    assert "Traceback" not in err


def test_verbs_are_light() -> None:
    code = (
        "import sys; from heliostat.cli import compare, doctor, runs, ui; "
        "print([m for m in ('mlflow', 'torch', 'ray', 'matplotlib', 'psutil') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
