"""The signals that ask a launch to end: an interrupt, a request to terminate, a terminal that was closed."""

import contextlib
import os
import signal
import stat
from collections.abc import Mapping
from typing import Any

STOP = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def handlers() -> dict[signal.Signals, Any]:
    """The present handlers, but for signals that are ignored: a launch under `nohup` outlives its terminal."""
    there = {number: signal.getsignal(number) for number in STOP}
    return {number: handler for number, handler in there.items() if handler is not signal.SIG_IGN}


def install(wanted: Mapping[signal.Signals, Any]) -> None:
    """Put handlers in place."""
    for number, handler in wanted.items():
        signal.signal(number, handler)


def leave_terminal(number: int) -> None:
    """After SIGHUP the terminal is gone, and writing to it would fail: what still writes there, writes nowhere."""
    if number == signal.SIGHUP:
        nowhere = os.open(os.devnull, os.O_RDWR)
        for stream in range(3):
            with contextlib.suppress(OSError):
                if stat.S_ISCHR(os.fstat(stream).st_mode):  # `isatty` says no of a terminal that is gone
                    os.dup2(nowhere, stream)
        os.close(nowhere)
