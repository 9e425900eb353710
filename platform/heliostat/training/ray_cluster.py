"""Joining a cluster of Ray, or starting one on this machine."""

from __future__ import annotations

import logging
import os
import time

import ray

from heliostat.errors import InputError, Problem


def connect(cpus: float, gpus: float, who: str) -> None:
    """Join the cluster that RAY_ADDRESS or ``ray start`` announces, or start Ray on this machine.

    Args:
        cpus: how many are needed at the same time.
        gpus: the same.
        who: needs them, for errors: "4 workers".

    Raises:
        InputError: this machine is too small, or a cluster that does not grow and whose lost nodes do not come back.
            For a cluster that can grow, Ray waits instead.
    """
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # Ray's future default; silences its notice
    if not ray.is_initialized():
        ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    wanted = {"CPU": cpus, "GPU": gpus}
    have: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    nodes = [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    short = [f"{n:g} {kind}s" for kind, n in wanted.items() if n > have.get(kind, 0)]
    if short and (len(nodes) > 1 or _limits() is not None):
        _require_room(wanted, who)
    elif short:
        available = ", ".join(f"{have.get(kind, 0):g} {kind}s" for kind in wanted)
        what = (
            f"{who} need {' and '.join(short)}, but this machine has {available}; ask for fewer or smaller "
            f"{who.split()[-1]}"
        )
        raise InputError(Problem(what, "resources"))


def listen_where_ray_does() -> None:
    """Before gloo connects workers: it would listen at whatever the host's own name stands for, which is loopback on
    many hosts (Debian writes 127.0.1.1), so that workers on other nodes could not reach it. Ray knows better."""
    import psutil

    own = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
    for interface, addresses in psutil.net_if_addrs().items():
        if any(address.address == own for address in addresses):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)


_JOIN_SECONDS = 60.0
"""How long nodes that were lost, or are just starting, may take to join a cluster that does not grow by itself."""


def _limits() -> dict[str, float] | None:
    """The most that the cluster can have by its autoscaler's file; None where it has no autoscaler."""
    found = ray._private.state.state.get_max_resources_from_cluster_config()  # no public way; Ray is pinned
    return dict(found) if found else None


def _require_room(wanted: dict[str, float], who: str) -> None:
    """Refuse what a cluster of several nodes can never have."""
    limits = _limits()
    deadline = time.monotonic() + _JOIN_SECONDS
    while True:
        have: dict[str, float] = limits if limits is not None else ray.cluster_resources()  # type: ignore[no-untyped-call]
        short = [f"{n:g} {kind}s" for kind, n in wanted.items() if n > have.get(kind, 0)]
        if not short:
            return
        if limits is not None or time.monotonic() > deadline:
            break
        time.sleep(1.0)
    available = ", ".join(f"{have.get(kind, 0):g} {kind}s" for kind in wanted)
    grows = "can grow to" if limits is not None else f"has no autoscaler, and after {_JOIN_SECONDS:g} s has"
    what = f"{who} need {' and '.join(short)}, but this cluster {grows} {available}; ask for fewer, or add nodes"
    raise InputError(Problem(what, "resources"))
