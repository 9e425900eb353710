from __future__ import annotations

import gzip
import hashlib
import io
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import TypeAdapter, ValidationError

from heliostat.data import DataSource, download
from heliostat.data.archives import cifar_records, read_idx, read_members, stl10_images
from heliostat.data.download import RemoteFile
from heliostat.data.sources import MNIST, STL10, Cifar10, Cifar100, Download, FashionMNIST, Source
from heliostat.errors import InputError

ADAPTER: TypeAdapter[Any] = TypeAdapter(DataSource)
RNG = np.random.default_rng(3)


def parse(**fields: Any) -> Source:
    return ADAPTER.validate_python(fields)


def md5(data: bytes) -> str:
    return "md5:" + hashlib.md5(data, usedforsecurity=False).hexdigest()


def tar(members: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return file.getvalue()


def place(cls: type[Download], folder: Path, content: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put an archive where the source expects its download, with its own checksum."""
    remote: RemoteFile = cls.archive  # type: ignore[attr-defined]
    (folder / remote.name).write_bytes(content)
    monkeypatch.setattr(cls, "archive", RemoteFile(remote.url, md5(content)))


def test_source_tells_the_kinds_apart():
    names = ["digits", "cifar10", "cifar100", "mnist", "fashion-mnist", "stl10"]
    kinds = [type(parse(source=name, split="test")).__name__ for name in names]
    assert kinds == ["Digits", "Cifar10", "Cifar100", "MNIST", "FashionMNIST", "STL10"]
    assert type(parse(source="parquet", path="x")).__name__ == "ParquetImages"
    assert type(parse(source="image-folder", path="x")).__name__ == "ImageFolder"


@pytest.mark.parametrize(
    "fields",
    [
        {"source": "cifar"},
        {"source": "digits"},
        {"source": "digits", "split": "validation"},
        {"source": "digits", "split": "train", "path": "x"},
        {"source": "cifar10", "split": "unlabeled"},
        {"source": "parquet"},
        {"source": "parquet", "path": ""},
        {"source": "parquet", "path": []},
        {"source": "parquet", "path": "x", "channels": 4},
        {"source": "parquet", "path": "x", "image_size": 0},
        {"source": "parquet", "path": "x", "max_corrupt": 1.5},
        {"source": "image-folder", "path": "x", "label": "y"},
    ],
)
def test_wrong_fields_are_refused(fields):
    with pytest.raises(ValidationError):
        parse(**fields)


def test_schema_describes_every_field():
    for schema in ADAPTER.json_schema()["$defs"].values():
        for name, field in schema["properties"].items():
            assert name in ("source", "split") or field.get("description"), f"{schema['title']}.{name}"


def test_resolved_paths_do_not_depend_on_the_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "own"))
    assert parse(source="image-folder", path="a/b").resolved().path == str(tmp_path / "a" / "b")
    both = parse(source="parquet", path=["~/x.parquet", "s3://bucket/y", "/z"]).resolved()
    assert both.path == (str(tmp_path / "own" / "x.parquet"), "s3://bucket/y", "/z")
    assert parse(source="parquet", path="x").resolved().path == str(tmp_path / "x")
    assert parse(source="mnist", split="test", cache="here").resolved().cache == str(tmp_path / "here")
    assert parse(source="mnist", split="test").resolved().cache is None
    digits = parse(source="digits", split="test")
    assert digits.resolved() == digits


def test_digits_are_the_scaled_ones_of_scikit_learn():
    from sklearn.datasets import load_digits

    train, test = (parse(source="digits", split=split).load() for split in ("train", "test"))
    assert train.images.shape == (1437, 1, 8, 8)
    assert test.images.shape == (360, 1, 8, 8)
    images, labels = load_digits(return_X_y=True)
    expected = sorted((int(n), tuple(np.rint(x / 16 * 255).astype(int))) for x, n in zip(images, labels, strict=True))
    got = sorted(
        (int(n), tuple(x.ravel().tolist()))
        for data in (train, test)
        for x, n in zip(data.images, data.labels, strict=True)
    )
    assert got == expected  # together every sample exactly once


def test_digits_split_is_stratified():
    train, test = (parse(source="digits", split=split).load() for split in ("train", "test"))
    all_, held = np.bincount(train.labels) + np.bincount(test.labels), np.bincount(test.labels)
    assert np.abs(held - all_ * 360 / 1797).max() < 1


def test_digits_split_never_changes():
    """Numbers that people compare depend on it: a change of these digests is a change of the data set."""
    prints = {split: parse(source="digits", split=split).load().fingerprint for split in ("train", "test")}
    assert prints == {
        "train": "84b6032add9308e3f6b80fce0f43013e7fff31216fcefa3f5d8c24ed705d569c",
        "test": "5f7b9281abc34af267f5605816c885ffe86de3f4f01e6145cb09133cb084b308",
    }


@pytest.mark.parametrize("split", ["train", "test"])
def test_cifar10_reads_the_binary_version(split, tmp_path, monkeypatch):
    files = [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]
    pixels = {name: RNG.integers(0, 256, (2, 3, 32, 32), dtype=np.uint8) for name in files}
    members = {
        f"cifar-10-batches-bin/{name}.bin": b"".join(
            bytes([(i + j) % 10]) + image.tobytes() for j, image in enumerate(pixels[name])
        )
        for i, name in enumerate(files)
    }
    names = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    members["cifar-10-batches-bin/batches.meta.txt"] = ("\n".join(names) + "\n\n").encode()
    place(Cifar10, tmp_path, tar(members), monkeypatch)
    data = parse(source="cifar10", split=split, cache=str(tmp_path)).load()
    wanted = files[:5] if split == "train" else files[5:]
    np.testing.assert_array_equal(data.images, np.concatenate([pixels[name] for name in wanted]))
    np.testing.assert_array_equal(data.labels, [0, 1, 1, 2, 2, 3, 3, 4, 4, 5] if split == "train" else [5, 6])
    assert data.classes == tuple(names)
    assert data.name == f"cifar10/{split}"


def test_cifar100_takes_the_fine_label(tmp_path, monkeypatch):
    image = RNG.integers(0, 256, (3, 32, 32), dtype=np.uint8)
    members = {
        "cifar-100-binary/test.bin": bytes([7, 93]) + image.tobytes(),
        "cifar-100-binary/fine_label_names.txt": "\n".join(f"fine{n}" for n in range(100)).encode(),
    }
    place(Cifar100, tmp_path, tar(members), monkeypatch)
    data = parse(source="cifar100", split="test", cache=str(tmp_path)).load()
    np.testing.assert_array_equal(data.images, image[None])
    assert data.labels.tolist() == [93]
    assert data.classes[93] == "fine93"


@pytest.mark.parametrize(("cls", "source"), [(MNIST, "mnist"), (FashionMNIST, "fashion-mnist")])
def test_idx_files(cls, source, tmp_path, monkeypatch):
    pixels = RNG.integers(0, 256, (4, 28, 28), dtype=np.uint8)
    contents = [
        gzip.compress(b"\0\0\x08\x03" + b"".join(n.to_bytes(4, "big") for n in (4, 28, 28)) + pixels.tobytes()),
        gzip.compress(b"\0\0\x08\x01" + (4).to_bytes(4, "big") + bytes([3, 9, 0, 3])),
    ]
    (tmp_path / source).mkdir()
    files = []
    for remote, content in zip(cls.files["test"], contents, strict=True):
        (tmp_path / source / remote.name).write_bytes(content)
        files.append(RemoteFile(remote.url, md5(content)))
    monkeypatch.setitem(cls.files, "test", tuple(files))
    data = parse(source=source, split="test", cache=str(tmp_path)).load()
    np.testing.assert_array_equal(data.images, pixels[:, None])
    assert data.labels.tolist() == [3, 9, 0, 3]
    assert len(data.classes) == 10


@pytest.mark.parametrize("split", ["train", "unlabeled"])
def test_stl10_columns_become_rows_and_labels_start_at_0(split, tmp_path, monkeypatch):
    pixels = RNG.integers(0, 256, (2, 3, 96, 96), dtype=np.uint8)
    stored = b"".join(plane[:, column].tobytes() for image in pixels for plane in image for column in range(96))
    members = {
        f"stl10_binary/{split}_X.bin": stored,
        "stl10_binary/train_y.bin": bytes([1, 10]),
        "stl10_binary/class_names.txt": "\n".join(f"c{n}" for n in range(10)).encode(),
    }
    place(STL10, tmp_path, tar(members), monkeypatch)
    data = parse(source="stl10", split=split, cache=str(tmp_path)).load()
    np.testing.assert_array_equal(data.images, pixels)
    if split == "unlabeled":
        assert data.labels is None
    else:
        assert data.labels.tolist() == [0, 9]


def test_broken_archives_name_themselves(tmp_path):
    path = tmp_path / "a.tar.gz"
    content = tar({"x": RNG.bytes(50_000), "y": b"1"})
    path.write_bytes(content)
    assert read_members(path, ["y"]) == {"y": b"1"}
    with pytest.raises(InputError, match=rf"{path}: it lacks z"):
        read_members(path, ["y", "z"])
    path.write_bytes(content[:20_000])
    with pytest.raises(InputError, match=rf"{path}: it cannot be unpacked"):
        read_members(path, ["y"])


def test_records_of_the_wrong_length():
    with pytest.raises(InputError, match="no whole number of records of 3073 bytes"):
        cifar_records(bytes(3072), 1, "x")
    with pytest.raises(InputError, match="no whole number of images"):
        stl10_images(bytes(100), "x")


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"plain", "cannot be unpacked"),
        (gzip.compress(b"\0\0\x0d\x01\0\0\0\1\0"), "not an IDX file"),
        (gzip.compress(b"\0\0\x08\x03\0\0"), "not an IDX file"),
        (gzip.compress(b"\0\0\x08\x01\0\0\0\x05abc"), "holds 3 values, not 5"),
    ],
)
def test_wrong_idx_files(content, why, tmp_path):
    (tmp_path / "x.gz").write_bytes(content)
    with pytest.raises(InputError, match=why):
        read_idx(tmp_path / "x.gz")


def test_offline_says_what_to_put_where(tmp_path, monkeypatch):
    monkeypatch.setattr(download, "_PAUSES", ())
    monkeypatch.setattr(Cifar10, "archive", RemoteFile("http://127.0.0.1:9/cifar-10-binary.tar.gz", "md5:123"))
    with pytest.raises(InputError) as error:
        parse(source="cifar10", split="train", cache=str(tmp_path)).load()
    assert f"{tmp_path}/cifar-10-binary.tar.gz (md5:123)" in str(error.value)


def test_published_checksums_are_well_formed():
    remotes = [Cifar10.archive, Cifar100.archive, STL10.archive]
    remotes += [remote for cls in (MNIST, FashionMNIST) for files in cls.files.values() for remote in files]
    assert len({remote.checksum for remote in remotes}) == 11
    for remote in remotes:
        method, _, digits = remote.checksum.partition(":")
        assert len(digits) == 2 * hashlib.new(method, usedforsecurity=False).digest_size
        assert set(digits) <= set("0123456789abcdef")


def test_check_of_the_cache_folder(tmp_path):
    assert parse(source="stl10", split="test", cache=str(tmp_path / "new" / "folder")).check() == []
    (tmp_path / "file").write_text("x")
    (problem,) = parse(source="stl10", split="test", cache=str(tmp_path / "file" / "deep")).check()
    assert f"{tmp_path}/file is a file" in problem
