"""What trials are told while they work: one small actor that each of them asks."""

from __future__ import annotations


class Board:
    """Who is asked to end, and why."""

    def __init__(self) -> None:
        self._asked: dict[str, str] = {}
        self._all = ""

    def stop(self, name: str, why: str) -> None:
        """Ask one trial to end."""
        self._asked[name] = why

    def stop_all(self, why: str) -> None:
        """Ask every trial to end."""
        self._all = why

    def asked(self, name: str) -> str:
        """Why a trial is to end; empty where it is not."""
        return self._asked.get(name) or self._all
