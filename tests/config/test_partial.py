"""What a partly written setting leaves unsaid is the default of the setting around it."""

from __future__ import annotations

from typing import Any

import pytest

from heliostat.config.job import Job
from heliostat.config.loading import dump, parse
from heliostat.errors import InputError
from heliostat_algorithms.representation.dino import DINO
from heliostat_algorithms.representation.moco_v3 import MoCoV3

TEXT = """\
name: small
algorithm: {type: dino}
data: {train: {source: digits, split: train}}
optimization: {optimizer: {type: adamw, learning_rate: 0.001}, batch_size: 64, epochs: 20}
"""


def dino(*overrides: str) -> Any:
    return parse(TEXT, "small.yaml", overrides).algorithm


def test_a_size_changes_nothing_else_of_a_view() -> None:
    local = dino("algorithm.views.local.size=32").views.local
    default = DINO.Config().views
    assert local.size == 32
    assert local.jitter == default.local.jitter
    assert local.crop_area == default.local.crop_area
    assert dino("algorithm.views.local.size=32").views.first_global == default.first_global


def test_settings_deep_inside_are_completed_too() -> None:
    jitter = dino("algorithm.views.local.jitter.probability=0.1").views.local.jitter
    default = DINO.Config().views.local.jitter
    assert (jitter.probability, jitter.brightness, jitter.hue) == (0.1, default.brightness, default.hue)
    assert default.brightness != 0.8  # that of the class, which is SimCLR's


def test_a_backbone_of_the_same_type_keeps_what_the_method_sets() -> None:
    assert DINO.Config().backbone.interpolation_offset == 0.1  # type: ignore[union-attr]
    assert dino("algorithm.backbone={type: vit-small, patch_size: 8}").backbone.interpolation_offset == 0.1
    assert dino("algorithm.backbone={type: vit-tiny, patch_size: 8}").backbone.interpolation_offset == 0.0


def test_a_schedule_of_the_teacher_keeps_its_end() -> None:
    job = parse(TEXT.replace("dino", "moco-v3"), "small.yaml", ["algorithm.momentum.start=0.9"])
    assert (job.algorithm.momentum.start, job.algorithm.momentum.end) == (0.9, MoCoV3.Config().momentum.end)


def test_the_resolved_job_says_all_and_loads_as_the_same() -> None:
    job: Job = parse(TEXT, "small.yaml", ["algorithm.views.local.size=32", "algorithm.views.local_crops=2"])
    assert parse(dump(job), "resolved.yaml") == job


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("algorithm.views.local.sice=3", "unknown key 'sice' in algorithm.views.local. Did you mean 'size'?"),
        ("algorithm.views.local.jitter.hue=2.0", "algorithm.views.local.jitter: The hue's range"),
        ("algorithm.backbone={patch_size: 8}", "algorithm.backbone must say its type"),
        ("algorithm.views=3", "algorithm.views must be"),
    ],
)
def test_mistakes_are_still_told_where_they_are(override: str, said: str) -> None:
    with pytest.raises(InputError) as caught:
        dino(override)
    assert any(said in str(problem) for problem in caught.value.problems), caught.value
