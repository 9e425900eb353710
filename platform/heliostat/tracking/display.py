"""Times and lengths of time as people read them."""

from __future__ import annotations

import datetime


def duration(seconds: float | None) -> str:
    """A length of time for people: "3 h 05 min", "4 min 12 s", "9.3 s"."""
    if seconds is None:
        return "-"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def moment(seconds: float) -> str:
    """A time in this machine's time zone."""
    return datetime.datetime.fromtimestamp(seconds).astimezone().strftime("%Y-%m-%d %H:%M")
