"""Partly written settings: what a mapping leaves unsaid is what the setting *around* it has by default.

``views: {local: {size: 32}}`` of DINO means DINO's small crops with another size. Pydantic alone would complete the
mapping with the defaults of its class, which are those of another paper, and nobody would see it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from heliostat.config.registry import AGENTS, ALGORITHMS


def completed(algorithm: Any) -> Any:
    """The ``algorithm:`` mapping of a job file with its partly written settings completed. What is no mapping, or names
    no algorithm, stays as it is: validation tells."""
    name = algorithm.get("type") if isinstance(algorithm, Mapping) else None
    known: dict[str, Any] = {**ALGORITHMS, **AGENTS}
    if not isinstance(name, str) or name not in known:
        return algorithm
    return _over_defaults(algorithm, known[name].Config)


def _over_defaults(written: Mapping[str, Any], config: type[Any]) -> dict[str, Any]:
    """Complete the mappings inside ``written``, a partly written ``config``."""
    result = dict(written)
    for field in dataclasses.fields(config):
        value = written.get(field.name)
        made = field.default_factory
        default = field.default if made is dataclasses.MISSING else made()
        if isinstance(value, Mapping) and dataclasses.is_dataclass(default) and not isinstance(default, type):
            result[field.name] = _over(value, default)
    return result


def _over(written: Mapping[str, Any], default: Any) -> dict[str, Any]:
    """``written`` laid over a default, unless it is of another ``type``."""
    if hasattr(default, "type") and written.get("type") != default.type:
        return dict(written)
    result = dict(written)
    for field in dataclasses.fields(default):
        value = getattr(default, field.name)
        if field.name not in written:
            result[field.name] = _plain(value)
        elif isinstance(written[field.name], Mapping) and dataclasses.is_dataclass(value):
            result[field.name] = _over(written[field.name], value)
    return result


def _plain(value: Any) -> Any:
    """As a job file would have it."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    return list(value) if isinstance(value, tuple) else value
