"""Coordinating a crew without Ray: members in this process, who work in an order that dice decide, and who die, fail or
hang where a test wants it.

What must hold whatever happens: the run ends with the steps and updates that it was asked for, or with the reason why
not; each step and each update is counted once; the limiter's bounds are kept; the checkpoint is the state it claims.
"""

from __future__ import annotations

import itertools
import random
import re
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from heliostat.config.reinforcement import ReinforcementJob
from heliostat.errors import RunError
from heliostat.reinforcement import flight, launch, overlapped, session
from heliostat.reinforcement.crew import LocalCrew, Member, MemberLost, Resources
from heliostat.reinforcement.judge import Verdict
from heliostat.reinforcement.learner import LearnerReport
from heliostat.reinforcement.rollout import RolloutReport, RolloutWorker
from heliostat.reinforcement.session import Session
from heliostat.reinforcement.shard import ReplayShard, ShardReport
from heliostat.reinforcement.snapshots import Pending
from heliostat.training.monitor import Outcome
from heliostat.training.run_folder import RunFolder
from heliostat.training.storage import Storage

MakeJob = Callable[..., ReinforcementJob]
Same = Callable[[Any, Any], bool]
Key = tuple[str, int]

MANY = (
    "rollout={environments: 4, calls: 4}",
    "algorithm.prioritization={exponent: 0.6}",
    "replay={capacity: 1000, minimum: 48, samples_per_insert: 4, tolerance: 20, prefetch: 4}",
    "optimization.steps=240",
    "evaluation={every_steps: 100, episodes: 1, max_steps: 10}",
    "checkpoint.every_steps=60",
    "tracking.every_steps=40",
    "resources={runtime: ray, actors: 2, shards: 2}",
)
ONE = (*MANY[:-1], "resources={runtime: ray}")


# The crew


class Future:
    """What a member was asked for."""

    def __init__(self) -> None:
        self.done = False
        self.value: Any = None
        self.lost: str | None = None

    def settle(self, value: Any = None, lost: str | None = None) -> None:
        assert not self.done
        self.done, self.value, self.lost = True, value, lost


@dataclass
class Task:
    """One thing that a member was asked."""

    method: str
    arguments: tuple[Any, ...]
    futures: list[Future]


@dataclass
class Fault:
    """What goes wrong, and when: at the ``nth`` call of a method of whoever is in this place, counted over lives."""

    role: str
    index: int
    method: str
    nth: int
    kind: str = "dies"
    """``dies`` before the call is worked on, ``dies after`` it was but nobody got the result, ``raises``, ``hangs``."""
    times: int = 1
    """How many calls in a row."""


class Gone(BaseException):
    """The coordinator's process is killed, at once."""


class Deadlock(Exception):  # noqa: N818 - what the crew finds out about its coordinator
    """Nobody has anything to do, and the coordinator waits."""


@dataclass
class SimulatedCrew:
    """Members whose tasks are done one by one: each does its own in the order in which they were asked for, and which
    of the members is next is drawn. Without dice everything is done when it is asked for."""

    seed: int | None = None
    faults: Sequence[Fault] = ()
    kills: Sequence[tuple[int, str, int]] = ()
    """(number of tasks done by all, role, index): who dies then."""
    nodes: Sequence[tuple[int, Sequence[Key]]] = ()
    """(number of tasks done by all, who is there): a machine that is lost then, with all that its members made."""
    slow: dict[Key, int] = field(default_factory=dict)
    """Members who get one turn where the others get so many."""
    ends: int | None = None
    """Number of tasks done by all after which the coordinator is killed."""
    members: dict[Key, Member] = field(default_factory=dict)
    objects: dict[Key, Any] = field(default_factory=dict)
    queues: dict[Key, deque[Task]] = field(default_factory=dict)
    dead_ones: dict[Key, str] = field(default_factory=dict)
    hanging: set[Key] = field(default_factory=set)
    made: dict[Key, list[Future]] = field(default_factory=dict)
    """What lies on the machine of each; small things travel to the coordinator at once."""
    calls: Counter[tuple[str, int, str]] = field(default_factory=Counter)
    hired: list[Member] = field(default_factory=list)
    reports: list[RolloutReport] = field(default_factory=list)
    """Of rollouts, as the coordinator took them in."""
    tasks = 0
    idle = 0
    clock = 0.0
    closed = False

    def __post_init__(self) -> None:
        self.dice = random.Random(self.seed)
        self.killed = sorted(self.kills)
        self.broken = sorted(self.nodes)

    # What a coordinator sees

    def hire(self, member: Member, make: Callable[[], Any], resources: Resources) -> None:
        self.dismiss(member)
        key = member.role, member.index
        assert all(former.life < member.life for former in self.hired if (former.role, former.index) == key)
        self.hired.append(member)
        self.members[key], self.queues[key] = member, deque()
        try:
            self.objects[key] = make()
        except Exception as error:  # noqa: BLE001 - a member that cannot be made is dead
            self.dead_ones[key] = f"{type(error).__name__}: {error}"

    def ask(self, member: Member, method: str, *arguments: Any, returns: int = 1) -> Any:
        key = member.role, member.index
        assert self.members[key] == member, f"{member} was replaced, and is asked all the same"
        futures = [Future() for _ in range(returns)]
        if key in self.dead_ones:
            for future in futures:
                future.settle(lost=self.dead_ones[key])
        else:
            self.queues[key].append(Task(method, arguments, futures))
        if self.seed is None:
            while self.work():
                pass
        return futures[0] if returns == 1 else tuple(futures)

    def ready(self, futures: Sequence[Future], seconds: float) -> list[Future]:
        for _ in range(self.dice.randint(0, 3)):
            self.work()
        while futures and not any(future.done for future in futures) and self.work():
            pass
        done = [future for future in futures if future.done]
        self.idle = 0 if done else self.idle + 1
        if not done:
            self.clock += 50 * seconds if self.hanging else seconds
        if self.idle > (500 if self.hanging else 50):
            raise Deadlock({key: [task.method for task in queue] for key, queue in self.queues.items() if queue})
        return done

    def get(self, future: Future, seconds: float | None = None) -> Any:
        while not future.done and self.work():
            pass
        if not future.done:
            if not self.hanging or seconds is None:
                raise Deadlock("what is waited for never comes")
            self.clock += seconds
            raise MemberLost(f"no answer within {seconds:g} s")
        if future.lost is not None:
            raise MemberLost(future.lost)
        if isinstance(future.value, RolloutReport):
            self.reports.append(future.value)
        return future.value

    def dismiss(self, member: Member) -> None:
        key = member.role, member.index
        self.die(key, "it was dismissed")
        for each in (self.members, self.objects, self.dead_ones):
            each.pop(key, None)  # type: ignore[attr-defined]
        self.hanging.discard(key)

    def dead(self, members: Sequence[Member]) -> list[Member]:
        return [m for m in members if self.members.get((m.role, m.index)) != m or (m.role, m.index) in self.dead_ones]

    def share(self, value: Any) -> Any:
        future = Future()
        future.settle(value)
        return future

    def close(self) -> None:
        for member in list(self.members.values()):
            self.dismiss(member)
        self.closed = True

    # What goes on behind

    def die(self, key: Key, reason: str = "it was killed") -> None:
        """Nothing that it was asked for will come, and nothing more can be asked."""
        self.dead_ones[key] = reason
        gone = self.objects.pop(key, None)
        if isinstance(gone, ReplayShard) and gone._writing is not None:
            gone._writing.join()  # in a process of its own the thread would have ended with it
        if hasattr(gone, "close"):
            gone.close()
        for task in self.queues.pop(key, ()):
            for future in task.futures:
                future.settle(lost=reason)
        self.queues[key] = deque()

    def work(self) -> bool:
        """Somebody does one thing; whether there was anything to do."""
        if self.tasks == self.ends:
            raise Gone
        while self.killed and self.killed[0][0] <= self.tasks:
            _, *key = self.killed.pop(0)
            if (key[0], key[1]) in self.objects:
                self.die((key[0], key[1]))  # type: ignore[arg-type]
        while self.broken and self.broken[0][0] <= self.tasks:
            for key in self.broken.pop(0)[1]:
                if key in self.objects:
                    self.lose(key)
        able = [
            key
            for key, queue in self.queues.items()
            if queue and key not in self.hanging and all(a.done for a in queue[0].arguments if isinstance(a, Future))
        ]
        if not able:
            return False
        turns = [1 / self.slow.get(key, 1) for key in able]
        self.do(self.dice.choices(able, turns)[0] if self.slow else self.dice.choice(able))
        return True

    def lose(self, key: Key) -> None:
        """A member dies with its machine, and what it made can be had no more."""
        self.die(key, "its node is gone")
        for future in self.made.pop(key, ()):
            if future.lost is None:
                future.value, future.lost = None, "ObjectLostError: its node is gone"

    def do(self, key: Key) -> None:
        self.tasks += 1
        task = self.queues[key].popleft()
        given = [a for a in task.arguments if isinstance(a, Future)]
        lost = next((a.lost for a in given if a.lost is not None), None)
        if lost is not None:  # as in Ray: what depends on what was lost is lost, and its member did nothing
            for future in task.futures:
                future.settle(lost=lost)
            return
        name = (*key, task.method)
        self.calls[name] += 1
        for fault in self.faults:
            begins = fault.nth
            if (fault.role, fault.index, fault.method) == name and begins <= self.calls[name] < begins + fault.times:
                if fault.kind == "hangs":
                    self.queues[key].appendleft(task)
                    self.hanging.add(key)
                    return
                if fault.kind == "raises":
                    for future in task.futures:
                        future.settle(lost="ValueError: it does not work")
                    return
                self.queues[key].appendleft(task)
                if fault.kind == "dies after":
                    self.call(key, task)
                self.die(key)
                return
        try:
            value = self.call(key, task)
        except Exception as error:  # noqa: BLE001 - as Ray does: a task that raises leaves its actor alive
            for future in task.futures:
                future.settle(lost=f"{type(error).__name__}: {error}")
            return
        values = [value] if len(task.futures) == 1 else value
        for future, each in zip(task.futures, values, strict=True):
            future.settle(each)
            if not isinstance(each, RolloutReport | LearnerReport | ShardReport | Verdict | float):
                self.made.setdefault(key, []).append(future)

    def call(self, key: Key, task: Task) -> Any:
        arguments = [a.value if isinstance(a, Future) else a for a in task.arguments]
        return getattr(self.objects[key], task.method)(*arguments)


# Runs


@dataclass
class Run:
    """What is known of a run that has ended."""

    session: Session
    crew: Any
    told: Any
    folder: RunFolder
    outcome: Outcome | None
    error: RunError | None
    weights: Any
    """The learner's state at the end."""
    adam_steps: int
    extremes: tuple[float, float]
    """The least and the most that was due to be sampled, in items."""
    inserted: int

    @property
    def notices(self) -> list[str]:
        """All that was said, but that storage was slow."""
        return [notice for notice in self.told.notices if "still being written" not in notice]


class Clock:
    """Time as the crew has it."""

    def __init__(self, crew: SimulatedCrew) -> None:
        self._crew = crew

    def monotonic(self) -> float:
        return self._crew.clock

    def perf_counter(self) -> float:
        return self._crew.clock


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: Any) -> Callable[..., Run]:
    """Conducts a run with a crew, as the launcher does."""
    monkeypatch.setattr("heliostat.reinforcement.session._STOP_SECONDS", -1.0)

    def conduct(
        job: ReinforcementJob, crew: Any, name: str = "run", stop: Callable[[Session], bool] = lambda session: False
    ) -> Run:
        folder = RunFolder(str(tmp_path / name))
        folder.storage.make()
        watcher = type(told)()
        kept: dict[str, Any] = {}
        due: list[float] = [0.0]

        class Watched(Session):
            """Remembers itself, and what its limiter went through."""

            def begin(self) -> None:
                kept["session"] = self
                watcher.stop = lambda: stop(self)
                super().begin()
                limiter = self.limiter
                due.append(limiter.due)
                for method in ("inserted", "sampled"):
                    plain = getattr(limiter, method)

                    def told(count: int, plain: Callable[[int], None] = plain) -> None:
                        plain(count)
                        due.append(limiter.due)

                    setattr(limiter, method, told)

        close = crew.close

        def remember() -> None:
            learner = getattr(crew, "objects", getattr(crew, "_members", {})).get(("learner", 0))
            if learner is not None:
                kept["weights"] = learner.state()
                kept["adam"] = adam_steps(kept["weights"])
            shards = getattr(crew, "objects", getattr(crew, "_members", {}))
            kept["inserted"] = sum(o.buffer.inserted for key, o in shards.items() if key[0] == "shard")
            close()

        crew.close = remember
        outcome = error = None
        with monkeypatch.context() as patch:
            patch.setattr(launch, "Session", Watched)
            patch.setattr(launch, "_crew", lambda job: crew)
            if isinstance(crew, SimulatedCrew):
                for module in (flight, overlapped, session):
                    patch.setattr(module, "time", Clock(crew))
            try:
                outcome = launch.run(job, job.environment.spec(), folder, watcher)
            except RunError as failure:
                error = failure
        return Run(
            kept["session"],
            crew,
            watcher,
            folder,
            outcome,
            error,
            kept.get("weights"),
            kept.get("adam", -1),
            (min(due), max(due)),
            kept["inserted"],
        )

    return conduct


def adam_steps(state: Any) -> int:
    """How often Adam moved the weights, from the initial ones on: it counts by itself."""
    steps = {int(each["step"]) for each in state["optimizer"]["state"].values()}
    assert len(steps) <= 1
    return steps.pop() if steps else 0


def demanded(job: ReinforcementJob, played: int) -> int:
    """Updates that the ratio asks for after so many steps."""
    replay = job.replay
    return int(replay.samples_per_insert * (played - replay.minimum) // job.optimization.batch_size)


def assert_complete(run: Run, *, resumed: bool = False, short: int = 0) -> None:
    """What holds of every run that has finished; ``short``: updates for which no memory was left."""
    job, session = run.session.job, run.session
    assert run.error is None, run.error
    assert run.outcome is not None
    assert (run.outcome.status, run.outcome.step) == ("finished", session.played)
    resources, rollout, batch = job.resources, job.rollout, job.optimization.batch_size
    one_call = rollout.environments * rollout.calls
    assert job.optimization.steps <= session.played < job.optimization.steps + one_call
    if not resumed:  # each step once
        assert session.played == sum(report.steps for report in run.crew.reports)
    # Updates: as many as the ratio asks for, each made once by the weights that are left, and all of them saved.
    assert session.updates == session.issued
    assert run.weights is None or run.adam_steps == session.updates  # a learner may die when all is done
    slack = 0.0 if resources.lockstep else job.replay.samples_per_insert * (job.replay.tolerance or 0.0)
    ahead = int((job.replay.samples_per_insert * (session.played - job.replay.minimum) + slack) // batch)
    assert demanded(job, session.played) - short <= session.updates <= max(ahead, demanded(job, session.played))
    state = run.folder.checkpoints().load(session.played)
    assert (state["played"], state["updates"]) == (session.played, session.updates)
    assert adam_steps(state["learner"]) == session.updates
    for name, value in state["learner"]["agent"].items():
        assert run.weights is None or torch.equal(value, run.weights["agent"][name]), name
    # It was judged at the end, and compared with random play.
    assert {"eval/return", "baseline/random/return"} <= set(run.outcome.results)
    assert run.told.curve("eval/return")[-1][0] == session.played
    assert run.told.links == [(run.folder.checkpoints().uri(session.played), session.played)]
    for name in ("rollout/return", "train/loss", "eval/return", "replay/items", "run/failures"):
        steps = [step for step, _ in run.told.curve(name)]
        assert steps == sorted(steps), name
    assert run.crew.closed if hasattr(run.crew, "closed") else not run.crew._members


# Without faults


@pytest.mark.parametrize("changes", [ONE, MANY], ids=["one", "many"])
def test_in_lockstep_the_run_is_what_was_asked_for(small: MakeJob, run: Callable[..., Run], changes: Any) -> None:
    job = small(*changes, "resources.overlap=false")
    ended = run(job, SimulatedCrew())
    assert_complete(ended)
    assert ended.session.updates == demanded(job, ended.session.played)
    assert ended.inserted == ended.session.played
    assert ended.session.roster.failures == 0
    assert ended.notices == []
    again = run(job, SimulatedCrew(seed=5), "again")  # in any other order
    assert all(torch.equal(v, again.weights["agent"][n]) for n, v in ended.weights["agent"].items())


def test_one_process_and_a_crew_of_one_each_are_the_same(small: MakeJob, run: Callable[..., Run]) -> None:
    local = run(small(*ONE[:-1], "resources={runtime: local}"), LocalCrew(), "local")
    crew = run(small(*ONE, "resources.overlap=false"), SimulatedCrew(seed=1), "crew")
    assert local.session.updates == crew.session.updates
    assert all(torch.equal(v, crew.weights["agent"][n]) for n, v in local.weights["agent"].items())
    for name in ("rollout/return", "train/loss", "train/q_mean", "replay/sample_age", "eval/return", "replay/items"):
        assert local.told.curve(name) == crew.told.curve(name), name
        assert local.told.curve(name)
    assert local.outcome.results == crew.outcome.results  # type: ignore[union-attr]


@pytest.mark.parametrize("changes", [ONE, MANY], ids=["one", "many"])
@pytest.mark.parametrize("seed", [None, 1, 2, 3])
def test_overlapped_the_run_is_what_was_asked_for(
    small: MakeJob, run: Callable[..., Run], changes: Any, seed: int | None
) -> None:
    job = small(*changes)
    ended = run(job, SimulatedCrew(seed))
    assert_complete(ended)
    assert ended.inserted == ended.session.played
    assert (ended.session.roster.failures, ended.notices) == (0, [])
    assert ended.session.limiter.state() == {
        "inserted": ended.session.played,
        "sampled": ended.session.updates * job.optimization.batch_size,
    }
    # Neither side is ever further ahead than it may be: samplers by the tolerance; inserters by the tolerance, or
    # where there is not enough for a batch, by what each actor plays between two looks.
    slack = 4 * 20
    play = 4 * 4 * 4
    least, most = ended.extremes
    assert least >= min(-slack, -4 * 48)
    assert most <= max(slack, 16 - slack + play)


@pytest.mark.parametrize("seed", [None, 4])
def test_evaluations_checkpoints_and_points_come_when_they_are_due(
    small: MakeJob, run: Callable[..., Run], seed: int | None
) -> None:
    """Once after each multiple of their steps, at the first look that is past it, and at the end."""
    job = small(*MANY[:-1], "resources={runtime: ray, actors: 2, shards: 2}", "optimization.steps=400")
    for kind in ("lockstep", "overlapped"):
        ended = run(
            small(*MANY, "optimization.steps=400", f"resources.overlap={str(kind != 'lockstep').lower()}"),
            SimulatedCrew(seed),
            kind,
        )
        assert_complete(ended)
        for name, every, grace in (("checkpoint/seconds", 60, 16), ("eval/return", 100, 99), ("replay/items", 40, 16)):
            steps = [step for step, _ in ended.told.curve(name)]
            assert steps[-1] == ended.session.played
            passed = [step // every for step in dict.fromkeys(steps)]
            # One each; and where the end comes after a multiple that had its own, one more.
            assert [n for n, _ in itertools.groupby(passed)] == list(range(1, ended.session.played // every + 1)), name
            assert all(step % every <= grace for step in steps[:-1]), (name, steps)
    assert job.evaluation.every_steps == 100


def test_the_end_is_saved_with_all_its_updates(small: MakeJob, run: Callable[..., Run]) -> None:
    """The last steps may make a checkpoint due while updates are still to come."""
    for seed in range(2):
        job = small(*MANY, "optimization.steps=240", "checkpoint.every_steps=16", "replay.tolerance=60")
        assert_complete(run(job, SimulatedCrew(seed), f"run-{seed}"))


@pytest.mark.parametrize(
    "changes",
    [
        # More steps a call than the limiter allows before anything of n steps can be complete.
        (
            "rollout={environments: 32, calls: 1}",
            "algorithm.n_step=5",
            "replay={capacity: 1000, minimum: 32, samples_per_insert: 8, tolerance: 2}",
        ),
        (
            "rollout={environments: 16, calls: 1, initial_priorities: td-error}",
            "algorithm.n_step=3",
            "replay={capacity: 1000, minimum: 16, samples_per_insert: 8, tolerance: 2}",
        ),
        # A tolerance below one step, and batches that are many calls' worth.
        (
            "rollout={environments: 2, calls: 1}",
            "replay={capacity: 1000, minimum: 16, samples_per_insert: 0.1, tolerance: 0.01}",
        ),
        (
            "rollout={environments: 4, calls: 16}",
            "replay={capacity: 1000, minimum: 16, samples_per_insert: 20, tolerance: 0.5, prefetch: 1}",
        ),
        # A memory that is hardly larger than what is needed.
        (
            "rollout={environments: 4, calls: 2}",
            "environment.stack=4",
            "replay={capacity: 40, minimum: 16, samples_per_insert: 4, tolerance: 4, prefetch: 9}",
        ),
    ],
    ids=["n-step", "kept-back", "few-samples", "many-samples", "small-memory"],
)
@pytest.mark.parametrize("seed", [None, 1])
def test_no_settings_bring_it_to_a_halt(
    small: MakeJob, run: Callable[..., Run], changes: Sequence[str], seed: int | None
) -> None:
    base = [change for change in MANY if not change.startswith(("rollout", "replay", "resources"))]
    ended = run(small(*base, *changes, "resources={runtime: ray, actors: 2}"), SimulatedCrew(seed))
    assert_complete(ended)


# With faults


def faults_of(kind: str) -> list[Fault]:
    return [
        Fault("rollout", 0, "play", 4, kind),
        Fault("rollout", 1, "play", 1, kind),
        Fault("shard", 1, "insert", 5, kind),
        Fault("shard", 0, "sample", 2, kind),
        Fault("shard", 0, "update_priorities", 3, kind),
        Fault("shard", 1, "snapshot", 2, kind),
        Fault("learner", 0, "update", 5, kind),
        Fault("learner", 0, "acting_state", 6, kind),
        Fault("learner", 0, "state", 2, kind),
        Fault("evaluator", 0, "random_play", 1, kind),
        Fault("evaluator", 0, "evaluate", 2, kind),
    ]


def name_of(fault: Fault) -> str:
    return f"{fault.role}-{fault.method}"


LOST = {
    "rollout": "the steps it had not handed in are lost, and its episodes begin anew",
    "shard": "transitions are lost, and its lanes fill it again",
    "learner": "it goes on from update",
    "evaluator": "its evaluation is made again",
}


@pytest.mark.parametrize("overlap", [False, True], ids=["lockstep", "overlapped"])
@pytest.mark.parametrize("kind", ["dies", pytest.param("dies after", marks=pytest.mark.slow)])
@pytest.mark.parametrize("fault", faults_of(""), ids=name_of)
def test_whoever_dies_is_replaced_and_the_run_ends_with_what_was_asked_for(
    small: MakeJob, run: Callable[..., Run], fault: Fault, kind: str, overlap: bool
) -> None:
    fault = Fault(fault.role, fault.index, fault.method, fault.nth, kind)
    for seed in (1,) if overlap else (None,):
        ended = run(small(*MANY, f"resources.overlap={str(overlap).lower()}"), SimulatedCrew(seed, [fault]), f"{seed}")
        assert_complete(ended)
        # Nobody else was replaced for it.
        assert len(ended.notices) == 1, ended.notices
        assert ended.notices[0].startswith(f"{fault.role} {fault.index} was replaced (it was killed): ")
        assert LOST[fault.role] in ended.notices[0]
        assert ended.session.roster.failures == 1
        assert ended.told.curve("run/failures")[-1][1] == 1
        lives = Counter((member.role, member.index) for member in ended.crew.hired)
        assert lives.pop((fault.role, fault.index)) == 2
        assert set(lives.values()) == {1}


@pytest.mark.parametrize("overlap", [False, True], ids=["lockstep", "overlapped"])
@pytest.mark.parametrize("moment", ["last evaluation", "last save"])
@pytest.mark.parametrize("role", ["shard", "learner"])
def test_a_death_at_the_very_end_costs_nothing_of_what_was_asked_for(
    small: MakeJob, run: Callable[..., Run], overlap: bool, moment: str, role: str
) -> None:
    """The last evaluation and checkpoint need the learner and the memory too."""
    job = small(*MANY, f"resources.overlap={str(overlap).lower()}", "checkpoint.every_steps=100")
    calm = run(job, SimulatedCrew(), "calm")
    method = {"shard": "snapshot", "learner": "state" if moment == "last save" else "acting_state"}[role]
    last = calm.crew.calls[role, 0, method]
    kill = [Fault(role, 0, method, last)]
    ended = run(job, SimulatedCrew(None, kill), "run")
    assert_complete(ended)
    assert ended.session.roster.failures == 1


@pytest.mark.parametrize("role", ["rollout", "shard", "learner", "evaluator"])
def test_too_many_deaths_end_the_run_with_the_reason(small: MakeJob, run: Callable[..., Run], role: str) -> None:
    method = {"rollout": "play", "shard": "insert", "learner": "update", "evaluator": "random_play"}[role]
    for overlap in ("false", "true"):
        job = small(*MANY, "resources.max_failures=3", f"resources.overlap={overlap}")
        ended = run(job, SimulatedCrew(2, [Fault(role, 0, method, 2 if role != "evaluator" else 1, times=99)]), overlap)
        assert str(ended.error) == (
            f"{role} 0 failed: it was killed; more than max_failures (3) were replaced before"
        ), ended.error
        assert len(ended.notices) == 3
        assert ended.crew.closed
        survived = run(
            small(*MANY, "resources.max_failures=3", f"resources.overlap={overlap}"),
            SimulatedCrew(2, [Fault(role, 0, method, 2 if role != "evaluator" else 1, times=3)]),
            f"survived-{overlap}",
        )
        assert_complete(survived)


@pytest.mark.parametrize("overlap", [False, True], ids=["lockstep", "overlapped"])
@pytest.mark.parametrize(("role", "method"), [("shard", "insert"), ("shard", "sample"), ("learner", "update")])
def test_what_fails_although_all_are_alive_would_fail_again(
    small: MakeJob, run: Callable[..., Run], overlap: bool, role: str, method: str
) -> None:
    """Replacing a memory or a learner for an error of its program would lose it, and go on for ever."""
    job = small(*MANY, f"resources.overlap={str(overlap).lower()}")
    ended = run(job, SimulatedCrew(3, [Fault(role, 0, method, 3, "raises")]))
    assert ended.error is not None
    assert "ValueError: it does not work" in str(ended.error)
    assert ended.notices == []
    assert len(ended.crew.hired) == 2 + 2 + 1 + 1


@pytest.mark.parametrize("overlap", [False, True], ids=["lockstep", "overlapped"])
@pytest.mark.parametrize("kind", ["raises", "hangs"])
def test_a_rollout_that_always_fails_ends_the_run_with_its_reason(
    small: MakeJob, run: Callable[..., Run], overlap: bool, kind: str
) -> None:
    changes = ["environment.timeout_s=1", "resources.max_failures=4"]
    job = small(*ONE, f"resources.overlap={str(overlap).lower()}", *changes)
    ended = run(job, SimulatedCrew(1, [Fault("rollout", 0, "play", 3, kind, times=99)]))
    assert ended.error is not None
    said = "ValueError: it does not work" if kind == "raises" else "no answer within"
    assert str(ended.error).startswith(f"rollout 0 failed: {said}")
    assert "max_failures (4)" in str(ended.error)
    assert all(said in notice and notice.startswith("rollout 0 was replaced") for notice in ended.notices)
    assert len(ended.notices) == 4


@pytest.mark.parametrize("overlap", [False, True], ids=["lockstep", "overlapped"])
@pytest.mark.parametrize("kind", ["raises", "hangs"])
def test_a_rollout_that_fails_twice_is_replaced_twice(
    small: MakeJob, run: Callable[..., Run], overlap: bool, kind: str
) -> None:
    job = small(*ONE, f"resources.overlap={str(overlap).lower()}")
    ended = run(job, SimulatedCrew(1, [Fault("rollout", 0, "play", 3, kind, times=2)]))
    assert_complete(ended)
    assert ended.session.roster.failures == 2
    assert [member.life for member in ended.crew.hired if member.role == "rollout"] == [0, 1, 2]


@pytest.mark.parametrize("overlap", [False, True], ids=["lockstep", "overlapped"])
def test_a_learner_s_death_costs_no_player(small: MakeJob, run: Callable[..., Run], overlap: bool) -> None:
    """All actors wait for its weights when it dies; none of them has failed."""
    changes = [*MANY[:-1], "rollout={environments: 12, calls: 2}", "resources.max_failures=2"]
    job = small(*changes, f"resources={{runtime: ray, actors: 6, max_failures: 2, overlap: {str(overlap).lower()}}}")
    for nth in (1, 2, 5):
        ended = run(job, SimulatedCrew(1, [Fault("learner", 0, "acting_state", nth)]), f"{nth}")
        assert_complete(ended)
        assert Counter(member.role for member in ended.crew.hired) == {
            "rollout": 6,
            "shard": 1,
            "learner": 2,
            "evaluator": 1,
        }


@pytest.mark.parametrize("overlap", [False, True], ids=["lockstep", "overlapped"])
@pytest.mark.parametrize(("role", "method"), [("shard", "insert"), ("shard", "sample"), ("learner", "update")])
def test_a_memory_or_a_learner_that_hangs_ends_the_run_with_the_reason(
    small: MakeJob, run: Callable[..., Run], overlap: bool, role: str, method: str
) -> None:
    job = small(*MANY, f"resources.overlap={str(overlap).lower()}")
    ended = run(job, SimulatedCrew(1, [Fault(role, 0, method, 3, "hangs")]))
    assert ended.error is not None
    assert f"{role} 0" in str(ended.error) or str(ended.error).startswith("learner 0")  # which waits for the samples
    assert "no answer within 600 s" in str(ended.error)
    assert ended.notices == []


def test_after_a_learner_s_death_nobody_plays_with_what_it_had_learned_since(
    small: MakeJob, run: Callable[..., Run]
) -> None:
    """The weights that were handed out last are of updates that are made again; the new learner's are handed out."""
    job = small(*ONE, "resources.overlap=false", "checkpoint.every_steps=100")
    given: list[Any] = []
    crew = SimulatedCrew(None, [Fault("learner", 0, "update", 20)])
    plain = crew.call

    def call(key: Key, task: Task) -> Any:
        value = plain(key, task)
        if (key[0], task.method) == ("rollout", "play"):
            learner = crew.objects["learner", 0].acting_state()
            player = crew.objects["rollout", 0]._agent.acting_state()
            given.append(all(torch.equal(learner[name], player[name]) for name in learner))
        return value

    crew.call = call  # type: ignore[method-assign]
    ended = run(job, crew)
    assert_complete(ended)
    assert ended.session.roster.failures == 1
    assert all(given), given


def test_a_memory_that_is_lost_is_filled_before_learning_goes_on(small: MakeJob, run: Callable[..., Run]) -> None:
    for overlap, seed in (("false", None), ("true", None), ("true", 1), ("true", 2)):
        job = small(*ONE, f"resources.overlap={overlap}", "optimization.steps=400", "replay.minimum=120")
        crew = SimulatedCrew(seed, [Fault("shard", 0, "insert", 14)])
        fewest: list[int] = []
        plain = crew.call

        def call(key: Key, task: Task, crew: Any = crew, plain: Any = plain, fewest: Any = fewest) -> Any:
            if task.method == "sample" and len(task.arguments[0]):
                fewest.append(crew.objects["shard", 0].buffer.inserted)
            return plain(key, task)

        crew.call = call  # type: ignore[method-assign]
        ended = run(job, crew, f"{overlap}-{seed}")
        assert_complete(ended)
        assert ended.session.roster.failures == 1
        assert min(fewest) >= 120 - 4, "it was learned from what had hardly begun to fill"


def test_a_memory_lost_near_the_end_is_not_waited_for(small: MakeJob, run: Callable[..., Run]) -> None:
    """Fewer steps are left than the minimum: what was asked for is learned from what there is."""
    for overlap in ("false", "true"):
        job = small(*ONE, f"resources.overlap={overlap}", "replay.minimum=120")
        ended = run(job, SimulatedCrew(1, [Fault("shard", 0, "insert", 14)]), overlap)
        assert_complete(ended)


def test_what_the_dead_memory_was_told_does_not_reach_the_new_one(small: MakeJob, run: Callable[..., Run]) -> None:
    """Slots and generations begin anew with it: a priority for an old item could hit a new one."""
    job = small(*ONE, "optimization.steps=400")
    for seed in range(3):
        crew = SimulatedCrew(seed, [Fault("shard", 0, "sample", 6, "dies after")])
        plain, sampled = crew.call, set()

        def call(key: Key, task: Task, crew: Any = crew, plain: Any = plain, sampled: Any = sampled) -> Any:
            life = crew.members[key].life
            value = plain(key, task)
            if task.method == "sample" and value.batch is not None:
                rows = zip(value.batch.slot.tolist(), value.batch.generation.tolist(), strict=True)
                sampled.update((life, *row) for row in rows)
            if task.method == "update_priorities":
                for told in (argument.value for argument in task.arguments):
                    rows = zip(told[0].tolist(), told[1].tolist(), strict=True)
                    assert all((life, *row) in sampled for row in rows)
            return value

        crew.call = call  # type: ignore[method-assign]
        assert_complete(run(job, crew, f"{seed}"))


def test_a_loss_that_is_not_finite_ends_the_run_and_says_where(small: MakeJob, run: Callable[..., Run]) -> None:
    for overlap in ("false", "true"):
        job = small(
            *MANY,
            f"resources.overlap={overlap}",
            "optimization.optimizer={type: sgd, learning_rate: 1.0e+30, per: null, momentum: 0.0}",
        )
        ended = run(job, SimulatedCrew(1), overlap)
        assert ended.error is not None
        assert "the loss of update 2 is not finite; likely causes:" in str(ended.error)


def test_a_member_that_cannot_be_made_ends_the_run_with_the_reason(
    small: MakeJob, run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether at the beginning or in place of another; it is no error of our program."""

    def broken(*arguments: Any) -> None:
        raise MemoryError("not for this much")

    for role, name in (("shard", "ReplayShard"), ("learner", "Learner"), ("evaluator", "Judge")):
        for overlap in ("false", "true"):
            with monkeypatch.context() as patch:
                patch.setattr(f"heliostat.reinforcement.roster.{name}", broken)
                job = small(*MANY, f"resources.overlap={overlap}", "resources.max_failures=2")
                ended = run(job, SimulatedCrew(1), f"{role}-{overlap}")
            assert ended.error is not None
            assert "MemoryError: not for this much" in str(ended.error)


@pytest.mark.parametrize("overlap", [False, True], ids=["lockstep", "overlapped"])
def test_a_second_death_while_the_first_is_mended(small: MakeJob, run: Callable[..., Run], overlap: bool) -> None:
    """The new learner dies while it takes over the checkpoint."""
    job = small(*MANY, f"resources.overlap={str(overlap).lower()}")
    faults = [Fault("learner", 0, "update", 12), Fault("learner", 0, "load", 1)]
    ended = run(job, SimulatedCrew(None, faults))
    assert_complete(ended)
    assert ended.session.roster.failures == 2


@pytest.mark.parametrize("roles", list(itertools.combinations(["rollout", "shard", "learner", "evaluator"], 2)))
def test_two_deaths_at_once(small: MakeJob, run: Callable[..., Run], roles: tuple[str, str]) -> None:
    for overlap, seed in (("false", None), ("true", 1)):
        job = small(*MANY, f"resources.overlap={overlap}")
        calm = run(job, SimulatedCrew(seed), f"calm-{overlap}-{seed}")
        moment = calm.crew.tasks // 2
        ended = run(job, SimulatedCrew(seed, kills=[(moment, role, 0) for role in roles]), f"{overlap}-{seed}")
        assert_complete(ended)
        assert ended.session.roster.failures == 2
        assert {notice.split(" was replaced")[0] for notice in ended.notices} == {f"{role} 0" for role in roles}


def random_job(small: MakeJob, dice: random.Random, *overrides: str) -> ReinforcementJob:
    return small(
        *MANY,
        f"resources.overlap={dice.choice(['true', 'true', 'false'])}",
        f"replay.prefetch={dice.choice([1, 2, 4, 7])}",
        f"replay.tolerance={dice.choice([1, 20, 60])}",
        f"rollout.broadcast_updates={dice.choice([1, 3, 10])}",
        f"rollout.initial_priorities={dice.choice(['largest', 'td-error'])}",
        f"algorithm.n_step={dice.choice([1, 3])}",
        f"checkpoint.every_steps={dice.choice([16, 50, 1000])}",
        *overrides,
    )


def random_kills(dice: random.Random, most: int) -> list[tuple[int, str, int]]:
    victims = [("rollout", 0), ("rollout", 1), ("shard", 0), ("shard", 1), ("learner", 0), ("evaluator", 0)]
    return [(dice.randint(0, 400), *dice.choice(victims)) for _ in range(dice.randint(0, most))]


def killed_at_random(small: MakeJob, run: Callable[..., Run], seed: int) -> None:
    dice = random.Random(seed)
    kills = random_kills(dice, 3)
    ended = run(random_job(small, dice), SimulatedCrew(seed, kills=kills))
    assert_complete(ended)
    assert ended.session.roster.failures <= len(kills), ended.notices


def driver_killed_at_random(small: MakeJob, run: Callable[..., Run], seed: int) -> None:
    dice = random.Random(seed)
    job = random_job(small, dice, "checkpoint.every_steps=50")
    with pytest.raises(Gone):
        run(job, SimulatedCrew(seed, kills=random_kills(dice, 1), ends=dice.randint(20, 200)))
    saved = RunFolder(str(Path(job.output).parent / "run")).checkpoints().steps()
    ended = run(job, SimulatedCrew(seed + 1, kills=random_kills(dice, 1)))
    assert_complete(ended, resumed=True)
    begun = ended.session.played - sum(report.steps for report in ended.crew.reports)
    assert begun == (saved[-1] if saved else 0)


@pytest.mark.parametrize("seed", range(8))
def test_killed_at_random_moments(small: MakeJob, run: Callable[..., Run], seed: int) -> None:
    killed_at_random(small, run, seed)


@pytest.mark.parametrize("seed", range(8))
def test_a_driver_that_is_killed_at_a_random_moment(small: MakeJob, run: Callable[..., Run], seed: int) -> None:
    driver_killed_at_random(small, run, seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 400))
def test_killed_at_many_random_moments(small: MakeJob, run: Callable[..., Run], seed: int) -> None:
    killed_at_random(small, run, seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 300))
def test_a_driver_that_is_killed_at_many_random_moments(small: MakeJob, run: Callable[..., Run], seed: int) -> None:
    driver_killed_at_random(small, run, seed)


def lost_nodes(dice: random.Random, most: int) -> list[tuple[int, Sequence[Key]]]:
    """Machines that are lost at random moments, each with some of the members on it."""
    everybody: list[Key] = [
        ("rollout", 0),
        ("rollout", 1),
        ("shard", 0),
        ("shard", 1),
        ("learner", 0),
        ("evaluator", 0),
    ]
    return [
        (dice.randint(0, 400), dice.sample(everybody, dice.randint(1, len(everybody))))
        for _ in range(dice.randint(1, most))
    ]


def nodes_lost_at_random(small: MakeJob, run: Callable[..., Run], seed: int) -> None:
    dice = random.Random(seed)
    nodes = lost_nodes(dice, 2)
    ended = run(random_job(small, dice, "resources.max_failures=12"), SimulatedCrew(seed, nodes=nodes))
    short = 0
    if ended.notices and (said := re.match(r"([\d,]+) updates were not made: ", ended.notices[-1])):
        # All steps were played when the whole memory was lost: nothing can fill it again.
        short = int(said[1].replace(",", ""))
        assert sum(stand.items for stand in ended.session.stands) == 0
    assert_complete(ended, short=short)
    assert ended.session.roster.failures <= sum(len(there) for _, there in nodes), ended.notices


@pytest.mark.parametrize("seed", range(12))
def test_machines_that_are_lost_at_random_moments(small: MakeJob, run: Callable[..., Run], seed: int) -> None:
    """Their members die together, and what they had made for others is gone though it was there already."""
    nodes_lost_at_random(small, run, seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 300))
def test_machines_that_are_lost_at_many_random_moments(small: MakeJob, run: Callable[..., Run], seed: int) -> None:
    nodes_lost_at_random(small, run, seed)


# Slow members


@pytest.mark.parametrize(
    "slow", [("rollout", 0), ("shard", 0), ("learner", 0), ("evaluator", 0)], ids=lambda key: key[0]
)
@pytest.mark.parametrize("seed", [1, 2])
def test_a_slow_member_holds_up_nobody_beyond_the_ratio(
    small: MakeJob, run: Callable[..., Run], slow: Key, seed: int
) -> None:
    """One who gets a fortieth of the turns: the bounds of the ratio hold as ever; and who does not depend on it goes
    on without it."""
    job = small(*MANY, "optimization.steps=400")
    ended = run(job, SimulatedCrew(seed, slow={slow: 40}))
    assert_complete(ended)
    assert (ended.session.roster.failures, ended.notices) == (0, [])
    least, most = ended.extremes
    assert least >= -4 * 48
    assert most <= max(4 * 20, 16 - 4 * 20 + 4 * 4 * 4)
    first, second = (ended.crew.calls["rollout", number, "play"] for number in range(2))
    if slow == ("rollout", 0):  # the other plays in its place
        assert second > 3 * first > 0
    else:
        assert max(first, second) < 2 * min(first, second)


# Slow storage


def test_a_snapshot_that_takes_long_is_not_waited_for(small: MakeJob, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next one is left out, and that is said; at the end the run waits, and what was left out is in what is saved
    then."""
    job = small()
    shard = ReplayShard(job, job.environment.spec(), 0, Storage(job.output))
    worker = RolloutWorker(job, job.environment.spec(), range(4))
    let_go, write = threading.Event(), Pending.write

    def slow(self: Pending) -> int:
        assert let_go.wait(60)
        return write(self)

    monkeypatch.setattr(Pending, "write", slow)
    for step in (10, 20, 20, 20):
        shard.insert(worker.play(None, 0)[1], range(4))
        began = time.monotonic()
        shard.snapshot(step, False)
        assert time.monotonic() - began < 30
        said = shard.report().snapshot_error
        assert said is None if step == 10 else said is not None and "not saved at step 20" in said
    let_go.set()
    items = shard.report().items
    shard.snapshot(30, True)
    assert shard.report().snapshot_error is None
    other = ReplayShard(job, job.environment.spec(), 0, Storage(job.output))
    assert other.restore(29) == 10
    assert other.restore(40) == 30
    assert other.report().items == items


# In one process


def test_each_in_this_process_computes_with_the_threads_of_its_actor() -> None:
    """The last digits of a convolution depend on how many there are, and a run in one process must be the same as over
    actors."""
    crew, before = LocalCrew(), torch.get_num_threads()
    learner, judge = Member("learner", 0, 0), Member("evaluator", 0, 0)

    class Counting:
        def __init__(self) -> None:
            self.made_with = torch.get_num_threads()

        def threads(self) -> tuple[int, int]:
            return self.made_with, torch.get_num_threads()

    crew.hire(learner, Counting, Resources(cpus=3.5))
    crew.hire(judge, Counting, Resources(cpus=0))
    assert [crew.ask(member, "threads") for member in (learner, judge, learner)] == [(1, 3), (1, 1), (1, 3)]
    crew.close()
    assert torch.get_num_threads() == before


# Interrupted, and gone on with


@pytest.mark.parametrize("overlap", [False, True], ids=["lockstep", "overlapped"])
@pytest.mark.parametrize("replay", [True, False], ids=["with-replay", "without-replay"])
def test_an_interrupted_run_goes_on_with_its_counts(
    small: MakeJob, run: Callable[..., Run], overlap: bool, replay: bool
) -> None:
    changes = [f"resources.overlap={str(overlap).lower()}", f"checkpoint.replay={str(replay).lower()}"]
    job = small(*MANY, *changes, "optimization.steps=400")
    first = run(job, SimulatedCrew(1), stop=lambda session: session.played >= 200)
    assert first.outcome is not None
    assert first.outcome.status == "interrupted"
    assert 200 <= first.outcome.step == first.session.played < 240
    state = first.folder.checkpoints().load(first.session.played)
    assert state["updates"] == first.session.updates == first.adam_steps == adam_steps(state["learner"])

    second = run(job, SimulatedCrew(2))
    assert_complete_resumed(first, second, replay=replay)
    if replay:
        assert second.notices == []
        assert second.session.updates >= demanded(job, second.session.played)
        assert second.inserted == second.session.played
    else:
        assert "begins empty; learning goes on when 48 steps are in it" in second.notices[0]
        played_since = second.session.played - first.session.played
        slack = 4 * 20 // 16 if overlap else 0
        due = 4 * (played_since - 48) // 16
        assert due <= second.session.updates - first.session.updates <= due + slack
        assert second.inserted == played_since


def assert_complete_resumed(first: Run, second: Run, *, replay: bool) -> None:
    job = second.session.job
    assert second.error is None
    assert second.outcome is not None
    assert second.outcome.status == "finished"
    assert second.session.played >= job.optimization.steps
    assert second.session.played == first.outcome.step + sum(r.steps for r in second.crew.reports)  # type: ignore[union-attr]
    assert second.session.updates == second.session.issued == second.adam_steps
    assert second.session.updates > first.session.updates
    # What was found out before belongs to the results all the same.
    assert {"eval/return", "baseline/random/return"} <= set(second.outcome.results)
    # New dice: what is played now is not what was played before.
    assert all(member.life > 0 for member in second.crew.hired if member.role in ("rollout", "shard", "learner"))
    # Curves go on: later steps, and speeds of this run alone.
    steps = [step for step, _ in [*first.told.curve("train/updates"), *second.told.curve("train/updates")]]
    assert steps == sorted(steps)
    most = sum(r.steps for r in second.crew.reports)
    speeds = [value for _, value in second.told.curve("rollout/steps_per_second")]
    counts = [value for _, value in second.told.curve("train/updates")]
    assert counts == sorted(counts)
    assert counts[0] >= first.session.updates
    assert speeds
    assert most > 0


@pytest.mark.parametrize("overlap", [False, True], ids=["lockstep", "overlapped"])
@pytest.mark.parametrize("evaluation", [1, 3], ids=["on-the-way", "last"])
def test_a_run_that_is_asked_to_stop_does_not_wait_for_an_evaluation(
    small: MakeJob, run: Callable[..., Run], overlap: bool, evaluation: int
) -> None:
    """A game may take hours. It is played again when the run goes on."""
    job = small(*MANY, f"resources.overlap={str(overlap).lower()}")
    crew = SimulatedCrew(1, [Fault("evaluator", 0, "evaluate", evaluation, "hangs")])
    stopped = run(job, crew, stop=lambda session: bool(crew.hanging))
    assert stopped.outcome is not None
    assert stopped.outcome.status == "interrupted"
    assert len(stopped.told.curve("eval/return")) == evaluation - 1
    ended = run(job, SimulatedCrew(2))
    assert_complete(ended, resumed=True)
    assert (ended.session.roster.failures, ended.notices) == (0, [])
    # At 100, at 200 and at the end: each once.
    assert len(dict(ended.told.curve("eval/return"))) == 3 - (evaluation - 1)


def test_speeds_after_a_resume_are_of_what_was_done_since(
    small: MakeJob, run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    job = small(*MANY, "resources.overlap=false", "optimization.steps=400")
    run(job, SimulatedCrew(), stop=lambda session: session.played >= 200)
    seconds = itertools.count(0.0, 1.0)  # every look at the clock is a second later
    monkeypatch.setattr("heliostat.reinforcement.curves.time.perf_counter", lambda: next(seconds))
    second = run(job, SimulatedCrew())
    for name, most in (("rollout/steps_per_second", 40 + 16), ("train/updates_per_second", 16)):
        values = [value for _, value in second.told.curve(name)]
        assert all(0 <= value <= most for value in values), (name, values)


def test_a_run_that_was_killed_goes_on_from_its_newest_checkpoint(small: MakeJob, run: Callable[..., Run]) -> None:
    for overlap in ("false", "true"):
        job = small(*MANY, f"resources.overlap={overlap}", "optimization.steps=400")

        def strike(session: Session) -> bool:
            if session.played >= 280:
                raise Gone
            return False

        with pytest.raises(Gone):
            run(job, SimulatedCrew(1), f"run-{overlap}", stop=strike)
        second = run(job, SimulatedCrew(2), f"run-{overlap}")
        assert second.error is None
        assert second.outcome is not None
        assert second.outcome.status == "finished"
        begun = second.session.played - sum(report.steps for report in second.crew.reports)
        assert 240 <= begun < 280  # steps that were played after the checkpoint are played and counted again
        assert second.session.updates == second.adam_steps
        assert second.session.updates >= demanded(job, second.session.played)
        assert second.inserted == second.session.played
        assert {"eval/return", "baseline/random/return"} <= set(second.outcome.results)


def test_a_memory_of_which_a_part_is_gone_is_not_said_to_be_whole(small: MakeJob, run: Callable[..., Run]) -> None:
    job = small(*MANY, "resources.overlap=false", "optimization.steps=400")
    first = run(job, SimulatedCrew(), stop=lambda session: session.played >= 200)
    for file in first.folder.storage.files("replay/shard-1/blocks"):
        Path(first.folder.storage.path(f"replay/shard-1/blocks/{file}")).write_bytes(b"damaged")
    second = run(job, SimulatedCrew())
    assert second.error is None
    assert second.outcome is not None
    said = "\n".join(second.notices)
    assert "the replay memory of shard 1: the snapshot of step" in said
    assert "damaged" in said
    assert "shard 1 begins empty" in said
    assert "shard 0" not in said
    # What shard 0 holds is kept and learned from at once.
    since = sum(report.steps for report in second.crew.reports)
    assert since < second.inserted < second.session.played
    assert second.session.updates == second.adam_steps == demanded(job, second.session.played)


def test_a_damaged_checkpoint_is_passed_over(small: MakeJob, run: Callable[..., Run]) -> None:
    job = small(*MANY, "resources.overlap=false", "optimization.steps=400")
    first = run(job, SimulatedCrew(), stop=lambda session: session.played >= 200)
    *_, before, newest = first.folder.checkpoints().steps()
    Path(first.folder.storage.path(f"{first.folder.checkpoints().name(newest)}/state.pt")).write_bytes(b"damaged")
    second = run(job, SimulatedCrew())
    assert second.error is None
    assert f"checkpoint of step {newest} is passed over" in second.notices[0]
    assert second.session.played == before + sum(report.steps for report in second.crew.reports)
    assert second.inserted == second.session.played
    assert second.session.updates == second.adam_steps


def test_a_checkpoint_of_another_agent_ends_the_run_with_the_reason(small: MakeJob, run: Callable[..., Run]) -> None:
    run(small(*MANY), SimulatedCrew(), stop=lambda session: session.played >= 100)
    ended = run(small(*MANY, "algorithm.network.hidden_units=[7]"), SimulatedCrew())
    assert ended.error is not None
    assert "the checkpoint is of another agent" in str(ended.error)


def test_interrupted_twice(small: MakeJob, run: Callable[..., Run]) -> None:
    job = small(*MANY, "optimization.steps=400", "resources.max_failures=1")
    kill = [Fault("rollout", 0, "play", 3)]
    first = run(job, SimulatedCrew(1, kill), stop=lambda session: session.played >= 100)
    second = run(job, SimulatedCrew(2), stop=lambda session: session.played >= 250)
    third = run(job, SimulatedCrew(3))
    assert_complete_resumed(second, third, replay=True)
    lives = [{m.life for m in each.crew.hired if m.role == "rollout"} for each in (first, second, third)]
    assert not lives[0] & lives[1]
    assert not lives[1] & lives[2]
    assert third.told.curve("run/failures")[-1][1] == 1
