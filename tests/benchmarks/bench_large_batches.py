"""Large batches: optimisers over all tensors at once, NT-Xent by tiles, and what forms of one step keep in memory.

Bytes are counted, not measured: the peak of all tensors that are alive inside the loss, and of those that autograd
keeps for the backward pass of a whole step. They are counted with tensors that hold no data, so that forms that fit no
machine can be counted too, and are the same everywhere.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any
from weakref import finalize

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from heliostat.training.gradient_cache import Ways, cached_backward
from heliostat_algorithms.algorithm import Clock, DataSpec, Inputs, ParameterGroup
from heliostat_algorithms.backbones import ResNet50, ViTSmall
from heliostat_algorithms.backbones.checkpointing import checkpoint_blocks
from heliostat_algorithms.objectives.nt_xent import nt_xent
from heliostat_algorithms.optimizers import LARS, AdamW, Sgd
from heliostat_algorithms.representation.simclr import SimCLR

TILE = 1024
ROWS = {4_096: TILE, 16_384: TILE, 65_536: 4_096}
"""Anchors, that is views, two for each image, and the rows and columns of a tile."""
TIMED = (4_096, 16_384)
"""A plain loss of 65,536 views holds matrices of 17 GB."""
BATCHES = (1_024, 4_096)
PART = 256
"""Images of a part, where the batch is split."""


def rows(quick: bool = False) -> list[dict[str, Any]]:
    """Foreach LARS over a loop; tiled NT-Xent over the plain one, in time and memory."""
    found = [_row("LARS on ResNet-50 over a loop over its tensors", *optimizers(lars, loop, 5 if quick else 20))]
    for name, config in (("AdamW", AdamW(learning_rate=1e-3)), ("SGD", Sgd(learning_rate=1e-3))):
        ours, other = fused(config), unfused(config)
        found.append(_row(f"{name} on ResNet-50 over torch's loop over tensors", *optimizers(ours, other, 5)))
    for count in TIMED[:1] if quick else TIMED:
        seconds = _in_turn([work(count, TILE), work(count, None)], 3 if count == TIMED[0] else 1)
        found.append(_row(f"NT-Xent by tiles of {TILE} over the plain one, {count:,} views", *seconds))
    for count, tile in ROWS.items():
        held = peak_bytes(count, tile), peak_bytes(count, None)
        found.append(
            _row(f"peak memory of NT-Xent by tiles of {tile} over the plain one, {count:,} views", *held, "bytes")
        )
    for batch in BATCHES[:1] if quick else BATCHES:
        plain = step_bytes(batch)
        for name, held_by_step in (
            ("in parts of 256", step_bytes(batch, part=PART)),
            ("with activation checkpointing", step_bytes(batch, checkpointing=True)),
            ("with both", step_bytes(batch, part=PART, checkpointing=True)),
        ):
            label = f"kept by a step of SimCLR, ViT-S/16 at 224, {batch:,} images: {name} over plain"
            found.append(_row(label, held_by_step, plain, "bytes"))
    return found


def _row(name: str, ours: float, other: float | None, unit: str = "s") -> dict[str, Any]:
    ratio = None if other is None else ours / other
    return {"name": name, "ours": ours, "other": other, "ratio": ratio, "unit": unit, "higher_is_better": False}


# Optimisers


def parameters() -> list[nn.Parameter]:
    """ResNet-50's 159 tensors, with gradients."""
    torch.manual_seed(0)
    found = list(ResNet50().build(3, (224, 224)).parameters())
    for parameter in found:
        parameter.grad = torch.randn_like(parameter) * 1e-3
    return found


def groups(of: list[nn.Parameter]) -> list[ParameterGroup]:
    """Weights, and what is neither decayed nor adapted."""
    wide, narrow = [p for p in of if p.ndim > 1], [p for p in of if p.ndim <= 1]
    return [ParameterGroup("weights", wide, True), ParameterGroup("rest", narrow, False)]


def lars() -> Callable[[], object]:
    """Ours."""
    found = parameters()
    wide, narrow = [p for p in found if p.ndim > 1], [p for p in found if p.ndim <= 1]
    return LARS([{"params": wide, "weight_decay": 1e-6}, {"params": narrow, "adapt": False}], lr=0.3).step


def loop() -> Callable[[], object]:
    """One tensor after the other, as most codes have it; norms stay on the device."""
    found = parameters()
    velocities = [torch.zeros_like(parameter) for parameter in found]

    @torch.no_grad()
    def step() -> None:
        for parameter, velocity in zip(found, velocities, strict=True):
            gradient, ratio = parameter.grad, torch.ones(())
            assert gradient is not None
            if parameter.ndim > 1:
                gradient = gradient.add(parameter, alpha=1e-6)
                weight_norm, norm = parameter.norm(), gradient.norm()
                ratio = torch.where((weight_norm > 0) & (norm > 0), 0.001 * weight_norm / norm, ratio)
            velocity.mul_(0.9).add_(gradient * (0.3 * ratio))
            parameter.sub_(velocity)

    return step


def fused(config: AdamW | Sgd) -> Callable[[], Callable[[], object]]:
    """As a job builds it."""
    return lambda: config.build(groups(parameters()), 256).step


def unfused(config: AdamW | Sgd) -> Callable[[], Callable[[], object]]:
    """The same, one tensor after the other."""

    def make() -> Callable[[], object]:
        optimizer = config.build(groups(parameters()), 256)
        for group in optimizer.param_groups:
            group.update(foreach=False, fused=False)
        return optimizer.step

    return make


def optimizers(
    ours: Callable[[], Callable[[], object]], other: Callable[[], Callable[[], object]], steps: int
) -> tuple[float, float]:
    """Seconds of a step of each, in turn; medians."""
    return _in_turn([ours(), other()], steps)


def _in_turn(works: list[Callable[[], object]], times: int) -> tuple[float, float]:
    seconds: list[list[float]] = [[], []]
    for turn in range(times + 1):
        for which in (0, 1) if turn % 2 == 0 else (1, 0):
            start = time.process_time()  # CPU time: others use this machine too
            works[which]()
            if turn:  # the first is a warm-up
                seconds[which].append(time.process_time() - start)
    first, second = (sorted(each)[len(each) // 2] for each in seconds)
    return first, second


# Losses


def work(count: int, tile: int | None) -> Callable[[], object]:
    """Forward and backward of this many views, of 128 numbers."""
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.randn(count // 2, 128, generator=generator).requires_grad_() for _ in range(2))

    def both() -> None:
        torch.autograd.backward(nt_xent(first, second, 0.1, tile)[0])
        first.grad = second.grad = None

    return both


class Living(TorchDispatchMode):
    """The most bytes of tensors, made inside, that were alive at once; each storage counts once."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: set[int] = set()

    def _end(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = function(*args, **(kwargs or {}))
        for value in made if isinstance(made, tuple | list) else [made]:
            if isinstance(value, Tensor):
                storage = value.untyped_storage()
                key, size = storage._cdata, storage.nbytes()
                if key not in self._known:
                    self._known.add(key)
                    self.now += size
                    self.peak = max(self.peak, self.now)
                    finalize(storage, self._end, key, size)
        return made


def peak_bytes(count: int, tile: int | None) -> int:
    """What the loss of so many views holds at most, forward and backward."""
    with FakeTensorMode():
        action = work(count, tile)
        with Living() as living:
            action()
    return living.peak


# A whole step


@contextmanager
def saved_bytes() -> Iterator[Callable[[], int]]:
    """Inside, the most bytes that autograd has kept at once."""
    now = peak = 0

    class Kept:
        def __init__(self, tensor: Tensor) -> None:
            nonlocal now, peak
            self.tensor, self.bytes = tensor, tensor.numel() * tensor.element_size()
            now += self.bytes
            peak = max(peak, now)

        def __del__(self) -> None:
            nonlocal now
            now -= self.bytes

    with torch.autograd.graph.saved_tensors_hooks(Kept, lambda kept: kept.tensor):
        yield lambda: peak


def step_bytes(batch: int, *, part: int | None = None, checkpointing: bool = False) -> int:
    """What autograd keeps at most in one step in float32, the loss by tiles."""
    config = SimCLR.Config(backbone=ViTSmall(), tile=4096)
    algorithm = SimCLR(config, DataSpec(image_shape=(3, 224, 224), classes=None))
    if checkpointing:
        checkpoint_blocks(algorithm)
    with FakeTensorMode(allow_non_fake_inputs=True):
        clock = Clock(step=0, total_steps=1, steps_per_epoch=1, batch_size=batch)
        size = part or batch
        images = torch.zeros(size, 3, 224, 224)

        def inputs() -> Inputs:
            return {"first": images, "second": images}

        with saved_bytes() as peak:
            if part is None:
                algorithm(inputs(), clock).loss.backward()
            else:
                scaler = torch.amp.GradScaler("cpu", enabled=False)
                parts = [inputs] * (batch // size)
                cached_backward(algorithm, algorithm, parts, clock, scaler, Ways(nullcontext, nullcontext, nullcontext))
            return peak()
