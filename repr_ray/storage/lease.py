"""One writer for a folder: a file lock on a file system, a lease with a heartbeat on object storage."""

import os
import platform
import signal
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event, Thread
from time import sleep

from repr_ray.storage.atomic import write_atomic
from repr_ray.storage.folder import Folder, Remote, StorageError, redact
from repr_ray.storage.foreign import Unusable, read_bytes
from repr_ray.storage.text import line

LOCK, HOLDER = ".lock", ".holder"

HEARTBEAT_SECONDS = 10.0  # seconds between two renewals of a lease on object storage
LEASE_TIMEOUT_SECONDS = 60.0  # seconds after the last renewal when another process may take the lease
SETTLE_SECONDS = 2.0  # seconds between writing and reading a lease: of processes that write together, the last has it


class Held(StorageError):
    """Another process has the lease."""


@contextmanager
def lease(storage: Folder) -> Iterator[None]:
    """Hold a folder for this process.

    Raises Held if another process holds it, StorageError if it cannot be written. On object storage a process that
    loses its lease, because it did not renew it in time, gets SIGTERM.
    """
    with _renewed(storage) if isinstance(storage, Remote) else _locked(storage.path):
        yield


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    from filelock import FileLock, Timeout  # not at the top: --help does without

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"{folder} cannot be made: {error.strerror}") from None
    holder = folder / HOLDER
    try:
        lock = FileLock(folder / LOCK, timeout=0)
        lock.acquire()
    except Timeout:
        raise _held(folder, _read_holder(holder)) from None
    except OSError as error:
        raise StorageError(f"{folder} cannot be written: {error.strerror}") from None
    with lock:
        try:
            write_atomic(holder, _ourselves().encode())
            yield
        finally:
            holder.unlink(missing_ok=True)


@contextmanager
def _renewed(remote: Remote) -> Iterator[None]:
    ours = f"{_ourselves()} ({uuid.uuid4().hex[:8]})"

    def holder() -> str:
        try:
            return remote.read(HOLDER).decode()
        except FileNotFoundError:
            return ours

    def renew() -> None:
        while not ended.wait(HEARTBEAT_SECONDS):
            with suppress(StorageError):  # tried again at the next heartbeat
                if (other := holder()) != ours:
                    print(f"{redact(remote.path)}: {other} has taken over this experiment", file=sys.stderr)
                    os.kill(os.getpid(), signal.SIGTERM)
                    return
                remote.write(HOLDER, ours.encode())

    age = remote.now() - remote.mtime(HOLDER)
    if age < LEASE_TIMEOUT_SECONDS and (other := holder()) != ours:
        raise _held(remote.path, other, f"; its lease ends {LEASE_TIMEOUT_SECONDS:.0f} s after its last heartbeat")
    for _ in range(2):  # twice, to fail here on storage that cannot replace a file
        remote.write(HOLDER, ours.encode())
    sleep(SETTLE_SECONDS)
    if (other := holder()) != ours:
        raise _held(remote.path, other)
    ended = Event()
    thread = Thread(target=renew, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        with suppress(StorageError):
            if holder() == ours:
                remote.delete(HOLDER)


def _read_holder(path: Path) -> str:
    try:
        return line(read_bytes(path).decode(errors="replace")) or "another process"
    except (FileNotFoundError, Unusable):
        return "another process"


def _ourselves() -> str:
    return f"process {os.getpid()} on {platform.node()}"


def _held(folder: Path, holder: str, more: str = "") -> Held:
    return Held(f"{folder}: {holder} is running this experiment; wait for it, or stop it first{more}")
