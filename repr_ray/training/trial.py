"""One trial from its start or checkpoint to its result, on one rank; its folder records how it ended."""

import contextlib
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from time import perf_counter
from typing import Any, Literal

import torch
from torch import Tensor

from repr_ray import distributed
from repr_ray.data.stream import StreamStopped
from repr_ray.method.events import LayerEvent, describe, terms, warnings
from repr_ray.plug_ins import in_one_line
from repr_ray.records import SUMMARY, EpochLine, Result, tracked_settings, without_layers
from repr_ray.storage.folder import StorageError, opened
from repr_ray.study.config import ConfigError
from repr_ray.study.plan import WEIGHTS, Trial
from repr_ray.training import checkpoint, provenance
from repr_ray.training.folder import TrialFolder
from repr_ray.training.loop import Diverged, PartialEpoch, Stop, assert_finite, never, run_epoch
from repr_ray.training.messages import RETRIES, Done, EpochEnded, Failed, Note, Preempted, Stopped, Tell
from repr_ray.training.restore import restore
from repr_ray.training.setup import set_up
from repr_ray.training.teacher import teach
from repr_ray.training.tensorboard import Board

TELL_EVERY = 0.3
"""The least number of seconds between two EpochEnded messages."""

PROGRESS_EVERY = 10.0
"""Seconds between two notes on a long ranking or re-initialisation."""

LINE = 120
"""Columns of a line in a job log, the trial's name included."""


def run_trial(
    trial: Trial,
    results: Path | str,
    device: torch.device,
    tell: Tell,
    origin: dict[str, Any],
    stop: Stop = never,
) -> None:
    """Train a trial to its end, resuming from its newest checkpoint; every rank calls it.

    `results` is a folder, or the URI of one on object storage, where the trial is stored with every checkpoint.
    `origin` (command, commit, GPUs of a worker) is written to result.json. A trial of one rank whose images stop
    coming goes on from its newest checkpoint. Raises Preempted when `stop()` is true on any rank, after the current
    step and a checkpoint, and when another process has started the trial since. Other exceptions are raised after
    error.json is written.
    """
    folder = None
    with contextlib.ExitStack() as stack:
        try:
            storage = stack.enter_context(opened(results))
            folder = TrialFolder(storage.path, trial, storage)
            _train(trial, folder, device, tell, stop).finish(origin)
        except Preempted:
            raise
        except Exception as error:
            if folder and not (distributed.world_size() > 1 and is_lost(error)):  # then all ranks start again
                with contextlib.suppress(StorageError):  # the message below has the error
                    folder.fail(failure(error))
            tell(Failed(trial.name, failure(error)["message"]))
            raise


def _train(trial: Trial, folder: TrialFolder, device: torch.device, tell: Tell, stop: Stop) -> "_Run":
    """Train a trial to its last epoch, from one checkpoint at most `RETRIES` times again."""
    before: tuple[int, int] | None = None
    starts = 0
    while True:
        run = _Run(trial, folder, device, tell)
        starts, before = starts + 1 if run.began == before else 1, run.began
        try:
            run.train(stop)
        except StreamStopped as error:
            if distributed.world_size() > 1 or starts > RETRIES:  # the other ranks wait for this one: all start anew
                raise
            run.abandon(f"{error}; goes on from the newest checkpoint")
        else:
            return run
        del run  # its memory, before the next one takes its own


def is_lost(error: BaseException) -> bool:
    """Whether a rank has lost another rank or its images, so that the trial can go on from its newest checkpoint."""
    return isinstance(error, StreamStopped) or distributed.lost_connection(error)


def failure(error: BaseException) -> dict[str, Any]:
    """The content of error.json: `status` is diverged, ranks differ, out of memory, or failed."""
    memory = isinstance(error, MemoryError) or "OutOfMemory" in type(error).__name__
    if isinstance(error, Diverged):
        status = "diverged"
    elif isinstance(error, distributed.RanksDiffer):
        status = "ranks differ"
    else:
        status = "out of memory" if memory or "can't allocate memory" in str(error) else "failed"
    lines = traceback.format_exception(error)
    return {"status": status, "message": in_one_line(error), "traceback": "".join(lines)}


class _Run:
    """The state of a trial on one rank. Only rank 0 writes files and sends messages."""

    def __init__(self, trial: Trial, folder: TrialFolder, device: torch.device, tell: Tell) -> None:
        """Set the trial up from its newest usable checkpoint, or from scratch."""
        self.trial, self.folder, self.tell = trial, folder, tell
        self.lead = distributed.rank() == 0
        self.epochs: list[EpochLine] = []
        self.cycles: list[dict[str, Any]] = []
        self.events: list[LayerEvent] = []  # of the current epoch
        self.part: PartialEpoch | None = None
        self.best: tuple[int, float, dict[str, Tensor]] | None = None  # not yet written
        self.warned: set[str] = set()
        self.saved = False
        self.pace, self.told = _Pace(trial.resources.checkpoint_every), 0.0
        self.started, seconds = datetime.now(UTC), 0.0
        state = self._restore(device)
        if state:
            self.epochs, self.cycles, self.part = state["epochs"], state["cycles"], state.get("part")
            self.started, seconds = datetime.fromisoformat(state["started"]), state["seconds"]
        self.clock = perf_counter() - seconds
        self.began = len(self.epochs), self.part["steps"] if self.part else 0
        if self.lead:
            folder.announce(self.setup.data_digest)
            self._note(f"resumes at {_place(len(self.epochs), self.part)}" if state else "starts")
            if self.setup.note:
                self._note(self.setup.note)
            self._write_tables()
            settings = tracked_settings(trial.scheme, trial.seed, trial.record()["settings"])
            self.board = Board(folder.path, len(self.epochs), settings)
            folder.push()

    def train(self, stop: Stop) -> None:
        """Train the epochs that are left."""
        for epoch in range(len(self.epochs), self.trial.last_epoch):
            self.events = []
            progress = _RankingNotes(self._note) if self.lead else None
            try:
                row = run_epoch(self.setup, epoch, self._record, progress, self.part, stop)
            except Preempted as left:
                if self.lead:
                    self._save_and_stop(epoch, left.part)
                raise Preempted(f"stopped at {_place(epoch, left.part)}") from None
            except Exception:
                if self.lead:
                    self._write_tables()
                raise
            self.part = None
            self.epochs.append(row)
            if self.lead:
                self._end_epoch(epoch, row)

    def abandon(self, why: str) -> None:
        """Leave the trial to a new start from its newest checkpoint."""
        self._note(why)
        self.board.close()

    def finish(self, origin: dict[str, Any]) -> None:
        """Check the trained network, and write the result, unless the trial only pauses."""
        distributed.assert_same_model(self.setup.model, "at the end")
        assert_finite(self.setup.model)
        if not self.lead:
            return
        if self.trial.last_epoch < self.trial.train.epochs:
            self._note(f"pauses after epoch {self.trial.last_epoch}, where tuning compares")
            self.board.close()
            self.tell(Done(self.trial.name))
            return
        accuracies = [row["train_accuracy"] for row in self.epochs]
        collapsed = collapsed_epoch(accuracies, self.setup.chance, len(self.setup.train))
        if collapsed is not None:
            self._note(f"WARNING: collapsed: training accuracy stays at chance from epoch {collapsed + 1} to the end")
        result = self._result(collapsed)
        self.board.finish({name: (_best(self.epochs) | result).get(name) for name in SUMMARY}, len(self.epochs) - 1)
        self.folder.finish(result | self.teacher | origin)
        self.tell(Done(self.trial.name))

    def _restore(self, device: torch.device) -> dict[str, Any] | None:
        """Set the trial up and load the newest usable checkpoint; returns that checkpoint, or None."""
        states = self._take_over() if self.lead else iter(())
        while True:
            announced, name, state = distributed.from_rank_0(next(states, None))
            self.setup = set_up(self.trial, device, state["precision"] if state else None)
            _assert_same_data(self.setup.data_digest, announced, state)
            self.teacher = self._find_teacher()
            if not state:
                return None
            try:
                restore(state, self.setup, distributed.world_size())
            except Exception as error:  # a foreign state raises errors of many types
                if self.lead:
                    self._note(checkpoint.misfit(name, error))
            else:
                return state

    def _take_over(self) -> Iterator[tuple[str | None, str, dict[str, Any] | None]]:
        """Take the folder over; yields the digest of the launch with each readable checkpoint, at last with None."""
        self.folder.take_over()
        self.folder.pull()
        self.folder.clear()
        stored = self.folder.stored
        announced, weights = stored.get("data_digest"), (stored.get("plug_ins") or {}).get(WEIGHTS)
        if weights not in (None, self.trial.source_digests.get(WEIGHTS)):
            raise ConfigError(f"{WEIGHTS}: the file on this node is not that of the launch")
        for name, state in checkpoint.readable(self.folder.path, self._note):
            yield announced, name, state
        yield announced, "", None

    def _find_teacher(self) -> dict[str, Any]:
        """Load the last weights of the trial's teacher, if any; returns the result's entries on the teacher."""
        if not self.trial.teacher:
            return {}
        weights, facts = distributed.from_rank_0(self._read_teacher(self.trial.teacher) if self.lead else None)
        teach(self.setup, self.trial.teacher, weights)
        return facts

    def _read_teacher(self, teacher: Trial) -> tuple[dict[str, Tensor], dict[str, Any]]:
        folder = TrialFolder(self.folder.storage.path, teacher, self.folder.storage)
        folder.pull()
        state = checkpoint.load_newest(folder.path, self._note) if folder.done else None
        if state is None or len(state["epochs"]) != teacher.train.epochs:
            raise ConfigError(f"loss: the teacher {teacher.name} has no weights of its last epoch; train it again")
        if state.get("data_digest") != self.setup.data_digest:
            raise ConfigError(f"loss: the teacher {teacher.name} was trained on other images; set another name")
        self._note(f"learns from {teacher.name}")
        return state["model"], {"teacher": teacher.name, "teacher_seconds": folder.stored["wall_seconds"]}

    def _note(self, text: str) -> None:
        self.folder.log(text)
        self.tell(Note(text, self.trial.name))

    def _record(self, epoch: int, events: list[LayerEvent]) -> None:
        """Record what the scheme did before or after an epoch; a kind of warning is sent once, but always logged."""
        self.events = self.events + events
        if not self.lead or not events:
            return
        self.cycles.extend(asdict(event) for event in events)
        begin, name = f"epoch {epoch + 1}: ", self.trial.name
        self.folder.log(begin + describe(events))
        self.tell(Note(begin + describe(events, LINE - len(f"{name}  {begin}")), name))
        begin = f"WARNING: {begin}"
        short = warnings(events, LINE - len(f"{name}  {begin}"))
        for kind, text in warnings(events).items():
            self.folder.log(begin + text)
            if kind not in self.warned:
                self.warned.add(kind)
                self.tell(Note(begin + short[kind], name))
        for term, meaning in terms(events).items():
            if term not in self.warned:
                self.warned.add(term)
                self._note(f"{term}: {meaning}")

    def _end_epoch(self, epoch: int, row: EpochLine) -> None:
        last = epoch + 1 == self.trial.last_epoch
        self.board.add(row, self.events)
        if (accuracy := _best_so_far(self.epochs)) is not None:
            weights = {key: value.clone() for key, value in self.setup.model.state_dict().items()}
            self.best = epoch, accuracy, weights
        if last or self.pace.due(epoch):
            with self.pace.measured():
                self._write()
                self.folder.push()
        if last or perf_counter() - self.told >= TELL_EVERY:
            self.tell(EpochEnded(self.trial.name, self.trial.last_epoch, without_layers(row)))
            self.told = perf_counter()

    def _save_and_stop(self, epoch: int, part: PartialEpoch | None) -> None:
        self.part = part
        self._write()
        self.folder.log(f"saved at {_place(epoch, part)} and stopped, as asked")
        self.folder.push()
        self.tell(Stopped(self.trial.name, _place(epoch, part)))

    def _write(self) -> None:
        """Write weights, checkpoint and tables. The best weights first, so that a checkpoint never lacks them."""
        if self.best:
            checkpoint.save_best(self.folder.path, *self.best)
            self.best = None
        self.folder.assert_owned()
        state = {
            "model": self.setup.model.state_dict(),
            "optimizer": self.setup.optimizer.state_dict(),
            "scheme": self.setup.scheme.state_dict(),
            **({"average": self.setup.average.state_dict()} if self.setup.average else {}),
            "precision": self.setup.precision,
            "data_digest": self.setup.data_digest,
            "epochs": self.epochs,
            "cycles": self.cycles,
            "part": self.part,
            "seconds": perf_counter() - self.clock,
            "started": self.started.isoformat(),
        }
        steps, tried = self.part["steps"] if self.part else 0, bool(self.trial.plug_ins and not self.saved)
        checkpoint.save(self.folder.path, len(self.epochs), steps, state, tried)
        self.saved = True
        self._write_tables()
        self.board.flush()

    def _write_tables(self) -> None:
        self.folder.write_rows("epochs", self.epochs)
        self.folder.write_rows("cycles", self.cycles)

    def _result(self, collapsed: int | None) -> Result:
        setup, seconds = self.setup, sum(row["seconds"] for row in self.epochs)
        return {
            "status": "done",
            "started": self.started.isoformat(),
            "finished": datetime.now(UTC).isoformat(),
            "wall_seconds": perf_counter() - self.clock,
            "images_per_second": len(self.epochs) * len(setup.train) / seconds,
            "collapsed_epoch": collapsed,
            "precision": setup.precision,
            "workers": distributed.world_size(),
            "threads": self.trial.resources.cpus_per_worker,
            "checksum": distributed.checksum(setup.model),
            "data_digest": setup.data_digest,
            "data_notes": "; ".join(setup.data_notes),
            "plug_ins": setup.trial.source_digests,
            "parameters": sum(p.numel() for p in setup.model.parameters()),
            "versions": provenance.versions(),
            "hardware": provenance.hardware(setup.device),
        }


def _assert_same_data(digest: str, announced: str | None, state: dict[str, Any] | None) -> None:
    """Raise on every rank unless all ranks, the launch and the checkpoint have the same images."""
    every = distributed.of_every_rank(digest)
    if odd := [str(rank) for rank, other in enumerate(every) if other != every[0]]:
        where = ", ".join(odd)
        raise distributed.RanksDiffer(
            f"data: the images on rank {where} differ from those on rank 0; check data.source"
        )
    if announced not in (None, every[0]):
        raise ConfigError("data: the images on this node are not those of the launch; data.source differs there")
    if state and state.get("data_digest", every[0]) != every[0]:
        raise ConfigError("data: the checkpoint is of training on other images; choose another name=... or --results")


class _Pace:
    """When to write a trial: after every n-th epoch, or with `auto` so that writing takes `SHARE` of the time.

    With slow storage at most `LONGEST` seconds pass between two checkpoints.
    """

    SHARE, LONGEST = 0.005, 300.0

    def __init__(self, every: int | Literal["auto"]) -> None:
        self.every, self.cost, self.ended = every, 0.0, perf_counter()

    def due(self, epoch: int) -> bool:
        """Whether to write after an epoch, counted from 0."""
        if self.every == "auto":
            return perf_counter() - self.ended >= min(self.cost / self.SHARE, self.LONGEST)
        return (epoch + 1) % self.every == 0

    @contextlib.contextmanager
    def measured(self) -> Iterator[None]:
        """Measure the time of the writing inside."""
        began = perf_counter()
        yield
        self.ended = perf_counter()
        self.cost = self.ended - began


def _place(epochs: int, part: PartialEpoch | None) -> str:
    """The place after `epochs` whole epochs, in words, counted from 1."""
    return f"epoch {epochs + 1}" + (f", step {part['steps']}" if part else "")


def _best_so_far(epochs: list[EpochLine]) -> float | None:
    """The validation accuracy of the last epoch, if it is higher than that of every epoch before; else None."""
    *before, last = [row["val_accuracy"] for row in epochs]
    return last if last is not None and all(value is None or value < last for value in before) else None


def _best(epochs: list[EpochLine]) -> dict[str, Any]:
    """Test accuracy in the epoch of best validation accuracy, the first of equals; nothing without images for it."""
    known = [(row["val_accuracy"], row["test_accuracy"]) for row in epochs]
    evaluated = [(val, test) for val, test in known if val is not None and test is not None]
    return {"best_val_test_accuracy": max(evaluated, key=lambda both: both[0])[1]} if evaluated else {}


def collapsed_epoch(accuracies: list[float], chance: float, images: int) -> int | None:
    """The epoch from which training accuracy never again rose above chance, or None.

    `chance` is the share of the most frequent class; three binomial standard errors are added. Fewer than three
    epochs at the end are no collapse.
    """
    limit = chance + 3 * (chance * (1 - chance) / images) ** 0.5
    first = len(accuracies)
    while first > 0 and accuracies[first - 1] <= limit:
        first -= 1
    return first if len(accuracies) - first >= 3 else None


class _RankingNotes:
    """Notes the progress of a ranking or re-initialisation every `PROGRESS_EVERY` seconds, twenty times at most."""

    def __init__(self, note: Callable[[str], None]) -> None:
        self.note, self.last, self.done = note, perf_counter(), 0

    def __call__(self, done: int, total: int) -> None:
        if perf_counter() - self.last >= PROGRESS_EVERY and done - self.done >= total / 20:
            self.last, self.done = perf_counter(), done
            self.note(f"ranked or brought back: {done} of {total} filters")
