"""One trial from start or checkpoint to its result, on one rank; whatever happens, its folder says so."""

import contextlib
import platform
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from time import perf_counter
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from tensorboardX import SummaryWriter
from tensorboardX.proto.summary_pb2 import Summary
from torch import Tensor

from repr_ray import distributed
from repr_ray.components import plug_in_behind
from repr_ray.config import ConfigError
from repr_ray.method.events import LayerEvent, describe
from repr_ray.plan import Trial
from repr_ray.remote import StorageError, opened
from repr_ray.training import checkpoint
from repr_ray.training.folder import Row, TakenOver, TrialFolder
from repr_ray.training.loop import Diverged, Part, Stop, Stopped, never, run_epoch
from repr_ray.training.setup import Setup, set_up

Update = Callable[[dict[str, Any]], None]
"""Hears `{"trial", "epoch", ...}` after epochs and `{"trial", "note"}` in between; must not block.

Not every short epoch is told of, the last one is. A trial's last message has `done`, `failed` or `stopped`.
"""

TELL_EVERY = 0.3
"""Seconds between two epochs that are told of, at least."""

RANKING_EVERY = 10.0
"""Seconds between two notes on a ranking that takes long."""


def run_trial(
    trial: Trial,
    results: Path | str,
    device: torch.device,
    on_update: Update,
    provenance: dict[str, Any],
    stop: Stop = never,
) -> None:
    """Train a trial to its end, resuming from its newest checkpoint; every rank calls it.

    `results` is a folder, or the URI of one on object storage, where the trial is stored with every checkpoint.
    `provenance` (command, commit, GPUs of a worker) goes into result.json. Once `stop()` is true on any rank, saves
    after the next step and raises Stopped. Raises TakenOver when another process has started the trial since, and
    what training raises, after writing error.json.
    """
    folder = None
    with contextlib.ExitStack() as stack:
        try:
            storage = stack.enter_context(opened(results))
            folder = TrialFolder(storage.path, trial, storage)
            _train(trial, folder, device, on_update, provenance, stop)
        except (Stopped, TakenOver):
            raise
        except Exception as error:
            if folder and not distributed.lost_connection(error):  # the other rank knows why
                with contextlib.suppress(StorageError):  # what is not stored is told
                    folder.fail(failure(error))
            on_update({"trial": trial.name, "failed": failure(error)["message"]})
            raise


def failure(error: BaseException) -> dict[str, Any]:
    """What error.json holds: `status` is diverged, ranks differ, out of memory, or failed."""
    plug_in = plug_in_behind(error)
    memory = isinstance(error, MemoryError) or "OutOfMemory" in type(error).__name__
    if isinstance(error, Diverged):
        status = "diverged"
    elif isinstance(error, distributed.RanksDiffer):
        status = "ranks differ"
    else:
        status = "out of memory" if memory or "can't allocate memory" in str(error) else "failed"
    lines = traceback.format_exception(error)
    message = f"plug-in {plug_in}: {first_line(error)}" if plug_in else first_line(error)
    return {"status": status, "message": message, "traceback": "".join(lines)}


def first_line(error: BaseException) -> str:
    """The type and the first line of an error's text."""
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


def _train(
    trial: Trial,
    folder: TrialFolder,
    device: torch.device,
    on_update: Update,
    provenance: dict[str, Any],
    stop: Stop,
) -> None:
    lead = distributed.rank() == 0
    tell = (lambda **fields: on_update({"trial": trial.name, **fields})) if lead else (lambda **fields: None)
    started = datetime.now(UTC)

    def note(text: str) -> None:
        folder.log(text)
        tell(note=text)

    if lead:
        folder.take_over()
        folder.pull()
        folder.clear()
    stored = (folder.stored.get("data_digest"), checkpoint.load_newest(folder.path, note)) if lead else None
    announced, state = distributed.from_rank_0(stored)
    setup = set_up(trial, device, state["precision"] if state else None)
    _assert_same_data(setup.data_digest, announced, state)
    if lead:
        folder.announce(setup.data_digest)
    epochs: list[Row] = []
    cycles: list[Row] = []
    part: Part | None = None
    before = 0.0
    if state:
        setup.model.load_state_dict(state["model"])
        setup.optimizer.load_state_dict(state["optimizer"])
        setup.scheme.load_state_dict(state["scheme"])
        epochs, cycles, part, before = state["epochs"], state["cycles"], state.get("part"), state["seconds"]
        started = datetime.fromisoformat(state["started"])
    clock = perf_counter() - before

    def save(part: Part | None) -> None:
        folder.assert_owned()
        state = {
            "model": setup.model.state_dict(),
            "optimizer": setup.optimizer.state_dict(),
            "scheme": setup.scheme.state_dict(),
            "precision": setup.precision,
            "data_digest": setup.data_digest,
            "epochs": epochs,
            "cycles": cycles,
            "part": part,
            "seconds": perf_counter() - clock,
            "started": started.isoformat(),
        }
        checkpoint.save(folder.path, len(epochs), part["steps"] if part else 0, state)

    def add_events(epoch: int, events: list[LayerEvent]) -> None:
        if events:
            cycles.extend(asdict(event) for event in events)
            note(f"epoch {epoch}: {describe(events)}")

    def write_tables() -> None:
        folder.write_rows("epochs", epochs)
        folder.write_rows("cycles", cycles)

    def write(part: Part | None) -> None:
        """Best weights first: an epoch in a checkpoint has been compared with them."""
        if best:
            checkpoint.save_best(folder.path, *best)
        save(part)
        write_tables()
        board.flush()

    if lead:
        note(f"resumes at {_place(len(epochs), part)}" if state else "starts")
        write_tables()
        board = SummaryWriter(str(folder.path), purge_step=len(epochs))
        folder.push()

    best: tuple[int, float, dict[str, Tensor]] | None = None
    pace, told = _Pace(trial.resources.checkpoint_every), 0.0
    for epoch in range(len(epochs), trial.train.epochs):
        try:
            row, events = run_epoch(setup, epoch, _Ranking(note) if lead else None, part, stop)
        except Stopped as left:
            if lead:
                add_events(epoch, left.events)
                write(left.part)
                folder.log(f"saved at {_place(epoch, left.part)} and stopped, as asked")
                folder.push()
                tell(stopped=_place(epoch, left.part))
            raise
        except Exception:
            if lead:
                write_tables()
            raise
        part = None
        epochs.append(row)
        if not lead:
            continue
        add_events(epoch, events)
        _to_tensorboard(board, row, events)
        if _is_best(epochs):
            best = epoch, row["val_accuracy"], {k: v.clone() for k, v in setup.model.state_dict().items()}
        if pace.due(epoch) or epoch + 1 == trial.train.epochs:
            with pace.measured():
                write(None)
                folder.push()
            best = None
        if perf_counter() - told >= TELL_EVERY or epoch + 1 == trial.train.epochs:
            tell(**{key: value for key, value in row.items() if key != "layers"}, epochs=trial.train.epochs)
            told = perf_counter()

    distributed.assert_same_model(setup.model, "at the end")
    if lead:
        board.close()
        collapsed = collapsed_epoch([row["train_accuracy"] for row in epochs], setup.chance, len(setup.train))
        if collapsed is not None:
            note(f"WARNING: collapsed: training accuracy stays at chance from epoch {collapsed} to the end")
        folder.finish(_result(setup, started, perf_counter() - clock, epochs, collapsed) | provenance)
        tell(done=True)


def _assert_same_data(digest: str, announced: str | None, state: dict[str, Any] | None) -> None:
    """Raise on every rank unless all ranks, the launch and the checkpoint mean the same images."""
    every = distributed.of_every_rank(digest)
    if odd := [str(rank) for rank, other in enumerate(every) if other != every[0]]:
        raise distributed.RanksDiffer(f"data: the images on rank {', '.join(odd)} differ from those on rank 0")
    if announced not in (None, every[0]):
        raise ConfigError("data: the images on this node are not those of the launch; data.source differs there")
    if state and state.get("data_digest", every[0]) != every[0]:
        raise ConfigError("data: the checkpoint is of training on other images; choose another name=... or --results")


class _Pace:
    """After which epochs a trial is written: every so many, or with `auto` as many as cost `SHARE` of its time.

    A process that dies loses what it trained since; `LONGEST` seconds bound that where storage is slow.
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
        """Around the writing."""
        began = perf_counter()
        yield
        self.ended = perf_counter()
        self.cost = self.ended - began


def _place(epochs: int, part: Part | None) -> str:
    return f"epoch {epochs}" + (f", step {part['steps']}" if part else "")


def _is_best(epochs: list[Row]) -> bool:
    """Whether the last epoch is the first with the best accuracy on held-out images."""
    *before, last = [row["val_accuracy"] for row in epochs]
    return last is not None and all(value is None or value < last for value in before)


def collapsed_epoch(accuracies: list[float], chance: float, images: int) -> int | None:
    """The epoch from which training accuracy never again rose above chance, or None.

    `chance` is the share of the most frequent class; three binomial standard errors are allowed on top. Fewer than
    three epochs at the end are not called a collapse.
    """
    limit = chance + 3 * (chance * (1 - chance) / images) ** 0.5
    first = len(accuracies)
    while first > 0 and accuracies[first - 1] <= limit:
        first -= 1
    return first if len(accuracies) - first >= 3 else None


class _Ranking:
    """Says how far a ranking is, every `RANKING_EVERY` seconds, twenty times at most; quick ones say nothing."""

    def __init__(self, note: Callable[[str], None]) -> None:
        self.note, self.last, self.done = note, perf_counter(), 0

    def __call__(self, done: int, total: int) -> None:
        if perf_counter() - self.last >= RANKING_EVERY and done - self.done >= total / 20:
            self.last, self.done = perf_counter(), done
            self.note(f"ranking: {done} of {total} filters")


def _result(
    setup: Setup, started: datetime, seconds: float, epochs: list[Row], collapsed: int | None
) -> dict[str, Any]:
    resources = setup.trial.resources
    return {
        "status": "done",
        "started": started.isoformat(),
        "finished": datetime.now(UTC).isoformat(),
        "wall_seconds": seconds,
        "images_per_second": len(epochs) * len(setup.train) / sum(row["seconds"] for row in epochs),
        "collapsed_epoch": collapsed,
        "precision": setup.precision,
        "data_digest": setup.data_digest,
        "plug_ins": setup.trial.plug_ins,
        "workers": distributed.world_size(),
        "threads": resources.cpus_per_worker,
        "checksum": distributed.checksum(setup.model),
        "parameters": sum(p.numel() for p in setup.model.parameters()),
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in _PACKAGES},
        "hardware": hardware(setup.device),
    }


_PACKAGES = ("repr_ray", "torch", "torchvision", "ray", "numpy")


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def hardware(device: torch.device) -> dict[str, Any]:
    """What a timing needs beside it: processor, its cores, and the GPU if one was used."""
    capabilities = torch.cpu.get_capabilities()
    return {
        "cpu": capabilities.get("cpu_name", platform.processor()),
        "cores": capabilities.get("num_logical_cores"),
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
    }


def _to_tensorboard(board: SummaryWriter, row: Row, events: list[LayerEvent]) -> None:
    scalars = {key: value for key, value in row.items() if isinstance(value, float)}
    scalars |= {"filters_dropped": row["filters_dropped"]}
    scalars |= {f"overlap/{layer}": state["overlap"] for layer, state in row["layers"].items()}
    values = [Summary.Value(tag=tag, simple_value=value) for tag, value in scalars.items()]
    board.file_writer.add_summary(Summary(value=values), row["epoch"])  # `add_scalar` makes an event of each
    if events and events[0].event == "drop":
        board.add_image("dropped_filters", _on_off(events), row["epoch"], dataformats="HW")


def _on_off(events: list[LayerEvent], pixels: int = 12) -> NDArray[np.uint8]:
    """A picture of one drop: a row of squares per layer, black for dropped filters, grey beyond the last."""
    picture = np.full((len(events), max(len(event.dropped) for event in events)), 128, np.uint8)
    for line, event in zip(picture, events, strict=True):
        line[: len(event.dropped)] = np.where(event.dropped, 0, 255)
    return picture.repeat(pixels, axis=0).repeat(pixels, axis=1)
