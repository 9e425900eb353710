"""The one writer of a run's record in MLflow.

Training never waits for it and never fails with it: what is logged goes to a queue, a thread sends it in batches,
retries while the store is away, and asks the store what it has before it repeats anything, because a request whose
answer was lost may well have been carried out.
"""

from __future__ import annotations

import logging
import os
import random
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from heliostat.errors import InputError
from heliostat.tracking.backlog import Backlog, Event
from heliostat.tracking.client import connect, ensure_experiment
from heliostat.tracking.location import display_uri, scrub
from heliostat.tracking.sending import BATCH, BATCHED, VALUE_CHARACTERS, Sender

_IDENTITY_TAG = "heliostat.identity"
_DIGEST_CHARACTERS = 36  # MLflow's limit for the digest of a data set
_SYSTEM = "system/"
_logger = logging.getLogger("heliostat.tracking")


@dataclass(frozen=True, kw_only=True)
class TrackerStatus:
    """How far a run's record is."""

    sent: int
    """Events that the store has."""
    pending: int
    """Events that wait."""
    failures: int
    """Attempts to send, or to save what waits, that failed."""
    last_error: str | None
    """The last failure, without secrets; None where there was none."""
    skipped: int = 0
    """Points not sent because the store had them: training repeated steps after a restart."""
    refused: int = 0
    """Events that the store will never take, each named in the log."""


class Tracker:
    """Writes one run: parameters, metrics by step, figures, data sets, models.

    No method waits for the store or raises because it is away; ``finish`` waits as long as it is told. Steps of a
    metric must rise: a point at or below the metric's last step is a repetition and is skipped.

    Args:
        uri: the store, absolute (``location.resolve_uri``).
        experiment: the experiment's name; created where it does not exist.
        run_name: the run's name in MLflow, that of its directory.
        run_id: the MLflow run to go on with; None begins one, or goes on with the one that ``spool`` tells of.
        parameters: logged once. A value that differs from the stored one becomes the tag ``heliostat.changed.<name>``.
        tags: set at the start.
        system_metrics: whether to sample CPU, memory, disk, network and GPUs of this machine, by MLflow's monitors.
        spool: the file that keeps what waits, at ``persist`` and when memory is full; None: only this process keeps it.
        connect: makes the client; for tests.
        interval: seconds between batches.
        backoff: seconds, the first and the longest wait after a failure.
        limit: events held in memory.

    Raises:
        InputError: the spool is not one, or belongs to another run.
    """

    def __init__(
        self,
        uri: str,
        experiment: str,
        run_name: str,
        *,
        run_id: str | None = None,
        parameters: Mapping[str, str | int | float | bool | None],
        tags: Mapping[str, str],
        system_metrics: bool,
        spool: Path | None,
        connect: Callable[[str], Any] = connect,
        interval: float = 1.0,
        backoff: tuple[float, float] = (1.0, 60.0),
        limit: int = 50_000,
    ) -> None:
        self._uri, self._experiment, self._run_name = uri, experiment, run_name
        self._parameters, self._tags, self._system_metrics = dict(parameters), dict(tags), system_metrics
        self._connect, self._interval, self._backoff = connect, interval, backoff

        self._lock = threading.Lock()
        self._accepted: dict[str, int] = {}  # the last step of each metric that was taken from the caller
        self._sent = self._failures = self._skipped = self._refused = 0
        self._last_error: str | None = None
        self._final: TrackerStatus | None = None
        self._sender: Sender | None = None
        self._failed_in_a_row = 0
        self._stuck = False  # whether it was an event of its own that failed, such as a file, and not a batch
        self._ending: tuple[str, int] | None = None  # status and time
        self._sampler: threading.Thread | None = None

        self._backlog = Backlog(spool, limit)
        self._run_id = self._adopt(run_id, spool)
        self._stop = threading.Event()
        self._deadline = 0.0
        self._thread = threading.Thread(target=self._work, name="heliostat-tracker", daemon=True)
        self._thread.start()

    @property
    def run_id(self) -> str | None:
        """MLflow's id of the run; None until the store has it."""
        return self._run_id

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Log values of one step; NaN and infinities are stored as such."""
        values = {key: float(value) for key, value in metrics.items()}
        now = _milliseconds()
        with self._lock:
            for key, value in values.items():
                if step <= self._accepted.get(key, step - 1):
                    self._skipped += 1
                    continue
                self._accepted[key] = step
                # JSON has no NaN; as text it survives the spool, and float() reads both
                stored: float | str = value if value - value == 0 else repr(value)
                self._put({"kind": "metric", "key": key, "value": stored, "step": step, "time": now})

    def log_text(self, text: str, artifact_path: str) -> None:
        """Store ``text`` as a file of the run, for example ``job.yaml``."""
        self._put({"kind": "text", "text": text, "path": artifact_path})

    def log_artifact(self, local_path: Path | str, artifact_path: str | None = None) -> None:
        """Store a local file in the folder ``artifact_path`` of the run. It is read later: leave it where it is."""
        self._put({"kind": "artifact", "local": os.path.abspath(local_path), "path": artifact_path, "name": None})  # noqa: PTH100

    def log_figure(self, path: Path | str, name: str) -> None:
        """Store a picture, or a text for people, below ``figures/`` as ``name`` with the file's own ending. It is read
        later: leave it where it is."""
        ending = Path(path).suffix
        folder, _, file = f"figures/{name.removesuffix(ending)}{ending}".rpartition("/")
        self._put({"kind": "artifact", "local": os.path.abspath(path), "path": folder, "name": file})  # noqa: PTH100

    def log_dataset(self, name: str, digest: str, source: str, context: str, rows: int) -> None:
        """Say what the run read: ``source`` is an address or path, ``context`` such as "train" or "test".

        MLflow keeps the first 36 characters of ``digest``.
        """
        digest = digest[:_DIGEST_CHARACTERS]
        self._put(
            {"kind": "dataset", "name": name, "digest": digest, "source": source, "context": context, "rows": rows}
        )

    def link_model(self, name: str, checkpoint_uri: str, step: int, metrics: Mapping[str, float]) -> None:
        """List a checkpoint among MLflow's models, with its metrics, without copying it."""
        self.log_metrics(metrics, step)
        values = {key: repr(float(value)) for key, value in metrics.items()}
        event = {"kind": "model", "name": name, "checkpoint": checkpoint_uri, "step": step, "metrics": values}
        self._put({**event, "time": _milliseconds()})

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags; a later value replaces an earlier one."""
        for key, value in tags.items():
            text, whole = _shortened(str(value), f"tags/{key}.txt")
            self._put({"kind": "tag", "key": key, "value": text})
            if whole:
                self._put(whole)

    def status(self) -> TrackerStatus:
        """How far the record is now."""
        with self._lock:
            return TrackerStatus(
                sent=self._sent - self._refused,
                pending=len(self._backlog) + (self._ending is not None),
                failures=self._failures,
                last_error=self._last_error,
                skipped=self._skipped + (self._sender.skipped if self._sender else 0),
                refused=self._refused,
            )

    def persist(self) -> None:
        """Save what waits to the spool file, atomically; a killed run that is resumed sends it."""
        try:
            self._backlog.persist()
        except OSError as error:
            self._note(f"what waits to be tracked could not be saved: {error}")

    def finish(self, status: Literal["FINISHED", "FAILED", "KILLED"], timeout: float) -> TrackerStatus:
        """Send what waits, for at most ``timeout`` seconds, and close the run.

        What could not be sent stays in the spool file; ``pending`` of the answer says how much.
        """
        if self._final is not None:
            return self._final
        self._ending = (status, _milliseconds())
        self._deadline = time.monotonic() + timeout
        self._stop.set()
        if self._sampler is not None:
            self._sampler.join(timeout)
        self._thread.join(max(0.0, self._deadline - time.monotonic()))
        self._final = self.status()
        if self._final.pending or status != "FINISHED":  # a run that may be resumed keeps its identity
            self.persist()
        else:
            try:
                self._backlog.discard()
            except OSError as error:
                self._note(f"the spool could not be removed: {error}")
        if self._final.pending:
            _logger.warning(
                "%d events of run %s are not in %s: %s",
                self._final.pending,
                self._run_name,
                display_uri(self._uri),
                self._final.last_error or f"{timeout:g} seconds were not enough",
            )
        return self._final

    def _adopt(self, run_id: str | None, spool: Path | None) -> str | None:
        """Find out from the spool which run this is and what it still has to say."""
        identity = self._backlog.identity
        known = identity.get("run_id")
        if run_id is not None and known is not None and run_id != known:
            raise InputError(f"{spool} holds metrics of the run {known}, not of {run_id}. Give each run its own spool.")
        self._backlog.identity = {"token": identity.get("token") or uuid.uuid4().hex, "run_id": run_id or known}
        for event in self._backlog.events():
            if event["kind"] == "metric":
                self._accepted[event["key"]] = max(event["step"], self._accepted.get(event["key"], event["step"]))
        return run_id or known

    def _put(self, event: Event) -> None:
        if self._final is not None:
            raise RuntimeError(f"The record of {self._run_name} is closed; log before finish().")
        try:
            self._backlog.append(event)
        except OSError as error:
            self._note(f"memory for waiting metrics is full and so is the disk: {error}")

    def _note(self, error: str) -> None:
        """Count a failure; the first of several in a row with the same text is printed."""
        if error != self._last_error:
            _logger.warning("%s", error)
        self._failures += 1
        self._last_error = error

    def _refuse(self, event: Event, reason: str) -> None:
        self._refused += 1
        self._last_error = scrub(reason, self._uri)
        shown = {key: value for key, value in event.items() if key not in ("text", "time")}
        _logger.warning("%s does not take %s: %s", display_uri(self._uri), shown, self._last_error)

    def _work(self) -> None:
        delay = 0.0
        while not self._stop.wait(delay):
            delay = self._attempt()
        while True:
            delay = self._attempt()
            left = self._deadline - time.monotonic()
            if left <= 0 or not self.status().pending:
                return
            time.sleep(min(delay, left, 1.0))

    def _attempt(self) -> float:
        """Send all that waits; returns the seconds to wait before the next attempt."""
        try:
            if self._sender is None:
                self._sender = self._open()
            elif self._failed_in_a_row:
                self._sender.refresh()  # the store may have carried out what it could not answer
                if self._stuck:  # the store answers, but not to this: let the others pass
                    self._backlog.rotate()
            while events := self._backlog.peek(BATCH):
                self._stuck = events[0]["kind"] not in BATCHED
                done = self._sender.send(events)
                self._stuck = False
                self._backlog.drop(done)
                with self._lock:
                    self._sent += done
                if self._stop.is_set() and time.monotonic() >= self._deadline:
                    break
            if self._ending is not None and not self._backlog:
                self._sender.close(*self._ending)
                with self._lock:
                    self._ending = None
                    self._sent += 1
        except Exception as error:  # noqa: BLE001 - training must go on whatever the store, its network or its client does
            return self._failed(error)
        if self._failed_in_a_row:
            _logger.warning("tracking store %s is back", display_uri(self._uri))
            self._failed_in_a_row = 0
        return self._interval

    def _failed(self, error: Exception) -> float:
        text = scrub(str(error) or type(error).__name__, self._uri)
        with self._lock:
            self._failures += 1
            self._last_error = text
        if not self._failed_in_a_row:
            _logger.warning(
                "tracking store %s does not take metrics (%s); training goes on and they are kept",
                display_uri(self._uri),
                text.partition("\n")[0],
            )
        self._failed_in_a_row += 1
        first, longest = self._backoff
        wait = min(longest, first * 2.0 ** min(self._failed_in_a_row - 1, 30))
        return wait * random.uniform(0.5, 1.0)  # runs that lost their server together do not come back together

    def _open(self) -> Sender:
        """Find or begin the run."""
        client = self._connect(self._uri)
        experiment_id = ensure_experiment(client, self._uri, self._experiment)
        token = self._backlog.identity["token"]
        run_id = self._run_id
        if run_id is None:
            # The spool's token finds a run whose making was carried out but not answered.
            found = client.search_runs([experiment_id], f"tags.`{_IDENTITY_TAG}` = '{token}'", max_results=1)
            run_id = found[0].info.run_id if found else None
        if run_id is None:
            self.persist()
            tags = {**{k: v for k, v in self._tags.items() if k.startswith("mlflow.")}, _IDENTITY_TAG: token}
            run_id = client.create_run(experiment_id, tags=tags, run_name=self._run_name).info.run_id
        sender = Sender(client, experiment_id, run_id, self._refuse)
        run = sender.refresh()
        if run.info.status != "RUNNING":
            client.update_run(run_id, status="RUNNING")
        with self._lock:
            for key, step in sender.last_step.items():
                self._accepted[key] = max(step, self._accepted.get(key, step))
        self._run_id = run_id
        self._backlog.identity = {"token": token, "run_id": run_id}
        self._log_parameters(run.data.params)
        self.set_tags(self._tags)
        self.persist()
        if self._system_metrics:
            self._sampler = threading.Thread(target=self._sample, name="heliostat-system-metrics", daemon=True)
            self._sampler.start()
        return sender

    def _log_parameters(self, stored: Mapping[str, str]) -> None:
        for name, value in self._parameters.items():
            text, whole = _shortened(_text(value), f"parameters/{name}.txt")
            if stored.get(name) != text:
                self._put({"kind": "param", "key": name, "value": text})
                if whole:
                    self._put(whole)

    def _sample(self) -> None:
        """Sample this machine with MLflow's monitors, through the same queue as everything else.

        MLflow's own thread would stop for good when the store is away once.
        """
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        make: Any = SystemMetricsMonitor  # MLflow has no annotations here
        monitor = make(self._run_id, tracking_uri=self._uri)
        prefix = _SYSTEM + (f"{monitor.node_id}/" if monitor.node_id else "")
        with self._lock:
            step = max((step for key, step in self._accepted.items() if key.startswith(_SYSTEM)), default=-1) + 1
        while True:
            for _ in range(monitor.samples_before_logging):
                monitor.collect_metrics()
                if self._stop.wait(monitor.sampling_interval):
                    return
            values = monitor.aggregate_metrics()
            self.log_metrics({prefix + key: value for key, value in values.items()}, step)
            for part in monitor.monitors:
                part.clear_metrics()
            step += 1


def _milliseconds() -> int:
    return time.time_ns() // 1_000_000


def _text(value: str | int | float | bool | None) -> str:
    """A parameter as the job file writes it."""
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _shortened(text: str, path: str) -> tuple[str, Event | None]:
    """``text`` as MLflow takes it and, where that is not all of it, the event that stores the whole as a file."""
    if len(text) <= VALUE_CHARACTERS:
        return text, None
    marker = f"... [{len(text)} characters; whole in {path}]"
    return text[: VALUE_CHARACTERS - len(marker)] + marker, {"kind": "text", "text": text, "path": path}
