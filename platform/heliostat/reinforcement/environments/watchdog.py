"""A thread in which an environment lives, so that whoever waits for it can stop waiting.

Nothing can interrupt an environment that hangs in foreign code, in a lock or in an endless loop; but its thread can be
left behind. That costs two hand-overs between threads a call: about 20 microseconds, measured on 2 cores where a step
of 8 Atari lanes takes 3 milliseconds. The same thread makes, steps, draws and closes the environment, as graphics
libraries require. An environment that hangs in foreign code **and** keeps Python's global lock stops the whole process;
only another process can see that.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

Result = TypeVar("Result")
_Calls = SimpleQueue[tuple[Callable[..., Any], tuple[Any, ...]] | None]
_Answers = SimpleQueue[tuple[Any, BaseException | None]]


def _serve(calls: _Calls, answers: _Answers) -> None:
    while (call := calls.get()) is not None:
        work, arguments = call
        try:
            answers.put((work(*arguments), None))
        except BaseException as error:  # noqa: BLE001 - it is raised again where the call was made
            answers.put((None, error))
        del call, work, arguments  # the thread must not keep alive, while it waits, what it worked for


class Watchdog:
    """Calls in a thread of their own, one at a time.

    Args:
        timeout_s: seconds that a call may take.
    """

    def __init__(self, timeout_s: float) -> None:
        self.timeout_s = timeout_s
        self._calls: _Calls = SimpleQueue()
        self._answers: _Answers = SimpleQueue()
        self._abandoned = False
        threading.Thread(target=_serve, args=(self._calls, self._answers), name="environment", daemon=True).start()
        self._end = weakref.finalize(self, self._calls.put, None)

    def call(self, work: Callable[..., Result], *arguments: Any) -> Result:
        """``work(*arguments)``: what it returns or raises.

        Raises:
            TimeoutError: it takes longer than ``timeout_s``, or an earlier call was not waited for to its end.
        """
        if self._abandoned:
            raise TimeoutError("it has not come back from an earlier call")
        self._abandoned = True  # also where the wait is interrupted, by Ctrl-C for instance
        self._calls.put((work, arguments))
        try:
            result, error = self._answers.get(timeout=self.timeout_s)
        except Empty:
            raise TimeoutError(f"it takes longer than {self.timeout_s:g} s (timeout_s)") from None
        self._abandoned = False
        if error is not None:
            raise error
        return result  # type: ignore[no-any-return]  # what this call's work returned

    def close(self, work: Callable[[], None]) -> None:
        """A last call, and the end of the thread. Where an earlier call was not waited for, neither is this: the thread
        makes it if it ever comes back.

        Raises:
            TimeoutError: it takes longer than ``timeout_s``.
        """
        try:
            if self._abandoned:
                self._calls.put((work, ()))
            else:
                self.call(work)
        finally:
            self._end()
