"""The signals that end a launch: interrupt, termination, a closed terminal."""

import contextlib
import ctypes
import os
import signal
import stat
import threading
from collections.abc import Iterator, Mapping
from typing import Any

STOP = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def handlers() -> dict[signal.Signals, Any]:
    """The current handlers, without ignored signals: under `nohup` a launch ignores SIGHUP."""
    there = {number: signal.getsignal(number) for number in STOP}
    return {number: handler for number, handler in there.items() if handler is not signal.SIG_IGN}


def install(wanted: Mapping[signal.Signals, Any]) -> None:
    """Set the handlers of some signals."""
    for number, handler in wanted.items():
        signal.signal(number, handler)


@contextlib.contextmanager
def sigterm_kept() -> Iterator[None]:
    """Keep the handler of SIGTERM while Ray starts or ends, in any thread.

    Ray's core replaces the handler in C when it starts and removes it when it ends, without informing Python:
    SIGTERM would then end the process at once.
    """
    libc, action = ctypes.CDLL(None), ctypes.create_string_buffer(1024)  # a struct sigaction is smaller
    libc.sigaction(signal.SIGTERM, None, action)
    ended = threading.Event()

    def restore() -> None:
        while not ended.wait(0.005):
            libc.sigaction(signal.SIGTERM, action, None)

    thread = threading.Thread(target=restore, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        libc.sigaction(signal.SIGTERM, action, None)


def leave_terminal(number: int) -> None:
    """After SIGHUP, redirect output from the closed terminal to /dev/null, where writing does not fail."""
    if number == signal.SIGHUP:
        nowhere = os.open(os.devnull, os.O_RDWR)
        for stream in range(3):
            with contextlib.suppress(OSError):
                if stat.S_ISCHR(os.fstat(stream).st_mode):  # `isatty` is false for a closed terminal
                    os.dup2(nowhere, stream)
        os.close(nowhere)
