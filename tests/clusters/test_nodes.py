"""Jobs on real Ray nodes, each its own processes: submitted, followed, stopped, and with nodes killed under them."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from heliostat.tracking.client import connect
from heliostat.training.run_folder import RunFolder

pytestmark = pytest.mark.cluster

STEPS = 60
GENTLE = "optimization.optimizer.learning_rate=0.001"
"""Another number of workers is another order of sums. With the job's own large steps that rounding, 1e-7 in the first
loss, is amplified until it shows; with small ones it stays rounding, and wrong samples or views would still show."""
TIMEOUT_S = 900


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A head and two workers, shared by the tests that kill none of them."""
    import runpy

    here = Path(__file__).parent
    parts = runpy.run_path(str(here / "conftest.py"))
    folder = tmp_path_factory.mktemp("cluster")
    (folder / "simclr.yaml").write_text(parts["SIMCLR"])
    (folder / "dqn.yaml").write_text(parts["DQN"])
    nodes = parts["Nodes"](folder)
    try:
        nodes.start_head()
        nodes.add_worker()
        nodes.add_worker()
        yield nodes
    finally:
        nodes.close()


def weights(nodes: Any, name: str) -> dict[str, Any]:
    folder = RunFolder(str(nodes.folder / "runs" / name))
    assert folder.about()["status"] == "finished"
    return folder.checkpoints().load(folder.checkpoints().steps()[-1])["algorithm"]


def assert_close(one: dict[str, Any], other: dict[str, Any]) -> None:
    """Rule 1: the same trajectory to rounding, whatever the number of workers."""
    assert one.keys() == other.keys()
    for key, value in one.items():
        assert torch.allclose(value.double(), other[key].double(), rtol=1e-3, atol=1e-4), key


def distance(one: dict[str, Any], other: dict[str, Any]) -> float:
    """Of all weights together, over their own length."""
    assert one.keys() == other.keys()
    between = sum(float((one[key].double() - other[key].double()).square().sum()) for key in one)
    return float((between / sum(float(value.double().square().sum()) for value in other.values())) ** 0.5)


def losses(nodes: Any, name: str) -> dict[int, float]:
    """The curve by step, as it is tracked."""
    client = connect(f"sqlite:///{nodes.folder / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("tests")
    (run,) = [run for run in client.search_runs([experiment.experiment_id]) if run.info.run_name == name]
    return {point.step: point.value for point in client.get_metric_history(run.info.run_id, "train/loss")}


def assert_tracked_once(nodes: Any, name: str, steps: int = STEPS) -> Any:
    client = connect(f"sqlite:///{nodes.folder / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("tests")
    (run,) = [run for run in client.search_runs([experiment.experiment_id]) if run.info.run_name == name]
    assert run.info.status == "FINISHED"
    points = [point.step for point in client.get_metric_history(run.info.run_id, "train/loss")]
    assert sorted(points) == list(range(1, steps + 1))
    return run


def test_two_and_four_workers_over_the_nodes(nodes: Any) -> None:
    four = nodes.done("submit", "simclr.yaml", *nodes.places, GENTLE, "--name", "four")
    shipped = re.search(r"shipped\s+([0-9.]+) MB", four)
    assert shipped is not None
    assert float(shipped[1]) < 2.0
    assert "training: step 1/60" in four, "the job's output was not shown"
    nodes.done("submit", "simclr.yaml", *nodes.places, GENTLE, "resources.workers=2", "--name", "two")
    assert_close(weights(nodes, "four"), weights(nodes, "two"))
    run = assert_tracked_once(nodes, "four")
    assert run.data.tags["heliostat.submission"] == "four.1"
    assert run.data.tags["heliostat.address"] == nodes.address
    assert nodes.token not in json.dumps(run.data.tags)
    listed = json.loads(nodes.done("jobs", "list", "--json"))
    assert {(job["id"], job["status"], job["run"]) for job in listed} >= {("four.1", "SUCCEEDED", "four")}
    assert "CPU" in nodes.done("cluster", "status")  # at the address that the environment names
    again = nodes.done("submit", "simclr.yaml", *nodes.places, "--name", "four", code=2)
    assert "was submitted before" in again
    finished = nodes.done("submit", "simclr.yaml", *nodes.places, GENTLE, "--name", "four", "--continue")
    assert "has finished already" in finished


def test_dqn_with_its_shards_on_different_nodes(nodes: Any) -> None:
    nodes.done("submit", "dqn.yaml", *nodes.places, "--name", "dqn")
    where = {actor["repr_name"]: actor["node_id"] for actor in nodes.actors()}  # Ray remembers those that have ended
    assert where["shard 0"] != where["shard 1"], where
    assert RunFolder(str(nodes.folder / "runs/dqn")).about()["status"] == "finished"


def test_a_stopped_job_saves_and_goes_on(nodes: Any) -> None:
    long = ("optimization.steps=400", "resources.workers=2")
    identity = json.loads(
        nodes.done("submit", "simclr.yaml", *nodes.places, *long, "--name", "stopped", "--no-wait", "--json")
    )["submission"]
    nodes.wait_for_step("stopped", 8)
    taken = nodes.done("submit", "simclr.yaml", *nodes.places, *long, "--name", "stopped", "--continue", code=2)
    assert "is running already" in taken
    stopped = json.loads(nodes.done("jobs", "stop", identity, "--json"))
    assert stopped["status"] == "STOPPED"
    folder = RunFolder(str(nodes.folder / "runs/stopped"))
    assert folder.about()["status"] == "interrupted"
    assert folder.checkpoints().steps()[-1] == folder.about()["step"] < 400
    assert "interrupted" in nodes.done("jobs", "logs", identity)
    short = nodes.done("submit", "simclr.yaml", *nodes.places, "--name", "stopped", "--continue", code=2)
    assert "optimization differ" in short  # another length is another experiment
    on = nodes.heliostat("submit", "simclr.yaml", *nodes.places, *long, "--name", "stopped", "--continue")
    nodes.wait_for_step("stopped", folder.about()["step"] + 4, on)
    on.send_signal(signal.SIGINT)  # leaves it running
    output, _ = on.communicate(timeout=60)
    assert on.returncode == 130, output
    assert "goes on without this terminal" in output
    assert "continuing from the checkpoint of step" in nodes.done("jobs", "logs", "stopped")
    assert json.loads(nodes.done("jobs", "status", "stopped", "--json"))["status"] == "RUNNING"
    nodes.done("jobs", "stop", "stopped")


def test_the_same_through_rays_own_command_line(nodes: Any) -> None:
    """No part of heliostat on the submitting side: the code is shipped by hand."""
    import heliostat
    import heliostat_algorithms

    modules = [next(iter(package.__path__)) for package in (heliostat, heliostat_algorithms)]
    (nodes.folder / "ship").mkdir()
    (nodes.folder / "ship/simclr.yaml").write_text((nodes.folder / "simclr.yaml").read_text())
    environment = json.dumps({"working_dir": str(nodes.folder / "ship"), "py_modules": modules})
    command = ["python", "-m", "heliostat", "run", "simclr.yaml", *nodes.places, "--name", "by-ray", "--continue"]
    arguments = ("--address", nodes.address, "--submission-id", "by-ray", "--runtime-env-json", environment)
    output = nodes.ray("job", "submit", *arguments, "--", *command)
    assert "finished" in output
    run = assert_tracked_once(nodes, "by-ray")
    assert run.data.tags["heliostat.submission"] == "by-ray"
    assert "SUCCEEDED" in nodes.done("jobs", "status", "by-ray")
    assert "succeeded" in nodes.ray("job", "status", "--address", nodes.address, "by-ray")


def test_wrong_token_and_more_than_there_can_be(nodes: Any) -> None:
    job = ("submit", "simclr.yaml", *nodes.places)
    assert "refuses this token" in nodes.done(*job, code=2, RAY_AUTH_TOKEN="0" * 64)
    assert "nobody answers there" in nodes.done(*job, "--address", "http://127.0.0.1:9", code=2)
    too_many = nodes.done(*job, "resources.gpus_per_worker=8", "--name", "greedy", code=2)
    assert "4 workers need 32 GPUs, but this cluster has no autoscaler" in too_many
    assert not (nodes.folder / "runs/greedy").exists()
    assert "there is no job 'fourr'" in nodes.done("jobs", "status", "fourr", code=2)


def test_a_node_is_killed(start_nodes: Callable[..., Any]) -> None:
    """Two of four workers go with their node; another joins. The weights are those of an undisturbed run."""
    nodes = start_nodes(2)
    nodes.done("submit", "simclr.yaml", *nodes.places, "--name", "whole")
    process = nodes.heliostat("submit", "simclr.yaml", *nodes.places, "--name", "killed")
    nodes.wait_for_step("killed", 8, process)
    nodes.kill_worker(nodes.workers[-1])
    nodes.add_worker()
    output, _ = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 0, output
    assert "continuing from the checkpoint of step" in output
    one, other = weights(nodes, "killed"), weights(nodes, "whole")
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one), "as many workers, so the same bits"
    assert_tracked_once(nodes, "killed")


def test_four_workers_two_and_four_again(start_nodes: Callable[..., Any]) -> None:
    """An elastic group shrinks with a lost node and grows with a new one, on one trajectory."""
    nodes = start_nodes(2)
    changes = (*nodes.places, "optimization.steps=300", GENTLE)
    elastic = ("resources.workers=[2, 4]", "resources.resize_seconds=5", "optimization.batch_size=60")
    process = nodes.heliostat("submit", "simclr.yaml", *changes, *elastic, "--name", "elastic")
    store = RunFolder(str(nodes.folder / "runs/elastic")).checkpoints()
    sizes = []

    def wait_for(world_size: int) -> None:
        deadline = time.monotonic() + TIMEOUT_S
        while True:
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < deadline, f"never {world_size} workers; {sizes}"
            steps = store.steps()
            try:
                if steps and store.manifest(steps[-1])["world_size"] == world_size:
                    break
            except FileNotFoundError:
                continue  # replaced by a newer one
            time.sleep(0.1)
        sizes.append(world_size)

    wait_for(4)
    nodes.kill_worker(nodes.workers[-1])
    wait_for(2)
    nodes.add_worker()
    wait_for(4)
    output, _ = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 0, output
    assert sizes == [4, 2, 4]
    nodes.done("submit", "simclr.yaml", *changes, "resources.workers=2", elastic[2], "--name", "steady")
    one, other = (losses(nodes, name) for name in ("elastic", "steady"))
    assert sorted(one) == sorted(other) == list(range(1, 301))
    # Rounding grows over 300 steps, through both changes of the group; another batch or view differs by 0.1 at once.
    assert max(abs(one[step] - other[step]) for step in range(1, 41)) < 1e-4
    assert max(abs(one[step] - other[step]) for step in one) < 1e-2
    assert distance(weights(nodes, "elastic"), weights(nodes, "steady")) < 1e-2
    assert_tracked_once(nodes, "elastic", 300)


def test_a_preemption_is_saved_for(start_nodes: Callable[..., Any]) -> None:
    """A node that is announced to go leaves a checkpoint at once, though none is due."""
    nodes = start_nodes(2)
    changes = (*nodes.places, "optimization.steps=400", "resources.workers=2", "checkpoint.every_steps=1000")
    process = nodes.heliostat("submit", "simclr.yaml", *changes, "--name", "spot")
    deadline = time.monotonic() + TIMEOUT_S
    while not (busy := [node for node in nodes.workers if node.processes("RayTrainWorker")]):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.2)
    time.sleep(5)  # into the training
    (identity,) = {row["node_id"] for row in nodes.alive() if row["node_ip"] == busy[0].address}
    nodes.ray(
        *("drain-node", "--address", f"127.0.0.1:{nodes.port}", "--node-id", identity),
        *("--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot", "--deadline-remaining-seconds", "15"),
    )
    saved = nodes.wait_for_step("spot", 1, process)
    assert saved < 400
    time.sleep(15)
    nodes.kill_worker(busy[0])
    output, _ = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 0, output
    assert "will be taken away; saving a checkpoint now" in output
    assert re.search(r"continuing from the checkpoint of step [1-9]", output)
    assert_tracked_once(nodes, "spot", 400)


def test_a_lost_head_is_submitted_to_again(start_nodes: Callable[..., Any]) -> None:
    """The submitter waits, finds a new head that knows no job, and goes on under the same run."""
    nodes = start_nodes(1)
    changes = (*nodes.places, "resources.workers=2", "optimization.steps=200")
    process = nodes.heliostat("submit", "simclr.yaml", *changes, "--name", "head", "--retries", "1")
    before = nodes.wait_for_step("head", 8, process)
    nodes.kill_head()
    nodes.start_head()
    nodes.add_worker()
    output, _ = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 0, output
    assert "the driver was lost; run head goes on" in output
    found = re.search(r"continuing from the checkpoint of step (\d+)", output)
    assert found is not None
    assert int(found[1]) >= before
    assert_tracked_once(nodes, "head", 200)


def test_a_store_that_is_too_small_spills(start_nodes: Callable[..., Any]) -> None:
    """A data set larger than a node's object store reaches a worker on another node all the same."""
    nodes = start_nodes(1, store_bytes=80_000_000)
    script = nodes.folder / "large.py"
    script.write_text(
        "import numpy as np, ray\n"
        "from heliostat.data.images import ImageData\n"
        "from heliostat.data.sharing import share\n"
        "ray.init(log_to_driver=False)\n"
        "images = np.random.default_rng(0).integers(0, 255, (40000, 3, 32, 32), dtype=np.uint8)\n"
        "shared = [share(ImageData(name=str(i), images=images + i, labels=None, classes=())) for i in range(3)]\n"
        "@ray.remote(num_cpus=2)\n"
        "def look(each): return [int(one.open().images.astype(np.int64).sum()) for one in each]\n"
        "want = [int((images + i).astype(np.int64).sum()) for i in range(3)]\n"
        "assert ray.get(look.remote(shared)) == want\n"
        "print('all there')\n"
    )
    import sys

    done = subprocess.run(
        [sys.executable, str(script)],
        env=nodes.variables(RAY_ADDRESS=f"127.0.0.1:{nodes.port}"),
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert "all there" in done.stdout, done.stdout + done.stderr
