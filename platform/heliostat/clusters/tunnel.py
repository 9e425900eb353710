"""The way to a cluster's dashboard, which listens on its head node's own address only."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from heliostat.clusters.cluster_file import ClusterFile
from heliostat.clusters.jobs import resolve_address
from heliostat.errors import InputError, Problem, RunError

_DASHBOARD_PORT = 8265
_SECONDS = 60.0


@contextmanager
def reached(file: ClusterFile | None, address: str | None, tell: Callable[[str], object]) -> Iterator[str]:
    """The dashboard's address for the time of the context: as given, or at this end of ``ray dashboard``.

    Args:
        file: a ``ray up`` file; None for a cluster that is reached by ``address``.
        address: as the user gave it.
        tell: takes the command that is run.

    Raises:
        InputError: there is no address, or a file of this kind cannot be submitted to.
        RunError: SSH does not reach the head node.
    """
    if file is None:
        yield resolve_address(address)
        return
    if file.kind == "kuberay":
        what = (
            "forward the dashboard with kubectl port-forward service/NAME-head-svc 8265 and give --address "
            "http://127.0.0.1:8265; or heliostat cluster render JOB --to kuberay"
        )
        raise InputError(Problem(what, str(file.path)))
    if file.kind == "slurm":
        what = "Slurm starts a cluster for each job: heliostat cluster render JOB --to slurm"
        raise InputError(Problem(what, str(file.path)))
    with _forwarded(file, tell) as port:
        yield f"http://127.0.0.1:{port}"


@contextmanager
def _forwarded(file: ClusterFile, tell: Callable[[str], object]) -> Iterator[int]:
    """``ray dashboard`` on a free port: with a port of its own it cannot end at another cluster."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    arguments = ["dashboard", str(file.path), "--port", str(port), "--remote-port", str(_DASHBOARD_PORT)]
    tell(f"ray {' '.join(arguments)}")
    # In a session of its own, so that Ctrl-C ends the watching and not the way back.
    tunnel = subprocess.Popen(
        [sys.executable, "-m", "ray.scripts.scripts", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + _SECONDS
        while not _listens(port):
            if tunnel.poll() is not None or time.monotonic() > deadline:
                said = tunnel.communicate()[1].strip().splitlines()[-1:] if tunnel.poll() is not None else []
                reason = said[0] if said else f"no answer within {_SECONDS:g} s"
                raise RunError(f"the head node of {file.path} cannot be reached: {reason}. Is the cluster up (ray up)?")
            time.sleep(0.2)
        yield port
    finally:
        if tunnel.poll() is None:
            os.killpg(tunnel.pid, signal.SIGTERM)
        tunnel.wait()


def _listens(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1):
            return True
    except OSError:
        return False
