"""The crew as actors of Ray: the same as in one process where order is kept; what happens when actors are killed."""

from __future__ import annotations

import os
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from heliostat.config.reinforcement import ReinforcementJob
from heliostat.errors import RunError
from heliostat.reinforcement import launch
from heliostat.reinforcement.crew import LocalCrew, Member, MemberLost, Resources
from heliostat.reinforcement.session import Session
from heliostat.training.run_folder import RunFolder

ray = pytest.importorskip("ray")
from heliostat.reinforcement.ray_crew import RayCrew  # noqa: E402 - needs Ray

MakeJob = Callable[..., ReinforcementJob]

HELPERS = '''
"""What actors import: test modules cannot be imported by them."""

import os
import time
from pathlib import Path

import gymnasium
import numpy as np
import torch


def recorded(place, make):
    """Make a member, and leave the number of its process."""
    Path(place).write_text(str(os.getpid()))
    return make()


class Failing(gymnasium.Env):
    """Episodes of 10 steps; a step of this process raises or hangs, and where ``once`` is given, only of the first
    process that comes to it."""

    observation_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self, how, at, once=None):
        self.how, self.at, self.once, self.steps, self.played = how, at, once, 0, 0

    def reset(self, *, seed=None, options=None):
        self.steps = 0
        return np.zeros(2, np.float32), {}

    def step(self, action):
        self.steps += 1
        self.played += 1
        if self.played == self.at and (self.once is None or not os.path.exists(self.once)):
            if self.once is not None:
                Path(self.once).touch()
            if self.how == "raises":
                raise ZeroDivisionError("the ball is nowhere")
            time.sleep(3600)
        return np.full(2, self.steps / 10, np.float32), 1.0, self.steps == 10, False, {}


class Unsteady(gymnasium.Env):
    """Episodes of 10 steps, each of which takes as long as it likes; the first ``hangs`` times that the dice say so,
    one never ends. The environments of all processes count those together, in a folder."""

    observation_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self, folder, hangs):
        self.folder, self.hangs, self.steps = Path(folder), hangs, 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return np.zeros(2, np.float32), {}

    def step(self, action):
        self.steps += 1
        time.sleep(self.np_random.exponential(0.003))
        if self.np_random.random() < 0.03:
            for number in range(self.hangs):
                try:
                    (self.folder / f"hang-{number}").touch(exist_ok=False)
                except FileExistsError:
                    continue
                time.sleep(3600)
        return np.full(2, self.steps / 10, np.float32), 1.0, self.steps == 10, False, {}


class Plain:
    """A member that does as it is told."""

    def __init__(self):
        self.made_with = torch.get_num_threads()

    def answer(self, value):
        return value

    def pair(self):
        return 1, 2

    def threads(self):
        return self.made_with, torch.get_num_threads()

    def denormals(self):
        return int((torch.full((1_000_000,), 1e-30) * 1e-10).count_nonzero())

    def fail(self, message):
        raise ValueError("first line\\\\n" + message)

    def wait(self, seconds):
        time.sleep(seconds)

    def exit(self):
        os._exit(3)


def broken():
    raise OSError("no space for this one")
'''


@pytest.fixture(scope="module")
def helpers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """One Ray instance, whose workers can import a module of this test's."""
    folder = tmp_path_factory.mktemp("helpers")
    (folder / "ray_run_helpers.py").write_text(HELPERS)
    before = {name: os.environ.get(name) for name in ("PYTHONPATH", "RAY_ADDRESS", "OMP_NUM_THREADS")}
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(folder), before["PYTHONPATH"]]))
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ.pop("RAY_ADDRESS", None)
    sys.path.insert(0, str(folder))
    ray.init(num_cpus=12, include_dashboard=False, log_to_driver=False, logging_level="error")
    import ray_run_helpers

    yield ray_run_helpers
    ray.shutdown()
    sys.path.remove(str(folder))
    for name, value in before.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


class Recorded(RayCrew):
    """Knows the process of each member."""

    def __init__(self, helpers: Any, folder: Path) -> None:
        super().__init__()
        self._helpers, self._folder = helpers, folder
        self.hired: list[Member] = []
        self.asked: Counter[tuple[str, int, str]] = Counter()

    def hire(self, member: Member, make: Callable[[], Any], resources: Resources) -> None:
        self.hired.append(member)
        place = str(self._folder / f"{member.role}-{member.index}-{member.life}")
        super().hire(member, partial(self._helpers.recorded, place, make), resources)

    def ask(self, member: Member, method: str, *arguments: Any, returns: int = 1) -> Any:
        self.asked[member.role, member.index, method] += 1
        return super().ask(member, method, *arguments, returns=returns)

    def process(self, role: str, index: int) -> int | None:
        """The process of whoever is in this place now, once it has begun."""
        life = max(member.life for member in self.hired if (member.role, member.index) == (role, index))
        place = self._folder / f"{role}-{index}-{life}"
        return int(place.read_text()) if place.exists() else None


@pytest.fixture
def run(helpers: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: Any) -> Callable[..., Any]:
    """Conducts a run as the launcher does; ``watch(session, crew)`` is called now and then while it works."""
    monkeypatch.setattr("heliostat.reinforcement.session._STOP_SECONDS", 0.0)

    def conduct(
        job: ReinforcementJob, watch: Callable[[Session, Any], None] = lambda session, crew: None, name: str = "run"
    ) -> Any:
        folder, watcher = RunFolder(str(tmp_path / name)), type(told)()
        folder.storage.make()
        (tmp_path / f"{name}-processes").mkdir()
        crew: Any = LocalCrew()
        if job.resources.runtime == "ray":
            crew = Recorded(helpers, tmp_path / f"{name}-processes")

        class Watched(Session):
            def begin(self) -> None:
                watcher.session = self
                watcher.crew = crew
                watcher.folder = folder
                super().begin()

            def stop_requested(self) -> bool:
                watch(self, crew)
                return False

        with monkeypatch.context() as patch:
            patch.setattr(launch, "Session", Watched)
            patch.setattr(launch, "_crew", lambda job: crew)
            watcher.outcome = launch.run(job, job.environment.spec(), folder, watcher)
        return watcher

    return conduct


def notices(told: Any) -> list[str]:
    """All that was said, but that storage was slow."""
    return [notice for notice in told.notices if "still being written" not in notice]


def final(told: Any) -> Any:
    return told.folder.checkpoints().load(told.session.played)


LOCKSTEP = (
    "algorithm.prioritization={exponent: 0.6}",
    "algorithm.n_step=2",
    "rollout.initial_priorities=td-error",
    "evaluation={every_steps: 150, episodes: 2, environments: 2, max_steps: 30, epsilon: 0.1}",
)


def test_lockstep_over_ray_is_the_same_as_one_process(small: MakeJob, run: Any, same_bits: Any) -> None:
    local = run(small(*LOCKSTEP, "resources={runtime: local}"), name="local")
    spread = run(small(*LOCKSTEP, "resources={runtime: ray, overlap: false}"), name="ray")
    one, other = final(local), final(spread)
    assert one["updates"] == local.session.updates > 50
    assert same_bits(one["learner"], other["learner"])
    assert {key: one[key] for key in ("played", "updates", "limiter")} == {
        key: other[key] for key in ("played", "updates", "limiter")
    }
    for name in ("train/loss", "rollout/return", "replay/sample_age", "eval/return", "replay/items"):
        assert local.curve(name) == spread.curve(name) != [], name
    assert local.outcome.results == spread.outcome.results


OVERLAPPED = (
    "algorithm.prioritization={exponent: 0.6}",
    "replay={capacity: 2000, minimum: 64, samples_per_insert: 4, tolerance: 40}",
    "evaluation={every_steps: 200, episodes: 1, max_steps: 20}",
    "checkpoint.every_steps=150",
    "optimization.steps=600",
    "resources={runtime: ray, actors: 2, shards: 2}",
)


def assert_complete(told: Any) -> None:
    session, job = told.session, told.session.job
    assert told.outcome.status == "finished"
    assert job.optimization.steps <= session.played < job.optimization.steps + 4 * 8
    state = final(told)
    assert state["updates"] == session.updates == session.issued
    steps = {int(each["step"]) for each in state["learner"]["optimizer"]["state"].values()}
    assert steps == {session.updates}  # Adam counts by itself
    due = 4 * (session.played - 64) / 16
    assert due - 1 < session.updates <= due + 4 * 40 / 16
    assert {"eval/return", "baseline/random/return"} <= set(told.outcome.results)


def test_an_overlapped_run_finishes(small: MakeJob, run: Any) -> None:
    told = run(small(*OVERLAPPED))
    assert_complete(told)
    assert notices(told) == []
    assert sum(stand.inserted for stand in told.session.stands) == told.session.played
    assert len(told.crew.hired) == 6


@pytest.mark.slow
def test_two_learners_are_one_up_to_rounding(small: MakeJob, run: Any) -> None:
    changes = (*LOCKSTEP[:2], LOCKSTEP[3], "optimization.steps=200")
    one = run(small(*changes, "resources={runtime: ray, overlap: false}"), name="one")
    two = run(small(*changes, "resources={runtime: ray, overlap: false, learners: 2}"), name="two")
    assert one.session.updates == two.session.updates
    for name, value in final(one)["learner"]["agent"].items():
        assert torch.allclose(value, final(two)["learner"]["agent"][name], atol=1e-3), name


@pytest.mark.slow
@pytest.mark.parametrize(("moment", "overlap"), [(100, "true"), (330, "true"), (200, "false")])
@pytest.mark.parametrize(
    ("role", "index", "lost"),
    [
        ("rollout", 1, "the steps it had not handed in are lost"),
        ("shard", 0, "transitions are lost, and its lanes fill it again"),
        ("learner", 0, "it goes on from update"),
        ("evaluator", 0, "its evaluation is made again"),
    ],
)
def test_whoever_is_killed_is_replaced(
    small: MakeJob, run: Any, role: str, index: int, lost: str, moment: int, overlap: str
) -> None:
    killed: list[int] = []

    def watch(session: Session, crew: Recorded) -> None:
        process = crew.process(role, index)
        if session.played >= moment and not killed and process is not None:
            os.kill(process, signal.SIGKILL)
            killed.append(process)

    told = run(small(*OVERLAPPED, f"resources.overlap={overlap}"), watch)
    assert killed
    assert_complete(told)
    (said,) = notices(told)
    assert said.startswith(f"{role} {index} was replaced (")
    assert lost in said
    assert "common causes" not in said
    assert told.session.roster.failures == 1
    assert told.curve("run/failures")[-1][1] == 1


@pytest.mark.slow
def test_one_of_two_learners_is_killed(small: MakeJob, run: Any) -> None:
    """The other cannot go on alone; both begin again from the checkpoint."""
    killed: list[int] = []

    def watch(session: Session, crew: Recorded) -> None:
        if session.played >= 200 and not killed:
            killed.append(crew.process("learner", 1) or 0)
            os.kill(killed[0], signal.SIGKILL)

    told = run(small(*OVERLAPPED, "resources.learners=2"), watch)
    assert_complete(told)
    (said,) = notices(told)
    assert said.startswith("learner 1 was replaced (")


@pytest.mark.slow
@pytest.mark.parametrize("overlap", ["true", "false"])
@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("raises", "lane 1, action [01]: ZeroDivisionError: the ball is nowhere"),
        ("hangs", r"it takes longer than 2 s \(timeout_s\)"),
    ],
)
def test_an_environment_that_fails(small: MakeJob, run: Any, tmp_path: Path, how: str, said: str, overlap: str) -> None:
    """Once: its rollout is replaced and counted, and the run ends well. Again and again: the run ends and says why."""

    def job(arguments: str) -> ReinforcementJob:
        return small(
            f"environment={{type: custom, factory: 'ray_run_helpers:Failing', timeout_s: 2, arguments: {arguments}}}",
            "rollout={environments: 2, calls: 8}",
            "optimization.steps=200",
            f"resources={{runtime: ray, max_failures: 2, overlap: {overlap}}}",
        )

    once = run(job(f"{{how: {how}, at: 40, once: '{tmp_path / 'marker'}'}}"), name="once")
    assert once.outcome.status == "finished"
    assert once.session.roster.failures == 1
    assert len(notices(once)) == 1
    with pytest.raises(RunError, match=said.replace("lane 1", "lane [01]")) as caught:
        run(job(f"{{how: {how}, at: 20}}"), name="always")
    assert str(caught.value).startswith("rollout 0 failed: ")
    assert "environment ray_run_helpers:Failing" in str(caught.value)
    assert "max_failures (2)" in str(caught.value)


@pytest.mark.slow
def test_simulations_that_are_slow_and_hang_at_random(small: MakeJob, run: Any, tmp_path: Path) -> None:
    """The ratio is kept at every moment, both actors play, and the watchdog sees to each that hangs."""
    (tmp_path / "hangs").mkdir()
    due: list[float] = []
    job = small(
        *OVERLAPPED,
        f"environment={{type: custom, factory: 'ray_run_helpers:Unsteady', timeout_s: 2, "
        f"arguments: {{folder: '{tmp_path / 'hangs'}', hangs: 3}}}}",
    )
    told = run(job, lambda session, crew: due.append(session.limiter.due))
    assert_complete(told)
    assert len(list((tmp_path / "hangs").iterdir())) == 3
    assert told.session.roster.failures == 3
    assert all("it takes longer than 2 s (timeout_s)" in notice for notice in notices(told)), told.notices
    # Learners may be ahead of what is due by the tolerance, and before the first update by the minimum; players by the
    # tolerance, in samples.
    assert min(due) >= -4 * 64
    assert max(due) <= 4 * 40
    # 32 steps are one call of both.
    plays = [told.crew.asked["rollout", number, "play"] for number in range(2)]
    assert min(plays) > 600 / 32 / 4, plays


def test_an_actor_computes_with_its_threads_and_is_made_with_one(helpers: Any) -> None:
    """Two of Ray's threads would have some each otherwise, and more than there are cores are slow."""
    crew, learner = RayCrew(), Member("learner", 0, 0)
    crew.hire(learner, helpers.Plain, Resources(cpus=3.5))
    try:
        assert [crew.get(crew.ask(learner, "threads")) for _ in range(2)] == [(1, 3)] * 2
    finally:
        crew.close()


def test_numbers_too_small_for_a_processor_are_zero_in_an_actor(helpers: Any) -> None:
    if not torch.set_flush_denormal(False):
        pytest.skip("this processor cannot flush denormals")
    crew, learner = RayCrew(), Member("learner", 0, 0)
    crew.hire(learner, helpers.Plain, Resources(cpus=2))
    try:
        assert crew.get(crew.ask(learner, "denormals")) == 0
    finally:
        crew.close()


def test_what_the_crew_says_of_its_members(helpers: Any) -> None:
    crew = RayCrew()
    one, other, third = Member("shard", 0, 0), Member("shard", 1, 0), Member("shard", 2, 0)
    for member in (one, other):
        crew.hire(member, helpers.Plain, Resources(cpus=0))
    crew.hire(third, helpers.broken, Resources(cpus=0))
    try:
        assert crew.get(crew.ask(one, "answer", crew.ask(other, "answer", 5))) == 5
        assert [crew.get(future) for future in crew.ask(one, "pair", returns=2)] == [1, 2]
        assert crew.get(crew.ask(one, "answer", crew.share({"a": torch.ones(2)})))["a"].tolist() == [1, 1]
        with pytest.raises(MemberLost, match="ValueError: what is wrong"):
            crew.get(crew.ask(one, "fail", "ValueError: what is wrong"))
        with pytest.raises(MemberLost, match="no space for this one"):
            crew.get(crew.ask(third, "answer", 1))
        assert crew.dead([one, other]) == []
        assert crew.dead([one, third]) == [third]
        slow = crew.ask(other, "wait", 30)
        with pytest.raises(MemberLost, match=r"no answer within 0\.2 s"):
            crew.get(slow, 0.2)
        assert crew.ready([], 5.0) == []
        assert crew.ready([slow], 0.1) == []
        assert crew.dead([other]) == []  # who works is alive
        done = [crew.ask(one, "answer", number) for number in range(3)]
        crew.get(done[-1])
        assert set(crew.ready([slow, *done], 5.0)) == set(done)
        with pytest.raises(MemberLost):
            crew.get(crew.ask(one, "exit"))
        assert crew.dead([one, other]) == [one]
        with pytest.raises(MemberLost):
            crew.get(crew.ask(one, "answer", 1))
        # One who waits for what a dead one should have made has not failed, but has nothing either.
        crew.hire(Member("shard", 0, 1), helpers.Plain, Resources(cpus=0))
        crew.dismiss(other)
        with pytest.raises(MemberLost):
            crew.get(slow)
        assert crew.dead([other]) == [other]
        assert crew.get(crew.ask(Member("shard", 0, 1), "answer", 7)) == 7
    finally:
        crew.close()
