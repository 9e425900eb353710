"""Joining a cluster of Ray, or starting one on this machine."""

from __future__ import annotations

import logging
import os

import ray

from heliostat.errors import InputError, Problem


def connect(cpus: float, gpus: float, who: str) -> None:
    """Join the cluster that RAY_ADDRESS or ``ray start`` announces, or start Ray on this machine.

    Args:
        cpus: how many are needed at the same time.
        gpus: the same.
        who: needs them, for errors: "4 workers".

    Raises:
        InputError: this machine is too small. A cluster may grow, so there Ray waits instead.
    """
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # Ray's future default; silences its notice
    if not ray.is_initialized():
        ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    wanted = {"CPU": cpus, "GPU": gpus}
    have: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    nodes = [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    short = [f"{n:g} {kind}s" for kind, n in wanted.items() if n > have.get(kind, 0)]
    if short and len(nodes) == 1:
        available = ", ".join(f"{have.get(kind, 0):g} {kind}s" for kind in wanted)
        what = (
            f"{who} need {' and '.join(short)}, but this machine has {available}; ask for fewer or smaller "
            f"{who.split()[-1]}"
        )
        raise InputError(Problem(what, "resources"))
