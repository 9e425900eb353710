from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from heliostat.data.sources import ImageFolder
from heliostat.errors import InputError


def source(path: Path, **fields: Any) -> ImageFolder:
    return ImageFolder.model_validate({"source": "image-folder", "path": str(path), **fields})


@pytest.fixture
def folder(tmp_path: Path, encode, pictures) -> Path:
    """Classes "ant" (3 images, one of them deeper) and "bee" (2); ``pictures`` in the order of the names."""
    names = ["ant/1.png", "ant/2.PNG", "ant/more/0.png", "bee/a.png", "bee/b.png"]
    for name, pixels in zip(names, pictures, strict=False):
        path = tmp_path / "set" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(pixels))
    return tmp_path / "set"


def test_sub_folders_are_classes(folder, pictures):
    assert source(folder).check() == []
    data = source(folder).load()
    assert data.classes == ("ant", "bee")
    np.testing.assert_array_equal(data.labels, [0, 0, 0, 1, 1])
    np.testing.assert_array_equal(data.images, np.moveaxis(pictures[:5], 3, 1))


def test_uri_gives_the_same(folder):
    uri = ImageFolder(source="image-folder", path=f"file://{folder}")
    assert uri.load().fingerprint == source(folder).load().fingerprint


def test_flat_folder_has_no_labels(tmp_path, encode, pictures):
    for name, pixels in zip("ba", pictures, strict=False):
        (tmp_path / f"{name}.png").write_bytes(encode(pixels))
    data = source(tmp_path).load()
    assert data.labels is None
    assert data.classes == ()
    np.testing.assert_array_equal(data.images, np.moveaxis(pictures[[1, 0]], 3, 1))


def test_other_files_are_left_out_and_named_hidden_ones_silently(folder, caplog):
    (folder / "ant" / "notes.txt").write_text("x")
    (folder / "LICENSE").write_text("x")
    (folder / ".DS_Store").write_text("x")
    (folder / ".cache").mkdir()
    with caplog.at_level(logging.WARNING):
        assert len(source(folder).load()) == 5
    assert "2 files are not images" in caplog.text
    assert "notes.txt" in caplog.text
    assert "DS_Store" not in caplog.text


def test_folder_of_other_files_and_empty_folder(tmp_path):
    (tmp_path / "empty").mkdir()
    (problem,) = source(tmp_path / "empty").check()
    assert "holds no images" in problem
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.txt").write_text("x")
    (problem,) = source(tmp_path / "text").check()
    assert "holds no images" in problem
    with pytest.raises(InputError, match="holds no images"):
        source(tmp_path / "text").load()


def test_class_without_images(folder):
    (folder / "cow").mkdir()
    (problem,) = source(folder).check()
    assert f"class folder {folder}/cow holds no images" in problem


def test_image_beside_the_classes(folder, encode, pictures):
    (folder / "loose.png").write_bytes(encode(pictures[0]))
    (problem,) = source(folder).check()
    assert "loose.png lies beside" in problem


def test_missing_folder_and_file_instead(folder):
    (problem,) = source(folder.parent / "sets").check()
    assert f"Did you mean '{folder}'?" in problem
    (problem,) = source(folder / "ant" / "1.png").check()
    assert "is not a folder" in problem


def test_corrupt_file_below_and_above_the_share(folder):
    bad = folder / "ant" / "2.PNG"
    bad.write_bytes(b"not an image")
    with pytest.raises(InputError, match=rf"1 of 5 images.*{bad}"):
        source(folder, max_corrupt=0.1).load()
    data = source(folder, max_corrupt=0.2).load()
    np.testing.assert_array_equal(data.labels, [0, 0, 1, 1])
    assert [item.where for item in data.corrupt] == [str(bad)]


def test_two_sizes_name_both_files(folder, encode, pictures):
    (folder / "bee" / "b.png").write_bytes(encode(pictures[0][:4]))
    with pytest.raises(InputError, match=r"ant/1.png is 5 x 6 pixels and .*bee/b.png is 5 x 4; image_size: 4"):
        source(folder).load()
    assert source(folder, image_size=4).load().images.shape == (5, 3, 4, 4)


def test_unreadable_file_is_an_error_not_a_corrupt_image(folder, unreadable, monkeypatch):
    from heliostat.data.image_folder import FolderListing

    listing = FolderListing.read(str(folder))
    with (
        unreadable(folder / "bee" / "a.png"),
        pytest.raises(InputError, match=r"cannot be read: .*ermission denied"),
    ):
        listing.load(channels=3, image_size=None, max_corrupt=1.0)
