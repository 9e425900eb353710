from __future__ import annotations

import hashlib
import subprocess
import sys

import numpy as np
import pytest

from heliostat.data import ImageData
from heliostat.data.images import fraction_of
from heliostat.errors import InputError


def make(count: int = 3, labels: list[int] | None = None, classes: tuple[str, ...] = ("a", "b")) -> ImageData:
    pixels = np.arange(count * 2 * 3 * 4, dtype=np.uint8).reshape(count, 2, 3, 4)
    numbers = None if labels is None else np.array(labels, np.int64)
    return ImageData(images=pixels, labels=numbers, classes=classes if labels is not None else (), name="toy")


def test_spec_of_labelled_and_unlabelled_data():
    assert make(labels=[0, 1, 0]).spec().image_shape == (2, 3, 4)
    assert make(labels=[0, 1, 0]).spec().classes == 2
    assert make().spec().classes is None


def test_fingerprint_is_the_sha256_of_shape_pixels_and_labels():
    expected = hashlib.sha256(
        b"".join(size.to_bytes(8, "little") for size in (3, 2, 3, 4))
        + bytes(range(72))
        + b"".join(label.to_bytes(8, "little") for label in (0, 1, 0))
    )
    assert make(labels=[0, 1, 0]).fingerprint == expected.hexdigest()


def test_fingerprint_tells_labels_shapes_and_pixels_apart():
    data = make(labels=[0, 1, 0])
    reshaped = ImageData(images=data.images.reshape(3, 2, 4, 3), labels=data.labels, classes=data.classes, name="toy")
    changed = ImageData(images=data.images ^ np.uint8(1), labels=data.labels, classes=data.classes, name="toy")
    prints = {data.fingerprint, reshaped.fingerprint, changed.fingerprint, make().fingerprint}
    assert len({*prints, make(labels=[0, 1, 1]).fingerprint}) == 5


def test_empty_data_is_an_input_error():
    with pytest.raises(InputError, match="toy holds no images"):
        make(count=0)


@pytest.mark.parametrize("labels", [[0, 1, 2], [-1, 0, 1]])
def test_labels_outside_the_classes_are_an_input_error(labels: list[int]):
    with pytest.raises(InputError, match=r"labels must lie in 0 \.\. 1"):
        make(labels=labels)


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        (np.zeros((2, 3, 4), np.uint8), None),
        (np.zeros((2, 3, 4, 4), np.float32), None),
        (np.zeros((2, 4, 4, 3), np.uint8).transpose(0, 3, 1, 2), None),
        (np.zeros((2, 3, 4, 4), np.uint8), np.zeros(2, np.int32)),
        (np.zeros((2, 3, 4, 4), np.uint8), np.zeros(3, np.int64)),
    ],
)
def test_arrays_of_another_kind_are_refused(images: np.ndarray, labels: np.ndarray | None):
    with pytest.raises(ValueError, match="must be"):
        ImageData(images=images, labels=labels, classes=("a",), name="toy")


def test_importing_sources_needs_neither_torch_nor_ray_nor_pyarrow():
    code = (
        "import sys, heliostat.data, heliostat.data.sources, heliostat.data.sharing;"
        "print(*sorted({'torch', 'ray', 'pyarrow', 'sklearn', 'PIL'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_package_has_no_other_names():
    import heliostat.data

    with pytest.raises(AttributeError, match="no attribute 'loaders'"):
        _ = heliostat.data.loaders


def numbered(per_class: list[int]) -> ImageData:
    """Images that are all different, class after class."""
    labels = np.repeat(np.arange(len(per_class)), per_class)
    images = np.arange(len(labels), dtype=np.uint8).reshape(-1, 1, 1, 1)
    return ImageData(images=images, labels=labels, classes=tuple("abc"), name="numbered")


def test_a_fraction_takes_the_same_share_of_each_class_and_at_least_one():
    data = numbered([100, 50, 3])
    part = fraction_of(data, 0.1, seed=0)
    assert np.bincount(part.labels).tolist() == [10, 5, 1]
    assert (np.diff(part.images.ravel().astype(int)) > 0).all()  # in their order
    assert (data.labels[part.images.ravel()] == part.labels).all()
    assert part.name == "numbered (0.1 of it)"
    assert part.fingerprint != data.fingerprint


def test_a_fraction_depends_on_the_seed_and_is_part_of_a_larger_one():
    data = numbered([100, 50, 3])
    small, large, other = (set(fraction_of(data, f, s).images.ravel()) for f, s in ((0.1, 0), (0.3, 0), (0.1, 1)))
    assert small < large
    assert small != other
    assert fraction_of(data, 1.0, 0) is data


def test_a_fraction_without_labels():
    part = fraction_of(make(count=6), 0.5, seed=0)
    assert len(part) == 3
    assert part.labels is None
