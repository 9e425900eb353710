"""The folder that a run leaves behind: ``job.yaml``, ``run.json``, ``environment.json``, checkpoints, results."""

from __future__ import annotations

import fcntl
import os
import secrets
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from heliostat.config.job import Job
from heliostat.config.loading import AnyJob, dump, parse, parse_any
from heliostat.errors import InputError, Problem, nearest
from heliostat.training.checkpoint import CheckpointStore
from heliostat.training.storage import Storage


class RunFolder:
    """A run's files.

    Args:
        uri: the run's own folder: a path or a URI.
    """

    def __init__(self, uri: str) -> None:
        self.storage = Storage(uri)

    @property
    def name(self) -> str:
        """The run's name, the last part of its location."""
        return self.storage.uri.rstrip("/").rsplit("/", 1)[-1]

    @staticmethod
    def planned(job: AnyJob, name: str | None = None) -> RunFolder:
        """The folder that a new run will have; without a name, one that is new: the job's name and six hexadecimal
        digits.

        Raises:
            InputError: a run of this name exists.
        """
        folder = RunFolder(f"{Storage(job.output).uri}/{name or f'{job.name}-{secrets.token_hex(3)}'}")
        if folder.storage.exists("job.yaml"):
            command = f"heliostat resume {folder.storage.uri}"
            what = f"a run of this name exists; continue it with '{command}', or choose another name"
            raise InputError(Problem(what, folder.storage.uri))
        return folder

    def create(self, job: AnyJob) -> None:
        """Make the folder, with the job in it.

        Raises:
            InputError: the place cannot be written.
        """
        try:
            self.storage.make()
            self.storage.replace("job.yaml", dump(job).encode())
        except OSError as error:
            raise InputError(Problem(f"the run's folder cannot be written: {error}", self.storage.uri)) from None

    @staticmethod
    def open(run: str, output: str = "runs") -> RunFolder:
        """An existing run, by the location of its folder or by its name below ``output``.

        Raises:
            InputError: there is no such run.
        """
        for uri in (run, f"{Storage(output).uri}/{run}"):
            folder = RunFolder(uri)
            if folder.storage.exists("job.yaml"):
                return folder
        names = Storage(output).folders()
        hint = nearest(run, names) if names else f" There are no runs in {output}."
        raise InputError(Problem(f"there is no run '{run}'.{hint}"))

    def job(self) -> Job:
        """The resolved job that the run was started with.

        Raises:
            InputError: it is a run of reinforcement learning.
        """
        return parse(self.storage.read("job.yaml").decode(), f"{self.storage.uri}/job.yaml")

    def any_job(self, overrides: Sequence[str] = ()) -> AnyJob:
        """The resolved job of any kind that the run was started with, with some changes."""
        return parse_any(self.storage.read("job.yaml").decode(), f"{self.storage.uri}/job.yaml", overrides)

    def checkpoints(self, keep: int = 2) -> CheckpointStore:
        """The run's checkpoints."""
        return CheckpointStore(self.storage, keep)

    def spool(self) -> Path:
        """Where the tracker keeps what it could not send: with the run, or in the cache if the run is not on this
        machine."""
        if self.storage.local:
            return Path(self.storage.path("tracking.jsonl"))
        cache = Path(os.environ.get("HELIOSTAT_CACHE", "~/.cache/heliostat")).expanduser() / "tracking"
        cache.mkdir(parents=True, exist_ok=True)
        return cache / f"{self.name}.jsonl"

    def keep_figure(self, name: str, png: bytes) -> None:
        """Store a picture as ``figures/<name>``."""
        self.storage.make("figures")
        self.storage.replace(f"figures/{name}", png)

    def figures(self) -> list[str]:
        """Names of the stored pictures."""
        return self.storage.files("figures")

    def about(self) -> dict[str, Any]:
        """``run.json``: where the run is tracked and how it stands; empty before it has begun."""
        return dict(self.storage.read_json("run.json")) if self.storage.exists("run.json") else {}

    def update(self, **facts: Any) -> None:
        """Change facts of ``run.json``."""
        self.storage.write_json(
            "run.json", {**self.about(), **facts, "updated": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
        )

    @contextmanager
    def locked(self, role: str = "driver", wait: float = 0.0) -> Iterator[None]:
        """Hold the run for this process, so that two cannot write the same checkpoints; local folders only.

        The lock is the operating system's and ends with the process, however it ends. The driver holds one, and rank 0
        of its workers another: when a driver is killed its workers live on for some seconds, and a resumed run has to
        wait.

        Args:
            role: which of the two.
            wait: seconds to wait for another holder.

        Raises:
            InputError: another process holds it.
        """
        if not self.storage.local:
            yield
            return
        descriptor = os.open(Path(self.storage.path(f".{role}.lock")), os.O_RDWR | os.O_CREAT, 0o644)
        deadline = time.monotonic() + wait
        try:
            while True:
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() >= deadline:
                        what = "this run is being worked on by another process; wait for it or stop it first"
                        raise InputError(Problem(what, self.storage.uri)) from None
                time.sleep(0.1)
            yield
        finally:
            os.close(descriptor)
