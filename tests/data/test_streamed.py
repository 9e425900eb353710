"""Streaming a prepared set: the pixels of the files, in the same order for any workers, within its memory."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from heliostat.data import ImageData, Loader
from heliostat.data.loader import sequential
from heliostat.data.prepared import streamed
from heliostat.data.prepared.index import Settings
from heliostat.data.prepared.inputs import find_inputs
from heliostat.data.prepared.preparation import prepare
from heliostat.data.prepared.source import PreparedImages
from heliostat.data.prepared.streamed import StreamedImages
from heliostat.data.samples import fraction_of
from heliostat.data.sharing import Shared
from heliostat.data.sources import ParquetImages
from heliostat.errors import InputError, RunError

ROWS, GROUP = 240, 4


@pytest.fixture
def prepared(write_folder: Callable[..., Path], tmp_path: Path) -> Path:
    """240 images of 12 x 12 pixels in 60 row groups."""
    settings = Settings(rows_per_group=GROUP, rows_per_file=40)
    prepare(find_inputs(str(write_folder(ROWS))), str(tmp_path / "set"), settings)
    return tmp_path / "set"


def stream(path: Path, **changes: Any) -> StreamedImages:
    return PreparedImages(source="prepared", path=str(path), **({"shards": 4, "pool": 3} | changes)).load()


def in_memory(path: Path) -> ImageData:
    """The same files, read by the source that decodes everything."""
    return ParquetImages(source="parquet", path=str(path)).load()


def test_batches_hold_the_pixels_and_labels_of_their_indices(prepared):
    data, whole = stream(prepared), in_memory(prepared)
    assert data.spec() == whole.spec()
    assert data.classes == whole.classes
    np.testing.assert_array_equal(data.labels, whole.labels)
    loader = Loader(data, batch_size=16, seed=1)
    for step in (0, 4, 20):
        batch = loader.batch(step)
        np.testing.assert_array_equal(batch["index"], loader.indices(step))
        np.testing.assert_array_equal(batch["image"], whole.images[loader.indices(step)])
        np.testing.assert_array_equal(batch["label"], whole.labels[loader.indices(step)])
        assert batch["image"].is_contiguous()


def test_images_of_different_sizes_are_cut_to_one_square(write_folder, tmp_path):
    prepare(find_inputs(str(write_folder(24, sizes=(9, 20)))), str(tmp_path / "set"), Settings(rows_per_group=5))
    with pytest.raises(InputError, match="image_size: 9 would"):
        stream(tmp_path / "set")
    whole = ParquetImages(source="parquet", path=str(tmp_path / "set"), image_size=8).load()
    found = torch.cat([batch["image"] for batch in sequential(stream(tmp_path / "set", image_size=8), batch_size=7)])
    np.testing.assert_array_equal(found, whole.images)


def test_threads_decode_the_same(prepared, monkeypatch):
    alone = Loader(stream(prepared), batch_size=16, seed=1).batch(2)
    monkeypatch.setattr(streamed, "THREADED_BYTES", 0)
    monkeypatch.setattr(streamed, "decoding_threads", lambda: 3)
    together = Loader(stream(prepared), batch_size=16, seed=1).batch(2)
    assert torch.equal(alone["image"], together["image"])


@pytest.mark.parametrize("minibatches", [1, 2])
def test_workers_share_the_batch_of_one(prepared, minibatches):
    options: dict[str, Any] = {"batch_size": 16, "seed": 2, "minibatches": minibatches}
    alone = Loader(stream(prepared), **options)
    for workers in (2, 4):
        loaders = [Loader(stream(prepared), rank=r, world_size=workers, **options) for r in range(workers)]
        for step in range(alone.steps_per_epoch + 2):
            for minibatch in range(minibatches):
                parts = [loader.batch(step, minibatch) for loader in loaders]
                whole = alone.batch(step, minibatch)
                for name, value in whole.items():
                    assert torch.equal(value, torch.cat([part[name] for part in parts]))


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_an_epoch_reads_each_group_once_and_the_workers_share_them(prepared, workers):
    reads = []
    for rank in range(workers):
        data = stream(prepared, ahead=0)
        loader = Loader(data, batch_size=16, seed=0, rank=rank, world_size=workers)
        for step in range(loader.steps_per_epoch):
            loader.batch(step)
        reads.append(data.groups.reads)
    assert reads == [ROWS // GROUP // workers] * workers


def test_a_resumed_run_reads_what_it_needs_and_no_more(prepared):
    whole, resumed = stream(prepared, ahead=0), stream(prepared, ahead=0)
    running, continuing = (Loader(data, batch_size=16, seed=5) for data in (whole, resumed))
    before = [running.batch(step) for step in range(20)]
    again = [continuing.batch(step) for step in range(10, 20)]
    for one, other in zip(before[10:], again, strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)
    fresh = stream(prepared, ahead=0)
    Loader(fresh, batch_size=16, seed=5).batch(10)
    assert fresh.groups.reads <= 4 * 3  # a pool of each shard, where the epoch has 60 groups


def test_batches_ahead_are_those_that_would_be_made_now(prepared):
    now, ahead = (Loader(stream(prepared, ahead=depth), batch_size=16, seed=1) for depth in (0, 3))
    for step in (0, 1, 2, 3, 3, 9, 10, 4):  # on, again, a leap, back
        one, other = now.batch(step), ahead.batch(step)
        assert all(torch.equal(one[name], other[name]) for name in one)
    first = ahead.batch(4)
    first.pop("label")
    assert "label" in ahead.batch(4)  # what was handed out is the caller's


def test_memory_is_bounded_where_the_set_is_larger(write_folder, tmp_path):
    source = write_folder(600, sizes=(48, 48))
    prepare(find_inputs(str(source)), str(tmp_path / "set"), Settings(rows_per_group=20, rows_per_file=200))
    data = stream(tmp_path / "set", memory=1, shards=2, pool=1)
    assert data.index.bytes > 4 * 2**20
    loader = Loader(data, batch_size=16, seed=0)
    for step in range(2 * loader.steps_per_epoch):
        loader.batch(step)
    for _ in sequential(data, batch_size=16):
        pass
    assert 0 < data.groups.most_held <= 2**20
    assert data.groups.reads > 2 * 30


def test_a_pool_beyond_the_memory_stops_before_anything_is_read(write_folder, tmp_path):
    source = write_folder(300, sizes=(48, 48))
    prepare(find_inputs(str(source)), str(tmp_path / "set"), Settings(rows_per_group=10))
    data = stream(tmp_path / "set", memory=1, shards=4, pool=4)
    with pytest.raises(InputError, match=r"need up to 3 MiB on a worker, and memory is 1; set pool: 1, or memory: 3"):
        Loader(data, batch_size=16, seed=0)
    assert data.groups.reads == 0
    Loader(data, batch_size=16, seed=0, world_size=4)  # a worker's share fits


def test_a_share_of_the_data_streams_too(prepared):
    data, whole = fraction_of(stream(prepared), 0.25, 3), fraction_of(in_memory(prepared), 0.25, 3)
    assert len(data) == len(whole) == 60
    np.testing.assert_array_equal(data.labels, whole.labels)
    found = torch.cat([batch["image"] for batch in sequential(data, batch_size=16)])
    np.testing.assert_array_equal(found, whole.images)
    loader = Loader(data, batch_size=12, seed=0)
    seen = np.concatenate([loader.indices(step) for step in range(loader.steps_per_epoch)])
    assert sorted(seen.tolist()) == list(range(60))
    np.testing.assert_array_equal(loader.batch(1)["image"], whole.images[loader.indices(1)])
    assert data.fingerprint != stream(prepared).fingerprint


def test_workers_open_it_anew(prepared):
    data = stream(prepared)
    data.groups.get([0])  # handles and caches stay behind
    fields = {"labels": data.labels, "chosen": None}
    rest = {name: getattr(data, name) for name in data.__dataclass_fields__ if name not in fields}
    shared = pickle.loads(pickle.dumps(Shared(StreamedImages, {}, {**rest, **fields})))  # noqa: S301 - our own
    opened = shared.open()
    assert opened.fingerprint == data.fingerprint
    assert torch.equal(
        Loader(opened, batch_size=16, seed=0).batch(0)["image"], Loader(data, batch_size=16, seed=0).batch(0)["image"]
    )


def test_files_that_do_not_fit_the_index_are_all_named(prepared):
    first, second, third = sorted(prepared.glob("*.parquet"))[:3]
    with first.open("r+b") as file:
        file.truncate(first.stat().st_size - 10)
    second.unlink()
    size = third.stat().st_size
    table = pq.read_table(third)
    pq.write_table(table.slice(0, 30), third)
    with third.open("ab") as file:
        file.write(b"\0" * max(0, size - third.stat().st_size))
    with pytest.raises(InputError) as caught:
        stream(prepared)
    assert {Path(problem.where).name for problem in caught.value.problems} == {first.name, second.name, third.name}
    assert "cut off or changed" in str(caught.value)
    assert "does not exist" in str(caught.value)


def test_an_index_of_other_row_groups_is_refused(prepared):
    text = json.loads((prepared / "index.json").read_text())
    groups = text["files"][0]["group_rows"]
    groups[0], groups[1] = groups[0] - 1, groups[1] + 1
    (prepared / "index.json").write_text(json.dumps(text))
    with pytest.raises(InputError, match="row groups, and the index says"):
        stream(prepared)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"version": 2}, "is of version 2"),
        ({"rows": 3}, "damaged or of another format"),
        ({"files": []}, "damaged or of another format"),
        ({"format": "other"}, "damaged or of another format"),
    ],
)
def test_an_index_of_another_kind_is_refused(prepared, change, why):
    text = json.loads((prepared / "index.json").read_text())
    (prepared / "index.json").write_text(json.dumps(text | change))
    problems = PreparedImages(source="prepared", path=str(prepared)).check()
    assert why in problems[0]
    (prepared / "index.json").write_text("{")
    assert "damaged" in PreparedImages(source="prepared", path=str(prepared)).check()[0]


def test_damage_after_opening_is_a_failure_that_names_the_place(prepared):
    data = stream(prepared, ahead=1)
    loader = Loader(data, batch_size=16, seed=0)
    for file in prepared.glob("*.parquet"):
        content = bytearray(file.read_bytes())
        at = content.index(b"IDAT") + 10  # inside an image: only the page's checksum can tell
        content[at] ^= 0xFF
        file.write_bytes(content)
    with pytest.raises(RunError, match=r"part-00000\d\.parquet: row group \d+ cannot be read"):
        [loader.batch(step) for step in range(loader.steps_per_epoch)]
