"""What a run reaches: storage, the tracking store, a Ray cluster, and the token that opens it."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from heliostat.diagnosis.finding import Finding
from heliostat.diagnosis.machine import listens

if TYPE_CHECKING:
    from heliostat.training.storage import Storage

_PROBE_BYTES = 1 << 20
"""Enough that a full disk refuses it."""


def storage(output: str) -> Finding:
    """Write, read back, replace and delete in the place for runs, as a checkpoint does; leaves nothing behind.

    Args:
        output: as a job's ``output``: a folder or an address such as ``s3://bucket/runs``.
    """
    from heliostat.errors import InputError
    from heliostat.training.storage import Storage

    name, advice = "storage", "Choose a place that can be written with --output, or mend this one."
    try:
        place = Storage(output)
        if place.local:  # what does not exist yet would be made in the nearest folder that does
            place = Storage(str(next(each for each in (Path(place.root), *Path(place.root).parents) if each.exists())))
        wrong = _probe(place)
    except (InputError, OSError) as error:
        return Finding(name, "problem", f"{output} cannot be used: {error}", advice)
    if wrong:
        return Finding(name, "problem", f"{output}: {wrong}", advice)
    return Finding(name, "ok", f"{output}: written, read and replaced")


def _probe(place: Storage) -> str:
    """What is wrong with what comes back, in words; empty if nothing is."""
    folder = f".heliostat-doctor-{secrets.token_hex(4)}"
    first, second = secrets.token_bytes(_PROBE_BYTES), secrets.token_bytes(64)
    try:
        place.make(folder)
        for content in (first, second):
            place.replace(f"{folder}/probe", content)
            if place.read(f"{folder}/probe") != content:
                return "what was written is not what is read back"
    finally:
        place.delete(folder)
    return ""


def tracking(uri: str | None) -> Finding:
    """Whether MLflow's store answers, or can be made."""
    from heliostat.errors import InputError, RunError
    from heliostat.tracking.location import display_uri, resolve_uri, sqlite_path
    from heliostat.tracking.records import list_runs

    name = "tracking store"
    try:
        store = resolve_uri(uri)
        path = sqlite_path(store)
        if path is not None and not path.exists():
            above = next(folder for folder in path.parents if folder.exists())
            if not above.is_dir() or not os.access(above, os.W_OK):
                what = f"{display_uri(store)} cannot be made: {above} cannot be written"
                return Finding(name, "problem", what, "Correct --uri or $MLFLOW_TRACKING_URI.")
            return Finding(name, "ok", f"{display_uri(store)}: the first run makes it")
        runs = list_runs(store, limit=1)
    except (InputError, RunError) as error:
        return Finding(name, "problem", str(error), "Start the server, or correct --uri or $MLFLOW_TRACKING_URI.")
    return Finding(name, "ok", f"{display_uri(store)}: " + (f"latest run {runs[0].name}" if runs else "no runs yet"))


def token() -> Finding:
    """Whether Ray asks for a token here, and whether there is one, by the rules of Ray: variable, file, own folder."""
    name, mode = "ray token", os.environ.get("RAY_AUTH_MODE", "").lower()
    make = "Make one with: ray get-auth-token --generate; or set RAY_AUTH_TOKEN to the cluster's."
    if mode not in ("", "token", "disabled", "k8s"):
        return Finding(name, "problem", f"RAY_AUTH_MODE={mode} is no mode of Ray", "Set it to token, or unset it.")
    if mode == "disabled":
        advice = "Whoever reaches Ray's ports may run code as you; unset RAY_AUTH_MODE, or set it to token."
        return Finding(name, "warning", "RAY_AUTH_MODE=disabled: Ray asks nobody for a token", advice)
    if os.environ.get("RAY_AUTH_TOKEN", "").strip():
        return Finding(name, "ok", "from RAY_AUTH_TOKEN")
    given = os.environ.get("RAY_AUTH_TOKEN_PATH")
    path = Path(given).expanduser() if given else Path.home() / ".ray/auth_token"
    try:
        empty, readers = not path.read_text().strip(), path.stat().st_mode & 0o077
    except (OSError, UnicodeDecodeError) as error:
        if given or mode == "token":
            reason = error.strerror if isinstance(error, OSError) else "it is no text"
            return Finding(name, "problem", f"{path} cannot be read: {reason}", make)
        return Finding(name, "ok", "none: Ray makes one when it first starts here")
    if empty:
        return Finding(name, "problem", f"{path} is empty", make)
    if readers:
        return Finding(name, "warning", f"{path} can be read by others", f"chmod 600 {path}")
    return Finding(name, "ok", f"from {path}")


def ray_clusters(address: str | None) -> Iterator[Finding]:
    """The cluster that runs join (``$RAY_ADDRESS``), and the one that takes jobs.

    Args:
        address: of a dashboard; None: ``$RAY_API_SERVER_ADDRESS``, if it is set.
    """
    joined = os.environ.get("RAY_ADDRESS", "")
    if joined.startswith(("http://", "https://")):
        address = address or os.environ.get("RAY_API_SERVER_ADDRESS") or joined
    else:
        yield _joined(joined)
    address = address or os.environ.get("RAY_API_SERVER_ADDRESS")
    if address:
        yield _taking_jobs(address)


def _joined(address: str) -> Finding:
    name = "ray cluster"
    if address in ("", "local", "auto"):
        return Finding(name, "ok", "RAY_ADDRESS names none: runs start Ray on this machine")
    host, _, port = address.partition("://")[2].rpartition(":") if "://" in address else address.rpartition(":")
    if not host or not port.isdigit():
        return Finding(name, "problem", f"RAY_ADDRESS={address}", "It should be host:port, such as head:6379.")
    if not listens(host, int(port)):
        return Finding(name, "problem", f"{address} does not answer", "Start the cluster, or unset RAY_ADDRESS.")
    return Finding(name, "ok", f"{address} answers")


def _taking_jobs(address: str) -> Finding:
    """Whether the dashboard answers, takes this token, and runs this version of Ray."""
    from heliostat.clusters.jobs import Jobs, resolve_address
    from heliostat.errors import InputError, RunError
    from heliostat.tracking.location import display_uri

    name = "jobs of ray"
    try:
        where = resolve_address(address)
        found = Jobs(where).all()
    except (InputError, RunError) as error:  # these say themselves what to do
        return Finding(name, "problem", str(error), "Correct --address or $RAY_API_SERVER_ADDRESS, or see above.")
    going = sum(not job.over for job in found)
    return Finding(name, "ok", f"{display_uri(where)} takes jobs; {going} of {len(found)} go on")
