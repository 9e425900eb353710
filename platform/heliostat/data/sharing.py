"""One copy of a decoded data set per node: put into Ray's object store once, read by all workers without copying."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from heliostat.data.images import CorruptItem, ImageData


@dataclass(frozen=True, kw_only=True)
class SharedImageData:
    """A data set in the object store; small, can be sent to workers, lives as long as the process that shared it."""

    images: Any
    """``ray.ObjectRef`` of the array (N, C, H, W)."""
    labels: Any | None
    """``ray.ObjectRef`` of the array (N,); None without labels."""
    classes: tuple[str, ...]
    name: str
    fingerprint: str
    corrupt: tuple[CorruptItem, ...]

    def open(self) -> ImageData:
        """The data as read-only views of this node's store, which fetches it over the network if it is elsewhere."""
        import ray

        return ImageData(
            images=ray.get(self.images),
            labels=None if self.labels is None else ray.get(self.labels),
            classes=self.classes,
            name=self.name,
            fingerprint=self.fingerprint,
            corrupt=self.corrupt,
        )


def share(data: ImageData) -> SharedImageData:
    """Put the arrays into the object store of the cluster that this process is connected to."""
    import ray

    return SharedImageData(
        images=ray.put(data.images),
        labels=None if data.labels is None else ray.put(data.labels),
        classes=data.classes,
        name=data.name,
        fingerprint=data.fingerprint,
        corrupt=data.corrupt,
    )
