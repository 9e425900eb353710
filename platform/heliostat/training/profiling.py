"""Where the time of a step goes, measured while a run trains; the run computes the same bits as without.

After some steps of warm-up, steps are timed phase by phase. Then one step's floating-point operations are counted, and
some steps are recorded for the viewers of PyTorch's profiler. Each of these gets steps of its own, because counting and
recording slow a step down.

On a GPU, work is queued and the clock on the wall sees only the queueing. So the device is waited for at the end of
each phase. A phase's time is then its own, and the step is somewhat longer than without a profile, by what host and
device would have done at the same time.
"""

from __future__ import annotations

import gzip
import resource
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal

import torch
from torch.utils.flop_counter import FlopCounterMode

from heliostat.training.peaks import Peak, peak_of

WARM_UP: Final = 3
MEASURED: Final = 10
COUNTED: Final = 1
RECORDED: Final = 2
STEPS: Final = WARM_UP + MEASURED + COUNTED + RECORDED
"""Steps that a profile needs."""

Phase = Literal["data", "copy", "prepare", "forward", "backward", "optimizer"]
PHASES: Final[tuple[Phase, ...]] = ("data", "copy", "prepare", "forward", "backward", "optimizer")
_EXCHANGES = 5


@dataclass(frozen=True)
class Part:
    """One phase's time in a mean step."""

    seconds: float
    """Of rank 0."""
    share: float
    """Of rank 0's step, 0 to 1."""
    least: float
    """Seconds of the fastest worker."""
    most: float
    """Seconds of the slowest worker."""


@dataclass(frozen=True)
class Profile:
    """What was measured."""

    first_step: int
    """The first measured step, counted from 0."""
    steps: int
    workers: int
    device: str
    step_seconds: float
    """Of a mean step on rank 0, without evaluations, checkpoints and logging."""
    parts: dict[str, Part]
    """By phase, and ``other``: the step's rest. ``backward`` holds the exchange of gradients."""
    exchange_seconds: float | None
    """Averaging as many bytes as the gradients have over the workers, with nothing else going on; None for one worker.
    In a step it overlaps with the backward pass, so it is an upper bound of what the workers cost there."""
    samples_per_second: float
    """Over all workers, while measured."""
    step_flops: float | None
    """Floating-point operations of forward and backward on one worker: matrix products, convolutions, attention."""
    peak: Peak | None
    """What the device can do in the job's precision; None if unknown."""
    utilisation: float | None
    """Model FLOPs utilisation: the share of the peak that ``step_flops`` in ``step_seconds`` makes."""
    peak_memory_bytes: int
    """Largest so far: of the device's memory that torch holds, on a CPU of the process."""
    advice: list[str]

    def as_data(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    def metrics(self) -> dict[str, float]:
        """For curves and comparisons."""
        known = {
            "step_seconds": self.step_seconds,
            "samples_per_second": self.samples_per_second,
            "peak_memory_bytes": float(self.peak_memory_bytes),
            "exchange_seconds": self.exchange_seconds,
            "step_flops": self.step_flops,
            "utilisation": self.utilisation,
            **{f"share_{name}": part.share for name, part in self.parts.items()},
        }
        return {f"profile/{name}": value for name, value in known.items() if value is not None}


class Profiler:
    """Follows the steps of one worker's loop.

    Args:
        start: the first step that the loop makes.
        rank: this worker's position.
        world_size: how many workers follow their steps together.
        device: where this worker computes.
        precision: the job's.
        count: whether operations are counted; those of compiled networks cannot be seen.
    """

    def __init__(
        self, start: int, *, rank: int, world_size: int, device: torch.device, precision: str, count: bool
    ) -> None:
        self.start, self.rank, self.world_size = start, rank, world_size
        self.device, self.precision, self.count = device, precision, count
        self.trace: bytes | None = None
        """Chrome's trace format, gzipped; on rank 0, once recorded."""
        self._seconds = dict.fromkeys(PHASES, 0.0)
        self._total = 0.0
        self._flops: float | None = None
        self._counting = False
        self._recorder: torch.profiler.profile | None = None

    @contextmanager
    def step(self, step: int) -> Iterator[None]:
        """Around a whole step."""
        number = step - self.start
        counted = number == WARM_UP + MEASURED
        recorded = WARM_UP + MEASURED + COUNTED <= number < STEPS
        if number == WARM_UP:
            self._seconds, self._total = dict.fromkeys(PHASES, 0.0), 0.0
        if counted and self.count:
            self._counting, self._flops = True, 0.0
        if recorded and self.rank == 0 and self._recorder is None:
            self._recorder = torch.profiler.profile(activities=_activities(self.device))
            self._recorder.start()
        began = self._now()
        yield
        if number < WARM_UP + MEASURED:
            self._total += self._now() - began
        self._counting = False
        if number == STEPS - 1 and self._recorder is not None:
            self._recorder.stop()
            self.trace = _exported(self._recorder)
            self._recorder = None

    @contextmanager
    def phase(self, name: Phase, step: int) -> Iterator[None]:
        """Around a part of a step."""
        number = step - self.start
        if number >= WARM_UP + MEASURED:  # recorded under the phase's name; counted in the model's phases
            with torch.profiler.record_function(name):
                if self._counting and name in ("forward", "backward"):
                    with FlopCounterMode(display=False) as counter:  # one each: entering it again would begin anew
                        yield
                    self._flops = (self._flops or 0.0) + counter.get_total_flops()
                else:
                    yield
            return
        began = self._now()
        yield
        if name == "data":  # what the host did not wait for is the rest of copies that it started
            arrived = time.perf_counter()
            self._seconds["copy"] += self._now() - arrived
            self._seconds["data"] += arrived - began
        else:
            self._seconds[name] += self._now() - began

    def due(self, step: int) -> bool:
        """Whether all that a profile needs has been seen after this step."""
        return step - self.start == STEPS - 1

    def result(self, samples_per_step: int, gradient_elements: int) -> Profile:
        """What was seen; called on all workers at the same time, once :meth:`due`."""
        step_seconds = self._total / MEASURED
        seconds: dict[str, float] = {name: value / MEASURED for name, value in self._seconds.items()}
        seconds["other"] = step_seconds - sum(seconds.values())
        least, most = self._spread(seconds)
        parts = {n: Part(s, s / step_seconds, least[n], most[n]) for n, s in seconds.items()}
        exchange = self._exchange(gradient_elements)
        peak = peak_of(self.device, self.precision)
        known = self._flops is not None and peak is not None
        return Profile(
            first_step=self.start + WARM_UP,
            steps=MEASURED,
            workers=self.world_size,
            device=self.device.type,
            step_seconds=step_seconds,
            parts=parts,
            exchange_seconds=exchange,
            samples_per_second=samples_per_step / step_seconds,
            step_flops=self._flops,
            peak=peak,
            utilisation=self._flops / step_seconds / peak.flops if known and self._flops and peak else None,
            peak_memory_bytes=_peak_memory(self.device),
            advice=advise(
                {name: part.share for name, part in parts.items()},
                exchange=exchange / step_seconds if exchange is not None else 0.0,
                gpu=self.device.type == "cuda",
                precision=self.precision,
            ),
        )

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def _spread(self, seconds: Mapping[str, float]) -> tuple[dict[str, float], dict[str, float]]:
        """The least and the most over workers."""
        mine = torch.tensor(list(seconds.values()), dtype=torch.float64, device=self.device)
        ends = torch.stack([-mine, mine])
        if self.world_size > 1:
            torch.distributed.all_reduce(ends, torch.distributed.ReduceOp.MAX)
        least, most = (-ends[0]).tolist(), ends[1].tolist()
        return dict(zip(seconds, least, strict=True)), dict(zip(seconds, most, strict=True))

    def _exchange(self, elements: int) -> float | None:
        if self.world_size == 1:
            return None
        gradients = torch.zeros(elements, device=self.device)
        torch.distributed.all_reduce(gradients)
        began = self._now()
        for _ in range(_EXCHANGES):
            torch.distributed.all_reduce(gradients)
        return (self._now() - began) / _EXCHANGES


def advise(shares: Mapping[str, float], *, exchange: float, gpu: bool, precision: str) -> list[str]:
    """What to change, in plain words.

    Args:
        shares: of the step, by phase.
        exchange: the gradient exchange by itself, as a share of the step.
        gpu: whether the step runs on one.
        precision: the job's.
    """
    rules = {
        f"waiting for data takes {shares['data']:.0%} of the step: give each worker more cores "
        "(resources.cpus_per_worker), or prepare smaller pictures": shares["data"] > 0.1,
        f"copies to the device take {shares['copy']:.0%} of the step: store smaller pictures": shares["copy"] > 0.05,
        f"augmentation takes {shares['prepare']:.0%} of the step: "
        + ("use fewer or cheaper operations" if gpu else "it would run on a GPU (resources.gpus_per_worker)"): (
            shares["prepare"] > 0.3
        ),
        f"the optimiser takes {shares['optimizer']:.0%} of the step: a larger optimization.batch_size needs fewer "
        "updates": shares["optimizer"] > 0.15,
        f"exchanging gradients takes as long as {exchange:.0%} of the step by itself: use fewer workers with more rows "
        "each, or a larger optimization.batch_size": exchange > 0.2,
        f"{shares['other']:.0%} of the step is none of this: steps are short, and a larger optimization.batch_size "
        "makes fewer of them": shares["other"] > 0.15,
        "matrix products are faster in bf16: optimization.precision=bf16": gpu and precision == "fp32",
    }
    return [text for text, holds in rules.items() if holds]


def _peak_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024  # getrusage(2): bytes there, KiB on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _activities(device: torch.device) -> list[torch.profiler.ProfilerActivity]:
    activity = torch.profiler.ProfilerActivity
    return [activity.CPU, activity.CUDA] if device.type == "cuda" else [activity.CPU]


def _exported(recorder: torch.profiler.profile) -> bytes:
    with tempfile.TemporaryDirectory(prefix="heliostat-") as folder:
        path = Path(folder) / "trace.json"
        recorder.export_chrome_trace(str(path))
        return gzip.compress(path.read_bytes())
