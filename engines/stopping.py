"""Ctrl-C and SIGTERM: the step under way ends well, then the process leaves as it would have."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from .distributed.processes import Processes
from .program.run_state import RunState

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """Whether a signal has asked the run to end.

    Attributes:
        signal: The signal, once one has come.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None

    @property
    def made(self) -> bool:
        """Whether one has come."""
        return self.signal is not None


@contextmanager
def stops_between_steps() -> Iterator[StopRequest]:
    """Inside, a first Ctrl-C or SIGTERM is only noted; a second one acts at once.

    At the end the handlers are what they were, and a signal that was noted is raised again: for
    them, or as ``KeyboardInterrupt``, or for the system to end the process, whose exit code is then
    the usual one. When an exception is under way it goes its way instead.

    A signal that reaches a whole group of processes ends the workers of torch's loaders, of which
    torch would tell by an exception in the middle of whatever is going on. After a first signal it
    no longer does, and a batch that is still asked of them is read again by new ones.

    Signals that are ignored stay ignored. Outside the main thread, where Python sets no handlers,
    nothing is done. A process forked inside, such as a loader's worker, leaves the end to its
    parent.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {s: signal.getsignal(s) for s in SIGNALS}
    # A handler that is not Python's cannot be put back.
    taken = {s: h for s, h in before.items() if h not in (None, signal.SIG_IGN)}
    process = os.getpid()
    children: signal.Signals | None = getattr(signal, "SIGCHLD", None)

    def note(number: int, frame: FrameType | None) -> None:
        del frame
        if os.getpid() != process:
            return
        request.signal = signal.Signals(number)
        _put_back(taken)
        child_handler = None if children is None else signal.getsignal(children)
        if children is not None and child_handler is not None:
            taken[children] = child_handler
            signal.signal(children, _nothing)

    for number in taken:
        signal.signal(number, note)
    try:
        yield request
    finally:
        _put_back(taken)
    if request.signal is not None:
        sys.stdout.flush()
        sys.stderr.flush()
        signal.raise_signal(request.signal)


def asked_to_end(request: StopRequest, run_state: RunState, processes: Processes) -> bool:
    """Whether a signal has reached this process or another, which then counts for all.

    Likewise a program that was stopped in one process is stopped in all.
    """
    stopped = run_state.stopped is not None
    found = processes.largest(2 * int(request.signal or 0) + stopped)
    if found >= 2:
        request.signal = signal.Signals(found // 2)
    elif found and not stopped:
        run_state.stopped = "Another process asked the run to end."
    return request.made


def _nothing(number: int, frame: FrameType | None) -> None:
    del number, frame


def _put_back(handlers: dict[signal.Signals, Any]) -> None:
    for number, handler in handlers.items():
        signal.signal(number, handler)
