"""``resources.compile``: what is compiled in the first steps serves all others, also in the next epoch and after an
evaluation.

Graphs are captured and guarded as always, and then run by PyTorch itself: this counts compilations, and how fast the
compiled code is, is another matter.
"""

from __future__ import annotations

import functools
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch

from heliostat.config.loading import parse
from heliostat.training import launch
from heliostat.training.loop import TrainingLoop
from heliostat.training.run_folder import RunFolder
from heliostat.training.runtime import SilentRuntime

_TABLE = runpy.run_path(str(Path(__file__).with_name("methods.py")))
EVALUATED = ("simclr", "moco", "mae", "vit")
METHODS = [name for name in _TABLE["METHODS"] if name not in ("simclr-v2-distill",)]
"""All but the one that begins from another run."""
WARM = {"ijepa": 40, "ijepa-corrected": 40, "dinov2": 40, "dinov2-centring": 40}
"""Steps after which every shape has been seen, or is known to vary; of most methods it is the same in all steps."""


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_nothing_is_compiled_again_after_the_first_steps(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    changes = ["resources.compile=true"] + ["evaluation=[{type: knn}]"] * (method in EVALUATED)
    job = parse(_TABLE["job_text"](method, ""), "tiny.yaml", changes)
    data = launch.load(launch.settled(job))
    training = TrainingLoop(job, data, SilentRuntime(torch.device("cpu")), RunFolder(str(tmp_path / "run")))
    epoch, warm = training.loader.steps_per_epoch, WARM.get(method, 6)
    compiled = compilations()

    def evaluate() -> None:
        if method in EVALUATED:
            training._evaluate(1, at_end=True)

    evaluate()
    for step in range(warm):
        training.advance(step)
    evaluate()
    training.advance(warm)
    assert compilations() > compiled, "nothing was compiled at all"
    before = compilations()
    for step in (warm + 1, *range(epoch - 1, epoch + 5)):
        training.advance(step)
    evaluate()
    training.advance(2 * epoch)
    assert compilations() == before


def compilations() -> int:
    """Graphs that were compiled in this process."""
    stats: Any = torch._dynamo.utils.counters["stats"]
    return int(stats["unique_graphs"])
