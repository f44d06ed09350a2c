"""Progress of a launch: a live line per trial on a terminal, plain lines in a job log."""

import os
from collections.abc import Iterable, Sequence
from time import monotonic
from types import TracebackType
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress import Progress as Bar
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from repr_ray.storage.text import line, lines
from repr_ray.training.messages import Done, EpochEnded, Failed, Message, Note, Stopped

LOG_EVERY = 15.0  # seconds between two lines of a trial in a log, which has at most a hundred of them


class Progress:
    """Shows the messages of all trials of a launch."""

    def __init__(self, console: Console, epochs: dict[str, int], already_done: int) -> None:
        self.console, self.epochs = console, epochs
        self.total = len(epochs) + already_done
        self.already_done = already_done
        self.running: dict[str, EpochEnded | None] = {}  # None until an epoch has ended
        self.tested: dict[str, float] = {}  # the last test accuracy: not every epoch is evaluated
        self.ended: set[str] = set()
        self.failed = 0
        self.short = _short_names(list(epochs))
        self.epochs_seen, self.started = 0, monotonic()
        self.last_line: dict[str, tuple[float, int]] = {}
        self.live = Live(console=console, get_renderable=self._render, refresh_per_second=4, transient=True)

    def __enter__(self) -> "Progress":
        if self.console.is_terminal:
            self.live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: object, trace: TracebackType | None) -> None:
        if self.console.is_terminal:
            self.live.stop()

    def update(self, message: Message) -> None:
        """Show one message of a trial, or a note about all trials."""
        match message:
            case Note(text, None):
                self._print(text, "yellow")
            case Note(text, str(trial)):
                self.running.setdefault(trial, None)
                self._print(f"{trial}  {text}", "yellow" if "WARNING" in text else "")
            case EpochEnded(trial):
                self._epoch(trial, message)
            case Failed(trial, reason):
                if trial in self.ended:  # both the trial and its runner report a failure
                    return
                self._end(trial)
                self.failed += 1
                self._print(f"{trial}  FAILED: {reason}", "bold red")
            case Stopped(trial, place):
                self.running.pop(trial, None)
                self._print(f"{trial}  saved at {place} and stopped")
            case Done(trial):
                last = self.running.get(trial)  # None if it was resumed after its last epoch
                self._end(trial)
                self._print(f"{trial}  done{f': {self._state(last)}' if last else ''}", "green")

    def _epoch(self, trial: str, message: EpochEnded) -> None:
        last = self.running.get(trial)  # messages leave out epochs that are shorter than the time between two
        self.epochs_seen += max(1, message.row["epoch"] - last.row["epoch"]) if last else 1
        self.running[trial] = message
        if (accuracy := message.row["test_accuracy"]) is not None:
            self.tested[trial] = accuracy
        before, percent = self.last_line.get(trial, (0.0, -1))
        now = message.row["epoch"] * 100 // message.epochs
        if not self.console.is_terminal and monotonic() - before >= LOG_EVERY and now > percent:
            self.last_line[trial] = monotonic(), now
            self._print(f"{trial}  {self._state(message)}")

    def _end(self, trial: str) -> None:
        self.running.pop(trial, None)
        self.ended.add(trial)

    def _print(self, text: str, style: str = "") -> None:
        self.console.print(Text(line(text), style=style), soft_wrap=not self.console.is_terminal)

    def _state(self, at: EpochEnded) -> str:
        row, epoch = at.row, at.row["epoch"] + 1
        parts = [f"epoch {epoch}/{at.epochs}", row["phase"], f"train {row['train_accuracy']:.1%}"]
        accuracies = {"val": row["val_accuracy"], "test": row["test_accuracy"]}
        parts += [f"{split} {accuracy:.1%}" for split, accuracy in accuracies.items() if accuracy is not None]
        left = f"{_left(at)} left" if epoch < at.epochs else ""
        return "  ".join([*parts, f"{row['images_per_second']:,.0f} images/s", left]).strip()

    def _render(self) -> Group:
        table = Table.grid(padding=(0, 1), expand=True)
        table.add_column(no_wrap=True, overflow="ellipsis", ratio=1)
        table.add_column(width=12)
        table.add_column(no_wrap=True)
        for trial, at in self.running.items():
            name = self.short.get(trial, trial)
            if at is None:
                table.add_row(name, ProgressBar(total=1, completed=0), Text("starts", style="dim"))
                continue
            row, epoch, test = at.row, at.row["epoch"] + 1, self.tested.get(trial)
            accuracy = f"train {row['train_accuracy']:.1%}" if test is None else f"test {test:.1%}"
            table.add_row(
                name,
                ProgressBar(total=at.epochs, completed=epoch),
                f"{epoch:>3}/{at.epochs} {row['phase']:4} {accuracy:>11} {row['images_per_second']:>7,.0f}/s "
                f"{_left(at):>6}",
            )
        return Group(table, Text(self._summary(), style="bold"))

    def _summary(self) -> str:
        done = self.already_done + len(self.ended)
        text = f"{done} of {self.total} trials ended" + (f", {self.failed} FAILED" if self.failed else "")
        remaining = sum(
            epochs - (at.row["epoch"] + 1 if (at := self.running.get(trial)) else 0)
            for trial, epochs in self.epochs.items()
            if trial not in self.ended
        )
        if self.epochs_seen:
            rate = (monotonic() - self.started) / self.epochs_seen
            text += f", about {duration(remaining * rate)} left"
        return text


def _short_names(trials: Sequence[str]) -> dict[str, str]:
    """What tells each trial from the others: not the beginning that all share, the fingerprint only if needed."""
    beginning = os.path.commonprefix(trials)  # noqa: RUF071 - of names, not of paths
    shared = len(beginning.rpartition("-")[0]) if len(trials) > 1 else 0
    names = {trial: trial[shared:].lstrip("-") for trial in trials}
    plain = {trial: name.rpartition("-")[0] or name for trial, name in names.items()}
    return plain if len(set(plain.values())) == len(trials) else names


def say(console: Console, text: str, style: str = "") -> None:
    """Print text without its control characters."""
    console.print(lines(text), style=style, soft_wrap=True)


def _left(at: EpochEnded) -> str:
    return duration((at.epochs - at.row["epoch"] - 1) * at.row["seconds"])


def bar(console: Console, items: Iterable[Any], total: int, title: str) -> Iterable[Any]:
    """Yield `items` behind a progress bar; without a terminal print one line."""
    if not console.is_terminal:
        console.print(title, highlight=False)
        yield from items
        return
    with Bar(console=console, transient=True) as progress:
        yield from progress.track(items, total=total, description=title)


def duration(seconds: float) -> str:
    """95 -> 1m35s, 7500 -> 2h05m."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole}s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes}m{rest:02}s" if minutes < 60 else f"{minutes // 60}h{minutes % 60:02}m"


def plan_table(rows: Sequence[tuple[str, ...]], columns: Sequence[str]) -> str:
    """Rows as aligned columns; a table of rich takes seconds for 10,000 rows."""
    every = [columns, *rows]
    widths = [max(map(len, column)) for column in zip(*every, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in every)
