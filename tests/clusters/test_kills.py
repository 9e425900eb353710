"""Random kills over a longer run: workers, nodes, the record's writer, the tracking server, the driver, actors.

``make test-cluster`` makes a few; ``HELIOSTAT_KILLS=20 pytest -m cluster tests/clusters/test_kills.py -s`` is the proof
over twenty, and takes a minute or two for each kill.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from heliostat.tracking.client import connect
from heliostat.training.run_folder import RunFolder

pytestmark = pytest.mark.cluster

KILLS = int(os.environ.get("HELIOSTAT_KILLS", "3"))
SEED = int(os.environ.get("HELIOSTAT_KILLS_SEED", "0"))
TIMEOUT_S = 900


class Server:
    """MLflow's tracking server over SQLite, which can be killed and started again."""

    def __init__(self, folder: Path, port: int) -> None:
        self.folder, self.port = folder, port
        self.uri = f"http://127.0.0.1:{port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)),
                    *("--backend-store-uri", f"sqlite:///{self.folder / 'mlflow.db'}", "--workers", "1"),
                    *("--artifacts-destination", str(self.folder / "artifacts")),
                ],
                env={**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true"},
                cwd=self.folder,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def wait(self) -> None:
        deadline = time.monotonic() + TIMEOUT_S
        while True:
            try:
                urllib.request.urlopen(f"{self.uri}/health", timeout=5).close()
                return
            except OSError:
                assert time.monotonic() < deadline, (self.folder / "server.log").read_text()
                time.sleep(0.5)

    def kill(self) -> None:
        if self.process is not None and psutil.pid_exists(self.process.pid):
            children = psutil.Process(self.process.pid).children(recursive=True)
            for process in [psutil.Process(self.process.pid), *children]:
                process.kill()
            self.process.wait()
            self.process = None


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    server = Server(tmp_path, port)
    server.start()
    server.wait()
    yield server
    server.kill()


def _one_of(processes: list[psutil.Process], dice: random.Random) -> bool:
    """Kill one; whether there was one."""
    if not processes:
        return False
    try:
        dice.choice(processes).send_signal(signal.SIGKILL)
    except psutil.NoSuchProcess:
        return False
    return True


class Killer:
    """Kills what the dice say, once each time that the run has come further."""

    def __init__(self, nodes: Any, server: Server, dice: random.Random) -> None:
        self.nodes, self.server, self.dice = nodes, server, dice
        self.ways: dict[str, Callable[[], bool]] = {
            "worker": lambda: self._process("RayTrainWorker"),
            "node": self._node,
            "record's writer": lambda: _one_of(nodes.head.processes("ray::Monitor"), dice),
            "tracking server": self._server,
            "driver": lambda: _one_of(self._drivers(), dice),
        }

    def _process(self, title: str) -> bool:
        return _one_of([each for node in self.nodes.workers for each in node.processes(title)], self.dice)

    def _drivers(self) -> list[psutil.Process]:
        found = self.nodes.head.processes("-m heliostat run")
        return [process for process in found if process.name().startswith("python")]  # not the shell around it

    def _node(self) -> bool:
        busy = [node for node in self.nodes.workers if node.processes("RayTrainWorker")]
        if not busy:
            return False
        self.nodes.kill_worker(self.dice.choice(busy))
        self.nodes.add_worker(wait=False)  # there is a spare one, and the run would go on in the meantime
        return True

    def _server(self) -> bool:
        self.server.kill()
        threading.Timer(self.dice.uniform(1, 5), self.server.start).start()
        return True

    def order(self, count: int) -> list[str]:
        """Each way equally often, or once more, in random order."""
        rounds = [self.dice.sample(list(self.ways), len(self.ways)) for _ in range(-(-count // len(self.ways)))]
        return [way for each in rounds for way in each][:count]


def _wait_for_step(folder: Path, step: int, process: subprocess.Popen[str], log: Path) -> None:
    store = RunFolder(str(folder)).checkpoints()
    deadline = time.monotonic() + TIMEOUT_S
    while max(store.steps(), default=0) < step:
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)


def curve(uri: str, name: str) -> tuple[Any, list[tuple[int, float]]]:
    client = connect(uri)
    experiment = client.get_experiment_by_name("tests")
    (run,) = [run for run in client.search_runs([experiment.experiment_id]) if run.info.run_name == name]
    history: list[Any] = []
    for point in client.get_metric_history(run.info.run_id, "train/loss"):
        history.append((point.step, point.value))
    return run, sorted(history)


def test_random_kills(start_nodes: Callable[..., Any], server: Server) -> None:
    """Weights bit for bit those of an undisturbed run with as many workers; each step recorded once, in one run."""
    dice = random.Random(SEED)
    nodes = start_nodes(3)
    every = 100  # steps from one kill to the next, about
    changes = (
        f"output={nodes.folder / 'runs'}",
        f"tracking.uri={server.uri}",
        "resources.workers=2",
        f"resources.max_failures={KILLS + 5}",
        f"optimization.steps={(KILLS + 1) * every}",
    )
    log = nodes.folder / "killed.log"
    process = nodes.heliostat(
        *("submit", "simclr.yaml", *changes, "--name", "killed", "--retries", str(KILLS + 5)),
        log=log,
    )
    killer, counts = Killer(nodes, server, dice), Counter[str]()
    for number, way in enumerate(killer.order(KILLS)):
        at = number * every + dice.randint(every // 4, every)
        _wait_for_step(nodes.folder / "runs/killed", at, process, log)
        deadline = time.monotonic() + TIMEOUT_S
        while not killer.ways[way]():  # what is to be killed may just be starting again
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, f"nothing to kill: {way}"
            time.sleep(0.2)
        counts[way] += 1
        print(f"{time.strftime('%H:%M:%S')} kill {number + 1}: {way}, after step {at}", flush=True)
    assert process.wait(timeout=TIMEOUT_S) == 0, log.read_text()
    server.wait()
    nodes.done("submit", "simclr.yaml", *changes, "--name", "whole")

    assert sum(counts.values()) == KILLS
    killed, whole = (RunFolder(str(nodes.folder / "runs" / name)) for name in ("killed", "whole"))
    steps = (KILLS + 1) * every
    assert killed.about()["status"] == whole.about()["status"] == "finished"
    one, other = (folder.checkpoints().load(steps)["algorithm"] for folder in (killed, whole))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)
    run, points = curve(server.uri, "killed")
    assert run.info.status == "FINISHED"
    assert [step for step, _ in points] == list(range(1, steps + 1))
    assert points == curve(server.uri, "whole")[1]
    print(f"{KILLS} kills survived: {dict(counts)}")


def _is(actor: dict[str, Any], who: str) -> bool:
    return actor["repr_name"] == who and actor["state"] == "ALIVE"


def test_random_kills_of_actors(start_nodes: Callable[..., Any]) -> None:
    """Rollouts, shards and learner of DQN: replaced, counted, and each point of the curves recorded once."""
    dice = random.Random(SEED)
    nodes = start_nodes(2)
    every = 2000
    roles = dice.sample(["rollout 0", "rollout 1", "shard 0", "shard 1", "learner 0"], 5)
    steps = (KILLS + 1) * every
    changes = (
        *nodes.places,
        "resources={runtime: ray, actors: 2, shards: 2, cpus_per_actor: 0.5, cpus_per_learner: 0.5, max_failures: 99}",
        "checkpoint.every_steps=250",
        f"optimization.steps={steps}",
    )
    log = nodes.folder / "killed.log"
    process = nodes.heliostat("submit", "dqn.yaml", *changes, "--name", "killed", log=log)
    for number in range(KILLS):
        _wait_for_step(nodes.folder / "runs/killed", number * every + dice.randint(every // 4, every), process, log)
        who = roles[number % len(roles)]
        while not (pids := [actor["pid"] for actor in nodes.actors() if _is(actor, who)]):
            assert process.poll() is None, log.read_text()
        os.kill(pids[0], signal.SIGKILL)
        print(f"{time.strftime('%H:%M:%S')} kill {number + 1}: {who}", flush=True)
    assert process.wait(timeout=TIMEOUT_S) == 0, log.read_text()

    folder = RunFolder(str(nodes.folder / "runs/killed"))
    played = folder.checkpoints().steps()[-1]
    assert folder.about()["status"] == "finished"
    assert played >= steps
    client = connect(f"sqlite:///{nodes.folder / 'mlflow.db'}")
    (run,) = client.search_runs([client.get_experiment_by_name("tests").experiment_id])
    for metric in ("train/updates", "rollout/return", "run/failures"):
        at = [point.step for point in client.get_metric_history(run.info.run_id, metric)]
        assert at == sorted(set(at)), metric
    assert client.get_metric_history(run.info.run_id, "run/failures")[-1].value == KILLS
    state = folder.checkpoints().load(played)
    assert {int(each["step"]) for each in state["learner"]["optimizer"]["state"].values()} == {state["updates"]}
