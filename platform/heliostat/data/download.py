"""Files from the web into the cache folder: resumed after an interruption, verified, complete or absent.

A download grows in ``<name>.part`` and is renamed when its checksum is right. The process that downloads holds a lock
on that file, which the system releases even if the process is killed; others wait and find the result.
"""

from __future__ import annotations

import fcntl
import hashlib
import http.client
import io
import logging
import os
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from heliostat.data.images import Progress
from heliostat.errors import InputError

_BLOCK = 1 << 20
_TIMEOUT = 30.0
"""Seconds without a byte after which a connection counts as broken."""
_PAUSES = (0.5, 2.0, 8.0)
"""Seconds before each new attempt after a broken connection."""

logger = logging.getLogger(__name__)


class _Broken(Exception):  # noqa: N818 - handled where it happens
    """The connection failed in a way that may pass."""


def cache_folder(override: str | None = None) -> Path:
    """Where downloads lie: the given folder, else ``$HELIOSTAT_CACHE``, else ``~/.cache/heliostat``."""
    return Path(override or os.environ.get("HELIOSTAT_CACHE") or "~/.cache/heliostat").expanduser().absolute()


@dataclass(frozen=True)
class RemoteFile:
    """A published file and the checksum that its publisher, or everybody who uses it, gives."""

    url: str
    checksum: str
    """``md5:`` or ``sha256:`` and hexadecimal digits."""

    @property
    def name(self) -> str:
        """The file's name in the cache."""
        return self.url.rsplit("/", 1)[-1]

    def fetch(self, folder: Path, progress: Progress | None = None) -> Path:
        """The file in ``folder``, downloaded unless it is there already.

        Raises:
            InputError: it cannot be downloaded, or what came or was there has another checksum.
        """
        target = folder / self.name
        if not target.exists():
            try:
                folder.mkdir(parents=True, exist_ok=True)
                with _locked(target.with_name(f"{self.name}.part"), target) as part:
                    if part is not None:
                        self._download(part, target, progress)
                        return target
            except OSError as error:
                raise InputError(f"{self.url} cannot be stored in {folder}: {error}") from error
        with target.open("rb") as file:
            if (found := self._digest(file)) != self.checksum:
                raise InputError(f"{target} is not {self.url}: it has {found} instead of {self.checksum}; remove it")
        return target

    def _download(self, part: io.BufferedRandom, target: Path, progress: Progress | None) -> None:
        for pause in (*_PAUSES, None):
            try:
                self._continue(part, progress)
                break
            except _Broken as error:
                if pause is None:
                    raise InputError(self._by_hand(target, str(error))) from error
                logger.warning("%s: %s; next attempt in %g s", self.url, error, pause)
                time.sleep(pause)
            except urllib.error.HTTPError as error:
                raise InputError(self._by_hand(target, f"HTTP {error.code} {error.reason}")) from error
        part.flush()
        os.fsync(part.fileno())
        part.seek(0)
        if (found := self._digest(part)) != self.checksum:
            Path(part.name).unlink()
            raise InputError(self._by_hand(target, f"what came had {found} and was deleted"))
        Path(part.name).replace(target)

    def _continue(self, part: io.BufferedRandom, progress: Progress | None) -> None:
        """Download what is missing."""
        done = part.seek(0, os.SEEK_END)
        request = urllib.request.Request(self.url, headers={"Range": f"bytes={done}-"} if done else {})
        try:
            with urllib.request.urlopen(request, timeout=_TIMEOUT) as response:
                if response.status != 206:  # the whole file: the server does not resume
                    done = part.seek(0)
                    part.truncate()
                length = response.headers.get("Content-Length")
                total = None if length is None else done + int(length)
                while block := response.read(_BLOCK):
                    part.write(block)
                    done += len(block)
                    if progress is not None:
                        progress(f"downloading {self.name}", done, total)
        except urllib.error.HTTPError as error:
            if error.code == 416:  # nothing is missing, or the part is longer than the file: the checksum will tell
                return
            if error.code >= 500 or error.code == 429:
                raise _Broken(f"HTTP {error.code} {error.reason}") from error
            raise
        except (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError, ssl.SSLError) as error:
            raise _Broken(str(getattr(error, "reason", error)) or type(error).__name__) from error
        if total is not None and done < total:
            raise _Broken(f"the connection ended after {done} of {total} bytes")

    def _digest(self, file: io.BufferedReader | io.BufferedRandom) -> str:
        method = self.checksum.partition(":")[0]
        return f"{method}:{hashlib.file_digest(file, method).hexdigest()}"

    def _by_hand(self, target: Path, reason: str) -> str:
        return (
            f"{self.url} could not be downloaded: {reason}. Without a connection, put the file there by hand: {target} "
            f"({self.checksum})"
        )


@contextmanager
def _locked(part: Path, target: Path) -> Iterator[io.BufferedRandom | None]:
    """The partial file, open and locked; None if another process finished ``target`` meanwhile."""
    while True:
        with part.open("ab+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                logger.warning("another process downloads %s; waiting for it", target)
                fcntl.flock(file, fcntl.LOCK_EX)
            # Whoever held the lock has by now renamed the file, deleted it, or failed and left it.
            ours = part.exists() and os.path.samestat(os.fstat(file.fileno()), part.stat())
            if target.exists():
                if ours:
                    part.unlink()
                yield None
                return
            if ours:
                yield file
                return
