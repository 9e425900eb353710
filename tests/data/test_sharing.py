from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from heliostat.data.images import CorruptItem, ImageData
from heliostat.data.sharing import share


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    import ray

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False)
    yield ray
    ray.shutdown()


@pytest.mark.parametrize("labels", [True, False])
def test_two_workers_read_the_same_store_without_copies(cluster, labels):
    pixels = np.random.default_rng(0).integers(0, 256, (2000, 3, 16, 16), dtype=np.uint8)
    data = ImageData(
        images=pixels,
        labels=np.arange(2000) % 5 if labels else None,
        classes=tuple("abcde") if labels else (),
        name="toy",
        corrupt=(CorruptItem("f:1", "torn"),),
    )
    shared = share(data)

    @cluster.remote
    def look(handle: Any) -> dict[str, Any]:
        import hashlib
        import os

        import torch

        from heliostat.data.loader import Loader

        seen = handle.open()
        arrays = [array for array in (seen.images, seen.labels) if array is not None]
        batch = Loader(seen, batch_size=8, seed=0).batch(3)
        with open("/proc/self/maps") as maps:  # noqa: PTH123
            spans = [line.split() for line in maps if "plasma" in line or "/dev/shm" in line]
        address = seen.images.ctypes.data
        inside = any(int(span[0].split("-")[0], 16) <= address < int(span[0].split("-")[1], 16) for span in spans)
        return {
            "process": os.getpid(),
            "digest": hashlib.sha256(seen.images.tobytes()).hexdigest(),
            "labels": None if seen.labels is None else seen.labels.tolist(),
            "owns": [array.flags.owndata for array in arrays],
            "writeable": [array.flags.writeable for array in arrays],
            "in_store": inside,
            "rest": (seen.classes, seen.name, seen.fingerprint, seen.corrupt),
            "batch": torch.equal(batch["image"], torch.tensor(seen.images[batch["index"].numpy()])),
        }

    import hashlib

    for seen in cluster.get([look.remote(shared) for _ in range(2)]):
        assert seen["digest"] == hashlib.sha256(pixels.tobytes()).hexdigest()
        assert seen["labels"] == (None if data.labels is None else data.labels.tolist())
        assert not any(seen["owns"])
        assert not any(seen["writeable"])
        assert seen["in_store"]
        assert seen["rest"] == (data.classes, data.name, data.fingerprint, data.corrupt)
        assert seen["batch"]


@pytest.mark.parametrize("labels", [True, False])
def test_videos_are_read_in_the_store_too(cluster, toy_videos, labels):
    data = toy_videos([3000, 2000, 4000], frames=5, stride=3, labels=labels)
    shared = share(data)

    @cluster.remote
    def look(handle: Any) -> dict[str, Any]:
        from heliostat.data.loader import Loader

        seen = handle.open()
        with open("/proc/self/maps") as maps:  # noqa: PTH123
            spans = [line.split() for line in maps if "plasma" in line or "/dev/shm" in line]
        address = seen.frames.ctypes.data
        return {
            "fingerprint": seen.fingerprint,
            "recomputed": seen.part(np.arange(3), "again").fingerprint,
            "owns": seen.frames.flags.owndata,
            "writeable": seen.frames.flags.writeable,
            "in_store": any(
                int(span[0].split("-")[0], 16) <= address < int(span[0].split("-")[1], 16) for span in spans
            ),
            "rest": (seen.starts.tolist(), seen.classes, seen.name, seen.clip_frames, seen.clip_stride, seen.span),
            "batch": {
                name: values.numpy() for name, values in Loader(seen, batch_size=3, seed=4, clips=True).batch(2).items()
            },
        }

    from heliostat.data.loader import Loader

    expected = Loader(data, batch_size=3, seed=4, clips=True).batch(2)
    for seen in cluster.get([look.remote(shared) for _ in range(2)]):
        assert seen["fingerprint"] == seen["recomputed"] == data.fingerprint
        assert (seen["owns"], seen["writeable"], seen["in_store"]) == (False, False, True)
        assert seen["rest"] == ([0, 3000, 5000, 9000], data.classes, "toy", 5, 3, 13)
        assert seen["batch"].keys() == expected.keys()
        for name, values in expected.items():
            np.testing.assert_array_equal(seen["batch"][name], values)


def test_driver_opens_its_own(cluster):
    pixels = np.full((4, 1, 64, 64), 7, np.uint8)
    opened = share(ImageData(images=pixels, labels=None, classes=(), name="toy")).open()
    np.testing.assert_array_equal(opened.images, pixels)
    assert opened.labels is None
    assert not opened.images.flags.writeable
