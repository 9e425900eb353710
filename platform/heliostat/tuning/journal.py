"""A sweep's memory: one line of JSON for each thing that happened, only ever added to.

A driver that is killed loses at most the line that it was writing. Reading the lines again in their order gives the
sweep's state; nothing of it is ever unpickled.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, TypeAlias

from heliostat.errors import InputError, Problem
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
        """All events so far, in their order.

        Raises:
            InputError: a line that was written whole is none of a journal's.
        """
        content = self._storage.read(_FILE) if self._storage.exists(_FILE) else b""
        whole, _, rest = content.rpartition(b"\n")
        self._lines = [line for line in whole.split(b"\n") if line]
        events = [self._event(number, line) for number, line in enumerate(self._lines, 1)]
        if rest:  # cut off by a crash: what it said is found out again
            self._storage.replace(_FILE, b"".join(line + b"\n" for line in self._lines))
        return events

    def _event(self, number: int, line: bytes) -> Event:
        try:
            event = json.loads(line)
        except ValueError:
            event = None
        if isinstance(event, dict) and isinstance(event.get("event"), str):
            return event
        what = "this line is not one that a sweep wrote; the sweep cannot be resumed from this file"
        raise InputError(Problem(what, f"{self._storage.uri}/{_FILE}, line {number}"))

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
