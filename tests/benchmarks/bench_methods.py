"""The step of each representation method against one written by hand, and DINO's multi-crop against a naive one.

A hand-written step is what a researcher would type into one file: random rows, views by the same augmentation, the same
networks, the loss in a few lines of torch, the moving averages in a loop over parameters. It keeps no metrics, looks
for no collapse, and its batches and views could not be made again. Both sides take turns step by step.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from typing import Any, TypeAlias

import bench_training as training
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heliostat.config.job import Job
from heliostat.config.loading import parse
from heliostat.data.images import ImageData
from heliostat.training.datasets import Datasets
from heliostat.training.loop import TrainingLoop
from heliostat.training.run_folder import RunFolder
from heliostat.training.runtime import SilentRuntime
from heliostat.training.state import TrainingState, build_algorithm
from heliostat_algorithms.algorithm import Clock
from heliostat_algorithms.backbones.drop_path import draw_keep
from heliostat_algorithms.objectives.koleo import koleo
from heliostat_algorithms.randomness import Random
from heliostat_algorithms.representation.simclr_v2_transfer import SimCLRv2Distill
from heliostat_algorithms.teachers import teacher_of

Loss: TypeAlias = Callable[[Any, Tensor, Random], Tensor]

COMMON = """
name: bench
data: {train: {source: digits, split: train}}
optimization:
  optimizer: {type: lars, learning_rate: 1.0}
  schedule: {type: constant}
  batch_size: 64
  steps: 100000
algorithm: """
RESNET = "{type: resnet18, stem: cifar, width: 16}"
NARROW = "{type: resnet18, stem: cifar, width: 8}"
VIT = "{type: vit-tiny, patch_size: 4, width: 96, depth: 6, heads: 3}"
CROPS = (
    "{first_global: {size: 32, blur: {probability: 0}}, second_global: {size: 32, blur: {probability: 0}}, "
    "local: {size: 16, blur: {probability: 0}}, local_crops: 4}"
)
METHODS = {
    "simclr-v2": f"{{type: simclr-v2, backbone: {RESNET}, augmentation: {{blur: {{probability: 0}}}}}}",
    "moco": f"{{type: moco, backbone: {RESNET}, head: mlp, queue_size: 4096, batch_norm_groups: 1}}",
    "moco-v3": f"{{type: moco-v3, backbone: {RESNET}, projection_hidden: 512, temperature: 1.0}}",
    "dino": f"{{type: dino, backbone: {VIT}, views: {CROPS}, prototypes: 4096, head_hidden: 512}}",
    "dinov2": f"{{type: dinov2, backbone: {VIT[:-1]}, mask_token: true}}, views: {CROPS}, "
    "head: {prototypes: 4096, hidden: 512}}",
    "moco, 8 groups": f"{{type: moco, backbone: {RESNET}, head: mlp, queue_size: 4096, batch_norm_groups: 8}}",
    "simclr-v2-fine-tune": f"{{type: simclr-v2-fine-tune, backbone: {RESNET}}}",
    "simclr-v2-distill": f"{{type: simclr-v2-distill, teacher: {{backbone: {RESNET}}}, backbone: {NARROW}}}",
}


def job(method: str) -> Job:
    """A job of a method, with images of 32 x 32 pixels in mind."""
    return parse(COMMON + METHODS[method], "bench.yaml")


@torch.no_grad()
def average(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """The moving average as one writes it."""
    for old, new in zip(teacher.parameters(), student.parameters(), strict=True):
        old.mul_(momentum).add_(new, alpha=1 - momentum)


def two_views(model: Any, batch: Tensor, random: Random) -> tuple[Tensor, Tensor]:
    augment = model.config.augmentation
    with torch.no_grad():
        return augment(batch, random.within("a")), augment(batch, random.within("b"))


def simclr_v2(model: Any, batch: Tensor, random: Random) -> Tensor:
    z = F.normalize(model.projection(model.backbone(torch.cat(two_views(model, batch, random)))), dim=1)
    similarity = (z @ z.T / model.config.temperature).fill_diagonal_(float("-inf"))
    n = len(z) // 2
    return F.cross_entropy(similarity, torch.arange(2 * n).roll(n))


def moco(model: Any, batch: Tensor, random: Random) -> Tensor:
    first, second = two_views(model, batch, random)
    q = F.normalize(model.head(model.backbone(first)), dim=1)
    with torch.no_grad():
        average(model.key_backbone, model.backbone, 0.999)
        average(model.key_head, model.head, 0.999)
        k = F.normalize(model.key_head(model.key_backbone(second)), dim=1)
    queue = model.memory.keys
    logits = torch.cat([(q * k).sum(1, keepdim=True), q @ queue.clone().T], dim=1) / model.config.temperature
    place = random.step * len(batch) % len(queue)
    queue[place : place + len(batch)] = k
    return F.cross_entropy(logits, torch.zeros(len(batch), dtype=torch.int64))


def moco_v3(model: Any, batch: Tensor, random: Random) -> Tensor:
    with torch.no_grad():
        first = model.config.first_view(batch, random.within("a"))
        second = model.config.second_view(batch, random.within("b"))
        average(model.key_backbone, model.backbone, 0.99)
        average(model.key_projector, model.projector, 0.99)
        keys = [F.normalize(model.key_projector(model.key_backbone(view)), dim=1) for view in (second, first)]
    own, t = torch.arange(len(batch)), model.config.temperature
    loss = torch.zeros(())
    for view, k in zip((first, second), keys, strict=True):
        q = F.normalize(model.predictor(model.projector(model.backbone(view))), dim=1)
        loss = loss + 2 * t * F.cross_entropy(q @ k.T / t, own)
    return loss


def crops(model: Any, batch: Tensor, random: Random) -> tuple[list[Tensor], Tensor, Tensor]:
    """All crops one by one, and drop path factors of large and small ones together."""
    with torch.no_grad():
        large, small = model.config.views(batch, random)
    count = model.config.views.local_crops
    backbone = model.student.backbone if hasattr(model, "student") else model.backbone
    rates = model.drop_rates or [0.0] * backbone.branches
    mode = "subset" if hasattr(model, "student") else "sample"
    keeps = [draw_keep(random.within(f"keep{n}"), rates, mode, len(batch)) for n in range(2 + count)]
    return [*large.chunk(2), *small.chunk(count)], torch.cat(keeps[:2]), torch.cat(keeps[2:])


def distillation(student: list[Tensor], teacher: list[Tensor]) -> Tensor:
    """Each crop of the student against each other large crop of the teacher."""
    terms = [
        -(q * F.log_softmax(z / 0.1, dim=1)).sum(1).mean()
        for v, z in enumerate(student)
        for t, q in enumerate(teacher)
        if t != v
    ]
    return torch.stack(terms).mean()


def dino(model: Any, batch: Tensor, random: Random, naive: bool = False) -> Tensor:
    views, keep_large, keep_small = crops(model, batch, random)
    with torch.no_grad():
        average(model.teacher_backbone, model.backbone, 0.996)
        average(model.teacher_head, model.head, 0.996)
        if naive:
            said = [model.teacher_head(model.teacher_backbone(view)) for view in views[:2]]
        else:
            said = list(model.teacher_head(model.teacher_backbone(torch.cat(views[:2]))).chunk(2))
        teacher = [F.softmax((logits - model.centre) / 0.04, dim=1) for logits in said]
        model.centre.mul_(0.9).add_(torch.cat(said).mean(0, keepdim=True), alpha=0.1)
    if naive:
        keeps = torch.cat([keep_large, keep_small]).chunk(len(views))
        student = [model.head(model.backbone(view, keep)) for view, keep in zip(views, keeps, strict=True)]
    else:
        h = [model.backbone(torch.cat(views[:2]), keep_large), model.backbone(torch.cat(views[2:]), keep_small)]
        student = list(model.head(torch.cat(h)).chunk(len(views)))
    return distillation(student, teacher)


def sinkhorn(logits: Tensor) -> Tensor:
    q = torch.exp((logits - logits.max()) / 0.04)
    for _ in range(3):
        q = q / q.sum(0, keepdim=True)
        q = q / q.sum(1, keepdim=True)
    return q


def dinov2(model: Any, batch: Tensor, random: Random) -> Tensor:
    views, keep_large, keep_small = crops(model, batch, random)
    large = torch.cat(views[:2])
    masked = model.config.masking(random.within("masks"), 2, len(batch), model.grid)
    places = masked.flatten().nonzero().squeeze(1)
    with torch.no_grad():
        average(model.teacher, model.student, 0.992)
        seen = model.teacher.backbone.tokens(large)
        cls, patches = model.teacher.logits(seen.feature.roll(len(batch), 0), seen.patches.flatten(0, 1)[places])
        teacher, targets = list(sinkhorn(cls).chunk(2))[::-1], sinkhorn(patches)
    seen = model.student.backbone.tokens(large, masked=masked, keep=keep_large)
    small = model.student.backbone(torch.cat(views[2:]), keep_small)
    logits, guesses = model.student.logits(torch.cat([seen.feature, small]), seen.patches.flatten(0, 1)[places])
    hidden = masked.sum(1)[places // masked.shape[1]]
    ibot = (-(targets * F.log_softmax(guesses / 0.1, dim=1)).sum(1) / hidden).sum() / len(masked)
    spread = koleo(seen.feature[: len(batch)]) + koleo(seen.feature[len(batch) :])
    return distillation(list(logits.chunk(len(views))), teacher) + ibot + 0.1 * spread


def distill(model: Any, batch: Tensor, random: Random) -> Tensor:
    with torch.no_grad():
        view = model.config.augmentation(batch, random)
        said = model.teacher.logits(view).softmax(dim=1)
    return F.cross_entropy(model.classifier(model.backbone(view)), said)


LOSSES: dict[str, Loss] = {
    "simclr-v2-distill": distill,
    "simclr-v2": simclr_v2,
    "moco": moco,
    "moco, 8 groups": moco,
    "moco-v3": moco_v3,
    "dino": dino,
    "dinov2": dinov2,
}


def bare_loop(work: Job, data: ImageData, loss: Loss) -> Callable[[int], object]:
    """Steps written by hand, with the optimiser of the job."""
    size = work.optimization.batch_size
    pixels, labels = torch.from_numpy(data.images), torch.arange(len(data.images)) % 10
    generator = torch.Generator().manual_seed(0)
    model: Any = build_algorithm(work, data.spec()).train()
    if work.algorithm.type == "moco":  # with torch's own batch normalisation
        model.backbone = work.algorithm.backbone.build(3, (32, 32))
        model.key_backbone = teacher_of(model.backbone)
    optimizer = work.optimization.optimizer.build(model.parameter_groups(), size)

    def train(step: int) -> None:
        rows = torch.randint(len(pixels), (size,), generator=generator)
        random = Random(0, step, range(size))
        if work.algorithm.type == "simclr-v2-fine-tune":
            with torch.no_grad():
                view = model.config.augmentation(pixels[rows], random)
            value = F.cross_entropy(model.logits(view), labels[rows])
        else:
            value = loss(model, pixels[rows], random)
        optimizer.zero_grad()
        value.backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return train


def platform_loop(work: Job, data: ImageData, folder: str) -> Callable[[int], object]:
    """One turn of the platform's loop. A distillation begins from a fine-tuned network; for its speed any teacher will
    do."""
    loop = TrainingLoop(work, Datasets(data, None), SilentRuntime(torch.device("cpu")), RunFolder(folder))
    if isinstance(loop.state.algorithm, SimCLRv2Distill):
        loop.state.algorithm.has_teacher.fill_(1)
    return loop.turn


def labelled(count: int = 1024) -> ImageData:
    """Coloured noise of 32 x 32 pixels with labels."""
    plain = training.images(count)
    labels = (torch.arange(count) % 10).numpy()
    return ImageData(images=plain.images, labels=labels, classes=tuple("0123456789"), name="noise")


def naive_dino(data: ImageData) -> tuple[Callable[[int], object], Callable[[int], object]]:
    """DINO's own step, and the same with one forward pass for each crop."""
    work = job("dino")
    state = TrainingState(work, data.spec(), torch.device("cpu"), 1)
    pixels, size = torch.from_numpy(data.images), work.optimization.batch_size

    def ours(step: int) -> None:
        model = state.algorithm.train()
        clock = Clock(step=step, total_steps=100000, steps_per_epoch=16, batch_size=size)
        rows = torch.arange(size) + step * size % (len(pixels) - size)
        inputs = model.prepare({"image": pixels[rows]}, clock, Random(0, step, range(size)))
        state.optimizer.zero_grad()
        model(inputs, clock).loss.backward()
        state.optimizer.step()
        with torch.no_grad():
            model.after_step(clock)

    return ours, bare_loop(work, data, lambda model, batch, random: dino(model, batch, random, naive=True))


def rows(quick: bool = False) -> list[dict[str, Any]]:
    """Images per second of each method over its hand-written step, and of multi-crop over a pass for each crop."""
    steps, found, data = 3 if quick else 16, [], labelled()
    for method in METHODS:
        work = job(method)
        with tempfile.TemporaryDirectory() as folder:
            ours = platform_loop(work, data, folder)
            other = bare_loop(work, data, LOSSES.get(method, simclr_v2))
            found.append(_row(f"{method}: step over a hand-written one", work, ours, other, steps))
    found.append(
        _row("dino: multi-crop in two passes over a pass for each crop", job("dino"), *naive_dino(data), steps)
    )
    return found


def _row(
    name: str, work: Job, ours: Callable[[int], object], other: Callable[[int], object], steps: int
) -> dict[str, Any]:
    first, second, ratio = training.rates(ours, other, work.optimization.batch_size, steps)
    return {
        "name": name,
        "ours": first,
        "other": second,
        "ratio": ratio,
        "unit": "images/s",
        "higher_is_better": True,
    }
