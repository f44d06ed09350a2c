"""What a trial leaves in its folder. Rank 0 writes; the report reads (repr_ray.results.store)."""

import contextlib
import json
import uuid
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from repr_ray.records import RESULT, read_result
from repr_ray.storage.atomic import PARTIAL, append, write_atomic
from repr_ray.storage.folder import Folder, Remote, retry
from repr_ray.storage.foreign import Unusable, read_json, read_mapping
from repr_ray.storage.text import line
from repr_ray.study.plan import Trial
from repr_ray.training.messages import Preempted

LONGEST_LOG, LONGEST_LINE = 500_000, 4_000
"""Bytes of log.txt, characters of one of its lines."""

OWNER = ".owner"


class TrialFolder:
    """The files of one trial.

    `config.yaml` says what it is, `epochs.jsonl` and `cycles.jsonl` how it went, `log.txt` tells it to a person,
    `result.json` (written last) that it is done, `error.json` why it failed.
    """

    def __init__(self, results: Path, trial: Trial, storage: Folder | None = None) -> None:
        self.name = f"trials/{trial.name}"
        self.path = results / self.name
        self.trial = trial
        self.storage = storage or Folder(results)
        self.owner: str | None = None

    @property
    def done(self) -> bool:
        """Whether the trial has finished, with a whole result; it is never trained again."""
        try:
            return read_result(self.path) is not None
        except Unusable:
            return False

    @property
    def broken(self) -> str:
        """What is wrong with a result that does not count; empty where nothing is."""
        try:
            read_result(self.path)
        except Unusable as problem:
            return f"{RESULT} {line(problem)}"
        return ""

    @property
    def failed(self) -> bool:
        """Whether the trial's last run ended in an error."""
        return (self.path / "error.json").exists()

    @property
    def message(self) -> str:
        """The first line of the error that the trial's last run ended in."""
        try:
            return line(read_json(self.path / "error.json").get("message", ""))
        except Unusable as problem:
            return f"an error.json that {line(problem)}"

    @property
    def stored(self) -> dict[str, Any]:
        """What is stored about the trial: its result if it is done, else what it was announced with."""
        with contextlib.suppress(FileNotFoundError, Unusable):
            return read_result(self.path) or read_mapping(self.path / "config.yaml")
        return {}

    @property
    def begun(self) -> bool:
        """Whether the trial has trained an epoch."""
        epochs = self.path / "epochs.jsonl"
        return epochs.exists() and epochs.stat().st_size > 0

    def announce(self, data_digest: str | None = None) -> None:
        """Make the folder, so that a report knows the trial, and the digest of its images, before it starts."""
        self.path.mkdir(parents=True, exist_ok=True)
        if not self.done:
            names = {"name": self.trial.name, "fingerprint": self.trial.fingerprint, "data_digest": data_digest}
            text = yaml.safe_dump(names | self.trial.record(), sort_keys=False, allow_unicode=True)
            write_atomic(self.path / "config.yaml", text.encode())

    def take_over(self) -> None:
        """Make this process the one that writes here; a former one, behind a cut link perhaps, notices."""
        self.owner = uuid.uuid4().hex
        self.path.mkdir(parents=True, exist_ok=True)
        content = self.owner.encode()
        retry(lambda: self.storage.write(f"{self.name}/{OWNER}", content))

    def assert_owned(self) -> None:
        """Raise Preempted when another process has taken over; on object storage `push` does."""
        if not isinstance(self.storage, Remote):
            self._ask_whose()

    def _ask_whose(self) -> None:
        owner = b""
        with contextlib.suppress(FileNotFoundError):  # the other one has even ended
            owner = retry(lambda: self.storage.read(f"{self.name}/{OWNER}"))
        if owner.decode() != self.owner:
            raise Preempted(f"another process has taken over {self.trial.name}")

    def write_rows(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write a table of JSON lines (`epochs` or `cycles`) whole."""
        self.assert_owned()
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        write_atomic(self.path / f"{name}.jsonl", lines.encode())

    def log(self, text: str) -> None:
        """Add a line with the time of day to log.txt, which keeps its head and its end when it gets long."""
        path = self.path / "log.txt"
        append(path, f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S}  {line(text)[:LONGEST_LINE]}\n".encode())
        if path.stat().st_size > LONGEST_LOG:
            lines = path.read_bytes().splitlines(keepends=True)
            kept = len(lines) // 4
            write_atomic(path, b"".join([*lines[:kept], b"... lines left out ...\n", *lines[-kept:]]))

    def finish(self, result: Mapping[str, object]) -> None:
        """Mark the trial done; the last thing written."""
        self.assert_owned()
        (self.path / "error.json").unlink(missing_ok=True)
        write_atomic(self.path / RESULT, json.dumps(result, indent=1).encode())
        self.log("done")
        self.push()
        retry(lambda: self.storage.delete(f"{self.name}/{OWNER}"))

    def fail(self, error: dict[str, Any]) -> None:
        """Mark the trial failed, unless another rank has said why already."""
        self.path.mkdir(parents=True, exist_ok=True)
        self.storage.pull(f"{self.name}/error.json")
        if not self.failed:
            self.log(f"FAILED ({error['status']}): {error['message']}")
            write_atomic(self.path / "error.json", json.dumps(error, indent=1).encode())
            self.storage.push(f"{self.name}/error.json")
        if self.owner:
            self.push()

    def pull(self, wanted: Callable[[str], bool] = bool) -> None:
        """Bring here what object storage has of the trial."""
        self.storage.pull(self.name, wanted)

    def push(self) -> None:
        """Bring to object storage what changed here; tables and checkpoint belong together when this is called."""
        if self.owner:
            self._ask_whose()
        self.storage.push(self.name)

    def clear(self) -> None:
        """Forget an earlier failure, a broken result and halves of a killed process: the trial runs again."""
        broken = [self.path / RESULT] if self.broken else []
        for path in (self.path / "error.json", *broken, *self.path.glob(f".*{PARTIAL}")):
            path.unlink(missing_ok=True)
