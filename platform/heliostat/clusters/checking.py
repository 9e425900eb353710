"""All that is wrong with a cluster file: what Ray says of it, what Ray lets pass, and what would be unsafe."""

from __future__ import annotations

import contextlib
import io
import logging
import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from heliostat.clusters import known_keys
from heliostat.clusters.cluster_file import ClusterFile, directives
from heliostat.errors import Problem, nearest

_SECRET_NAME = re.compile(r"(?:passwo?r?d|secret|token|access_key|api_key|credential)", re.IGNORECASE)
_ASSIGNMENT = re.compile(r"(?:^|[\s;'\"])(?:export\s+)?([A-Za-z_][A-Za-z0-9_]*)=(\"[^\"]*\"|'[^']*'|[^\s;]+)")
_URL_PASSWORD = re.compile(r"://[^/@\s:]*:([^/@\s]+)@")
_OPEN_HOST = re.compile(r"--(?:dashboard-host|host)[= ](?:0\.0\.0\.0|::|\"0\.0\.0\.0\")")
_HARMLESS = {"RAY_AUTH_TOKEN_PATH", "TOKEN_PATH"}


@dataclass(frozen=True)
class Report:
    """What was found."""

    problems: tuple[Problem, ...]
    """Each keeps the cluster from starting, or opens it to strangers."""
    remarks: tuple[Problem, ...]
    """Worth knowing."""


def check(file: ClusterFile) -> Report:
    """Look at everything that can be seen without reaching a machine."""
    match file.kind:
        case "ray-up":
            problems, remarks = _ray_up(file)
        case "kuberay":
            problems, remarks = _kuberay(file)
        case "slurm":
            problems, remarks = _slurm(file)
    problems += _secrets(file) + _open_ports(file)
    return Report(tuple(dict.fromkeys(problems)), tuple(dict.fromkeys(remarks)))


def _unknown(keys: Iterable[Any], known: Iterable[str], inside: str, where: str) -> list[Problem]:
    known = set(known)
    return [
        Problem(f"unknown key '{key}' in {inside}.{nearest(str(key), known)}", where)
        for key in keys
        if key not in known
    ]


# ray up


def _ray_up(file: ClusterFile) -> tuple[list[Problem], list[Problem]]:
    config, kind = file.documents[0], file.provider
    problems: list[Problem] = []
    remarks: list[Problem] = []
    provider = config.get("provider") if isinstance(config.get("provider"), dict) else {}
    known = _providers()
    if kind not in known:
        said = (
            f"unknown provider '{kind}'.{nearest(kind, known)}"
            if kind
            else f"provider says no type.{nearest('', known)}"
        )
        return [Problem(said, file.where("provider", "type"))], []
    for key in provider:
        if kind in known_keys.PROVIDER:
            problems += _unknown([key], known_keys.PROVIDER[kind], "provider", file.where("provider", key))
    for key in known_keys.NEEDED.get(kind, ()):
        if not provider.get(key) and "coordinator_address" not in provider:
            problems.append(Problem(f"'{key}' is missing in provider, or empty", file.where("provider")))
    types = config.get("available_node_types")
    for name, about in types.items() if isinstance(types, dict) else ():
        place = ("available_node_types", name)
        if not isinstance(about, dict):
            continue
        for key in about:
            problems += _unknown([key], known_keys.NODE_TYPE, f"the node type {name}", file.where(*place, key))
        for key in about.get("node_config") or {}:
            if kind in known_keys.NODE_CONFIG:
                remarks += _unknown(
                    [key], known_keys.NODE_CONFIG[kind], f"{name}.node_config", file.where(*place, "node_config", key)
                )
    if not problems:
        problems += [Problem(said, file.where(*path)) for said, path in _said_by_ray(config)]
    problems += _unauthenticated(file)
    if provider.get("worker_ips"):
        problems += _miscounted(file)
    return problems, remarks


def _miscounted(file: ClusterFile) -> list[Problem]:
    """Seen with Ray 2.60: in a list of machines, head and workers are of one type, of which its newer autoscaler
    starts as many as there are workers, the head being one."""
    commands = file.documents[0].get("head_start_ray_commands")
    starting = [each for each in commands if "ray start" in str(each)] if isinstance(commands, list) else []
    if not starting or any("RAY_enable_autoscaler_v2=0" in command for command in starting):
        return []
    what = (
        "Ray's newer autoscaler takes the head for one of the workers, and never starts the last one; start the head "
        "with RAY_enable_autoscaler_v2=0 ray start ..."
    )
    return [Problem(f"head_start_ray_commands: {what}", file.where("head_start_ray_commands"))]


def _providers() -> list[str]:
    # No public list; wrapped here. Ray is pinned, and a test holds this to it.
    from ray.autoscaler._private.providers import _NODE_PROVIDERS

    # Ray uses these by itself, or in its own tests; ray up cannot.
    own = {"fake_multinode", "fake_multinode_docker", "readonly", "kuberay", "spark"}
    return sorted(set(_NODE_PROVIDERS) - own)


def _said_by_ray(config: dict[str, Any]) -> Iterator[tuple[str, tuple[str | int, ...]]]:
    """Ray's own validation, which ``ray up`` makes first; each complaint with the path that it is about."""
    import click
    import jsonschema  # type: ignore[import-untyped]
    from ray.autoscaler._private.util import prepare_config, validate_config

    logging.getLogger("ray.autoscaler").setLevel(logging.WARNING)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        try:
            validate_config(prepare_config(deepcopy(config)))
            return
        except jsonschema.ValidationError as error:
            said: tuple[str, tuple[str | int, ...]] = error.message, tuple(error.absolute_path)
        except click.ClickException as error:
            said = error.message, ()
        except Exception as error:  # noqa: BLE001 - the file decides where Ray's code stumbles
            said = f"{type(error).__name__}: {error}", ()
    match = re.match(r"Additional properties are not allowed \('([^']+)'", said[0])
    if match:
        said = f"unknown key '{match[1]}'.{nearest(match[1], _top_level())}", (*said[1], match[1])
    yield f"{said[0]} (said by Ray)", said[1]


def _top_level() -> list[str]:
    import json
    from pathlib import Path

    import ray.autoscaler

    schema = json.loads((Path(ray.autoscaler.__path__[0]) / "ray-schema.json").read_text())
    return sorted(schema["properties"])


def _unauthenticated(file: ClusterFile) -> list[Problem]:
    """Whoever reaches a cluster without a token may run any code on it."""
    config, problems = file.documents[0], []
    for key in ("head_start_ray_commands", "worker_start_ray_commands"):
        commands = config.get(key)
        starting = (
            [command for command in commands if "ray start" in str(command)] if isinstance(commands, list) else []
        )
        if not starting:
            what = "Ray's default command asks for no token; write one with RAY_AUTH_MODE=token ray start ..."
            problems.append(Problem(f"{key}: {what}", file.where(key)))
        elif not any("RAY_AUTH_MODE=token" in command for command in starting):
            what = "anybody who reaches this node may run code on it; start it with RAY_AUTH_MODE=token ray start ..."
            problems.append(Problem(f"{key}: {what}", file.where(key)))
    return problems


# KubeRay


def _kuberay(file: ClusterFile) -> tuple[list[Problem], list[Problem]]:
    problems: list[Problem] = []
    kinds = {"RayCluster", "RayJob"}
    found = [document.get("kind") for document in file.documents]
    if not kinds & set(found):
        where = f"{file.path}"
        names = ", ".join(map(str, found))
        return [
            Problem(f"there is no RayCluster and no RayJob here, but {names}.{nearest(str(found[0]), kinds)}", where)
        ], []
    for document in file.documents:
        kind, spec = document.get("kind"), document.get("spec")
        where = f"{file.path} ({kind} {(document.get('metadata') or {}).get('name', 'without a name')})"
        if kind not in kinds:
            continue
        if not isinstance(spec, dict):
            problems.append(Problem("'spec' is missing", where))
            continue
        if not str(document.get("apiVersion", "")).startswith("ray.io/"):
            problems.append(Problem(f"a {kind} has apiVersion ray.io/v1, not {document.get('apiVersion')}", where))
        cluster = spec
        if kind == "RayJob":
            problems += _unknown(spec, known_keys.RAY_JOB, "spec", where)
            cluster = spec.get("rayClusterSpec") or {}
            if not spec.get("entrypoint"):
                problems.append(Problem("a RayJob needs an entrypoint", where))
            if not cluster and not spec.get("clusterSelector"):
                problems.append(Problem("a RayJob needs a rayClusterSpec, or a clusterSelector", where))
                continue
        problems += _unknown(cluster, known_keys.RAY_CLUSTER, "the cluster's spec", where)
        problems += _ray_cluster(cluster, where)
    return problems, []


def _ray_cluster(cluster: dict[str, Any], where: str) -> list[Problem]:
    problems: list[Problem] = []
    if (cluster.get("authOptions") or {}).get("mode") == "disabled":
        problems.append(
            Problem("anybody who reaches the cluster may run code on it; say authOptions: {mode: token}", where)
        )
    head = cluster.get("headGroupSpec")
    if not isinstance(head, dict):
        return [*problems, Problem("'headGroupSpec' is missing", where)]
    problems += _unknown(head, known_keys.HEAD_GROUP, "headGroupSpec", where)
    if (head.get("serviceType") or "ClusterIP") != "ClusterIP":
        what = f"serviceType {head['serviceType']} shows the dashboard outside; take ClusterIP and kubectl port-forward"
        problems.append(Problem(what, where))
    for group in cluster.get("workerGroupSpecs") or []:
        name = str(group.get("groupName", "without a name"))
        problems += _unknown(group, known_keys.WORKER_GROUP, f"the worker group {name}", where)
        for key in ("groupName", "minReplicas", "maxReplicas", "template"):
            if key not in group:
                problems.append(Problem(f"'{key}' is missing in the worker group {name}", where))
        if group.get("minReplicas", 0) > group.get("maxReplicas", group.get("minReplicas", 0)):
            problems.append(Problem(f"minReplicas is above maxReplicas in the worker group {name}", where))
    return problems


# Slurm


def _slurm(file: ClusterFile) -> tuple[list[Problem], list[Problem]]:
    text = str(file.documents[0])
    options, where = directives(text), str(file.path)
    problems = []
    for name in options:
        if name not in known_keys.SLURM:
            problems.append(Problem(f"unknown option --{name} of sbatch.{nearest(name, known_keys.SLURM)}", where))
    if "symmetric-run" not in text:
        problems.append(Problem("the script does not start Ray on its nodes: ray symmetric-run", where))
    elif options.get("ntasks-per-node") != "1":
        problems.append(Problem("each node starts Ray once: #SBATCH --ntasks-per-node=1", where))
    if "RAY_AUTH_MODE=token" not in text:
        problems.append(Problem("other users of the nodes may run code as you: export RAY_AUTH_MODE=token", where))
    bash = shutil.which("bash")
    if bash is not None:
        done = subprocess.run([bash, "-n"], input=text, capture_output=True, text=True, check=False)
        if done.returncode:
            problems.append(Problem(f"bash cannot read it: {done.stderr.strip()}", where))
    remarks = [] if "requeue" in options else [Problem("without #SBATCH --requeue a lost node ends the job", where)]
    return problems, remarks


# All kinds


def _strings(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """Each text of nested data with its path."""
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from _strings(inner, (*path, key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _strings(inner, (*path, index))


def _texts(file: ClusterFile) -> Iterator[tuple[tuple[str | int, ...], str]]:
    if file.kind == "slurm":
        for line in str(file.documents[0]).splitlines():
            if not line.lstrip().startswith("#"):
                yield (), line
        return
    for document in file.documents:
        yield from _strings(document)


def _secrets(file: ClusterFile) -> list[Problem]:
    """Passwords and tokens written down: files are copied, committed and sent around."""
    problems = []
    for path, text in _texts(file):
        names = [str(part) for part in path if isinstance(part, str)]
        found = []
        if _URL_PASSWORD.search(text) and not _is_reference(next(iter(_URL_PASSWORD.findall(text)))):
            found.append("an address with a password")
        for name, value in _ASSIGNMENT.findall(text):
            if _SECRET_NAME.search(name) and name not in _HARMLESS and not _is_reference(value.strip("\"'")):
                found.append(name)
        if names and _is_secret_key(names[-1]) and not _is_reference(text):
            found.append(".".join(names))
        if names[-1:] == ["value"] and _named_secret(file, path) and not _is_reference(text):
            found.append(_named_secret(file, path))
        problems += [
            Problem(f'{name} stands in the file; take it from the environment, as in "$NAME"', file.where(*path))
            for name in found
        ]
    return problems


def _is_secret_key(name: str) -> bool:
    return bool(_SECRET_NAME.search(name)) and not re.search(r"(?:name|path|ref|mode|type)$", name, re.IGNORECASE)


def _named_secret(file: ClusterFile, path: tuple[str | int, ...]) -> str:
    """The name beside a ``value`` in a list of Kubernetes' environment variables, if it is that of a secret."""
    for document in file.documents:
        target: Any = document
        try:
            for part in path[:-1]:
                target = target[part]
        except (KeyError, IndexError, TypeError):
            continue
        name = str(target.get("name", "")) if isinstance(target, dict) else ""
        if name not in _HARMLESS and _SECRET_NAME.search(name):
            return name
    return ""


def _is_reference(value: str) -> bool:
    """Whether it is read from elsewhere when the command runs."""
    return not value or "$" in value or value.startswith(("`", "/", "~", "<"))


def _open_ports(file: ClusterFile) -> list[Problem]:
    problems = []
    for path, text in _texts(file):
        if _OPEN_HOST.search(text):
            what = (
                "this listens on every address of the machine; bind it to 127.0.0.1 or a private one, reached through "
                "ray dashboard or SSH"
            )
            problems.append(Problem(what, file.where(*path)))
        if path[-1:] == ("dashboard-host",) and text in ("0.0.0.0", "::") and file.kind == "ray-up":
            problems.append(Problem("the dashboard listens on every address of the machine", file.where(*path)))
    return problems
