"""A sweep's memory: one line of JSON for each thing that happened, only ever added to.

A driver that is killed loses at most the line that it was writing. Reading the lines again in their order gives the
sweep's state; nothing of it is ever unpickled.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, TypeAlias

from heliostat.training.storage import Storage

Event: TypeAlias = dict[str, Any]
_FILE = "journal.jsonl"


class Journal:
    """The events of one sweep.

    Args:
        storage: the sweep's folder.
    """

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._lines: list[bytes] = []

    def read(self) -> list[Event]:
        """All events so far, in their order."""
        content = self._storage.read(_FILE) if self._storage.exists(_FILE) else b""
        whole, _, rest = content.rpartition(b"\n")
        self._lines = [line for line in whole.split(b"\n") if line]
        if rest:  # cut off by a crash: what it said is found out again
            self._storage.replace(_FILE, b"".join(line + b"\n" for line in self._lines))
        return [json.loads(line) for line in self._lines]

    def append(self, event: Event) -> None:
        """Add an event; on a local disk it has reached the disk when this returns."""
        line = json.dumps(event).encode()
        self._lines.append(line)
        if not self._storage.local:  # object stores cannot append
            self._storage.replace(_FILE, b"".join(line + b"\n" for line in self._lines))
            return
        with Path(self._storage.path(_FILE)).open("ab") as file:
            file.write(line + b"\n")
            file.flush()
            os.fsync(file.fileno())
