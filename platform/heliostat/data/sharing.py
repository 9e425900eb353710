"""One copy of a decoded data set per node: put into Ray's object store once, read by all workers without copying."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Generic

import numpy as np

from heliostat.data.samples import AnySamples


@dataclass(frozen=True)
class Shared(Generic[AnySamples]):
    """A data set in the object store; small, can be sent to workers, lives as long as the process that shared it."""

    kind: type[AnySamples]
    """Its class."""
    arrays: dict[str, Any]
    """``ray.ObjectRef`` of each field that is an array."""
    rest: dict[str, Any]
    """The other fields."""

    def open(self) -> AnySamples:
        """The data as read-only views of this node's store, which fetches it over the network if it is elsewhere."""
        import ray

        return self.kind(**{name: ray.get(array) for name, array in self.arrays.items()}, **self.rest)


def share(data: AnySamples) -> Shared[AnySamples]:
    """Put the arrays into the object store of the cluster that this process is connected to."""
    import ray

    fields = {field.name: getattr(data, field.name) for field in dataclasses.fields(data)}
    arrays = {name: ray.put(value) for name, value in fields.items() if isinstance(value, np.ndarray)}
    return Shared(type(data), arrays, {name: value for name, value in fields.items() if name not in arrays})
