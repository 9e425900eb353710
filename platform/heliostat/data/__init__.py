"""Data: where images come from, how they are decoded once, and the loader that gives every step its batch.

A source (``sources``) is a piece of the job file; it loads an ``ImageData`` or a ``VideoData``, arrays in memory
(``Samples``); the driver shares them with all workers of a node through the object store (``sharing``); each worker's
``Loader`` cuts its rows of each step's batch. Names are imported when they are used: the command line must not wait
for torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from heliostat.data.images import ImageData
    from heliostat.data.loader import Loader
    from heliostat.data.samples import Samples
    from heliostat.data.sources import DataSource
    from heliostat.data.videos import VideoData

__all__ = ["DataSource", "ImageData", "Loader", "Samples", "VideoData"]

_HOMES = {
    "DataSource": "sources",
    "ImageData": "images",
    "Loader": "loader",
    "Samples": "samples",
    "VideoData": "videos",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
