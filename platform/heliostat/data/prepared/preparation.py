"""``heliostat data prepare``: from image folders, tar shards or Parquet to a set that can be streamed.

The input is listed and mixed in an order that the seed decides, and cut into parts of equal size; each part becomes one
file (``parts``), written by tasks of Ray or in this process. The index is written last. Ray Data would have been the
obvious tool, but its rows come in the order in which tasks end, and equal splits drop rows; here the same input and
settings make the same bytes, whatever the number of workers.

What was done survives a kill: a part counts once what is known of it has been written, after the part itself.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from pyarrow import fs

from heliostat.data.order import scattered
from heliostat.data.prepared.index import CORRUPT, INDEX, Index, Settings, Statistics
from heliostat.data.prepared.inputs import Inputs
from heliostat.data.prepared.parts import PART, Part, write_part
from heliostat.data.samples import Progress
from heliostat.errors import InputError, Problem
from heliostat.training.storage import Storage

_FACTS, _PLAN = ".parts", ".parts/plan.json"
_POOL = 16
"""Row groups of the input that are mixed; single files and members of tar shards are mixed as a whole."""
_NAMED = 5


def prepare(
    inputs: Inputs, output: str, settings: Settings, *, workers: int = 1, progress: Progress | None = None
) -> Index:
    """Prepare a set, or go on where an earlier call stopped.

    Args:
        output: the folder; local, or a URI.
        workers: tasks at a time; 1 works in this process, without Ray.

    Raises:
        InputError: the folder holds something else, or was begun from another input or with other settings; the input
            cannot be read, or too many images are corrupt.
    """
    storage = Storage(output)
    parts = _plan(inputs, settings)
    _claim(storage, inputs, settings, len(parts))
    done = {number: part for number in range(len(parts)) if (part := _finished(storage, number)) is not None}
    missing = [number for number in range(len(parts)) if number not in done]
    total, count = len(inputs), sum(len(parts[number]) for number in done)
    for number, part in _written(inputs, parts, missing, settings, storage, workers):
        done[number] = part
        count += len(parts[number])
        if progress is not None:
            progress(f"preparing {output}", count, total)
    return _concluded(inputs, [done[number] for number in range(len(parts))], settings, storage)


def _plan(inputs: Inputs, settings: Settings) -> list[npt.NDArray[np.int64]]:
    """The positions of each part's images in the input: equal shares of a mixed order."""
    order = scattered(inputs.starts, pool=_POOL, seed=settings.seed)
    count = -(-len(inputs) // settings.rows_per_file)
    return [order[part * len(order) // count : (part + 1) * len(order) // count] for part in range(count)]


def _claim(storage: Storage, inputs: Inputs, settings: Settings, parts: int) -> None:
    """Make the folder, or see that it was begun with the same input and settings."""
    names = hashlib.sha256()
    for position in range(len(inputs)):
        names.update(f"{inputs.name(position)}\n".encode())
    if inputs.labels is not None:
        names.update(inputs.labels.astype("<i8").tobytes())
    plan: dict[str, Any] = {
        "input": names.hexdigest(),
        "images": len(inputs),
        "parts": parts,
        # How many may be corrupt decides no byte: who sees the list may allow them and go on.
        "settings": settings.model_dump(exclude={"max_corrupt"}),
    }
    if storage.exists(INDEX):
        raise InputError(Problem("it holds a prepared set already; take another folder or remove it", storage.uri))
    if storage.exists(_PLAN):
        before = storage.read_json(_PLAN)
        changed = [key for key in plan if before.get(key) != plan[key]]
        if "settings" in changed:
            old, new = before.get("settings", {}), plan["settings"]
            changed = [key for key in {**old, **new} if old.get(key) != new.get(key)]
        if changed:
            what = f"its preparation was begun with another {', '.join(changed)}; go on with the same, or remove it"
            raise InputError(Problem(what, storage.uri))
        return
    if storage.files() or storage.folders():
        raise InputError(Problem("it is not empty; a set is prepared into a folder of its own", storage.uri))
    storage.make(_FACTS)
    storage.write_json(_PLAN, plan)


def _finished(storage: Storage, number: int) -> Part | None:
    """What is known of a part that an earlier call wrote."""
    try:
        part = PART.validate_json(storage.read(f"{_FACTS}/{number:06d}.json"))
    except (FileNotFoundError, ValueError):
        return None
    if part.file is not None:
        info = storage.filesystem.get_file_info(storage.path(part.file.name))
        if info.type != fs.FileType.File or info.size != part.file.bytes:
            return None
    return part


def _written(
    inputs: Inputs,
    parts: Sequence[npt.NDArray[np.int64]],
    numbers: Sequence[int],
    settings: Settings,
    storage: Storage,
    workers: int,
) -> Iterator[tuple[int, Part]]:
    """Write these parts; gives each as it is done."""
    if workers == 1 or len(numbers) < 2:
        for number in numbers:
            yield number, write_part(inputs.part(parts[number]), number, settings, storage, _FACTS)
        return
    import ray

    from heliostat.training.ray_cluster import connect

    connect(1, 0, f"{workers} workers")
    task: Any = ray.remote(num_cpus=1, max_retries=3)(write_part)
    waiting = list(reversed(numbers))
    running: dict[Any, int] = {}
    try:
        while waiting or running:
            while waiting and len(running) < workers:
                number = waiting.pop()
                running[task.remote(inputs.part(parts[number]), number, settings, storage, _FACTS)] = number
            ready, _ = ray.wait(list(running), num_returns=1)
            for reference in ready:
                try:
                    yield running.pop(reference), ray.get(reference)
                except ray.exceptions.RayTaskError as error:
                    raise error.cause if isinstance(error.cause, InputError | OSError) else error from None
    finally:
        for reference in running:
            ray.cancel(reference)


def _concluded(inputs: Inputs, parts: Sequence[Part], settings: Settings, storage: Storage) -> Index:
    """Write the lists and the index, and remove what only the preparation needed."""
    corrupt = sorted(item for part in parts for item in part.corrupt)
    shown = "; ".join(f"{name}: {why}" for name, why in corrupt[:_NAMED]) + ("; ..." if len(corrupt) > _NAMED else "")
    storage.write_json(CORRUPT, [{"image": name, "why": why} for name, why in corrupt])
    if len(corrupt) > settings.max_corrupt * len(inputs):
        share = math.ceil(len(corrupt) / len(inputs) * 1e4) / 1e4
        what = (
            f"{len(corrupt)} of {len(inputs)} images cannot be decoded ({shown}); all are in {CORRUPT}. Repair them, "
            f"or leave them out with --max-corrupt {share}: what was prepared is kept"
        )
        raise InputError(Problem(what, storage.uri))
    files = tuple(part.file for part in parts if part.file is not None)
    if not files:
        raise InputError(Problem(f"none of the {len(inputs)} images can be decoded ({shown})", storage.uri))
    index = Index(
        settings=settings,
        classes=None if inputs.labels is None else inputs.classes,
        corrupt=len(corrupt),
        statistics=_statistics(inputs, parts),
        files=files,
    )
    storage.write_json(INDEX, index.model_dump(mode="json"))
    storage.delete(_FACTS)
    if storage.local:
        for name in storage.files():
            if name.endswith(".partial"):  # of a process that was killed
                storage.filesystem.delete_file(storage.path(name))
    return index


def _statistics(inputs: Inputs, parts: Sequence[Part]) -> Statistics:
    whole = [part for part in parts if part.file is not None]
    counts = np.zeros(len(inputs.classes), np.int64)
    for part in whole:
        counts[: len(part.labels)] += np.array(part.labels, np.int64)
    pixels = sum(part.pixels for part in whole)
    channels = range(len(whole[0].sums))
    means = [sum(part.sums[c] for part in whole) / pixels for c in channels]
    squares = [sum(part.squares[c] for part in whole) / pixels for c in channels]
    groups = sum(len(part.file.group_rows) for part in whole if part.file is not None)
    return Statistics(
        class_counts=tuple(counts.tolist()),
        width=(min(part.width[0] for part in whole), max(part.width[1] for part in whole)),
        height=(min(part.height[0] for part in whole), max(part.height[1] for part in whole)),
        mean=tuple(mean / 255 for mean in means),
        std=tuple(math.sqrt(max(0.0, s - m * m)) / 255 for m, s in zip(means, squares, strict=True)),
        classes_per_group=sum(part.group_classes for part in whole) / groups,
    )
