"""What a trial leaves in its folder. Rank 0 writes; the report reads (repr_ray.results.store)."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from repr_ray.plan import Trial
from repr_ray.storage import PARTIAL, write_atomic

Row = dict[str, Any]


class TrialFolder:
    """The files of one trial.

    `config.yaml` says what it is, `epochs.jsonl` and `cycles.jsonl` how it went, `log.txt` tells it to a person,
    `result.json` (written last) that it is done, `error.json` why it failed.
    """

    def __init__(self, results: Path, trial: Trial) -> None:
        self.path = results / "trials" / trial.name
        self.trial = trial

    @property
    def done(self) -> bool:
        """Whether the trial has finished; it is never trained again."""
        return (self.path / "result.json").exists()

    @property
    def failed(self) -> bool:
        """Whether the trial's last run ended in an error."""
        return (self.path / "error.json").exists()

    def announce(self) -> None:
        """Make the folder, so that a report knows the trial before it starts."""
        self.path.mkdir(parents=True, exist_ok=True)
        if not self.done:
            names = {"name": self.trial.name, "fingerprint": self.trial.fingerprint}
            text = yaml.safe_dump(names | self.trial.record(), sort_keys=False, allow_unicode=True)
            write_atomic(self.path / "config.yaml", text.encode())

    def write_rows(self, name: str, rows: list[Row]) -> None:
        """Write a table of JSON lines (`epochs` or `cycles`) whole."""
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        write_atomic(self.path / f"{name}.jsonl", lines.encode())

    def log(self, text: str) -> None:
        """Add a line with the time of day to log.txt."""
        with (self.path / "log.txt").open("a") as file:
            file.write(f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S}  {text}\n")

    def finish(self, result: dict[str, Any]) -> None:
        """Mark the trial done; the last thing written."""
        (self.path / "error.json").unlink(missing_ok=True)
        write_atomic(self.path / "result.json", json.dumps(result, indent=1).encode())

    def fail(self, error: dict[str, Any]) -> None:
        """Mark the trial failed, unless another rank has said why already."""
        if not self.failed:
            self.log(f"FAILED ({error['status']}): {error['message']}")
            write_atomic(self.path / "error.json", json.dumps(error, indent=1).encode())

    def clear(self) -> None:
        """Forget an earlier failure, and half-written files of a killed process: the trial runs again."""
        for path in (self.path / "error.json", *self.path.glob(f".*{PARTIAL}")):
            path.unlink(missing_ok=True)
