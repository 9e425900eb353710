"""One thing that was looked at, and what to do about it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

Level: TypeAlias = Literal["ok", "warning", "problem"]

GIB = 1024**3


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    name: str
    level: Level
    """A problem would stop a run; a warning would slow or endanger it."""
    found: str
    advice: str = ""
    """What to do about it; empty where nothing needs doing."""
