"""A member that goes on from another's state: its weights and moments, with the heir's own settings."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from heliostat.config.job import Job
from heliostat.config.loading import parse
from heliostat.training import launch
from heliostat.training.loop import TrainingLoop
from heliostat.training.monitor import Monitor
from heliostat.training.run_folder import RunFolder
from heliostat.training.runtime import LocalRuntime
from heliostat.tuning.inheritance import adopt, hand_over

Make = Callable[..., Job]


class Unrecorded:
    """A tracker that keeps nothing."""

    run_id = None

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *arguments, **settings: None


@pytest.fixture
def job(tmp_path: Path, tiny_text: str) -> Make:
    """The tiny job with AdamW, whose moments are worth inheriting, and changes."""

    def make(*overrides: str) -> Job:
        optimizer = "optimization.optimizer={type: adamw, learning_rate: 0.01, per: null, weight_decay: 0.1}"
        return parse(tiny_text, "tiny.yaml", [f"output={tmp_path / 'runs'}", optimizer, *overrides])

    return make


def trained(job: Job, folder: RunFolder, pause_at: int | None = None) -> dict[str, Any]:
    """Train on from what the folder has; returns the newest checkpoint."""
    tracker: Any = Unrecorded()
    monitor = Monitor(lambda: tracker)
    loop = TrainingLoop(job, launch.load(job), LocalRuntime(monitor), folder, pause_at)
    outcome = loop.run()
    assert outcome.step == (pause_at or 12)
    return folder.checkpoints().load(outcome.step)


def same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(same(a, b) for a, b in zip(one, other, strict=True))
    return bool(one == other)


def folder(tmp_path: Path, name: str, job: Job) -> RunFolder:
    made = RunFolder(str(tmp_path / "runs" / name))
    made.create(job)
    return made


def test_an_heir_goes_on_as_the_donor_would_have_with_the_heir_s_settings(job: Make, tmp_path: Path) -> None:
    theirs, mine = job(), job("optimization.optimizer.learning_rate=0.02", "optimization.optimizer.weight_decay=0.3")
    donor, heir = folder(tmp_path, "donor", theirs), folder(tmp_path, "heir", mine)
    state = trained(theirs, donor, pause_at=4)
    trained(mine, heir, pause_at=4)
    hand_over(donor, 4, heir, generation=4)
    adopt(heir, mine, generation=4)
    inherited = trained(mine, heir, pause_at=9)

    # The same by hand: a new run of the heir's job into which the donor's tensors are put.
    tracker: Any = Unrecorded()
    loop = TrainingLoop(mine, launch.load(mine), LocalRuntime(Monitor(lambda: tracker)), folder(tmp_path, "hand", mine))
    groups = loop.state.optimizer.state_dict()["param_groups"]
    loop.state.load_state_dict(state, "by hand")
    decay = {group["weight_decay"] for group in loop.state.optimizer.param_groups}
    assert max(decay) == 0.1  # of the donor: only now of the heir
    for group, own in zip(loop.state.optimizer.param_groups, groups, strict=True):
        group.update({key: value for key, value in own.items() if key != "params"})
    for step in range(4, 9):
        loop.advance(step)
    assert same(inherited, loop.state.state_dict())
    assert not same(inherited, trained(theirs, donor, pause_at=9))  # the settings did change


def test_what_was_handed_over_is_taken_once_and_only_for_its_generation(job: Make, tmp_path: Path) -> None:
    donor, heir = folder(tmp_path, "donor", job("seed=1")), folder(tmp_path, "heir", job())
    trained(job("seed=1"), donor, pause_at=4)
    own = trained(job(), heir, pause_at=4)
    hand_over(donor, 4, heir, generation=4)
    adopt(heir, job(), generation=2)  # the driver died before it had written down generation 4
    assert same(heir.checkpoints().load(4), own)
    hand_over(donor, 4, heir, generation=4)  # the resumed one makes the same copy again
    adopt(heir, job(), generation=4)
    assert same(heir.checkpoints().load(4)["algorithm"], donor.checkpoints().load(4)["algorithm"])
    later = trained(job(), heir, pause_at=6)
    adopt(heir, job(), generation=4)  # a process that was started again takes nothing twice
    assert heir.checkpoints().steps()[-1] == 6
    assert same(heir.checkpoints().load(6), later)


def test_a_copy_that_a_crash_cut_off_is_not_taken(job: Make, tmp_path: Path) -> None:
    donor, heir = folder(tmp_path, "donor", job("seed=1")), folder(tmp_path, "heir", job())
    trained(job("seed=1"), donor, pause_at=4)
    own = trained(job(), heir, pause_at=4)
    hand_over(donor, 4, heir, generation=4)
    (tmp_path / "runs/heir/inherited/ready.json").unlink()
    adopt(heir, job(), generation=4)
    assert same(heir.checkpoints().load(4), own)
