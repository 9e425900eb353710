"""The loop in one process: exact resume, exact accumulation, precision, trouble with the loss and the disk."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from pydantic import create_model
from torch import Tensor, nn

from heliostat.config.job import Job
from heliostat.config.registry import ALGORITHMS
from heliostat.data.images import CorruptItem
from heliostat.errors import InputError
from heliostat.training import launch
from heliostat.training.checkpoint import CheckpointError, CheckpointStore
from heliostat.training.datasets import Datasets
from heliostat.training.evaluation import evaluate_checkpoint
from heliostat.training.loop import TrainingLoop
from heliostat.training.monitor import Outcome
from heliostat.training.replay import replay_step
from heliostat.training.run_folder import RunFolder
from heliostat.training.runtime import SilentRuntime
from heliostat_algorithms.algorithm import Algorithm, Batch, Clock, DataSpec, Inputs, ParameterGroup, Step
from heliostat_algorithms.randomness import Random
from heliostat_algorithms.representation.simclr import SimCLR

MakeJob = Callable[..., Job]


class Recorder(SilentRuntime):
    """Keeps what the loop tells, and asks it to stop after some step."""

    def __init__(self, stop_after: int | None = None) -> None:
        super().__init__(torch.device("cpu"))
        self.points: dict[str, list[tuple[int, float]]] = {}
        self.notices: list[str] = []
        self.outcome: Outcome | None = None
        self.stop_after, self.last_step = stop_after, 0

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        self.last_step = step
        for name, value in metrics.items():
            self.points.setdefault(name, []).append((step, value))

    def notice(self, text: str) -> None:
        if "fill no batch" not in text:  # said of every run whose data is no multiple of the batch
            self.notices.append(text)

    def conclude(self, outcome: Outcome) -> None:
        self.outcome = outcome

    def stop_requested(self) -> bool:
        return self.stop_after is not None and self.last_step + 1 >= self.stop_after


def make(job: Job, runtime: Recorder | None = None, folder: RunFolder | None = None) -> TrainingLoop:
    if folder is None:
        folder = RunFolder.planned(job)
        folder.create(job)
    return TrainingLoop(job, launch.load(job), runtime or Recorder(), folder)


def assert_same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


def test_what_was_told_is_safe_before_a_checkpoint_is_there(tiny: MakeJob) -> None:
    """A process may be killed at any moment: the steps before a checkpoint are not made again, nor are their points."""
    job = tiny("checkpoint.every_steps=4")
    folder = RunFolder.planned(job)
    folder.create(job)
    seen: list[tuple[int, int]] = []

    class Watching(Recorder):
        def before_checkpoint(self) -> None:
            newest = max(folder.checkpoints().steps(), default=0)
            seen.append((newest, self.points["train/loss"][-1][0]))

    assert make(job, Watching(), folder).run().status == "finished"
    assert seen == [(0, 4), (4, 8), (8, 12)]


def test_an_interrupted_run_continues_with_the_same_bits_and_points(tiny: MakeJob) -> None:
    job = tiny()
    whole = make(job)
    assert whole.run().status == "finished"
    first = Recorder(stop_after=7)  # not a step at which a checkpoint is due
    interrupted = make(job, first)
    assert interrupted.run() == Outcome("interrupted", 7)
    second = Recorder()
    resumed = make(job, second, interrupted.folder)
    assert resumed.run().status == "finished"
    assert second.notices == ["continuing from the checkpoint of step 7"]
    assert_same(whole.state.algorithm.state_dict(), resumed.state.algorithm.state_dict())
    for name in ("train/loss", "train/learning_rate", "train/gradient_norm", "train/contrastive_top1"):
        together = first.points[name] + second.points[name]
        assert together == whole.runtime.points[name]  # type: ignore[attr-defined]
        assert [step for step, _ in together] == list(range(1, 13))


def test_a_damaged_checkpoint_is_passed_over_and_named(tiny: MakeJob) -> None:
    job = tiny("optimization.steps=8")
    whole = make(job)
    whole.run()
    newest = whole.folder.storage.path("checkpoints/step-00000008/state.pt")
    with open(newest, "r+b") as file:  # noqa: PTH123
        file.truncate(100)
    runtime = Recorder()
    again = make(job, runtime, whole.folder)
    assert again.run().status == "finished"
    assert "checkpoint of step 8 is passed over" in runtime.notices[0]
    assert runtime.notices[1] == "continuing from the checkpoint of step 4"
    assert_same(whole.state.algorithm.state_dict(), again.state.algorithm.state_dict())
    assert_same(again.checkpoints.load(8)["algorithm"], whole.state.algorithm.state_dict())  # and it was mended


def test_the_loss_falls(tiny: MakeJob) -> None:
    easier = ("algorithm.augmentation.crop_area=[0.7,1]", "algorithm.augmentation.blur.probability=0")
    job = tiny(
        "optimization.steps=60", "algorithm.backbone.width=8", "algorithm.backbone.zero_init_residual=false", *easier
    )
    runtime = Recorder()
    assert make(job, runtime).run().status == "finished"
    losses = [value for _, value in runtime.points["train/loss"]]
    assert sum(losses[-10:]) / 10 < sum(losses[:10]) / 10 - 0.2


@pytest.mark.parametrize(
    "change", ["optimization.precision=bf16", "optimization.precision=fp16", "resources.channels_last=true"]
)
def test_precision_and_memory_format_stay_near_the_plain_run(tiny: MakeJob, change: str) -> None:
    plain, other = Recorder(), Recorder()
    make(tiny("optimization.steps=3"), plain).run()
    changed = make(tiny("optimization.steps=3", change), other)
    assert changed.run().status == "finished"
    compared = 1 if "fp16" in change else 3  # fp16 skips its first steps until its loss scale fits
    for (_, a), (_, b) in list(zip(plain.points["train/loss"], other.points["train/loss"], strict=True))[:compared]:
        assert a == pytest.approx(b, rel=0.02)
    assert ("train/loss_scale" in other.points) == ("fp16" in change)
    assert all(parameter.dtype == torch.float32 for parameter in changed.state.algorithm.parameters())
    if change.endswith("true"):
        assert changed.state.algorithm.backbone.layer1[0].conv1.weight.is_contiguous(memory_format=torch.channels_last)


def test_autocast_is_used(tiny: MakeJob) -> None:
    training = make(tiny("optimization.precision=bf16"))
    seen = []
    training.state.algorithm.backbone.conv1.register_forward_hook(
        lambda module, inputs, output: seen.append(output.dtype)
    )
    training.advance(0)
    assert seen == [torch.bfloat16]


def test_clipping_bounds_the_step(tiny: MakeJob) -> None:
    options = (
        "optimization.optimizer={type: sgd, learning_rate: 1.0, per: null, momentum: 0}",
        "optimization.schedule={type: constant}",
    )
    before = make(tiny(*options))
    start = [p.detach().clone() for p in before.state.algorithm.parameters()]
    free = before.advance(0, measure=True)
    assert free.gradient_norm is not None
    limit = float(free.gradient_norm) / 3
    clipped = make(tiny(*options, f"optimization.clip_gradient_norm={limit}"))
    reported = clipped.advance(0, measure=True).gradient_norm
    assert reported == pytest.approx(float(free.gradient_norm), rel=1e-5)
    moves = torch.cat([(p - q).flatten() for p, q in zip(clipped.state.algorithm.parameters(), start, strict=True)])
    assert float(moves.norm()) == pytest.approx(limit, rel=1e-3)


def test_clipping_per_parameter_bounds_each_by_itself(tiny: MakeJob) -> None:
    options = ("optimization.optimizer={type: sgd, learning_rate: 1.0, per: null, momentum: 0.0}",
               "optimization.schedule={type: constant}")  # fmt: skip
    free = make(tiny(*options))
    free.advance(0)
    norms = {name: float(p.grad.norm()) for name, p in free.state.algorithm.named_parameters() if p.grad is not None}
    limit = sorted(norms.values())[len(norms) // 2]
    clipped = make(tiny(*options, f"optimization.clip_gradient_norm={limit}", "optimization.clip_per=parameter"))
    reported = clipped.advance(0).gradient_norm
    assert float(reported) == pytest.approx(sum(n**2 for n in norms.values()) ** 0.5, rel=1e-5)  # type: ignore[arg-type]
    for name, parameter in clipped.state.algorithm.named_parameters():
        assert parameter.grad is not None
        assert float(parameter.grad.norm()) == pytest.approx(min(limit, norms[name]), rel=1e-4), name


class Line(Algorithm):
    """A regression whose loss is a mean over samples; in float64, so that sums in another order agree."""

    separable = True

    @dataclass(frozen=True, kw_only=True)
    class Config:
        type: str = "line"

    def __init__(self, config: Config, data: DataSpec) -> None:
        super().__init__(config, data)
        self.linear = nn.Linear(64, 10, dtype=torch.float64)

    def prepare(self, batch: Batch, clock: Clock, random: Random) -> Inputs:
        noise = random.normal("noise", 64).double()
        return {"x": batch["image"].flatten(1).double() / 255 + noise, "y": batch["label"]}

    def forward(self, inputs: Inputs, clock: Clock) -> Step:
        loss = nn.functional.cross_entropy(self.linear(inputs["x"]), inputs["y"])
        return Step(loss, {"double": 2 * loss.detach()})

    def features(self, images: Tensor) -> Tensor:
        out: Tensor = self.linear(images.flatten(1).double() / 255)
        return out.float()


@pytest.fixture
def line(tiny: MakeJob, monkeypatch: pytest.MonkeyPatch) -> MakeJob:
    monkeypatch.setitem(ALGORITHMS, "line", Line)

    line_job = create_model("LineJob", __base__=Job, algorithm=(Line.Config, Line.Config()))

    def make_line(*overrides: str) -> Job:
        return line_job.model_validate({**dict(tiny(*overrides)), "algorithm": Line.Config()})

    return make_line


def test_the_hooks_come_in_their_order(line: MakeJob, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    def spy(name: str, inside: Callable[[Line], object] = lambda self: None) -> None:
        method = getattr(Line, name)

        def told(self: Line, *arguments: Any) -> Any:
            inside(self)
            assert torch.is_grad_enabled() == (name in ("forward", "after_backward"))
            seen.append(name)
            return method(self, *arguments)

        monkeypatch.setattr(Line, name, told)

    def gradient_is_there(self: Line) -> None:
        assert self.linear.weight.grad is not None
        self.linear.weight.grad.zero_()
        self.linear.bias.grad = None

    for name in ("before_step", "prepare", "forward", "after_step"):
        spy(name)
    spy("after_backward", gradient_is_there)
    training = make(line("optimization.optimizer={type: sgd, learning_rate: 1.0, momentum: 0}"))
    before = {name: value.clone() for name, value in training.state.algorithm.state_dict().items()}
    training.advance(5)
    assert seen == ["before_step", "prepare", "forward", "after_backward", "after_step"]
    assert_same(training.state.algorithm.state_dict(), before)  # gradients taken away are not used


def test_learning_rate_scales_and_moving_decay_reach_the_optimiser(
    line: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    def groups(self: Line) -> list[ParameterGroup]:
        return [
            ParameterGroup("weight", [self.linear.weight], True, 0.25),
            ParameterGroup("bias", [self.linear.bias], False),
        ]

    monkeypatch.setattr(Line, "parameter_groups", groups)
    optimizer = "{type: adamw, learning_rate: 0.01, per: null, weight_decay: 0.04, final_weight_decay: 0.4}"
    training = make(line(f"optimization.optimizer={optimizer}", "optimization.schedule={type: constant}"))
    for step in (0, 6, 11):
        training.advance(step)
        weight, bias = training.state.optimizer.param_groups
        assert (weight["lr"], bias["lr"]) == (0.0025, 0.01)
        moved = 0.4 + (0.04 - 0.4) * (1 + math.cos(math.pi * step / 12)) / 2
        assert weight["weight_decay"] == pytest.approx(moved, rel=1e-12)
        assert bias["weight_decay"] == 0.0


def collapse(monkeypatch: pytest.MonkeyPatch, steps: range) -> None:
    """SimCLR that reports features without spread after these steps."""
    forward = SimCLR.forward

    def flat(self: SimCLR, inputs: Inputs, clock: Clock) -> Step:
        made = forward(self, inputs, clock)
        value = 1e-3 if clock.step + 1 in steps else 0.5
        return Step(made.loss, {**made.metrics, "feature_std": torch.tensor(value)})

    monkeypatch.setattr(SimCLR, "forward", flat)


def test_a_collapse_is_told_once_and_training_goes_on(tiny: MakeJob, monkeypatch: pytest.MonkeyPatch) -> None:
    collapse(monkeypatch, range(4, 13))
    runtime = Recorder()
    assert make(tiny(), runtime).run().status == "finished"
    assert len(runtime.notices) == 1
    assert "has collapsed: the features of all samples are nearly alike (feature_std 0.001" in runtime.notices[0]


def test_a_lasting_collapse_stops_the_run_that_asks_for_it(tiny: MakeJob, monkeypatch: pytest.MonkeyPatch) -> None:
    stop = ("optimization.stop_on_collapse=true", "optimization.steps=40")
    collapse(monkeypatch, range(5, 40))
    whole = make(tiny(*stop))
    outcome = whole.run()
    assert (outcome.status, outcome.step) == ("failed", 14)
    assert outcome.message.startswith("stopped, because the representation has collapsed")
    interrupted = make(tiny(*stop), Recorder(stop_after=8), RunFolder(f"{whole.folder.storage.uri}-again"))
    assert interrupted.run().status == "interrupted"
    assert make(tiny(*stop), None, interrupted.folder).run().step == 14  # the count is part of the state


def test_a_collapse_at_the_beginning_or_of_two_points_is_not_told(
    tiny: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    collapse(monkeypatch, range(1, 6))  # until a tenth of the training, and two points more
    runtime = Recorder()
    make(tiny("optimization.steps=40"), runtime).run()
    assert runtime.notices == []


def test_a_collapse_that_passes_stops_nothing(tiny: MakeJob, monkeypatch: pytest.MonkeyPatch) -> None:
    collapse(monkeypatch, range(4, 13))  # nine points
    assert make(tiny("optimization.stop_on_collapse=true")).run().status == "finished"


def test_accumulation_is_exact_where_the_loss_is_a_mean(line: MakeJob) -> None:
    folder = RunFolder(line().output)
    whole, parts = make(line(), None, folder), make(line("optimization.accumulate=8"), None, folder)
    for step in range(4):
        one, many = whole.advance(step, measure=True), parts.advance(step, measure=True)
        torch.testing.assert_close(many.step.loss, one.step.loss, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(many.step.metrics["double"], one.step.metrics["double"], rtol=1e-12, atol=1e-12)
        for a, b in zip(whole.state.algorithm.parameters(), parts.state.algorithm.parameters(), strict=True):
            torch.testing.assert_close(b.grad, a.grad, rtol=1e-10, atol=1e-12)
            torch.testing.assert_close(b, a, rtol=1e-10, atol=1e-12)


def test_accumulation_is_refused_where_samples_are_compared(tiny: MakeJob) -> None:
    found = launch.check(tiny("optimization.accumulate=2"))
    assert [problem.where for problem in found] == ["optimization.accumulate"]
    assert "the loss of simclr is no plain mean over samples" in found[0].what
    assert launch.check(tiny()) == []


def test_accumulation_must_divide_the_rows(line: MakeJob) -> None:
    found = launch.check(line("optimization.accumulate=5"))
    assert "cannot be split into 5 equal parts" in found[0].what


def poison(monkeypatch: pytest.MonkeyPatch, bad_step: int) -> None:
    """SimCLR whose projections are divided by zero at one step."""
    forward = SimCLR.forward

    def broken(self: SimCLR, inputs: Inputs, clock: Clock) -> Step:
        made = forward(self, inputs, clock)
        return Step(made.loss / 0.0 * 0.0, made.metrics) if clock.step == bad_step else made

    monkeypatch.setattr(SimCLR, "forward", broken)


@pytest.mark.parametrize("interval", [1, 10])
def test_a_loss_that_is_not_finite_stops_the_run_and_can_be_replayed(
    tiny: MakeJob, monkeypatch: pytest.MonkeyPatch, interval: int
) -> None:
    poison(monkeypatch, 5)
    training = make(tiny(f"tracking.every_steps={interval}", "checkpoint.every_steps=4"))
    outcome = training.run()
    assert outcome.status == "failed"
    assert outcome.step == 5
    assert "not finite at step 5" in outcome.message
    assert f"heliostat replay {training.folder.storage.uri} --step 5" in outcome.message
    kept = training.folder.storage.read_json("non-finite-step-5.json")
    assert kept["samples"] == training.loader.indices(5).tolist()
    assert ", ".join(map(str, kept["samples"][:12])) in outcome.message
    assert training.checkpoints.steps() == [4], "weights after the bad step must not become a checkpoint"
    report = replay_step(training.folder, 5)
    assert report.start == 4
    assert report.samples == kept["samples"]
    assert report.anomaly is not None
    assert not report.gradients[0].finite
    json.dumps(report.as_data())


def test_replay_gives_the_loss_that_was_logged_at_any_step(tiny: MakeJob) -> None:
    runtime = Recorder()
    training = make(tiny("checkpoint.keep=1"), runtime)
    training.run()
    logged = dict(runtime.points["train/loss"])
    for step in (0, 7, 11):
        report = replay_step(training.folder, step)
        assert report.metrics["loss"] == pytest.approx(logged[step + 1], rel=1e-12)
        assert report.anomaly is None
    with pytest.raises(InputError, match="steps 0 to 11, not 12"):
        replay_step(training.folder, 12)


def fail_saves(monkeypatch: pytest.MonkeyPatch, steps: set[int]) -> None:
    save = CheckpointStore.save

    def full(self: CheckpointStore, step: int, state: Any, about: Any, *, replace: bool = False) -> None:
        if step in steps:
            raise CheckpointError(f"the checkpoint of step {step} could not be written: No space left on device")
        save(self, step, state, about, replace=replace)

    monkeypatch.setattr(CheckpointStore, "save", full)


def test_a_full_disk_for_a_while_is_told_and_counted(tiny: MakeJob, monkeypatch: pytest.MonkeyPatch) -> None:
    fail_saves(monkeypatch, {4, 8})
    runtime = Recorder()
    training = make(tiny(), runtime)
    assert training.run().status == "finished"
    assert training.checkpoints.steps() == [12]
    assert [note.count("No space left") for note in runtime.notices] == [1, 1]
    assert runtime.points["checkpoint/failed_saves"] == [(4, 1.0), (8, 2.0)]


def test_a_full_disk_at_the_end_fails_the_run(tiny: MakeJob, monkeypatch: pytest.MonkeyPatch) -> None:
    fail_saves(monkeypatch, {12})
    outcome = make(tiny()).run()
    assert outcome.status == "failed"
    assert "No space left" in outcome.message


def test_a_stored_checkpoint_is_judged_as_the_run_was(tiny: MakeJob) -> None:
    job = tiny("evaluation=[{type: knn, k: 5}, {type: collapse}]")
    training = make(job)
    outcome = training.run()
    data = launch.load(job)
    step, results = evaluate_checkpoint(job, (data.train, data.test), training.folder, None, Recorder())
    assert step == 12
    assert results == outcome.results
    assert set(results) >= {
        "eval/knn_top1",
        "baseline/untrained/knn_top1",
        "baseline/pixels/knn_top1",
        "eval/alignment",
    }
    earlier, other = evaluate_checkpoint(job, (data.train, data.test), training.folder, 8, Recorder())
    assert earlier == 8
    assert other["eval/rankme"] != results["eval/rankme"]
    assert other["baseline/untrained/rankme"] == results["baseline/untrained/rankme"]


def test_a_checkpoint_of_another_architecture_is_refused(tiny: MakeJob) -> None:
    training = make(tiny("optimization.steps=4"))
    training.run()
    wider = tiny("algorithm.backbone.width=8", "evaluation=[{type: knn}]")
    data = launch.load(wider)
    with pytest.raises(InputError, match="of another architecture") as caught:
        evaluate_checkpoint(wider, (data.train, data.test), training.folder, None, Recorder())
    assert "shape" in str(caught.value)
    with pytest.raises(InputError, match="of another architecture"):
        make(wider, None, training.folder).restore()


def test_evaluations_and_checkpoints_come_when_they_are_due(tiny: MakeJob) -> None:
    epoch = 1437 // 256
    job = tiny(
        "optimization.batch_size=256",
        f"optimization.steps={2 * epoch + 1}",
        "evaluation=[{type: knn, k: 5, every_epochs: 1}]",
        "checkpoint={every_epochs: 1, keep: 9}",
    )
    runtime = Recorder()
    training = make(job, runtime)
    training.run()
    assert [step for step, _ in runtime.points["eval/knn_top1"]] == [epoch, 2 * epoch, 2 * epoch + 1]
    assert training.checkpoints.steps() == [epoch, 2 * epoch, 2 * epoch + 1]
    assert [step for step, _ in runtime.points["baseline/untrained/knn_top1"]] == [0]


def test_only_the_seed_decides_the_first_weights(tiny: MakeJob) -> None:
    torch.manual_seed(1)
    one = make(tiny()).state.algorithm.state_dict()
    torch.manual_seed(2)
    state = torch.get_rng_state()
    two = make(tiny()).state.algorithm.state_dict()
    assert torch.equal(torch.get_rng_state(), state), "the caller's generator must not move"
    assert_same(one, two)
    other = make(tiny("seed=4")).state.algorithm.state_dict()
    assert not torch.equal(one["backbone.conv1.weight"], other["backbone.conv1.weight"])


def test_two_processes_cannot_hold_one_run(tiny: MakeJob) -> None:
    folder = make(tiny()).folder
    with folder.locked():
        with pytest.raises(InputError, match="another process"), RunFolder(folder.storage.uri).locked():
            pass
        with RunFolder(folder.storage.uri).locked("worker"):
            pass
    with RunFolder(folder.storage.uri).locked():
        pass


@pytest.mark.slow
def test_compiled_networks_give_the_same_losses_and_names(tiny: MakeJob) -> None:
    plain, compiled = Recorder(), Recorder()
    make(tiny("optimization.steps=3"), plain).run()
    training = make(tiny("optimization.steps=3", "resources.compile=true"), compiled)
    assert training.run().status == "finished"
    for (_, a), (_, b) in zip(plain.points["train/loss"], compiled.points["train/loss"], strict=True):
        assert a == pytest.approx(b, rel=1e-3)
    assert "backbone.conv1.weight" in training.state.algorithm.state_dict()


def test_data_without_labels_and_evaluators_that_need_them(tiny: MakeJob) -> None:
    job = tiny("evaluation=[{type: knn}]", "data.test=null")
    assert "give data.test" in launch.check(job)[0].what
    assert isinstance(launch.load(tiny()), Datasets)


def test_what_of_the_data_is_left_out_is_said_and_logged(tiny: MakeJob) -> None:
    job = tiny("optimization.steps=3")
    digits = launch.load(job)
    corrupt = tuple(CorruptItem(f"part-0.parquet:{row}", "cut short") for row in range(7))
    runtime = Recorder()
    said: list[str] = []
    runtime.notice = said.append  # type: ignore[method-assign]
    folder = RunFolder(job.output)
    TrainingLoop(job, Datasets(replace(digits.train, corrupt=corrupt), None), runtime, folder).run()
    assert "29 of 1437 samples fill no batch of 64" in said[0]
    assert "7 training images cannot be decoded and are left out: part-0.parquet:0: cut short" in said[1]
    assert said[1].endswith("and 2 more")
    assert runtime.points["data/corrupt_images"] == [(0, 7)]
    assert runtime.points["data/dropped_per_epoch"] == [(0, 29)]
