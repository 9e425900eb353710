"""Runs that begin from other runs, and chains of stages."""

from __future__ import annotations

import runpy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from heliostat.config.job import Begin, Job
from heliostat.config.loading import Stage, parse
from heliostat.errors import InputError
from heliostat.training import launch
from heliostat.training.launch import Finished
from heliostat.training.loop import TrainingLoop
from heliostat.training.monitor import Snapshot
from heliostat.training.replay import replay_step
from heliostat.training.run_folder import RunFolder
from heliostat.training.runtime import SilentRuntime
from heliostat.training.stages import Chain
from heliostat_algorithms.randomness import Random

MakeJob = Callable[..., Job]


class Silent:
    """Watches nothing."""

    def show(self, snapshot: Snapshot) -> None:
        """Not shown."""


def weights(folder: RunFolder, step: int | None = None) -> dict[str, torch.Tensor]:
    store = folder.checkpoints()
    return store.load(store.steps()[-1] if step is None else step)["algorithm"]


def differ(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return any(not torch.equal(one[name], other[name]) for name in one)


@pytest.fixture
def first(tiny: MakeJob) -> RunFolder:
    finished = launch.start(tiny("optimization.steps=8", "name=first"), Silent(), "first")
    assert finished.outcome.status == "finished"
    return finished.folder


def test_a_run_begins_with_what_another_learned(tiny: MakeJob, first: RunFolder) -> None:
    slow = "optimization.optimizer={type: sgd, learning_rate: 1.0e-12, momentum: 0.0}"
    job = tiny("optimization.steps=2", "optimization.schedule.warmup_epochs=0", slow, "begin.run=first")
    finished = launch.start(job, Silent(), "second")
    begun, origin = weights(finished.folder), weights(first)
    for name, parameter in begun.items():
        if name.endswith(("weight", "bias")):
            torch.testing.assert_close(parameter, origin[name], rtol=0, atol=1e-9, msg=name)
    stored = finished.folder.job()
    assert stored.begin == Begin(run=first.storage.uri, checkpoint=8)  # pinned: it means the same tomorrow


def test_replay_and_resume_do_not_need_the_origin_once_begun(tiny: MakeJob, first: RunFolder) -> None:
    finished = launch.start(tiny("optimization.steps=6", "begin.run=first"), Silent(), "second")
    assert replay_step(finished.folder, 1).start == 0  # from the origin
    first.storage.delete("")
    assert replay_step(finished.folder, 5).start == 4
    with pytest.raises(InputError, match="there is no run"):
        replay_step(finished.folder, 1)
    finished.folder.update(status="interrupted")
    finished.folder.storage.delete("checkpoints/step-00000006")
    again = launch.resume(finished.folder, finished.folder.job(), Silent())
    assert again.outcome.status == "finished"


def test_the_optimiser_is_taken_over_where_asked(tiny: MakeJob, first: RunFolder) -> None:
    whole = launch.start(tiny("optimization.steps=8", "optimization.schedule={type: constant}"), Silent(), "whole")
    momentum = whole.folder.checkpoints().load(8)["optimizer"]["state"]
    data = launch.load(tiny())
    for wanted in (True, False):
        begin = Begin(run=whole.folder.storage.uri, optimizer=wanted)
        job = tiny("optimization.steps=8").model_copy(update={"begin": begin})
        training = TrainingLoop(job, data, SilentRuntime(torch.device("cpu")), RunFolder(f"{job.output}/x-{wanted}"))
        training.begin()
        state = training.state.optimizer.state_dict()["state"]
        assert bool(state) == wanted
        for number, values in state.items():
            assert torch.equal(values["velocity"], momentum[number]["velocity"])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("begin.run=nothing",), "there is no run 'nothing'"),
        (("begin={}",), "say which run to begin from"),
        (("begin.run=first", "begin.checkpoint=7"), "no checkpoint of step 7; complete ones: 4, 8"),
        (("begin.run=first", "algorithm.backbone.width=8"), "cannot begin from simclr"),
        (("begin={run: first, optimizer: true}", "optimization.optimizer={type: adamw, learning_rate: 0.1}"),
         "adamw cannot go on from the state of lars"),
    ],
)  # fmt: skip
def test_an_impossible_beginning_is_refused_before_anything_starts(
    tiny: MakeJob, first: RunFolder, change: tuple[str, ...], said: str
) -> None:
    job = tiny("optimization.steps=4", *change)
    with pytest.raises(InputError, match=said):
        launch.start(job, Silent(), "second")
    assert not (Path(job.output) / "second").exists()


def chain_of(tiny: MakeJob, *changes: str) -> tuple[Stage, ...]:
    a = tiny("optimization.steps=8", "name=chain-a", *changes)
    b = tiny("optimization.steps=4", "name=chain-b", "data.train_fraction=0.5", "begin.optimizer=true", *changes)
    return Stage("a", a, None), Stage("b", b, "a"), Stage("c", replace_name(a, "chain-c"), "b")


def replace_name(job: Job, name: str) -> Job:
    return job.model_copy(update={"name": name})


def run(chain: Chain) -> list[Finished]:
    return list(chain.run(lambda stage, name: Silent()))


def test_stages_run_one_after_the_other_each_from_the_last(tiny: MakeJob) -> None:
    chain = Chain.planned(chain_of(tiny), "chain")
    done = run(chain)
    assert [finished.folder.name for finished in done] == ["chain-a", "chain-b", "chain-c"]
    assert [finished.outcome.status for finished in done] == ["finished"] * 3
    assert done[1].folder.job().begin == Begin(run=done[0].folder.storage.uri, checkpoint=8, optimizer=True)
    assert done[2].folder.job().begin == Begin(run=done[1].folder.storage.uri, checkpoint=4)
    assert differ(weights(done[0].folder), weights(done[2].folder))
    opened = Chain.open("chain", tiny().output)
    assert opened is not None
    assert run(opened) == []  # all is done
    with pytest.raises(InputError, match="a run of this name exists"):
        Chain.planned(chain_of(tiny), "chain")


def test_a_chain_that_was_interrupted_goes_on_where_it_was(tiny: MakeJob, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run(Chain.planned(chain_of(tiny), "whole"))
    chain = Chain.planned(chain_of(tiny), "broken")
    work = launch._work
    started: list[str] = []

    def die(job: Job, data: object, folder: RunFolder, watcher: object, **how: bool) -> Finished:
        started.append(folder.name)
        if folder.name == "broken-b" and started.count("broken-b") == 1:
            raise RuntimeError("the machine is lost")
        return work(job, data, folder, watcher, **how)  # type: ignore[arg-type]

    monkeypatch.setattr(launch, "_work", die)
    with pytest.raises(RuntimeError, match="lost"):
        run(chain)
    opened = Chain.open(chain.storage.uri)
    assert opened is not None
    done = run(opened)
    assert started == ["broken-a", "broken-b", "broken-b", "broken-c"]
    assert not differ(weights(done[-1].folder), weights(whole[-1].folder))


def test_a_later_stage_that_cannot_begin_is_refused_before_the_first_starts(tiny: MakeJob) -> None:
    a, b, c = chain_of(tiny)
    wider = replace(b.job.algorithm, backbone=replace(b.job.algorithm.backbone, width=8))
    stages = (a, Stage("b", b.job.model_copy(update={"algorithm": wider}), "a"), c)
    with pytest.raises(InputError, match="stage b: cannot begin from simclr at the end of stage a"):
        Chain.planned(stages, "chain")
    assert not Path(a.job.output).exists()


def test_a_phase_at_a_higher_resolution_keeps_heads_teacher_and_optimiser(tmp_path: Path) -> None:
    text = runpy.run_path(str(Path(__file__).with_name("methods.py")))["job_text"]("dinov2", "")
    places = (f"output={tmp_path}", f"tracking.uri=sqlite:///{tmp_path / 'mlflow.db'}")
    fixed = "algorithm.backbone.position_grid=2"  # the table of positions stays; it is interpolated in use
    larger = [f"algorithm.views.{view}.size=16" for view in ("first_global", "second_global")]
    low = parse(text, "low.yaml", [*places, fixed, "name=low"])
    high = parse(text, "high.yaml", [*places, fixed, *larger, "name=high", "begin.optimizer=true"])
    done = run(Chain.planned((Stage("low", low, None), Stage("high", high, "low")), "chain"))
    assert [finished.outcome.status for finished in done] == ["finished", "finished"]
    data = launch.load(high.model_copy(update={"begin": None}))
    training = TrainingLoop(done[1].folder.job(), data, SilentRuntime(torch.device("cpu")), RunFolder(f"{tmp_path}/x"))
    training.begin()
    state = training.state.state_dict()
    saved = done[0].folder.checkpoints().load(10)
    assert not differ(saved["algorithm"], state["algorithm"])
    assert saved["optimizer"]["state"].keys() == state["optimizer"]["state"].keys()
    for number, moments in saved["optimizer"]["state"].items():
        assert not differ(moments, state["optimizer"]["state"][number])
    crops = training.state.algorithm.prepare(
        training.loader.batch(0), training.stepper.clock(0), Random(0, 0, range(16))
    )
    assert crops["global"].shape[2:] == (16, 16)


def test_positions_of_another_grid_are_resampled_but_the_optimiser_cannot_go_on(tmp_path: Path) -> None:
    text = runpy.run_path(str(Path(__file__).with_name("methods.py")))["job_text"]("dinov2", "")
    places = (f"output={tmp_path}", f"tracking.uri=sqlite:///{tmp_path / 'mlflow.db'}")
    larger = [f"algorithm.views.{view}.size=16" for view in ("first_global", "second_global")]
    finished = launch.start(parse(text, "low.yaml", [*places, "optimization.steps=4"]), Silent(), "low")
    high = parse(text, "high.yaml", [*places, *larger, "begin.run=low"])
    assert launch.start(high, Silent(), "high").outcome.status == "finished"
    assert weights(finished.folder)["student.backbone.pos_embed"].shape[1] == 1 + 2 * 2
    assert weights(RunFolder(f"{tmp_path}/high"))["student.backbone.pos_embed"].shape[1] == 1 + 4 * 4
    again = parse(text, "high.yaml", [*places, *larger, "begin={run: low, optimizer: true}"])
    with pytest.raises(InputError, match="is of other parameters"):
        launch.start(again, Silent(), "again")
