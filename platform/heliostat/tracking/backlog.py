"""What waits to be sent: a queue of bounded memory that survives its process.

Two files hold it. ``<spool>.overflow`` takes what memory cannot, appended in order. ``<spool>`` is a snapshot of the
rest, replaced atomically: a first line with the run's identity and how much of the overflow is done, then one event a
line.
"""

from __future__ import annotations

import json
import os
import tempfile
import threading
from collections import deque
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, TypeAlias

from heliostat.errors import InputError

Event: TypeAlias = dict[str, Any]
"""One thing to send, as JSON: ``kind`` and what belongs to it."""


class Backlog:
    """First in, first out; safe for several threads with one consumer.

    Args:
        path: the spool file; None keeps the overflow in a temporary folder, which does not survive the process.
        limit: events held in memory.
    """

    def __init__(self, path: Path | None, limit: int) -> None:
        self._lock = threading.RLock()
        self._path, self._limit, self._threshold = path, limit, limit
        self._folder = tempfile.TemporaryDirectory(prefix="heliostat-") if path is None else None
        base = Path(self._folder.name) / "spool" if self._folder else path
        assert base is not None
        self._overflow = base.with_name(base.name + ".overflow")
        self._memory: deque[Event] = deque()
        self._offset = 0  # bytes of the overflow that are done
        self._spilled = 0  # events in the overflow after the offset
        self.identity: Event = {}
        """What the snapshot's first line says of the run."""
        if path is not None and path.exists():
            self._load(path)

    def __len__(self) -> int:
        with self._lock:
            return self._spilled + len(self._memory)

    def append(self, event: Event) -> None:
        """Add at the end; moves what memory holds to disk when it is too much.

        Raises:
            OSError: the disk refused the overflow. Nothing is lost: the events are still in memory.
        """
        with self._lock:
            self._memory.append(event)
            if len(self._memory) > self._threshold:
                self._threshold = 2 * len(self._memory)  # with a full disk, do not try again at each event
                self._spill()
                self._threshold = self._limit

    def peek(self, count: int) -> list[Event]:
        """Up to ``count`` events from the front, which stay."""
        with self._lock:
            if self._spilled:
                return [json.loads(line) for line in islice(self._lines(), count)]
            return list(islice(self._memory, count))

    def drop(self, count: int) -> None:
        """Forget ``count`` events at the front: they are sent."""
        with self._lock:
            done = list(islice(self._lines(), min(count, self._spilled)))
            self._offset += sum(map(len, done))
            self._spilled -= len(done)
            for _ in range(count - len(done)):
                self._memory.popleft()
            if not self._spilled and self._offset and self._path is None:
                self._overflow.unlink(missing_ok=True)
                self._offset = 0

    def rotate(self) -> None:
        """Move the first event to the end."""
        with self._lock:
            for event in self.peek(1):
                self.append(event)
                self.drop(1)

    def persist(self) -> None:
        """Replace the snapshot by what is pending now.

        Raises:
            OSError: the disk refused; the old snapshot is whole.
        """
        if self._path is None:
            return
        with self._lock:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            if not self._spilled and self._offset:  # all of the overflow is sent
                self._overflow.unlink(missing_ok=True)
                self._offset = 0
            header = {"kind": "spool", **self.identity, "offset": self._offset}
            temporary = self._path.with_name(self._path.name + ".new")
            with temporary.open("w", encoding="utf-8") as file:
                for event in (header, *self._memory):
                    file.write(json.dumps(event) + "\n")
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(self._path)

    def discard(self) -> None:
        """Remove the files: the run is finished and everything is sent."""
        with self._lock:
            self._overflow.unlink(missing_ok=True)
            if self._path is not None:
                self._path.unlink(missing_ok=True)

    def events(self) -> Iterator[Event]:
        """All that is pending, oldest first. Not while other threads write."""
        yield from map(json.loads, self._lines())
        yield from self._memory

    def _lines(self) -> Iterator[bytes]:
        if not self._spilled:
            return
        with self._overflow.open("rb") as file:
            file.seek(self._offset)
            yield from file

    def _spill(self) -> None:
        self._overflow.parent.mkdir(parents=True, exist_ok=True)
        data = b"".join(json.dumps(event).encode() + b"\n" for event in self._memory)
        with self._overflow.open("ab", buffering=0) as file:
            start = file.tell()
            try:
                if file.write(data) != len(data):
                    raise OSError(f"no space left for {self._overflow}")
            except OSError:
                file.truncate(start)
                raise
        self._spilled += len(self._memory)
        self._memory.clear()
        self.persist()

    def _load(self, path: Path) -> None:
        try:
            header, *events = map(json.loads, path.read_text(encoding="utf-8").splitlines())
            if header.pop("kind") != "spool":
                raise ValueError("the first line is not a spool's")
            self._offset = int(header.pop("offset"))
        except (ValueError, KeyError, AttributeError) as error:
            raise InputError(f"{path} is not a file of waiting metrics ({error}). Move it away to go on.") from error
        self.identity = header
        if self._overflow.exists():
            whole = self._overflow.read_bytes().rpartition(b"\n")
            end = len(whole[0]) + len(whole[1])
            os.truncate(self._overflow, end)  # a line that a kill cut in two
            if end < self._offset:  # the overflow was used up, and the kill came before the next snapshot
                self._offset = 0
            self._spilled = whole[0][self._offset :].count(b"\n") + 1 if end > self._offset else 0
        else:
            self._offset = 0
        self._memory.extend(events)
