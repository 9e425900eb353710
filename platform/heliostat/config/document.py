"""YAML that remembers where each value stands, and ``key=value`` overrides on top of it.

The dialect is YAML 1.2's core: ``1e-6`` is a number, ``no`` and ``2026-11-24`` are strings, a key given twice is an
error.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Sequence
from copy import deepcopy
from typing import Any

import yaml

from heliostat.errors import InputError, Problem

KeyPath = tuple[str | int, ...]


class _Loader(yaml.SafeLoader):
    """Safe: builds plain data only. Resolves scalars by YAML 1.2 instead of PyYAML's 1.1."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 - the base class's attribute


_DIGITS = list("-+0123456789.")
_Loader.add_implicit_resolver("tag:yaml.org,2002:null", re.compile(r"^(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""])
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"^[-+]?(?:0|[1-9][0-9_]*)$"), _DIGITS)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"^[-+]?(?:(?:\.[0-9]+|[0-9]+\.[0-9]*)(?:[eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+|\.(?:inf|Inf|INF))$|^\.(?:nan|NaN|NAN)$"
    ),
    _DIGITS,
)


_COLLECTIONS = ("tag:yaml.org,2002:map", "tag:yaml.org,2002:seq")


def _compose(text: str, name: str) -> yaml.Node | None:
    """Parse one document without building values; ``name`` says in errors where it stands."""
    try:
        node: yaml.Node | None = _Loader(text).get_single_node()
    except yaml.MarkedYAMLError as error:
        line = f"{name}:{error.problem_mark.line + 1}" if error.problem_mark else name
        raise InputError(Problem(f"not valid YAML: {error.problem}", line)) from None
    except yaml.YAMLError as error:
        raise InputError(Problem(f"not valid YAML: {error}", name)) from None
    return node


class Document:
    """A tree of plain data and the place of each of its values.

    Args:
        text: YAML whose root is a mapping.
        name: what to call it in errors: a file's name.
        what: which kind of file it is, in words.
    """

    def __init__(self, text: str, name: str, what: str = "a job file") -> None:
        self.name = name
        self.places: dict[KeyPath, str] = {}
        node = _compose(text, name)
        if not isinstance(node, yaml.MappingNode):
            raise InputError(Problem(f"{what} is a mapping of keys to values, for example 'name: my-run'", name))
        self._duplicates: list[Problem] = []
        self.data: dict[str, Any] = self._build(node, ())
        if self._duplicates:
            raise InputError(self._duplicates)

    def _build(self, node: yaml.Node, path: KeyPath) -> Any:
        self.places[path] = f"{self.name}:{node.start_mark.line + 1}"
        if not isinstance(node, yaml.ScalarNode) and node.tag not in _COLLECTIONS:
            raise InputError(Problem(f"not a plain value: the tag {node.tag} is not known here", self.places[path]))
        if isinstance(node, yaml.MappingNode):
            result: dict[Hashable, Any] = {}
            for key_node, value_node in node.value:
                key = str(key_node.value)
                place = f"{self.name}:{key_node.start_mark.line + 1}"
                if key in result:
                    self._duplicates.append(Problem(f"the key '{key}' is given twice", place))
                result[key] = self._build(value_node, (*path, key))
                self.places[(*path, key)] = place
            return result
        if isinstance(node, yaml.SequenceNode):
            return [self._build(item, (*path, index)) for index, item in enumerate(node.value)]
        constructor = _Loader("")
        try:
            return constructor.construct_object(node, deep=True)
        except (yaml.YAMLError, ValueError) as error:
            problem = getattr(error, "problem", None) or error
            raise InputError(Problem(f"not a plain value: {problem}", self.places[path])) from None

    def place(self, path: Sequence[str | int]) -> str:
        """File and line of a value, or of the nearest thing that encloses it."""
        for end in range(len(path), -1, -1):
            if tuple(path[:end]) in self.places:
                return self.places[tuple(path[:end])]
        return self.name

    def merged(self, path: KeyPath) -> Document:
        """A document of its own: this one without the first key of ``path``, with the mapping at ``path`` laid over it.

        Mappings are joined key by key, but one that says its own ``type`` or ``source`` replaces what stands there:
        options of one kind mean nothing to another. Every value keeps its place.
        """
        over: Any = self.data
        for part in path:
            over = over[part]
        result = object.__new__(Document)
        result.name = self.name
        result._duplicates = []
        result.data = {key: value for key, value in self.data.items() if key != path[0]}
        result.places = {known: place for known, place in self.places.items() if known[:1] != path[:1]}

        def lay(under: dict[str, Any], over: dict[str, Any], at: KeyPath) -> dict[str, Any]:
            joined = dict(under)
            for key, value in over.items():
                inner, below = (*at, key), under.get(key)
                if isinstance(value, dict) and isinstance(below, dict) and not {"type", "source"} & value.keys():
                    joined[key] = lay(below, value, inner)
                else:
                    joined[key] = value
                    for known in [known for known in result.places if known[: len(inner)] == inner]:
                        del result.places[known]
            return joined

        result.data = lay(result.data, over, ())
        for known, place in self.places.items():
            if known[: len(path)] == path and len(known) > len(path):
                result.places[known[len(path) :]] = place
        return result

    def override(self, assignment: str) -> None:
        """Apply one ``key.inner.0=value``; the value is YAML.

        Raises:
            InputError: it is not an assignment, or the key leads through something that has no keys.
        """
        where = f"command line, '{assignment}'"
        key, separator, text = assignment.partition("=")
        if not separator or not key.strip():
            raise InputError(
                Problem("an override is written key=value, for example optimization.batch_size=256", where)
            )
        node = _compose(text, where)
        value = (
            None if node is None else self._build(node, ("", assignment))
        )  # places of the value itself are not needed
        self.assign(key.strip(), value, where)

    def copy(self) -> Document:
        """A document that can be changed by itself."""
        result = object.__new__(Document)
        result.name, result._duplicates = self.name, []
        result.data, result.places = deepcopy(self.data), dict(self.places)
        return result

    def assign(self, key: str, value: Any, where: str) -> None:
        """Set the value at a dotted path; ``where`` is its place in errors.

        Raises:
            InputError: the key leads through something that has no keys.
        """
        *parents, last = (int(part) if part.isdigit() else part for part in key.split("."))
        target: Any = self.data
        walked: list[str | int] = []
        for part in parents:
            target = self._child(target, part, walked, where, create=True)
            walked.append(part)
        self._child(target, last, walked, where, create=False)
        target[last] = value
        path = (*walked, last)
        for known in [known for known in self.places if known[: len(path)] == path]:
            del self.places[known]
        self.places[path] = where

    @staticmethod
    def _child(target: Any, part: str | int, walked: list[str | int], where: str, create: bool) -> Any:
        """Check that ``part`` can be a key of ``target``; with ``create``, return what stands there, made if
        missing."""
        name = ".".join(map(str, walked)) or "the job"
        if isinstance(target, list):
            if not isinstance(part, int) or part >= len(target):
                raise InputError(Problem(f"{name} is a list of {len(target)}; '{part}' is not a position in it", where))
            return target[part]
        if not isinstance(target, dict):
            raise InputError(Problem(f"{name} is {target!r} and has no key '{part}'", where))
        if create and target.get(str(part)) is None:
            target[str(part)] = {}
        return target.get(str(part))
