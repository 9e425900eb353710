"""A job file as a RayJob of KubeRay, or as a script for Slurm.

Both run ``heliostat run JOB --name NAME --continue``: when Kubernetes makes a new cluster for another attempt, or Slurm
queues the job again, the run goes on from its newest checkpoint.
"""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from heliostat.clusters.demand import Demand, demands
from heliostat.clusters.submission import Plan
from heliostat.errors import InputError, Problem

_GPU = "nvidia.com/gpu"
_JOB_FOLDER = "/etc/heliostat"
_USER = 1000  # of Ray's images


@dataclass(frozen=True)
class Shape:
    """The nodes that a job is given."""

    nodes: int
    most: int
    """More than ``nodes`` where the job may grow."""
    cpus: int
    gpus: int


def shape(plan: Plan, per_node: int | None = None) -> Shape:
    """Nodes for a job: those of the stage that needs most.

    Args:
        per_node: processes on one node; None: one worker a node, and all of a job of reinforcement learning on one.

    Raises:
        InputError: the job cannot be shared out like that.
    """
    shapes = [_shape(demands(job), per_node) for job in plan.jobs]
    return Shape(*(max(getattr(each, name) for each in shapes) for name in ("nodes", "most", "cpus", "gpus")))


def _shape(wanted: Sequence[Demand], per_node: int | None) -> Shape:
    if len(wanted) > 1:
        count = sum(demand.least for demand in wanted)
        nodes = max(1, math.ceil(count / (per_node or count)))
        cpus = sum(demand.least * demand.cpus for demand in wanted)
        gpus = sum(demand.least * demand.gpus for demand in wanted)
        largest = max(demand.cpus for demand in wanted)
        each = max(math.ceil(cpus / nodes), math.ceil(largest))
        return Shape(nodes, nodes, each, math.ceil(gpus / nodes))
    (workers,) = wanted
    each = per_node or 1
    if workers.least % each:
        what = f"{workers.least} workers cannot be shared out by {each} to a node"
        raise InputError(Problem(what, "--per-node"))
    nodes, most = workers.least // each, math.ceil(workers.most / each)
    return Shape(nodes, most, max(1, math.ceil(workers.cpus * each)), math.ceil(workers.gpus * each))


def kuberay(plan: Plan, nodes: Shape, image: str, *, retries: int = 3, hours: float | None = None) -> str:
    """A ConfigMap with the job file, and a RayJob.

    Credentials come from the Secret ``heliostat``, if there is one; the token of the cluster is made by KubeRay.

    Args:
        image: with heliostat and its dependencies, as ``clusters/Dockerfile`` makes it.
        retries: clusters that are made anew after a loss.
        hours: after which Kubernetes ends it; None: never.
    """
    name = _kubernetes_name(plan.run)
    job = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": name},
        "data": {plan.job.name: plan.job.read_text(encoding="utf-8")},
    }
    spec: dict[str, Any] = {
        "entrypoint": plan.entrypoint(goes_on=True).replace(
            f"run {shlex.quote(plan.job.name)}", f"run {shlex.quote(f'{_JOB_FOLDER}/{plan.job.name}')}", 1
        ),
        "submissionMode": "K8sJobMode",
        "backoffLimit": retries,
        "shutdownAfterJobFinishes": True,
        "ttlSecondsAfterFinished": 3600,
        "rayClusterSpec": _cluster(nodes, image, name),
    }
    if hours is not None:
        spec["activeDeadlineSeconds"] = round(hours * 3600)
    ray_job = {"apiVersion": "ray.io/v1", "kind": "RayJob", "metadata": {"name": name}, "spec": spec}
    head = (
        f"# kubectl apply -f FILE        starts the run {plan.run} on a Ray cluster of its own\n"
        f"# kubectl logs -f job/{name}   shows its output; kubectl delete -f FILE ends it\n"
    )
    return head + yaml.safe_dump_all([job, ray_job], sort_keys=False, width=120)


def _cluster(nodes: Shape, image: str, config_map: str) -> dict[str, Any]:
    import ray

    def pod(container: str, cpus: int, gpus: int) -> dict[str, Any]:
        limits: dict[str, Any] = {"cpu": str(cpus), "memory": f"{4 * cpus}Gi"}
        if gpus:
            limits[_GPU] = str(gpus)
        return {
            "spec": {
                "securityContext": {"runAsUser": _USER, "fsGroup": _USER},
                "containers": [
                    {
                        "name": container,
                        "image": image,
                        "resources": {"limits": limits, "requests": dict(limits)},
                        "envFrom": [{"secretRef": {"name": "heliostat", "optional": True}}],
                        "volumeMounts": [{"name": "job", "mountPath": _JOB_FOLDER, "readOnly": True}],
                    }
                ],
                "volumes": [{"name": "job", "configMap": {"name": config_map}}],
            }
        }

    return {
        "rayVersion": ray.__version__,
        "authOptions": {"mode": "token"},
        "enableInTreeAutoscaling": nodes.most > nodes.nodes,
        "headGroupSpec": {
            "serviceType": "ClusterIP",
            "rayStartParams": {"num-cpus": "0"},  # the driver and the record's writer live here; no worker does
            "template": pod("ray-head", 2, 0),
        },
        "workerGroupSpecs": [
            {
                "groupName": "workers",
                "replicas": nodes.nodes,
                "minReplicas": nodes.nodes,
                "maxReplicas": nodes.most,
                "rayStartParams": {},
                "template": pod("ray-worker", nodes.cpus, nodes.gpus),
            }
        ],
    }


def _kubernetes_name(run: str) -> str:
    """As Kubernetes takes it, short enough for what KubeRay appends."""
    return re.sub(r"[^a-z0-9-]+", "-", run.lower()).strip("-")[:40].strip("-")


_SLURM_RETRIES = 10
"""How often a job that lost a part of itself is queued again."""

_SCRIPT = """\
#!/bin/bash
# sbatch FILE   starts the run {run} on {nodes} node(s); scancel --signal=TERM JOB saves a checkpoint and ends it
#SBATCH --job-name={run}
#SBATCH --nodes={nodes}
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task={cpus}
{gpus}#SBATCH --time={time}
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output={run}-%j.log
set -euo pipefail

# Whoever holds the token may run code on these nodes: it is made here, for this job, and goes to the nodes in the
# environment. MLFLOW_TRACKING_USERNAME, AWS_ACCESS_KEY_ID and the like come from yours.
export RAY_AUTH_MODE=token
RAY_AUTH_TOKEN=$(python -c 'import secrets; print(secrets.token_hex(32))')
export RAY_AUTH_TOKEN

# Several nodes take a while; Ray itself would wait for 30 s.
export RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT=300
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
address=$(srun --nodes=1 --ntasks=1 --nodelist="$head" hostname --ip-address | awk '{{print $1}}')

# The first node runs the command, all of them are Ray nodes until it ends. A job that is queued again after a lost node
# goes on from its newest checkpoint.
status=0
srun --nodes="$SLURM_JOB_NUM_NODES" --ntasks="$SLURM_JOB_NUM_NODES" --export=ALL \\
    ray symmetric-run --address "$address:6379" --min-nodes "$SLURM_JOB_NUM_NODES" \\
    --num-cpus="$SLURM_CPUS_PER_TASK" --num-gpus={gpu_count} --disable-usage-stats \\
    -- {command} || status=$?

# Slurm tries again by itself after a lost node; after other losses, of which the run says that another try pays (75),
# it is asked to, {retries} times at most.
if [[ $status == 75 && ${{SLURM_RESTART_COUNT:-0}} -lt {retries} ]]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
"""


def slurm(plan: Plan, nodes: Shape, *, hours: float | None = None) -> str:
    """A script for ``sbatch``, for nodes that share a file system with heliostat installed in it.

    Args:
        hours: after which Slurm ends it; None: 24.
    """
    if nodes.most > nodes.nodes:
        what = "Slurm gives a job its nodes once: say one number of workers, as in resources.workers=4"
        raise InputError(Problem(what, "resources.workers"))
    minutes = round((hours or 24.0) * 60)
    job = str(Path(plan.job).absolute())
    command = plan.entrypoint(goes_on=True).replace(f"run {shlex.quote(plan.job.name)}", f"run {shlex.quote(job)}", 1)
    return _SCRIPT.format(
        run=plan.run,
        nodes=nodes.nodes,
        cpus=nodes.cpus,
        gpus=f"#SBATCH --gpus-per-node={nodes.gpus}\n" if nodes.gpus else "",
        gpu_count=nodes.gpus,
        retries=_SLURM_RETRIES,
        time=f"{minutes // 60:02d}:{minutes % 60:02d}:00",
        command=command,
    )
