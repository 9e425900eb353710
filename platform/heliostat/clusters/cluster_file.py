"""Cluster files of three kinds, read into what heliostat asks of them: which nodes there are, and where things lie.

``ray up`` files and KubeRay manifests are those of Ray, Slurm scripts those of Slurm. heliostat adds one thing: the
mapping ``metadata.heliostat`` of a ``ray up`` file, which Ray leaves to its users.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

import yaml
from pydantic import Field, PositiveInt, ValidationError

from heliostat.config.document import Document
from heliostat.config.job import Section
from heliostat.errors import InputError, Problem, nearest

Kind: TypeAlias = Literal["ray-up", "kuberay", "slurm"]

_GPU = "nvidia.com/gpu"


class Machine(Section):
    """What one node has, where the file cannot tell Ray: machines of one's own are looked at when Ray starts there."""

    cpus: PositiveInt
    gpus: Annotated[int, Field(ge=0)] = 0


class Site(Section):
    """``metadata.heliostat`` of a ``ray up`` file: what Ray need not know, and a job does."""

    output: str | None = None
    """Where runs go if the job names no lasting place: storage that all nodes see."""
    tracking: str | None = None
    """MLflow's address as the head node sees it, for jobs that name none."""
    node: Machine | None = None
    """Each worker of an on-premises cluster."""
    head: Machine | None = None
    """Its head, where jobs may use it too."""


@dataclass(frozen=True)
class NodeGroup:
    """Nodes of one kind."""

    name: str
    least: int
    most: int
    """How many there can be."""
    cpus: float | None
    gpus: float | None
    """Of one node; None where the file does not say."""


@dataclass(frozen=True)
class ClusterFile:
    """A cluster file that could be read."""

    path: Path
    kind: Kind
    documents: tuple[Any, ...]
    """Its YAML documents, as Ray or Kubernetes read them; of a script its text."""
    nodes: tuple[NodeGroup, ...]
    site: Site = field(default_factory=Site)
    places: Document | None = field(default=None, compare=False, repr=False)

    @property
    def provider(self) -> str:
        """Who provides the nodes of a ``ray up`` file: aws, gcp, local, ..."""
        provider = self.documents[0].get("provider") if self.kind == "ray-up" else None
        return str(provider.get("type", "")) if isinstance(provider, dict) else ""

    @property
    def name(self) -> str:
        """The cluster's name in its file, else the file's."""
        first = self.documents[0]
        if self.kind == "ray-up":
            return str(first.get("cluster_name", self.path.stem))
        return self.path.stem

    def where(self, *path: str | int) -> str:
        """File and line of a key."""
        return self.places.place(path) if self.places is not None else str(self.path)


def read(path: str | Path) -> ClusterFile:
    """Read a cluster file, of whichever kind.

    Raises:
        InputError: it is not there, is no valid YAML, or is no cluster file.
    """
    path = Path(path).expanduser()
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        siblings = (
            [each.name for each in path.parent.glob("*") if each.suffix in (".yaml", ".sbatch")]
            if path.parent.is_dir()
            else []
        )
        hint = nearest(path.name, siblings) if siblings else ""
        raise InputError(Problem(f"there is no such cluster file.{hint}", str(path))) from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(Problem(f"the cluster file cannot be read: {error}", str(path))) from None
    if text.startswith("#!"):
        return ClusterFile(path, "slurm", (text,), _slurm_nodes(text, str(path)))
    try:
        documents = tuple(document for document in yaml.safe_load_all(text) if document is not None)
    except yaml.MarkedYAMLError as error:
        line = f"{path}:{error.problem_mark.line + 1}" if error.problem_mark else str(path)
        raise InputError(Problem(f"not valid YAML: {error.problem}", line)) from None
    except yaml.YAMLError as error:
        raise InputError(Problem(f"not valid YAML: {error}", str(path))) from None
    if documents and all(isinstance(document, dict) and "apiVersion" in document for document in documents):
        return ClusterFile(path, "kuberay", documents, _kuberay_nodes(documents))
    if len(documents) == 1 and isinstance(documents[0], dict) and {"provider", "cluster_name"} & documents[0].keys():
        places = Document(text, str(path), what="a cluster file")
        site = _site(documents[0], places)
        return ClusterFile(path, "ray-up", documents, _ray_up_nodes(documents[0], site), site, places)
    what = (
        "this is no cluster file: neither one for ray up (cluster_name, provider), nor a manifest for KubeRay "
        "(apiVersion, kind), nor a script for sbatch (#!)"
    )
    raise InputError(Problem(what, str(path)))


def _site(config: dict[str, Any], places: Document) -> Site:
    metadata = config.get("metadata")
    given = metadata.get("heliostat", {}) if isinstance(metadata, dict) else {}
    try:
        return Site.model_validate_json(json.dumps(given), strict=True)
    except (ValidationError, TypeError) as error:
        if not isinstance(error, ValidationError):
            raise InputError(Problem(f"metadata.heliostat: {error}", places.place(("metadata", "heliostat")))) from None
        problems = []
        for detail in error.errors():
            at = detail["loc"]
            known = Machine.model_fields if len(at) > 1 else Site.model_fields
            hint = nearest(str(at[-1]), known) if detail["type"] == "extra_forbidden" and at else ""
            said = "unknown key" if hint else detail["msg"]
            key = ".".join(map(str, ("metadata", "heliostat", *at)))
            problems.append(
                Problem(f"{key}: {said}.{hint}".replace("..", "."), places.place(("metadata", "heliostat", *at)))
            )
        raise InputError(problems) from None


def _ray_up_nodes(config: dict[str, Any], site: Site) -> tuple[NodeGroup, ...]:
    provider = config.get("provider")
    if isinstance(provider, dict) and provider.get("type") == "local":
        head, node = site.head, site.node
        workers = provider.get("worker_ips")
        count = len(workers) if isinstance(workers, list) else 0
        most = config.get("max_workers", count)
        most = min(most, count) if isinstance(most, int) else count
        groups = [NodeGroup("head", 1, 1, head.cpus if head else 0, head.gpus if head else 0)]
        return (*groups, NodeGroup("workers", most, most, node.cpus if node else None, node.gpus if node else None))
    groups = []
    types, head_type = config.get("available_node_types"), config.get("head_node_type")
    limit = config.get("max_workers", 0)
    limit = limit if isinstance(limit, int) else 0
    for name, about in (types if isinstance(types, dict) else {}).items():
        about = about if isinstance(about, dict) else {}
        given = about.get("resources")
        resources: dict[str, Any] = given if isinstance(given, dict) else {}
        least, most = about.get("min_workers", 0), about.get("max_workers", limit)
        least, most = (number if isinstance(number, int) else 0 for number in (least, most))
        head = name == head_type
        cpus = _number(resources, "CPU")
        # A type that says its CPUs says all it has; GPUs of one that says nothing are found out by Ray.
        gpus = _number(resources, "GPU") if "GPU" in resources or cpus is None else 0.0
        groups.append(NodeGroup(str(name), 1 if head else least, 1 if head else min(most, limit), cpus, gpus))
    return tuple(groups)


def _number(mapping: Any, key: str) -> float | None:
    value = mapping.get(key) if isinstance(mapping, dict) else None
    return float(value) if isinstance(value, int | float) else None


def _kuberay_nodes(documents: tuple[Any, ...]) -> tuple[NodeGroup, ...]:
    groups = []
    for document in documents:
        spec = document.get("spec") or {}
        cluster = spec if document.get("kind") == "RayCluster" else spec.get("rayClusterSpec")
        if not isinstance(cluster, dict):
            continue
        elastic = bool(cluster.get("enableInTreeAutoscaling"))
        head = cluster.get("headGroupSpec") or {}
        groups.append(NodeGroup("head", 1, 1, *_pod(head)))
        for worker in cluster.get("workerGroupSpecs") or []:
            replicas = int(worker.get("replicas", worker.get("minReplicas", 0)))
            least, most = int(worker.get("minReplicas", replicas)), int(worker.get("maxReplicas", replicas))
            hosts = int(worker.get("numOfHosts", 1))
            count = (least, most) if elastic else (replicas, replicas)
            groups.append(
                NodeGroup(str(worker.get("groupName", "workers")), count[0] * hosts, count[1] * hosts, *_pod(worker))
            )
        break  # a file with several clusters: a job runs on one
    return tuple(groups)


def _pod(group: dict[str, Any]) -> tuple[float | None, float | None]:
    """CPUs and GPUs that Ray sees in a group's pods: what Ray is told, else the limits of the first container."""
    start = group.get("rayStartParams") or {}
    containers = ((group.get("template") or {}).get("spec") or {}).get("containers") or [{}]
    limits = (containers[0].get("resources") or {}).get("limits") or {}
    cpus = start.get("num-cpus", limits.get("cpu"))
    gpus = start.get("num-gpus", limits.get(_GPU, 0))
    return _quantity(cpus), _quantity(gpus)


def _quantity(value: Any) -> float | None:
    """A number as Kubernetes writes it: 8, "8" or "7500m"."""
    if value is None:
        return None
    text = str(value)
    try:
        return float(text[:-1]) / 1000 if text.endswith("m") else float(text)
    except ValueError:
        return None


def directives(text: str) -> dict[str, str]:
    """The ``#SBATCH`` options of a script by their long names; of a flag the value is empty."""
    short = {
        "N": "nodes",
        "n": "ntasks",
        "c": "cpus-per-task",
        "t": "time",
        "p": "partition",
        "J": "job-name",
        "o": "output",
        "G": "gpus",
    }
    found = {}
    for line in text.splitlines():
        match = re.match(r"#SBATCH\s+--?([A-Za-z-]+)(?:[=\s]+(\S+))?", line)
        if match:
            found[short.get(match[1], match[1])] = match[2] or ""
    return found


def _slurm_nodes(text: str, where: str) -> tuple[NodeGroup, ...]:
    options = directives(text)
    if not options:
        raise InputError(
            Problem("this script has no #SBATCH lines; sbatch would not know how many nodes it needs", where)
        )
    least, _, most = options.get("nodes", "1").partition("-")
    gpus = options.get("gpus-per-node", "0").rpartition(":")[2]
    cpus = options.get("cpus-per-task", "1")
    numbers = [least, most or least, cpus, gpus]
    if not all(number.isdigit() for number in numbers):
        raise InputError(Problem(f"nodes, cpus-per-task and gpus-per-node must be numbers, not {numbers}", where))
    return (NodeGroup("nodes", int(least), int(most or least), float(cpus), float(gpus)),)
