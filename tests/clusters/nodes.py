"""Real Ray nodes on one machine: a head and workers, each its own ``ray start`` with its own address and processes.

Nodes have loopback addresses (127.0.0.2, ...), few resources and token authentication. Killing one kills all of its
processes at once by SIGKILL, as a machine that loses its power.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

START_SECONDS = 300
TIMEOUT_S = 900


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Node:
    """One node's ``ray start --block``."""

    process: subprocess.Popen[bytes]
    address: str

    def kill(self) -> None:
        """All of its processes, at once."""
        victims = [self.process.pid]
        with suppress(psutil.NoSuchProcess):
            victims += [child.pid for child in psutil.Process(self.process.pid).children(recursive=True)]
        for victim in victims:
            try:
                os.kill(victim, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self.process.wait()

    def processes(self, title: str) -> list[psutil.Process]:
        """Those whose command line holds a text; Ray gives its workers titles."""
        try:
            found = psutil.Process(self.process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []
        result = []
        for child in found:
            try:
                if title in " ".join(child.cmdline()):
                    result.append(child)
            except psutil.Error:  # it has just ended
                continue
        return result


@dataclass
class Nodes:
    """A cluster below one folder.

    Args:
        folder: of runs, the MLflow store and job files.
        environment: further variables of the nodes.
    """

    folder: Path
    environment: dict[str, str] = field(default_factory=dict)
    store_bytes: int = 100_000_000
    token: str = field(default_factory=lambda: secrets.token_hex(32))
    workers: list[Node] = field(default_factory=list)
    head: Node | None = None

    def __post_init__(self) -> None:
        self.port, self.dashboard = free_port(), free_port()
        self.temporary = Path(tempfile.mkdtemp(prefix="hr-"))  # short: sockets' paths have at most 107 characters
        self._started = 0

    @property
    def address(self) -> str:
        """The dashboard's."""
        return f"http://127.0.0.1:{self.dashboard}"

    def variables(self, **changes: str) -> dict[str, str]:
        """The environment of nodes, and of a person who may submit."""
        result = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "OMP_NUM_THREADS": "1",
            "COLUMNS": "200",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": self.token,
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "0.5",
            **self.environment,
        }
        for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "MLFLOW_TRACKING_URI", "RAY_AUTH_TOKEN_PATH"):
            result.pop(name, None)
        return {**result, **changes}

    def _start(self, arguments: list[str], address: str) -> Node:
        self._started += 1
        log = (self.folder / f"node-{self._started}.log").open("wb")
        command = [
            *(sys.executable, "-m", "ray.scripts.scripts", "start", "--block"),
            *(f"--node-ip-address={address}", "--num-gpus=0", f"--object-store-memory={self.store_bytes}"),
            *(f"--dashboard-agent-listen-port={free_port()}", "--disable-usage-stats", *arguments),
            f"--temp-dir={self.temporary}/{self._started}",  # nodes with one folder delete one another's packages
        ]
        process = subprocess.Popen(
            command, env=self.variables(), stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
        log.close()
        return Node(process, address)

    def start_head(self, cpus: int = 0) -> None:
        ports = [f"--port={self.port}", f"--dashboard-port={self.dashboard}", f"--ray-client-server-port={free_port()}"]
        host = ["--dashboard-host=127.0.0.1", f"--num-cpus={cpus}"]
        self.head = self._start(["--head", *ports, *host], "127.0.0.1")
        self._wait(self.head, lambda: len(self.alive()) == 1)

    def add_worker(self, cpus: int = 2, *, wait: bool = True) -> Node:
        node = self._start([f"--address=127.0.0.1:{self.port}", f"--num-cpus={cpus}"], f"127.0.0.{self._started + 2}")
        self.workers.append(node)
        if wait:  # one after the other: they take free ports
            self._wait(node, lambda: node.address in {row["node_ip"] for row in self.alive()})
        return node

    def kill_worker(self, node: Node) -> None:
        node.kill()
        self.workers.remove(node)

    def kill_head(self) -> None:
        """With the head goes the cluster: workers end by themselves, here at once."""
        assert self.head is not None
        for node in [self.head, *self.workers]:
            node.kill()
        self.head, self.workers = None, []

    def close(self) -> None:
        for node in [self.head, *self.workers]:
            if node is not None:
                node.kill()
        shutil.rmtree(self.temporary, ignore_errors=True)

    def _wait(self, node: Node, ready: Callable[[], bool]) -> None:
        deadline = time.monotonic() + START_SECONDS
        while not ready():
            logs = sorted(self.folder.glob("node-*.log"))[-1]
            assert node.process.poll() is None, logs.read_text()
            assert time.monotonic() < deadline, logs.read_text()
            time.sleep(0.3)

    def _state(self, what: str) -> list[dict[str, Any]]:
        """What Ray's state API knows of nodes or actors; nothing where the dashboard does not answer."""
        request = urllib.request.Request(
            f"{self.address}/api/v0/{what}?detail=true&limit=1000", headers={"Authorization": f"Bearer {self.token}"}
        )
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return list(json.load(answer)["data"]["result"]["result"])
        except (OSError, KeyError, TypeError, ValueError):
            return []

    def alive(self) -> list[dict[str, Any]]:
        """Nodes that are."""
        return [row for row in self._state("nodes") if row["state"] == "ALIVE"]

    def actors(self) -> list[dict[str, Any]]:
        """All actors, dead ones too."""
        return self._state("actors")

    # What a person does

    def heliostat(self, *arguments: str, log: Path | None = None, **changes: str) -> subprocess.Popen[str]:
        """``heliostat ...`` in the folder, by somebody who has the token and the address.

        Args:
            log: takes what it prints, of more than a pipe holds; None: a pipe.
        """
        variables = self.variables(RAY_API_SERVER_ADDRESS=self.address)
        return subprocess.Popen(
            [sys.executable, "-m", "heliostat", *arguments],
            cwd=self.folder,
            env={**variables, **changes},
            stdout=subprocess.PIPE if log is None else log.open("w"),
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            # A shell's background jobs ignore Ctrl-C, and so would whatever they start.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )

    def done(self, *arguments: str, code: int = 0, **changes: str) -> str:
        """As :meth:`heliostat`, to its end; returns what it printed."""
        process = self.heliostat(*arguments, **changes)
        output, _ = process.communicate(timeout=TIMEOUT_S)
        assert process.returncode == code, output
        return output

    def ray(self, *arguments: str, code: int = 0) -> str:
        """``ray ...``, to its end."""
        done = subprocess.run(
            [sys.executable, "-m", "ray.scripts.scripts", *arguments],
            cwd=self.folder,
            env=self.variables(),
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    @property
    def places(self) -> tuple[str, str]:
        """Where runs and their record go."""
        return f"output={self.folder / 'runs'}", f"tracking.uri=sqlite:///{self.folder / 'mlflow.db'}"

    def wait_for_step(self, name: str, step: int, process: subprocess.Popen[str] | None = None) -> int:
        """Until the run has a checkpoint at or after a step; returns the newest."""
        from heliostat.training.run_folder import RunFolder

        store = RunFolder(str(self.folder / "runs" / name)).checkpoints()
        deadline = time.monotonic() + TIMEOUT_S
        while not any(done >= step for done in store.steps()):
            assert process is None or process.poll() is None, process.communicate()[0]
            assert time.monotonic() < deadline
            time.sleep(0.05)
        return store.steps()[-1]
