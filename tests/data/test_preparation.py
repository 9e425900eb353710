"""Preparing a set: what comes in comes out, the same bytes whoever does the work, nothing lost by a kill."""

from __future__ import annotations

import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from heliostat.data.prepared import preparation
from heliostat.data.prepared.index import Index, Settings
from heliostat.data.prepared.inputs import find_inputs
from heliostat.data.prepared.preparation import prepare
from heliostat.data.sources import ParquetImages
from heliostat.errors import InputError
from heliostat.training.storage import Storage

SMALL = {"rows_per_group": 4, "rows_per_file": 10}


def make(source: Path, output: Path, workers: int = 1, label: str | None = "label", **changes: Any) -> Index:
    return prepare(find_inputs(str(source), label=label), str(output), Settings(**SMALL, **changes), workers=workers)


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [row for file in sorted(folder.glob("*.parquet")) for row in pq.read_table(file).to_pylist()]


def digests(folder: Path) -> dict[str, str]:
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def write_shards(folder: Path, images: list[tuple[bytes, str | None]], per_shard: int = 8) -> Path:
    folder.mkdir()
    for shard, start in enumerate(range(0, len(images), per_shard)):
        with tarfile.open(folder / f"shard-{shard:03d}.tar", "w") as archive:
            for number, (data, text) in enumerate(images[start : start + per_shard], start):
                parts = [("png", data), ("json", b"{}")] + ([] if text is None else [("cls", text.encode())])
                for extension, content in parts:
                    member = tarfile.TarInfo(f"{number:05d}.{extension}")
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))
    return folder


def test_a_folder_keeps_every_image_once_with_its_bytes_and_class(write_folder, tmp_path):
    source = write_folder(53, sizes=(8, 15))
    index = make(source, tmp_path / "set")
    files = {f"{file.parent.name}/{file.name}": file for file in source.rglob("*.png")}
    rows = rows_of(tmp_path / "set")
    assert sorted(row["image"]["path"] for row in rows) == sorted(files)
    for row in rows:
        path = row["image"]["path"]
        assert row["image"]["bytes"] == files[path].read_bytes()
        assert "abc"[row["label"]] == path[0]
    assert [row["image"]["path"] for row in rows] != sorted(files)  # mixed
    assert index.classes == ("a", "b", "c")
    assert index.rows == 53
    assert index.statistics.class_counts == (18, 18, 17)


def test_row_groups_are_balanced_and_the_index_says_what_the_files_hold(write_folder, tmp_path):
    index = make(write_folder(53), tmp_path / "set")
    sizes = [rows for file in index.files for rows in file.group_rows]
    assert max(sizes) - min(sizes) <= 1
    assert max(sizes) <= 4
    assert max(file.rows for file in index.files) - min(file.rows for file in index.files) <= 1
    for file in index.files:
        path = tmp_path / "set" / file.name
        metadata = pq.ParquetFile(path).metadata
        assert tuple(metadata.row_group(g).num_rows for g in range(metadata.num_row_groups)) == file.group_rows
        assert path.stat().st_size == file.bytes
        assert hashlib.sha256(path.read_bytes()).hexdigest() == file.sha256
        table = pq.read_table(path)
        assert sum(file.group_bytes) == sum(len(row["image"]["bytes"]) for row in table.to_pylist())
    assert Index.read(Storage(str(tmp_path / "set"))) == index


def test_statistics_are_those_of_the_stored_pixels(write_folder, tmp_path):
    index = make(write_folder(20, sizes=(8, 15)), tmp_path / "set", image_size=9)
    images = [
        np.asarray(Image.open(io.BytesIO(row["image"]["bytes"])).convert("RGB"), np.float64) / 255
        for row in rows_of(tmp_path / "set")
    ]
    pixels = np.concatenate([image.reshape(-1, 3) for image in images])
    np.testing.assert_allclose(index.statistics.mean, pixels.mean(0), rtol=1e-12)
    np.testing.assert_allclose(index.statistics.std, pixels.std(0), rtol=1e-9)
    assert index.statistics.width == (min(i.shape[1] for i in images), max(i.shape[1] for i in images))
    assert index.statistics.height == (min(i.shape[0] for i in images), max(i.shape[0] for i in images))
    assert min(index.statistics.width[0], index.statistics.height[0]) == 8  # smaller ones stay
    assert all(min(image.shape[:2]) <= 9 for image in images)


def test_resizing_is_pillows_and_png_keeps_it_exactly(write_folder, tmp_path):
    source = write_folder(6, sizes=(16, 24))
    make(source, tmp_path / "set", image_size=8, format="png")
    for row in rows_of(tmp_path / "set"):
        with Image.open(source / row["image"]["path"]) as original:
            shorter = min(original.size)
            size = tuple(max(8, round(side * 8 / shorter)) for side in original.size)
            expected = original.resize(size, Image.Resampling.BICUBIC)
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(row["image"]["bytes"]))), np.asarray(expected))


def test_tar_shards_and_parquet_give_the_images_of_the_folder(write_folder, tmp_path):
    source = write_folder(30)
    files = sorted(source.rglob("*.png"))
    shards = write_shards(tmp_path / "shards", [(file.read_bytes(), file.parent.name) for file in files])
    make(source, tmp_path / "one")
    make(shards, tmp_path / "two")
    make(tmp_path / "one", tmp_path / "three")

    def content(folder: Path) -> list[tuple[bytes, int]]:
        return sorted((row["image"]["bytes"], row["label"]) for row in rows_of(folder))

    assert content(tmp_path / "one") == content(tmp_path / "two") == content(tmp_path / "three")
    assert Index.read(Storage(str(tmp_path / "two"))).classes == ("a", "b", "c")
    assert Index.read(Storage(str(tmp_path / "three"))).classes == ("a", "b", "c")


def test_integer_classes_of_shards_are_numbers_and_missing_ones_are_told(write_folder, tmp_path):
    data = next(write_folder(3).rglob("*.png")).read_bytes()
    inputs = find_inputs(str(write_shards(tmp_path / "numbers", [(data, "2"), (data, "0")])))
    assert inputs.labels.tolist() == [2, 0]
    assert inputs.classes == ("0", "1", "2")
    assert find_inputs(str(write_shards(tmp_path / "bare", [(data, None)] * 3))).labels is None
    with pytest.raises(InputError, match=r"00001\.png has no class .* 1 of 2 lack it"):
        find_inputs(str(write_shards(tmp_path / "some", [(data, "1"), (data, None)])))


def test_a_prepared_set_is_parquet_that_the_other_source_reads(write_folder, tmp_path):
    make(write_folder(20), tmp_path / "set")
    data = ParquetImages(source="parquet", path=str(tmp_path / "set")).load()
    rows = rows_of(tmp_path / "set")
    assert data.classes == ("a", "b", "c")
    assert data.labels.tolist() == [row["label"] for row in rows]


def test_without_labels(write_folder, tmp_path):
    make(write_folder(20), tmp_path / "one")
    index = make(tmp_path / "one", tmp_path / "set", label=None)
    assert index.classes is None
    assert "label" not in rows_of(tmp_path / "set")[0]


def test_corrupt_images_are_listed_and_left_out_when_they_are_allowed(write_folder, tmp_path):
    source = write_folder(30)
    broken = sorted(source.rglob("*.png"))[::10]
    for file in broken:
        file.write_bytes(file.read_bytes()[:60])
    with pytest.raises(InputError, match=r"3 of 30 images cannot be decoded .*--max-corrupt 0\.1"):
        make(source, tmp_path / "set")
    written = {file: file.stat().st_mtime_ns for file in (tmp_path / "set").glob("*.parquet")}
    index = make(source, tmp_path / "set", max_corrupt=0.1)
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "set").glob("*.parquet")} == written
    listed = json.loads((tmp_path / "set" / "corrupt.json").read_text())
    assert [item["image"] for item in listed] == [f"{file.parent.name}/{file.name}" for file in broken]
    assert all(item["why"] for item in listed)
    assert (index.rows, index.corrupt) == (27, 3)
    assert {row["image"]["path"] for row in rows_of(tmp_path / "set")}.isdisjoint(item["image"] for item in listed)


def test_a_part_without_a_good_image_has_no_file(write_folder, tmp_path):
    source = write_folder(3)
    for file in sorted(source.rglob("*.png"))[:2]:
        file.write_bytes(b"no image")
    index = prepare(
        find_inputs(str(source)), str(tmp_path / "set"), Settings(rows_per_file=1, rows_per_group=1, max_corrupt=0.7)
    )
    assert len(index.files) == index.rows == 1


def test_the_bytes_do_not_depend_on_interruptions(write_folder, tmp_path, monkeypatch):
    source = write_folder(53, sizes=(8, 15))
    make(source, tmp_path / "whole", image_size=8)
    write, written = preparation.write_part, []

    def dying(inputs, number, *rest):
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(number)
        return write(inputs, number, *rest)

    monkeypatch.setattr(preparation, "write_part", dying)
    with pytest.raises(KeyboardInterrupt):
        make(source, tmp_path / "set", image_size=8)
    (tmp_path / "set" / ".part-000002.parquet.x.partial").write_bytes(b"what a killed process leaves")
    with pytest.raises(InputError, match=r"has no index\.json"):
        Index.read(Storage(str(tmp_path / "set")))
    again: list[int] = []
    monkeypatch.setattr(preparation, "write_part", lambda i, n, *r: (again.append(n), write(i, n, *r))[1])
    make(source, tmp_path / "set", image_size=8)
    assert sorted(written + again) == list(range(6))  # no part twice, none lost
    assert digests(tmp_path / "set") == digests(tmp_path / "whole")


def test_a_part_that_was_cut_off_is_written_anew(write_folder, tmp_path, monkeypatch):
    source = write_folder(30)
    make(source, tmp_path / "whole")
    monkeypatch.setattr(preparation, "_concluded", lambda *_: None)
    make(source, tmp_path / "set")
    monkeypatch.undo()
    with (tmp_path / "set" / "part-000001.parquet").open("r+b") as file:
        file.truncate(50)
    make(source, tmp_path / "set")
    assert digests(tmp_path / "set") == digests(tmp_path / "whole")


def test_going_on_with_something_else_is_refused(write_folder, tmp_path, monkeypatch):
    source = write_folder(30)
    monkeypatch.setattr(preparation, "_concluded", lambda *_: None)
    make(source, tmp_path / "set")
    monkeypatch.undo()
    with pytest.raises(InputError, match="begun with another quality, seed;"):
        make(source, tmp_path / "set", quality=80, seed=1)
    next(source.rglob("*.png")).unlink()
    with pytest.raises(InputError, match="begun with another input, images;"):
        make(source, tmp_path / "set")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="is not empty"):
        make(source, tmp_path / "other")


def test_a_killed_process_is_taken_up_by_the_next(write_folder, tmp_path):
    source = write_folder(400, sizes=(30, 60))
    command = [sys.executable, "-m", "heliostat", "data", "prepare", str(source)]
    options = ["--rows-per-file", "10", "--rows-per-group", "4", "--image-size", "24"]
    target = tmp_path / "set"
    process = subprocess.Popen([*command, str(target), *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while len(list(target.glob(".parts/0*.json"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "it ended before it was killed"
    before = {file.name: file.stat().st_mtime_ns for file in target.glob("*.parquet")}
    facts = {file.stem for file in target.glob(".parts/0*.json")}
    assert 3 <= len(facts) < 40
    subprocess.run([*command, str(target), *options], check=True, capture_output=True)
    kept = {name for name, when in before.items() if (target / name).stat().st_mtime_ns == when}
    assert kept >= {f"part-{number}.parquet" for number in facts}
    prepare(
        find_inputs(str(source)), str(tmp_path / "whole"), Settings(rows_per_file=10, rows_per_group=4, image_size=24)
    )
    assert digests(target) == digests(tmp_path / "whole")


def test_wrong_input_is_named(write_folder, tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        find_inputs(str(tmp_path / "nothing"))
    (tmp_path / "packed").mkdir()
    (tmp_path / "packed" / "a.tar.gz").write_bytes(b"")
    with pytest.raises(InputError, match="unpack them"):
        find_inputs(str(tmp_path / "packed"))
    data = next(write_folder(3).rglob("*.png")).read_bytes()
    shards = write_shards(tmp_path / "shards", [(data, "1")] * 8)
    with (shards / "shard-000.tar").open("r+b") as file:
        file.truncate(3000)
    with pytest.raises(InputError, match=r"shard-000\.tar: it is no plain tar file, is cut off"):
        find_inputs(str(shards))


@pytest.mark.cluster
def test_ray_tasks_make_the_same_bytes(write_folder, tmp_path):
    import ray

    source = write_folder(53, sizes=(8, 15))
    make(source, tmp_path / "alone", image_size=8)
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        make(source, tmp_path / "together", workers=3, image_size=8)
        (next(source.rglob("*.png"))).write_bytes(b"broken")
        with pytest.raises(InputError, match="1 of 53"):
            make(source, tmp_path / "broken", workers=2)
    finally:
        ray.shutdown()
    assert digests(tmp_path / "together") == digests(tmp_path / "alone")
