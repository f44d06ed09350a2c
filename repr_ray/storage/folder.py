"""Results on object storage (`s3://`, `gs://`, any file system of pyarrow), mirrored in a local folder.

Training and reports use the mirror like any folder, and push their changes. A mirror starts empty, is filled by
`pull`, and is deleted at the end.
"""

import contextlib
import math
import re
import textwrap
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import sleep
from typing import Any, TypeVar

from repr_ray.storage.atomic import PARTIAL, write_atomic
from repr_ray.storage.scratch import scratch
from repr_ray.storage.text import lines

T = TypeVar("T")

WAITS = (1, 2, 4, 8, 16, 32)  # seconds between attempts, a minute in total

_AT_ONCE = 16
_WHOLE = ("s3", "gcs")  # file systems where an object appears only when it is complete
_ACCESS = {
    "s3": "the address, and a role or AWS_REGION, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in the environment",
    "gs": "the address, and a service account or GOOGLE_APPLICATION_CREDENTIALS in the environment",
}


_OPTIONS = {
    "s3": "allow_delayed_open=true",  # one request for a small file, not three
    "gs": "retry_limit_seconds=10",  # not a quarter of an hour
    "gcs": "retry_limit_seconds=10",
}


class StorageError(OSError):
    """Unusable storage: one line with its address and the way out."""


def is_uri(location: Path | str) -> bool:
    """Whether a location looks like a URI, also a malformed one such as `s3:/bucket`."""
    return isinstance(location, str) and re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", location) is not None


def join(location: str, name: str) -> Path | str:
    """`name` in a folder: an absolute path, or a URI with the folder's options."""
    if not is_uri(location):
        return Path(location).resolve() / name
    folder, mark, options = location.partition("?")
    return f"{folder.rstrip('/')}/{name}{mark}{options}"


def redact(text: object) -> str:
    """Text without control characters; mirrored folders as their URIs, and URIs without keys and options."""
    plain = lines(text)
    for mirror, name in _MIRRORED.items():
        plain = plain.replace(str(mirror), name)
    return re.sub(r"(\w+://)(?:[^/@\s]*@)?([^?\s]*)(?:\?[^\s;,]*)?", r"\1\2", plain)


CLOCK = ".clock"  # a file that is written to get the storage's time; killed launches leave at most this one behind

_MIRRORED: dict[Path, str] = {}


def filesystem(location: str) -> tuple[Any, str]:
    """The pyarrow file system behind a folder or URI, and the path in it. Raises OSError or ValueError."""
    from pyarrow import fs

    if not is_uri(location):
        location = Path(location).resolve().as_uri()
    else:
        option = _OPTIONS.get(location.partition(":")[0], "")
        if option.partition("=")[0] not in location:
            location += f"{'&' if '?' in location else '?'}{option}"
    return fs.FileSystem.from_uri(location)


def retry(attempt: Callable[[], T], waits: Sequence[float] | None = None) -> T:
    """Repeat a failing attempt after each of `waits` (default `WAITS`). Raises the last StorageError."""
    for wait in WAITS if waits is None else waits:
        try:
            return attempt()
        except StorageError:
            sleep(wait)
    return attempt()


class Folder:
    """A folder that all processes see: nothing to pull or push. `location` is its address for another process."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.location: Path | str = path

    def pull(self, under: str = "", wanted: Callable[[str], bool] = bool) -> None:
        """Update the mirror from the storage, below a file or folder, for names that are `wanted`."""

    def push(self, under: str = "") -> None:
        """Upload what changed below a file or folder."""

    def names(self) -> list[str]:
        """The names in the folder, without hidden files."""
        paths = self.path.iterdir() if self.path.exists() else ()
        return [path.name for path in paths if not _hidden(path.name)]

    def read(self, name: str) -> bytes:
        """The content of a stored file. Raises FileNotFoundError."""
        return (self.path / name).read_bytes()

    def write(self, name: str, content: bytes) -> None:
        """Replace a stored file in one step."""
        write_atomic(self.path / name, content)

    def delete(self, name: str) -> None:
        """Delete a stored file if it exists."""
        (self.path / name).unlink(missing_ok=True)

    def mtime(self, name: str) -> float:
        """The time a file was stored at, in seconds of the storage's clock; minus infinity without one."""
        path = self.path / name
        return path.stat().st_mtime if path.exists() else -math.inf


class Remote(Folder):
    """A folder on storage, and its mirror `path`. `pull` and `push` raise StorageError after a minute of failures."""

    def __init__(self, uri: str, files: Any, base: str, path: Path) -> None:
        self.location, self.path = uri, path
        self.files, self.base = files, base.rstrip("/")
        # Size and time of each file when last pulled or pushed: mirrored, and stored if known.
        self.known: dict[str, tuple[tuple[int, int], tuple[int, int] | None]] = {}

    def pull(self, under: str = "", wanted: Callable[[str], bool] = bool) -> None:
        there = {name: state for name, state in retry(lambda: self.stored(under)).items() if wanted(name)}
        for name in self._known(under):
            if wanted(name) and name not in there:
                (self.path / name).unlink(missing_ok=True)
                del self.known[name]

        def download(name: str) -> None:
            try:
                content = self.read(name)
            except FileNotFoundError:  # deleted since it was listed
                return
            path = self.path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
            self.known[name] = _state(path), there[name]

        local = self._local(under)
        _side_by_side(download, [n for n, s in there.items() if self.known.get(n) != (local.get(n), s)])

    def push(self, under: str = "") -> None:
        """Upload weights first, then the rest, then results and errors; deleted files are deleted last."""
        local = self._local(under)

        def upload(name: str) -> None:
            self.write(name, (self.path / name).read_bytes())
            self.known[name] = local[name], None

        changed = [name for name, state in local.items() if self.known.get(name, (None,))[0] != state]
        for rank in range(3):
            _side_by_side(upload, [name for name in changed if _rank(name) == rank])
        _side_by_side(self.delete, [name for name in self._known(under) if name not in local])

    def names(self) -> list[str]:
        return sorted({name.partition("/")[0] for name in retry(self.stored)})

    def stored(self, under: str = "") -> dict[str, tuple[int, int]]:
        """Size and time of every stored file below a file or folder, without hidden ones."""
        from pyarrow import fs

        with self._errors_named("listed", under):
            top = self.files.get_file_info(f"{self.base}/{under}".rstrip("/"))
            below = fs.FileSelector(top.path, allow_not_found=True, recursive=True)
            found = [top] if top.is_file else self.files.get_file_info(below)
        names = {info.path.removeprefix(f"{self.base}/"): info for info in found if info.is_file}
        return {name: (info.size, info.mtime_ns) for name, info in names.items() if not _hidden(name)}

    def read(self, name: str) -> bytes:
        path = f"{self.base}/{name}"
        with self._errors_named("read", name):
            with self.files.open_input_file(path) as file:
                content = file.read_at(file.size(), 0)  # one request, for one version of the file
            if len(content) != self.files.get_file_info(path).size:
                raise OSError("it was replaced meanwhile")
            return content

    def write(self, name: str, content: bytes) -> None:
        target = f"{self.base}/{name}"
        with self._errors_named("written", name):
            if self.files.type_name in _WHOLE:
                self._put(target, content)
                return
            folder, _, last = target.rpartition("/")
            part = f"{folder}/.{last}.{uuid.uuid4().hex[:8]}{PARTIAL}"
            self.files.create_dir(folder, recursive=True)
            self._put(part, content)
            self.files.move(part, target)

    def delete(self, name: str) -> None:
        with self._errors_named("deleted", name), contextlib.suppress(FileNotFoundError):
            self.files.delete_file(f"{self.base}/{name}")
        self.known.pop(name, None)

    def mtime(self, name: str) -> float:
        with self._errors_named("read", name):
            info = self.files.get_file_info(f"{self.base}/{name}")
        return info.mtime.timestamp() if info.is_file else -math.inf

    def now(self) -> float:
        """The storage's time, from a file written now. Raises StorageError if it cannot be written."""
        now = -math.inf
        while now == -math.inf:  # another launch may delete it
            self.write(CLOCK, b"")
            now = self.mtime(CLOCK)
        self.delete(CLOCK)
        return now

    def _put(self, target: str, content: bytes) -> None:
        """Write in a thread, which no signal interrupts: closing an unfinished stream stores a partial file."""

        def put() -> None:
            with self.files.open_output_stream(target) as stream:
                stream.write(content)

        with ThreadPoolExecutor(1) as thread:
            thread.submit(put).result()

    def _local(self, under: str) -> dict[str, tuple[int, int]]:
        top = self.path / under
        paths = [top] if top.is_file() else [path for path in top.rglob("*") if path.is_file()]
        names = {path.relative_to(self.path).as_posix(): path for path in paths}
        return {name: _state(path) for name, path in names.items() if not _hidden(name)}

    def _known(self, under: str) -> list[str]:
        return [name for name in self.known if not under or f"{name}/".startswith(f"{under}/")]

    @contextlib.contextmanager
    def _errors_named(self, done: str, name: str) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError) as error:
            if done == "read" and isinstance(error, FileNotFoundError):
                raise
            raise _failed(join(str(self.location), name), done, error) from None


@contextlib.contextmanager
def opened(location: Path | str, waits: Sequence[float] | None = None) -> Iterator[Folder]:
    """The folder of results at a path or URI; a mirror lasts as long as the block. Raises StorageError."""
    if not is_uri(location):
        yield Folder(Path(location))
        return
    uri = str(location)

    def open_uri() -> tuple[Any, str]:
        try:
            files, base = filesystem(uri)
            files.get_file_info(base)
            return files, base
        except (OSError, ValueError) as error:
            raise _failed(uri, "opened", error) from None

    files, base = retry(open_uri, waits)
    if files.type_name == "local":
        yield Folder(Path(base))
        return
    with scratch() as folder:
        mirror = Path(folder) / Path(base).name
        mirror.mkdir()
        _MIRRORED[mirror] = redact(uri)
        try:
            yield Remote(uri, files, base, mirror)
        finally:
            del _MIRRORED[mirror]


def light(name: str) -> bool:
    """Whether launches and reports read a file: no weights, no TensorBoard events, no foreign files."""
    folder, _, rest = name.partition("/")
    return (not rest or folder in ("trials", "plots")) and not re.search(r"\.pt$|(^|/)events\.", name)


def _rank(name: str) -> int:
    return 0 if name.endswith(".pt") else 2 if name.endswith(("/result.json", "/error.json")) else 1


def _hidden(name: str) -> bool:
    return name.startswith(".") or "/." in name


def _state(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def _side_by_side(do: Callable[[str], None], names: Iterable[str]) -> None:
    """Call `do` for every name in parallel, and retry those that fail."""
    left = set(names)

    def attempt() -> None:
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            futures = {name: pool.submit(do, name) for name in left}
        left.difference_update(name for name, future in futures.items() if future.exception() is None)
        for future in futures.values():
            future.result()

    retry(attempt)


def _failed(location: Path | str, done: str, error: Exception) -> StorageError:
    reason = textwrap.shorten(re.sub(r" \(Request ID.*?\)", "", str(error)), 300)
    access = _ACCESS.get(str(location).partition(":")[0], "the address: s3://BUCKET/FOLDER, gs://BUCKET/FOLDER")
    return StorageError(f"{redact(location)} cannot be {done} ({reason}); check {access}")
