"""Whole nodes of a Ray cluster that are lost under a run: their actors die together, and so does what these had made
for others and what lies nowhere else."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest

from heliostat.config.reinforcement import ReinforcementJob
from heliostat.reinforcement import launch
from heliostat.reinforcement.crew import Member, Resources
from heliostat.reinforcement.session import Session
from heliostat.training.run_folder import RunFolder

ray = pytest.importorskip("ray")
from ray.cluster_utils import Cluster  # noqa: E402 - needs Ray

from heliostat.reinforcement import ray_crew  # noqa: E402

pytestmark = pytest.mark.cluster

MakeJob = Callable[..., ReinforcementJob]

HELPERS = '''
"""What actors import: test modules cannot be imported by them."""

from pathlib import Path

import ray


def recorded(place, make):
    """Make a member, and leave the node that it is on."""
    Path(place).write_text(ray.get_runtime_context().get_node_id())
    return make()
'''
CHANGES = (
    "algorithm.prioritization={exponent: 0.6}",
    "replay={capacity: 2000, minimum: 64, samples_per_insert: 4, tolerance: 40}",
    "evaluation={every_steps: 200, episodes: 1, max_steps: 20}",
    "checkpoint.every_steps=150",
    "optimization.steps=600",
)
RESOURCES = "resources={{runtime: ray, actors: 2, shards: 2, overlap: {}}}"


class Nodes:
    """A head without CPUs, where this process is; a node that stays; and one that is lost."""

    def __init__(self) -> None:
        quick = {
            "health_check_period_ms": 1000,
            "health_check_failure_threshold": 5,
            "health_check_initial_delay_ms": 0,
        }
        # Everything but the smallest objects lies on the node of whoever made it, as frames of games do.
        config = {**quick, "max_direct_call_object_size": 1000}
        head = {"num_cpus": 0, "include_dashboard": False, "_system_config": config}
        self.cluster = Cluster(initialize_head=True, head_node_args=head)
        ray.init(address=self.cluster.address, log_to_driver=False, logging_level="error")
        self.add("stays")

    def add(self, name: str) -> Any:
        """A node with four CPUs and places of its own name."""
        return self.cluster.add_node(num_cpus=4, resources={name: 100.0})

    def identity(self, name: str) -> str:
        """Of the node with this name, while it is there."""
        (found,) = [node["NodeID"] for node in ray.nodes() if node["Alive"] and name in node["Resources"]]
        return str(found)

    def lose(self, node: Any) -> None:
        """All of its processes, at once, as a machine that loses its power."""
        raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
        for victim in [raylet, *raylet.children(recursive=True)]:
            try:
                os.kill(victim.pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self.cluster.remove_node(node, allow_graceful=False)


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    """One cluster for all tests, to which each adds the node that it loses."""
    folder = tmp_path_factory.mktemp("helpers")
    (folder / "lost_node_helpers.py").write_text(HELPERS)
    names = ("PYTHONPATH", "RAY_ADDRESS", "RAY_TMPDIR", "OMP_NUM_THREADS")
    before = {name: os.environ.get(name) for name in names}
    # A folder of its own, or others on this machine would find this cluster and join it; short, for sockets' names.
    temporary = tempfile.mkdtemp(prefix="hn-")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(folder), before["PYTHONPATH"]]))
    os.environ.update({"OMP_NUM_THREADS": "1", "RAY_TMPDIR": temporary})
    os.environ.pop("RAY_ADDRESS", None)
    sys.path.insert(0, str(folder))
    nodes = Nodes()
    yield nodes
    ray.shutdown()
    nodes.cluster.shutdown()
    shutil.rmtree(temporary, ignore_errors=True)
    sys.path.remove(str(folder))
    for name, value in before.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


class Placed(ray_crew.RayCrew):
    """Puts those who are hired first on nodes by name; their successors go where Ray puts them."""

    def __init__(self, folder: Path, lost: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self._folder, self._lost = folder, lost
        self.where: dict[str, float] = {}
        plain = ray_crew._Post

        class Post:
            def options(_, **options: Any) -> Any:  # noqa: N805 - the crew's own ``self`` is meant
                return plain.options(**options, resources=self.where)

        monkeypatch.setattr(ray_crew, "_Post", Post())

    def hire(self, member: Member, make: Callable[[], Any], resources: Resources) -> None:
        import lost_node_helpers

        self.where = {}
        if not member.life:
            self.where = {"lost" if str(member) in self._lost else "stays": 0.01}
        place = str(self._folder / f"{member}-{member.life}")
        super().hire(member, partial(lost_node_helpers.recorded, place, make), resources)

    def nodes(self) -> dict[str, str]:
        """The node of each who has begun, by name and life."""
        return {place.name: place.read_text() for place in self._folder.iterdir()}


@pytest.mark.parametrize(
    ("lost", "overlap"),
    [
        ({"rollout 1", "shard 0"}, "true"),
        ({"learner 0", "evaluator 0", "shard 1"}, "true"),
        ({"rollout 0", "learner 0", "shard 0", "shard 1"}, "true"),
        ({"rollout 1", "learner 0", "shard 0"}, "false"),
    ],
    ids=["player-and-shard", "learner-and-shard", "all-memory", "in-lock-step"],
)
def test_a_node_is_lost(
    small: MakeJob,
    nodes: Nodes,
    told: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    lost: set[str],
    overlap: str,
) -> None:
    """Whoever was on it is replaced on the other and told of; the run ends with what it was asked for."""
    monkeypatch.setattr("heliostat.reinforcement.session._STOP_SECONDS", 0.0)
    doomed = nodes.add("lost")
    identity = nodes.identity("lost")
    (tmp_path / "places").mkdir()
    crew = Placed(tmp_path / "places", lost, monkeypatch)
    folder = RunFolder(str(tmp_path / "run"))
    folder.storage.make()
    gone: list[int] = []
    sessions: list[Session] = []

    class Watched(Session):
        def stop_requested(self) -> bool:
            if self.played >= 250 and not gone:
                gone.append(self.played)
                nodes.lose(doomed)
            return False

        def begin(self) -> None:
            sessions.append(self)
            super().begin()

    monkeypatch.setattr(launch, "Session", Watched)
    monkeypatch.setattr(launch, "_crew", lambda job: crew)
    job = small(*CHANGES, RESOURCES.format(overlap))
    try:
        outcome = launch.run(job, job.environment.spec(), folder, told)
    finally:
        if not gone:
            nodes.lose(doomed)
    (session,) = sessions
    assert outcome.status == "finished"
    assert job.optimization.steps <= session.played < job.optimization.steps + 4 * 8
    # Each update once, by the weights that are left.
    state = folder.checkpoints().load(session.played)
    assert state["updates"] == session.updates == session.issued
    assert {int(each["step"]) for each in state["learner"]["optimizer"]["state"].values()} == {session.updates}
    due = 4 * (session.played - 64) / 16
    assert due - 1 < session.updates <= due + 4 * 40 / 16
    # Those who were there were replaced, and nobody else. Until Ray knows that the node is gone it may send a
    # successor there, who is replaced too.
    said = [notice for notice in told.notices if "still being written" not in notice]  # storage may be slow
    assert {notice.split(" was replaced (")[0] for notice in said} == lost, said
    assert len(lost) <= session.roster.failures == len(said) <= 2 * len(lost), said
    where = crew.nodes()
    assert {name for name, node in where.items() if node == identity} == {f"{name}-0" for name in lost}
    for name in lost:
        assert {node for member, node in where.items() if member.startswith(f"{name}-")} > {identity}, where
    # Steps are counted once, also those that were lost on the way to a memory, or with it.
    assert sum(stand.inserted for stand in session.stands) <= session.played
    assert {"eval/return", "baseline/random/return"} <= set(outcome.results)
