"""Ray's Jobs API, with errors that say what to do."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from heliostat.clusters import submitted
from heliostat.errors import InputError, Problem, RunError, nearest
from heliostat.tracking.location import display_uri

_CONNECT_SECONDS = 5.0
_ADDRESS_VARIABLES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
"""Ray lets them win over an address that is given; heliostat does not."""
_DASHBOARD_PORT = 8265
_GCS_PORT = 6379
ENDED = frozenset({"SUCCEEDED", "FAILED", "STOPPED"})


class Unreachable(RunError):  # noqa: N818 - what has happened, not whose mistake it was
    """The cluster does not answer any more; the job may go on all the same."""


@dataclass(frozen=True)
class Submission:
    """One job of a cluster, as Ray knows it."""

    id: str
    status: str
    """PENDING, RUNNING, STOPPED, SUCCEEDED or FAILED."""
    run: str | None
    """The run that it works on; None where it was not submitted by heliostat."""
    attempt: int
    entrypoint: str
    message: str
    exit_code: int | None
    """Of the driver; None while it works, and where it was killed with its node."""
    started: int | None
    """Milliseconds since 1970."""
    ended: int | None

    @property
    def over(self) -> bool:
        """Whether it has ended."""
        return self.status in ENDED


def resolve_address(address: str | None) -> str:
    """The HTTP address of a cluster's dashboard, which also takes jobs: as given, else as the environment names it.

    Raises:
        InputError: there is none, or it is of another kind.
    """
    where = "--address"
    if address is None:
        named = [name for name in _ADDRESS_VARIABLES if os.environ.get(name)]
        where, address = (f"${named[0]}", os.environ[named[0]]) if named else ("", None)
    if not address:
        what = (
            "say which cluster: --cluster FILE, --address http://HOST:8265 (the dashboard's address), or "
            "$RAY_API_SERVER_ADDRESS"
        )
        raise InputError(what)
    full = address if "://" in address else f"http://{address}"
    try:
        parts = urlsplit(full)
        port = parts.port
    except ValueError as error:
        raise InputError(Problem(f"'{display_uri(address)}' is not an address: {error}", where)) from None
    right = f"jobs go to the dashboard: http://{parts.hostname or 'HOST'}:{_DASHBOARD_PORT}"
    if parts.scheme not in ("http", "https"):
        raise InputError(Problem(f"'{display_uri(address)}' is not an address for jobs; {right}", where))
    if not parts.hostname:
        raise InputError(Problem(f"'{display_uri(address)}' names no host; {right}", where))
    if port == _GCS_PORT:
        raise InputError(Problem(f"port {_GCS_PORT} is for nodes that join; {right}", where))
    return full.rstrip("/") if port else f"{full.rstrip('/')}:{_DASHBOARD_PORT}" if parts.scheme == "http" else full


class Jobs:
    """The jobs of one cluster.

    Args:
        address: of the dashboard, as :func:`resolve_address` gives it.

    Raises:
        InputError: nobody answers there, the token is missing or wrong, or the versions of Ray differ.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self.client = _connected(address)

    def submit(
        self, entrypoint: str, submission_id: str, runtime_env: dict[str, Any], metadata: Mapping[str, str]
    ) -> str:
        """Upload and start; returns the submission's id.

        Raises:
            InputError: this id was used, or Ray does not take the runtime environment.
        """
        with self._asking():
            try:
                return str(
                    self.client.submit_job(
                        entrypoint=entrypoint,
                        submission_id=submission_id,
                        runtime_env=runtime_env,
                        metadata=dict(metadata),
                    )
                )
            except RuntimeError as error:
                raise InputError(Problem(_last_line(error), submission_id)) from None

    def all(self) -> list[Submission]:
        """All jobs that were submitted, the latest first; drivers that joined by themselves have no id and no logs."""
        with self._asking():
            found = [_submission(job) for job in self.client.list_jobs() if job.submission_id]
        return sorted(found, key=lambda job: job.started or 0, reverse=True)

    def get(self, name: str) -> Submission:
        """A job by its submission id, or the latest one of a run.

        Raises:
            InputError: there is none.
        """
        found = self.all()
        for job in found:
            if name == job.id:
                return job
        for job in found:
            if name == job.run:
                return job
        hint = nearest(name, [job.id for job in found]) if found else " There are no jobs."
        raise InputError(Problem(f"there is no job '{name}'.{hint}", display_uri(self.address)))

    def of_run(self, run: str) -> list[Submission]:
        """All jobs that worked on a run, the latest first."""
        return [job for job in self.all() if run in (job.run, job.id)]

    def room(self) -> dict[str, float]:
        """CPUs and GPUs of the nodes that are there now; empty where the dashboard does not tell."""
        with self._asking():
            answer = self.client._do_request("GET", "/api/cluster_status")  # the client has no method for it
        try:
            usage = answer.json()["data"]["clusterStatus"]["loadMetricsReport"]["usage"]
            return {kind: float(usage[kind][1]) if kind in usage else 0.0 for kind in ("CPU", "GPU")}
        except (ValueError, KeyError, TypeError, IndexError):
            return {}

    def nodes(self) -> str:
        """The cluster's nodes, what they have, and what is asked of them, in Ray's own words.

        Raises:
            RunError: the dashboard does not tell.
        """
        with self._asking():
            answer = self.client._do_request("GET", "/api/cluster_status?format=1")
        try:
            return str(answer.json()["data"]["clusterStatus"]).strip()
        except (ValueError, KeyError, TypeError):
            what = f"{display_uri(self.address)} does not tell of its nodes (status {answer.status_code})"
            raise RunError(what) from None

    def logs(self, submission_id: str) -> str:
        """What a job has printed so far."""
        with self._asking():
            return str(self.client.get_job_logs(submission_id))

    def follow(self, submission_id: str, write: Callable[[str], object], seen: int = 0) -> None:
        """Hand on what a job prints until it ends.

        Args:
            write: takes pieces of text.
            seen: characters that were handed on before, and are left out.

        Raises:
            Unreachable: the connection was lost.
        """

        async def tail() -> None:
            count = 0
            async for piece in self.client.tail_job_logs(submission_id):
                start = max(0, seen - count)
                count += len(piece)
                if start < len(piece):
                    write(piece[start:])

        with self._asking():
            asyncio.run(tail())

    def stop(self, submission_id: str, wait: float) -> Submission:
        """Ask a job to end, which saves a checkpoint first, and wait for it.

        Args:
            wait: seconds.
        """
        with self._asking():
            self.client.stop_job(submission_id)
        deadline = time.monotonic() + wait
        while not (job := self.get(submission_id)).over and time.monotonic() < deadline:
            time.sleep(0.5)
        return job

    @contextmanager
    def _asking(self) -> Iterator[None]:
        """Turn lost connections and refused tokens into sentences."""
        import aiohttp
        import requests
        from ray.exceptions import AuthenticationError

        try:
            yield
        except AuthenticationError as error:
            raise InputError(_token_problem(self.address, error)) from None
        except (OSError, aiohttp.ClientError, requests.RequestException) as error:
            raise Unreachable(f"{display_uri(self.address)} does not answer any more: {error}") from None
        except RuntimeError as error:
            if "WebSocket" not in str(error) and "status code 5" not in str(error):
                raise RunError(_last_line(error)) from None
            raise Unreachable(f"{display_uri(self.address)} has broken off: {_last_line(error)}") from None


def _connected(address: str) -> Any:
    parts = urlsplit(address)
    host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
    shown = display_uri(address)
    try:
        socket.create_connection((host, port), timeout=_CONNECT_SECONDS).close()
    except OSError as error:
        what = (
            f"nobody answers there ({error.strerror or error}). Is the cluster up, and its dashboard within reach? "
            "From outside: ray dashboard CLUSTER_FILE, or kubectl port-forward service/NAME-head-svc 8265"
        )
        raise InputError(Problem(what, shown)) from None
    given = any(os.environ.get(name) for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"))
    if given:  # read by Ray when it is imported
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    hidden = {name: os.environ.pop(name) for name in _ADDRESS_VARIABLES if name in os.environ}
    try:
        import logging

        import requests
        from ray._private.authentication.authentication_token_setup import maybe_enable_token_auth_if_token_available
        from ray.exceptions import AuthenticationError
        from ray.job_submission import JobSubmissionClient

        logging.getLogger("ray").setLevel(logging.WARNING)
        logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)
        maybe_enable_token_auth_if_token_available(warn_if_disabled=False)
        logging.getLogger("ray.dashboard").setLevel(logging.WARNING)
        for name in ("ray.dashboard.modules.job.sdk", "ray.dashboard.modules.dashboard_sdk"):
            logging.getLogger(name).setLevel(logging.WARNING)
        client = JobSubmissionClient(address)
    except AuthenticationError as error:
        raise InputError(_token_problem(address, error)) from None
    except (RuntimeError, ValueError, KeyError, OSError, requests.RequestException) as error:
        what = f"what answers there is not a Ray cluster that takes jobs: {_last_line(error)}"
        raise InputError(Problem(what, shown)) from None
    finally:
        os.environ.update(hidden)
    _require_same_version(client, shown)
    return client


def _require_same_version(client: Any, where: str) -> None:
    """A driver of another Ray than the nodes' fails late and darkly."""
    import ray

    version = getattr(client, "_server_ray_version", None)  # asked for when it connected; there is no public way to it
    if version is not None and version != ray.__version__:
        what = f"the cluster runs Ray {version} and this machine {ray.__version__}; use the same version on both"
        raise InputError(Problem(what, where))


def _token_problem(address: str, error: Exception) -> Problem:
    wrong = "failed" in str(error).partition("\n")[0]
    what = (
        f"the cluster {'refuses this token' if wrong else 'asks for a token'}: set RAY_AUTH_TOKEN to the cluster's, or "
        "RAY_AUTH_TOKEN_PATH to a file with it (on the head node: ray get-auth-token)"
    )
    return Problem(what, display_uri(address))


def _submission(job: Any) -> Submission:
    known = job.metadata or {}
    attempt = known.get(submitted.ATTEMPT, "1")
    return Submission(
        id=str(job.submission_id),
        status=str(getattr(job.status, "value", job.status)),
        run=known.get(submitted.RUN),
        attempt=int(attempt) if attempt.isdigit() else 1,
        entrypoint=str(job.entrypoint),
        message=str(job.message or ""),
        exit_code=job.driver_exit_code,
        started=job.start_time,
        ended=job.end_time,
    )


def _last_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).replace("\\n", "\n").splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__).rstrip(".\"'")
