from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from heliostat.data.sources import ParquetImages
from heliostat.errors import InputError


def source(path: Path | str | list[str], **fields: Any) -> ParquetImages:
    where = [str(one) for one in path] if isinstance(path, list) else str(path)
    return ParquetImages.model_validate({"source": "parquet", "path": where, **fields})


@pytest.fixture
def encoded(encode, pictures) -> list[bytes]:
    return [encode(pixels) for pixels in pictures]


NUMBERS = [2, 0, 1, 1, 2, 0, 0, 1, 2, 2, 1, 0]


@pytest.mark.parametrize("plain", [False, True])
def test_images_labels_and_classes_come_back_in_order(write_parquet, encoded, pictures, plain):
    path = write_parquet(encoded, {"label": NUMBERS}, metadata={"classes": "cat, dog,eel"}, plain=plain)
    assert source(path).check() == []
    data = source(path).load()
    np.testing.assert_array_equal(data.images, np.moveaxis(pictures, 3, 1))
    np.testing.assert_array_equal(data.labels, NUMBERS)
    assert data.classes == ("cat", "dog", "eel")
    assert data.corrupt == ()


@pytest.mark.parametrize(
    ("metadata", "classes"),
    [
        (None, ("0", "1", "2")),
        ({"classes": json.dumps(["a,b", "c", "d"])}, ("a,b", "c", "d")),
        (
            {"huggingface": json.dumps({"info": {"features": {"label": {"names": ["x", "y", "z"]}}}})},
            ("x", "y", "z"),
        ),
        ({"huggingface": json.dumps({"info": {"features": {"label": {"dtype": "int64"}}}})}, ("0", "1", "2")),
    ],
)
def test_class_names_from_metadata(write_parquet, encoded, metadata, classes):
    assert source(write_parquet(encoded, {"label": NUMBERS}, metadata=metadata)).load().classes == classes


def test_broken_class_metadata_is_an_error(write_parquet, encoded):
    path = write_parquet(encoded, {"label": NUMBERS}, metadata={"classes": '["a", '})
    with pytest.raises(InputError, match="class names in its metadata"):
        source(path).load()


def test_fewer_class_names_than_labels_is_an_error(write_parquet, encoded):
    path = write_parquet(encoded, {"label": NUMBERS}, metadata={"classes": "a,b"})
    with pytest.raises(InputError, match=r"has 2 classes.*from 0 to 2"):
        source(path).load()


@pytest.mark.parametrize("dictionary", [False, True])
def test_string_labels_are_numbered_in_sorted_order(write_parquet, encoded, dictionary):
    column = pa.array([["zebra", "ant", "cow"][number] for number in NUMBERS])
    data = source(write_parquet(encoded, {"label": column.dictionary_encode() if dictionary else column})).load()
    assert data.classes == ("ant", "cow", "zebra")
    np.testing.assert_array_equal(data.labels, [[2, 0, 1][number] for number in NUMBERS])


def test_string_labels_follow_the_metadata_and_unknown_ones_are_named(write_parquet, encoded):
    words = ["dog", "cat"] * 6
    path = write_parquet(encoded, {"label": words}, metadata={"classes": "dog,cat"})
    np.testing.assert_array_equal(source(path).load().labels, [0, 1] * 6)
    path = write_parquet(encoded, {"label": ["cta", *words[1:]]}, metadata={"classes": "dog,cat"})
    with pytest.raises(InputError, match=r"'cta'.*Did you mean 'cat'\?"):
        source(path).load()


def test_label_null_does_without_labels(write_parquet, encoded):
    data = source(write_parquet(encoded), label=None).load()
    assert data.labels is None
    assert data.classes == ()


def test_null_and_negative_labels_name_their_row(write_parquet, encoded):
    path = write_parquet(encoded, {"label": [0, 1, None, *NUMBERS[3:]]})
    with pytest.raises(InputError, match=r"null in 1 of 12 rows, first in row 2.*label: null"):
        source(path).load()
    path = write_parquet(encoded, {"label": [0, -1, *NUMBERS[2:]]})
    with pytest.raises(InputError, match="is -1 in row 1"):
        source(path).load()


def test_files_of_a_folder_and_of_a_list_are_joined_in_order(write_parquet, encoded, pictures, tmp_path):
    second = write_parquet(encoded[5:], {"label": NUMBERS[5:]}, "b.parquet")
    first = write_parquet(encoded[:5], {"label": pa.array(NUMBERS[:5], pa.uint8())}, "a.parquet")
    (tmp_path / "README.md").write_text("not data")
    for where in (tmp_path, [first, second], f"file://{tmp_path}"):
        data = source(where).load()
        np.testing.assert_array_equal(data.images, np.moveaxis(pictures, 3, 1))
        np.testing.assert_array_equal(data.labels, NUMBERS)
    np.testing.assert_array_equal(source([second, first]).load().labels, NUMBERS[5:] + NUMBERS[:5])


def test_integers_in_one_file_and_strings_in_another_are_an_error(write_parquet, encoded, tmp_path):
    write_parquet(encoded[5:], {"label": NUMBERS[5:]}, "b.parquet")
    write_parquet(encoded[:5], {"label": ["a"] * 5}, "a.parquet")
    with pytest.raises(InputError, match="integers in some files and strings in others"):
        source(tmp_path).load()


@pytest.mark.parametrize("keep", [0.5, 0.0])
def test_file_cut_off(write_parquet, encoded, keep):
    path = write_parquet(encoded, {"label": NUMBERS})
    path.write_bytes(path.read_bytes()[: int(keep * path.stat().st_size)])
    (problem,) = source(path).check()
    assert str(path) in problem
    assert "cut off" in problem
    with pytest.raises(InputError, match="cut off"):
        source(path).load()


def test_pages_overwritten_behind_an_intact_footer(write_parquet, encoded):
    path = write_parquet(encoded, {"label": NUMBERS})
    data = bytearray(path.read_bytes())
    data[4:300] = bytes(296)
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"cannot be (read|decoded)"):
        source(path).load()


def test_no_rows(write_parquet):
    path = write_parquet([], {"label": pa.array([], pa.int64())})
    assert source(path).check() == [f"{path}: it holds no rows"]
    with pytest.raises(InputError, match="no rows"):
        source(path).load()


def test_absent_columns_are_all_reported_with_the_nearest_names(write_parquet, encoded):
    path = write_parquet(encoded, {"labels": NUMBERS})
    problems = source(path, image="imgae").check()
    assert len(problems) == 2
    assert "no column 'imgae' (image). Did you mean 'image'?" in problems[0]
    assert "no column 'label' (label). Did you mean 'labels'?" in problems[1]
    with pytest.raises(InputError) as error:
        source(path, image="imgae").load()
    assert len(error.value.problems) == 2


def test_columns_of_the_wrong_type(tmp_path):
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"image": ["a.png", "b.png"], "label": [0.5, 1.5]}), path)
    problems = source(path).check()
    assert "column 'image' (image) is string; it must be binary" in problems[0]
    assert "column 'label' (label) is double; it must be integers or strings" in problems[1]
    pq.write_table(pa.table({"image": [{"path": "a.png"}], "label": [1]}), path)
    assert "column 'image' (image) is struct<path: string>" in source(path).check()[0]


def test_missing_path_names_the_nearest(write_parquet, encoded, tmp_path):
    path = write_parquet(encoded, {"label": NUMBERS})
    (problem,) = source(tmp_path / "trian.parquet").check()
    assert problem == f"{tmp_path}/trian.parquet does not exist. Did you mean '{path}'?"
    (problem,) = source(tmp_path / "quite" / "elsewhere.parquet").check()
    assert f"The folder {tmp_path} holds: train.parquet" in problem
    (problem,) = source("nonsense://bucket/x").check()
    assert "cannot be reached" in problem


def test_every_missing_path_of_a_list_is_reported(tmp_path):
    assert len(source([tmp_path / "a.parquet", tmp_path / "b.parquet"]).check()) == 2


def test_folder_without_parquet(tmp_path):
    (tmp_path / "x.txt").write_text("x")
    assert source(tmp_path).check() == [f"the folder {tmp_path} holds no .parquet file"]


def test_unreadable_file(write_parquet, encoded, unreadable):
    path = write_parquet(encoded, {"label": NUMBERS})
    with unreadable(path):
        problems = source(path).check()
    assert len(problems) == 1
    assert "ermission denied" in problems[0]


def test_null_images_and_corrupt_ones_are_named_by_file_and_row(write_parquet, encoded, pictures):
    items: list[bytes | None] = list(encoded)
    items[6], items[11] = None, encoded[11][:30]
    path = write_parquet(items, {"label": NUMBERS})
    assert source(path).check() == []  # seen only when decoding
    with pytest.raises(InputError, match=rf"2 of 12 images.*{path}:6: it has no bytes; {path}:11: "):
        source(path).load()
    data = source(path, max_corrupt=0.2).load()
    kept = [row for row in range(12) if row not in (6, 11)]
    np.testing.assert_array_equal(data.images, np.moveaxis(pictures[kept], 3, 1))
    np.testing.assert_array_equal(data.labels, [NUMBERS[row] for row in kept])
    assert [item.where for item in data.corrupt] == [f"{path}:6", f"{path}:11"]


def test_null_structs_are_corrupt_images_too(tmp_path, encoded):
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    rows = [{"bytes": encoded[0], "path": "a"}, None, {"bytes": encoded[1], "path": None}]
    pq.write_table(pa.table({"image": pa.array(rows, kind), "label": [0, 1, 2]}), tmp_path / "x.parquet")
    data = source(tmp_path / "x.parquet", max_corrupt=0.5).load()
    np.testing.assert_array_equal(data.labels, [0, 2])


def test_size_and_channels_reach_the_decoder(write_parquet, encoded):
    path = write_parquet(encoded, {"label": NUMBERS})
    assert source(path, image_size=4, channels=1).load().images.shape == (12, 1, 4, 4)


def test_rows_are_counted_over_many_chunks(write_parquet, encoded, monkeypatch):
    from heliostat.data import parquet

    monkeypatch.setattr(parquet, "_CHUNK", 3)
    items: list[bytes | None] = list(encoded)
    items[10] = b"bad"
    data = source(write_parquet(items, {"label": NUMBERS}), max_corrupt=0.1).load()
    assert data.corrupt[0].where.endswith(":10")
    np.testing.assert_array_equal(data.labels, NUMBERS[:10] + NUMBERS[11:])
