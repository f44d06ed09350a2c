"""The signals that end a launch: interrupt, termination, a closed terminal."""

import contextlib
import os
import signal
import stat
from collections.abc import Mapping
from typing import Any

STOP = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def handlers() -> dict[signal.Signals, Any]:
    """The current handlers, without ignored signals: under `nohup` a launch ignores SIGHUP."""
    there = {number: signal.getsignal(number) for number in STOP}
    return {number: handler for number, handler in there.items() if handler is not signal.SIG_IGN}


def install(wanted: Mapping[signal.Signals, Any]) -> None:
    """Install handlers."""
    for number, handler in wanted.items():
        signal.signal(number, handler)


def leave_terminal(number: int) -> None:
    """After SIGHUP, redirect output from the closed terminal to /dev/null, where writing does not fail."""
    if number == signal.SIGHUP:
        nowhere = os.open(os.devnull, os.O_RDWR)
        for stream in range(3):
            with contextlib.suppress(OSError):
                if stat.S_ISCHR(os.fstat(stream).st_mode):  # `isatty` is false for a closed terminal
                    os.dup2(nowhere, stream)
        os.close(nowhere)
