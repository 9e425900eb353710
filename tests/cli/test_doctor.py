"""``heliostat doctor`` in surroundings that are broken: each is named, with what to do about it."""

from __future__ import annotations

import json
import shutil
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from heliostat.cli import doctor
from heliostat.diagnosis import machine, services
from heliostat.diagnosis.finding import Finding

Look = Callable[..., dict[str, dict[str, str]]]
_RAY = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")


@pytest.fixture(autouse=True)
def surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder and home, and nothing said of Ray or MLflow."""
    for name in (*_RAY, "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path


@pytest.fixture
def look() -> Look:
    """The findings by name, and the exit code that goes with them."""

    def call(*arguments: str) -> dict[str, dict[str, str]]:
        app = typer.Typer()
        app.command()(doctor.doctor)
        result = CliRunner().invoke(app, [*arguments, "--json"])
        found = {each["name"]: each for each in json.loads(result.stdout)}
        broken = any(each["level"] == "problem" for each in found.values())
        assert result.exit_code == int(broken)
        assert all(each["advice"] for each in found.values() if each["level"] != "ok"), (
            "what to do about it is not said"
        )
        return found

    return call


def test_all_is_well_and_nothing_is_left_behind(look: Look, surroundings: Path) -> None:
    found = look("--output", "runs/of/mine")
    assert {name for name, each in found.items() if each["level"] == "problem"} == set()
    assert found["storage"]["found"] == "runs/of/mine: written, read and replaced"
    assert list((surroundings / "here").iterdir()) == []


def test_storage_that_cannot_be_written(look: Look, surroundings: Path) -> None:
    (surroundings / "file").write_text("no folder")
    assert look("--output", str(surroundings / "file/runs"))["storage"]["level"] == "problem"
    assert "names no bucket" in look("--output", "s3://")["storage"]["found"]


def test_storage_that_gives_back_something_else(monkeypatch: pytest.MonkeyPatch) -> None:
    from heliostat.training.storage import Storage

    monkeypatch.setattr(Storage, "read", lambda self, name: b"stale")
    assert "not what is read back" in services.storage("runs").found


def test_a_full_disk(surroundings: Path) -> None:
    """A file system of 256 kB, in a mount namespace of its own."""
    alone = ["unshare", "--user", "--map-root-user", "--mount"]
    if not shutil.which("unshare") or subprocess.run([*alone, "true"], check=False, capture_output=True).returncode:
        pytest.skip("this machine allows no mount namespaces")
    place = surroundings / "small"
    place.mkdir()
    script = 'mount -t tmpfs -o size=256k none "$0" && exec "$1" -m heliostat doctor --json --output "$0"'
    done = subprocess.run(
        [*alone, "sh", "-c", script, str(place), sys.executable], check=False, capture_output=True, text=True
    )
    assert done.returncode == 1, done.stderr
    (found,) = [each for each in json.loads(done.stdout) if each["name"] == "storage"]
    assert found["level"] == "problem"
    assert "No space left on device" in found["found"]


def test_a_tracking_store_that_cannot_be_made_or_reached(look: Look, surroundings: Path) -> None:
    (surroundings / "file").write_text("no folder")
    store = look("--uri", f"sqlite:///{surroundings / 'file/mlflow.db'}")["tracking store"]
    assert store["level"] == "problem"
    store = look("--uri", "http://ada:hush@127.0.0.1:9")["tracking store"]
    assert store["level"] == "problem"
    assert "hush" not in store["found"]
    assert look("--uri", "runs")["tracking store"]["level"] == "problem"


def test_versions_other_than_those_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = ["ray[train]==2.60.0", "mlflow<4,>=3.17", "nowhere-to-be-found>=1", 'av>=99; extra == "video"']
    have = {"heliostat": "0.1.0", "torch": "2.13.0+cpu", "ray": "2.9.3", "mlflow": "3.17.2"}

    def version(name: str) -> str:
        try:
            return have[name]
        except KeyError:
            raise metadata.PackageNotFoundError(name) from None

    monkeypatch.setattr(metadata, "requires", lambda name: asked)
    monkeypatch.setattr(metadata, "version", version)
    found = {each.name: each for each in machine.versions()}
    assert found["ray"] == Finding("ray", "problem", "2.9.3, but heliostat needs ray==2.60.0", found["ray"].advice)
    assert found["nowhere-to-be-found"].found == "not installed"
    assert found["mlflow"].level == found["torch"].level == "ok"
    assert "av" not in found


def test_the_token(monkeypatch: pytest.MonkeyPatch, surroundings: Path) -> None:
    assert services.token().level == "ok"  # Ray makes one
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    assert "ray get-auth-token --generate" in services.token().advice
    path = surroundings / "token"
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(path))
    assert "No such file" in services.token().found
    path.write_text(" \n")
    assert services.token().found == f"{path} is empty"
    path.write_text("abc")
    path.chmod(0o644)
    assert services.token().advice == f"chmod 600 {path}"
    path.chmod(stat.S_IRUSR | stat.S_IWUSR)
    assert services.token() == Finding("ray token", "ok", f"from {path}")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "hush")
    assert services.token() == Finding("ray token", "ok", "from RAY_AUTH_TOKEN")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    assert services.token().level == "warning"
    monkeypatch.setenv("RAY_AUTH_MODE", "tokne")
    assert services.token().level == "problem"


@contextmanager
def dashboard(version: str, status: int = 200) -> Iterator[str]:
    """Something that answers as a dashboard of Ray does when asked for its version."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            about: Any = {"version": "4", "ray_version": version, "ray_commit": "", "session_name": ""}
            body = json.dumps(about if self.path.startswith("/api/version") else []).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def test_a_cluster_that_takes_jobs(look: Look, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "hush-hush-hush-hush")
    with dashboard(metadata.version("ray")) as address:
        assert look("--address", address)["jobs of ray"]["found"] == f"{address} takes jobs; 0 of 0 go on"
    with dashboard("2.9.3") as address:
        found = look("--address", address)["jobs of ray"]
        assert f"the cluster runs Ray 2.9.3 and this machine {metadata.version('ray')}" in found["found"]
    with dashboard("2.60.0", status=403) as address:
        found = look("--address", address)["jobs of ray"]
        assert "token" in found["found"]
        assert "hush" not in found["found"]
    with dashboard("2.60.0", status=404) as address:
        assert look("--address", address)["jobs of ray"]["level"] == "problem"
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:9")
    assert "nobody answers there" in look()["jobs of ray"]["found"]


def test_an_address_of_ray_that_is_none(look: Look, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "head")
    assert look()["ray cluster"]["level"] == "problem"
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")
    assert "does not answer" in look()["ray cluster"]["found"]
