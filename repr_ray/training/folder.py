"""The files of a trial. Rank 0 writes them; the report reads them (repr_ray.results.store)."""

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

    `config.yaml` has its settings, `epochs.jsonl` and `cycles.jsonl` its tables, `log.txt` lines to read,
    `result.json` (written last) the result of a finished trial, `error.json` the error of a failed one.
    """

    def __init__(self, results: Path, trial: Trial, storage: Folder | None = None) -> None:
        self.name = f"trials/{trial.name}"
        self.path = results / self.name
        self.trial = trial
        self.storage = storage or Folder(results)
        self.owner: str | None = None

    @property
    def done(self) -> bool:
        """Whether the trial has a valid result; it is never trained again."""
        try:
            return read_result(self.path) is not None
        except Unusable:
            return False

    @property
    def broken(self) -> str:
        """What is wrong with an invalid result; empty without one."""
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
        """The trial's result if it is done, else its `config.yaml`; empty without either."""
        with contextlib.suppress(FileNotFoundError, Unusable):
            return read_result(self.path) or read_mapping(self.path / "config.yaml")
        return {}

    @property
    def begun(self) -> bool:
        """Whether the trial has trained an epoch."""
        epochs = self.path / "epochs.jsonl"
        return epochs.exists() and epochs.stat().st_size > 0

    def announce(self, data_digest: str | None = None) -> None:
        """Write `config.yaml` with the digest of the images, so that a report lists the trial before it starts."""
        self.path.mkdir(parents=True, exist_ok=True)
        if not self.done:
            names = {"name": self.trial.name, "fingerprint": self.trial.fingerprint, "data_digest": data_digest}
            text = yaml.safe_dump(names | self.trial.record(), sort_keys=False, allow_unicode=True)
            write_atomic(self.path / "config.yaml", text.encode())

    def relabel(self) -> None:
        """Give a trial that is done its present labels; they change, for example, when the grid gets another axis."""
        path, record = self.path / "config.yaml", self.trial.record()
        labels = {name: record[name] for name in ("experiment", "scheme", "variant")}
        with contextlib.suppress(FileNotFoundError, Unusable):
            if self.done and (config := read_mapping(path)) != config | labels:
                text = yaml.safe_dump(config | labels, sort_keys=False, allow_unicode=True)
                write_atomic(path, text.encode())
                self.push()

    def take_over(self) -> None:
        """Make this process the owner; a former owner, perhaps behind a broken link, stops when it next writes."""
        self.owner = uuid.uuid4().hex
        self.path.mkdir(parents=True, exist_ok=True)
        content = self.owner.encode()
        retry(lambda: self.storage.write(f"{self.name}/{OWNER}", content))

    def assert_owned(self) -> None:
        """Raise Preempted if another process has taken over; on object storage `push` does."""
        if not isinstance(self.storage, Remote):
            self._check_owner()

    def _check_owner(self) -> None:
        owner = b""
        with contextlib.suppress(FileNotFoundError):  # the other process has already ended
            owner = retry(lambda: self.storage.read(f"{self.name}/{OWNER}"))
        if owner.decode() != self.owner:
            raise Preempted(f"another process has taken over {self.trial.name}")

    def write_rows(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write a table of JSON lines (`epochs` or `cycles`) whole."""
        self.assert_owned()
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        write_atomic(self.path / f"{name}.jsonl", lines.encode())

    def log(self, text: str) -> None:
        """Add a line with date and time to log.txt; of a long log the first and the last quarter are kept."""
        path = self.path / "log.txt"
        append(path, f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S}  {line(text)[:LONGEST_LINE]}\n".encode())
        if path.stat().st_size > LONGEST_LOG:
            lines = path.read_bytes().splitlines(keepends=True)
            kept = len(lines) // 4
            write_atomic(path, b"".join([*lines[:kept], b"... lines left out ...\n", *lines[-kept:]]))

    def finish(self, result: Mapping[str, object]) -> None:
        """Write the result, after everything else."""
        self.assert_owned()
        (self.path / "error.json").unlink(missing_ok=True)
        write_atomic(self.path / RESULT, json.dumps(result, indent=1).encode())
        self.log("done")
        self.push()
        retry(lambda: self.storage.delete(f"{self.name}/{OWNER}"))

    def fail(self, error: dict[str, Any]) -> None:
        """Write error.json, unless another rank has written it."""
        self.path.mkdir(parents=True, exist_ok=True)
        self.storage.pull(f"{self.name}/error.json")
        if not self.failed:
            self.log(f"FAILED ({error['status']}): {error['message']}")
            write_atomic(self.path / "error.json", json.dumps(error, indent=1).encode())
            self.storage.push(f"{self.name}/error.json")
        if self.owner:
            self.push()

    def pull(self, wanted: Callable[[str], bool] = bool) -> None:
        """Download the trial's files from object storage."""
        self.storage.pull(self.name, wanted)

    def push(self) -> None:
        """Upload what changed to object storage; call it when tables and checkpoint are of the same epoch."""
        if self.owner:
            self._check_owner()
        self.storage.push(self.name)

    def clear(self) -> None:
        """Delete an earlier error, an invalid result and partial files, before the trial runs again."""
        broken = [self.path / RESULT] if self.broken else []
        for path in (self.path / "error.json", *broken, *self.path.glob(f".*{PARTIAL}")):
            path.unlink(missing_ok=True)
