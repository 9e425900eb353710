"""What a snapshot of a replay buffer is made of: each array's blocks, the files that hold them, and their digests."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

FORMAT = 1


@dataclass(frozen=True)
class StoredBlock:
    """Where a block is stored."""

    file: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class StoredArray:
    """How an array is stored."""

    dtype: str
    shape: tuple[int, ...]
    block_slots: int
    """Slots of a block; the last block may have fewer."""
    blocks: tuple[StoredBlock | None, ...]
    """None: the block is all zeros and has no file."""

    def ranges(self) -> Iterator[slice]:
        """The slots of each block."""
        for start in range(0, self.shape[0], self.block_slots):
            yield slice(start, start + self.block_slots)


@dataclass(frozen=True)
class Manifest:
    """All that a snapshot is made of."""

    step: int
    arrays: dict[str, StoredArray]
    counters: dict[str, Any]

    def files(self) -> set[str]:
        """Names of the block files that it needs."""
        return {block.file for array in self.arrays.values() for block in array.blocks if block is not None}

    def as_data(self) -> dict[str, Any]:
        """Plain JSON data, with their own digest."""
        content = {
            "step": self.step,
            "written": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "counters": self.counters,
            "arrays": {
                name: {
                    "dtype": array.dtype,
                    "shape": array.shape,
                    "block_slots": array.block_slots,
                    "blocks": [None if block is None else vars(block) for block in array.blocks],
                }
                for name, array in self.arrays.items()
            },
        }
        return {"format": FORMAT, "sha256": _digest(content), "snapshot": content}

    @classmethod
    def parse(cls, data: Any) -> Manifest:
        """Raises ValueError, KeyError or TypeError where the data are not what :meth:`as_data` gave."""
        if data["format"] != FORMAT:
            raise ValueError(f"format {data['format']} is not known here (expected {FORMAT})")
        content = data["snapshot"]
        if _digest(content) != data["sha256"]:
            raise ValueError("its content is not what was written")
        arrays = {
            name: StoredArray(
                array["dtype"],
                tuple(array["shape"]),
                array["block_slots"],
                tuple(None if block is None else StoredBlock(**block) for block in array["blocks"]),
            )
            for name, array in content["arrays"].items()
        }
        return cls(content["step"], arrays, content["counters"])


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
