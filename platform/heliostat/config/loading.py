"""From a job file and overrides to a typed job, or to all that is wrong with it at once."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import yaml
from pydantic import BaseModel, ValidationError
from pydantic.json_schema import models_json_schema
from pydantic_core import ErrorDetails

from heliostat.config.document import Document, KeyPath
from heliostat.config.job import Job
from heliostat.config.partial import completed
from heliostat.config.registry import AGENTS, ALGORITHMS
from heliostat.config.reinforcement import ReinforcementJob
from heliostat.config.sweep import SWEEP, Sweep, SweepFile
from heliostat.errors import InputError, Problem, nearest, require

AnyJob: TypeAlias = Job | ReinforcementJob
"""What a job file holds: training on ``data``, or reinforcement learning in an ``environment``."""


def schema() -> dict[str, Any]:
    """The JSON schema of the job file, for editors that complete and check while one types.

    In a file with stages every section may be a part of one, so there only names are checked.
    """
    kinds: tuple[type[BaseModel], ...] = (Job, ReinforcementJob, Sweep)
    definitions = models_json_schema([(kind, "validation") for kind in kinds])[1]["$defs"]
    job, reinforcement = definitions.pop("Job"), definitions.pop("ReinforcementJob")
    stage = {"type": ["object", "null"], "propertyNames": {"enum": [key for key in job["properties"] if key != "name"]}}
    staged = {
        "type": "object",
        "required": ["name", "stages"],
        "propertyNames": {"enum": [*job["properties"], "stages"]},
        "properties": {
            "name": job["properties"]["name"],
            "stages": {"type": "object", "minProperties": 1, "additionalProperties": stage},
        },
    }
    for kind in (job, reinforcement):
        kind["properties"] = {**kind["properties"], SWEEP: {"$ref": "#/$defs/Sweep"}}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Job file",
        "if": {"required": ["stages"]},
        "then": staged,
        "else": {"if": {"required": ["environment"]}, "then": reinforcement, "else": job},
        "$defs": definitions,
    }


@dataclass(frozen=True)
class Stage:
    """A job of a job file: the only one, or one of several that the file chains."""

    name: str
    """Its key below ``stages``; empty in a file without."""
    job: Job
    follows: str | None
    """The stage from whose result this one begins; None where it begins with random weights or from another run."""


def load(path: str | Path, overrides: Sequence[str] = ()) -> tuple[Stage, ...] | ReinforcementJob:
    """Read and validate a job file: one or several trainings on data, or a job of reinforcement learning.

    Raises:
        InputError: with every problem of form: file and line, what is wrong, and the nearest valid name.
    """
    document = load_document(path, overrides)
    if "stages" in document.data:
        return _stages(document)
    problems: list[Problem] = []
    if SWEEP in document.data:
        try:
            sweep_of(document)  # a run leaves the block aside, but not a mistake in it
        except InputError as error:
            problems += error.problems
    try:
        job = _job(document)
    except InputError as error:
        raise InputError([*error.problems, *problems]) from None
    require(problems)
    return job if isinstance(job, ReinforcementJob) else (Stage("", job, None),)


def parse_any(text: str, name: str, overrides: Sequence[str] = ()) -> AnyJob:
    """As :func:`load`, from the text of a job without stages."""
    return _job(_document(text, name, overrides))


def parse(text: str, name: str, overrides: Sequence[str] = ()) -> Job:
    """As :func:`parse_any`, of a job that trains on data.

    Raises:
        InputError: also where the job is one of reinforcement learning.
    """
    job = parse_any(text, name, overrides)
    if isinstance(job, ReinforcementJob):
        raise InputError(Problem("this is a job of reinforcement learning; one that trains on data is needed", name))
    return job


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        siblings = [entry.name for entry in path.parent.glob("*.yaml")] if path.parent.is_dir() else []
        hint = nearest(path.name, siblings) if siblings else ""
        raise InputError(Problem(f"there is no such job file.{hint}", str(path))) from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(Problem(f"the job file cannot be read: {error}", str(path))) from None


def load_document(path: str | Path, overrides: Sequence[str] = ()) -> Document:
    """A job file as plain data with places, not yet validated.

    Raises:
        InputError: it cannot be read, or is not YAML.
    """
    path = Path(path).expanduser()
    return _document(_text(path), str(path), overrides)


def job_of(document: Document) -> AnyJob:
    """The typed job of a document without stages.

    Raises:
        InputError: with every problem of form.
    """
    return _job(document)


def sweep_of(document: Document) -> Sweep:
    """The typed ``sweep:`` block of a document.

    Raises:
        InputError: there is none, or with every problem of its form.
    """
    if not isinstance(document.data.get(SWEEP), dict):
        what = "there is nothing to sweep over: give 'sweep: {parameters: ..., metric: ...}' (docs/sweeps.md)"
        raise InputError(Problem(what, document.place((SWEEP,))))
    try:
        part = json.dumps({SWEEP: document.data[SWEEP]})
        return SweepFile.model_validate_json(part, strict=True).sweep
    except ValidationError as error:
        schema = SweepFile.model_json_schema()
        raise InputError([_problem(detail, document, schema) for detail in error.errors()]) from None


def _document(text: str, name: str, overrides: Sequence[str]) -> Document:
    document = Document(text, name)
    for assignment in overrides:
        document.override(assignment)
    return document


def _stages(document: Document) -> tuple[Stage, ...]:
    """Each stage is the file's common part with the stage's own laid over it, and begins from the stage before it
    unless it has a ``begin`` of its own."""
    stages, where = document.data["stages"], document.place(("stages",))
    if SWEEP in document.data:
        raise InputError(Problem("a sweep is over a job without stages", document.place((SWEEP,))))
    if not isinstance(stages, dict) or not stages:
        raise InputError(Problem("stages is a mapping of names to parts of a job, in the order of their runs", where))
    problems: list[Problem] = []
    inner: dict[Problem, list[str]] = {}
    found: list[Stage] = []
    for name, part in stages.items():
        place = document.place(("stages", name))
        if not re.fullmatch(r"[a-z0-9][a-z0-9-]{0,39}", name):
            problems.append(Problem(f"'{name}' is no name of a stage: lower-case letters, digits and '-'", place))
        elif not isinstance(part, dict | None):
            problems.append(Problem(f"stage '{name}' is {part!r}; it is a mapping: what differs from the rest", place))
        elif isinstance(part, dict) and "name" in part:
            problems.append(Problem("a stage is named by its key; the run's name stands at the top", place))
        else:
            if part is None:
                document.data["stages"][name] = {}
            merged = document.merged(("stages", name))
            begin = merged.data.get("begin", {})
            own_begin = begin is None or (isinstance(begin, dict) and begin.get("run") is not None)
            if isinstance(merged.data.get("name"), str):
                merged.data["name"] = f"{merged.data['name']}-{name}"
            try:
                follows = found[-1].name if found and not own_begin else None
                job = _job(merged)
                if isinstance(job, ReinforcementJob):
                    raise InputError(Problem("an environment is learned in by a job of its own, not by a stage", place))
                found.append(Stage(name, job, follows))
            except InputError as error:
                for problem in error.problems:
                    inner.setdefault(problem, []).append(name)
    for problem, names in inner.items():  # what is wrong in the common part is wrong in every stage, and said once
        shared = len(names) > 1
        problems.append(problem if shared else Problem(f"stage {names[0]}: {problem.what}", problem.where))
    if problems:
        raise InputError(problems)
    return tuple(found)


def _model(data: dict[str, Any]) -> type[Job] | type[ReinforcementJob]:
    """Which kind of job this is: the algorithm decides, or where it names none, what it learns from."""
    algorithm = data.get("algorithm")
    name = algorithm.get("type") if isinstance(algorithm, dict) else None
    if name in AGENTS:
        return ReinforcementJob
    return ReinforcementJob if "environment" in data and "data" not in data and name not in ALGORITHMS else Job


def _job(document: Document) -> AnyJob:
    data = {**document.data, "algorithm": completed(document.data.get("algorithm"))}
    data.pop(SWEEP, None)  # says how to vary the job, and is no part of it
    model = _model(data)
    try:
        # JSON mode is pydantic's strict mode for data without tuples or enums: no string becomes a number.
        return model.model_validate_json(json.dumps(data), strict=True)
    except ValidationError as error:
        job_schema = model.model_json_schema()
        raise InputError([_problem(detail, document, job_schema) for detail in error.errors()]) from None


def dump(job: AnyJob, width: int = 120) -> str:
    """The resolved job as YAML that :func:`load` takes back, in lines of about ``width`` characters."""
    return yaml.safe_dump(job.resolved(), sort_keys=False, default_flow_style=None, width=width)


def _problem(detail: ErrorDetails, document: Document, job_schema: dict[str, Any]) -> Problem:
    path, parent = _follow(job_schema, detail["loc"])
    key = ".".join(map(str, path))
    context: dict[str, Any] = detail.get("ctx", {})
    where = document.place(path)
    match detail["type"]:
        case "extra_forbidden" | "unexpected_keyword_argument":
            what = f"unknown key '{path[-1]}' in {'.'.join(map(str, path[:-1])) or 'the job'}."
            what += nearest(str(path[-1]), parent.get("properties", {}))
        case "union_tag_invalid":
            tag_key = str(context["discriminator"]).strip("'")
            valid = [tag.strip().strip("'") for tag in str(context["expected_tags"]).split(",")]
            where = document.place((*path, tag_key))
            what = f"{key}: unknown {tag_key} '{context['tag']}'.{nearest(str(context['tag']), valid)}"
        case "union_tag_not_found":
            tag_key = str(context["discriminator"]).strip("'")
            what = f"{key} must say its {tag_key}.{nearest('', _tags(parent, path[-1] if path else ''))}"
        case "missing" | "missing_argument":
            what = f"'{path[-1]}' is missing in {'.'.join(map(str, path[:-1])) or 'the job'}"
        case "value_error":
            what = f"{key}: {context['error']}" if key else str(context["error"])
        case _:
            message = detail["msg"].removeprefix("Input should be ")
            given = detail["input"]
            shown = f", not {json.dumps(given, default=str)}" if not isinstance(given, dict | list) else ""
            what = f"{key} must be {message}{shown}" if message != detail["msg"] else f"{key}: {message}{shown}"
    return Problem(what, where)


def _follow(job_schema: dict[str, Any], location: Sequence[str | int]) -> tuple[KeyPath, dict[str, Any]]:
    """Walk pydantic's error location, which also names the chosen member of each union, through the schema.

    Returns the path in the user's data, and the schema of the mapping that holds its last key.
    """
    definitions = job_schema.get("$defs", {})

    def resolve(node: dict[str, Any]) -> dict[str, Any]:
        while "$ref" in node:
            node = definitions[node["$ref"].rsplit("/", 1)[-1]]
        return node

    path: list[str | int] = []
    node, parent = resolve(job_schema), job_schema
    for part in location:
        variants = [resolve(variant) for variant in node.get("anyOf", [])]
        mapping = node.get("discriminator", {}).get("mapping") or {}
        for variant in variants:
            mapping = mapping or variant.get("discriminator", {}).get("mapping") or {}
        if part in mapping:  # the member of a tagged union: part of the location, not of the data
            node = resolve({"$ref": mapping[part]})
            continue
        if isinstance(part, int):
            items: Any = node.get("items") or next((v["items"] for v in variants if "items" in v), {})
            node, parent = resolve(items if isinstance(items, dict) else {}), node
        else:
            if variants and not any("properties" in variant for variant in variants):
                continue  # a member of an untagged union of plain types, such as int | tuple
            mappings = [v for v in [node, *variants] if "properties" in v]
            holder = next((v for v in mappings if part in v["properties"]), mappings[0] if mappings else node)
            inner: Any = holder.get("properties", {}).get(part) or holder.get("additionalProperties")
            node, parent = resolve(inner if isinstance(inner, dict) else {}), holder
        path.append(part)
    return tuple(path), parent


def _tags(parent: dict[str, Any], key: str | int) -> list[str]:
    node: Any = parent.get("items", {})
    if isinstance(key, str):
        node = parent.get("properties", {}).get(key) or parent.get("additionalProperties") or {}
    for variant in [node, *node.get("anyOf", [])]:
        if "discriminator" in variant:
            return list(variant["discriminator"]["mapping"])
    return []
