"""Results folders, gathered into the tables."""

import itertools
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from repr_ray.results.design import common, design_of
from repr_ray.results.files import replacing
from repr_ray.results.store.folders import StoredTrial, describe_foreign, from_folders, or_nothing
from repr_ray.results.store.lines import KEYS
from repr_ray.results.store.parquet import experiment_of, from_parquet, read_stored
from repr_ray.results.store.rows import long_tables
from repr_ray.results.store.schemas import EXPERIMENT_KEY, SCHEMAS, LongTables
from repr_ray.storage.foreign import read_mapping
from repr_ray.storage.text import line
from repr_ray.study.config import Looks

_BATCH = 64  # trials read at once, and a Parquet row group at most
_BATCH_BYTES = 1 << 26  # of their lines, if there are several


@dataclass(frozen=True)
class Tables:
    """The gathered tables: `trials` in memory, the long ones as Parquet files in `folder`."""

    folder: Path
    trials: pd.DataFrame
    sources: dict[str, Path] = field(default_factory=dict)  # trial name -> its folder, where there is one
    notes: list[str] = field(default_factory=list)  # problems that were found
    baseline: str | None = None  # as the first experiment with one names it
    design: Looks | None = None  # if the experiments have looks, all the same

    def read(self, table: str, columns: Sequence[str], trials: Iterable[str]) -> pd.DataFrame:
        """Read columns of a long table for some trials; names are categories. Order is as on disk."""
        path = self.folder / f"{table}.parquet"
        wanted = pa.array(sorted(trials), pa.string())
        return pq.read_table(path, columns=["trial", *columns], filters=pc.field("trial").isin(wanted)).to_pandas()

    def counts(self, folder: Path, trial: str) -> bool:
        """Whether a trial counts as it is in this results folder, and not as it is in another."""
        there = folder / "trials" / trial
        return self.sources.get(trial) == there or trial not in set(self.trials["trial"])

    def publish(self, path: Path) -> None:
        """Copy a table to `path`, by its name. Raises FileExistsError if that is a foreign file."""
        with replacing(path) as temporary:
            shutil.copyfile(self.folder / path.name, temporary)


def gather(folders: Sequence[Path], work: Path) -> Tables:
    """Gather the trials of some results folders into Parquet tables in the folder `work`.

    A folder is read from its trial folders or, without any, from its Parquet tables, which hold what is needed of the
    experiment if there is no experiment.yaml. Unreadable parts become lines in `notes`. A trial in several folders
    counts once, preferably a finished one. Raises ValueError, one line per folder, if there is no trial at all.
    """
    notes: list[str] = []
    trials: list[StoredTrial] = []
    baseline = ""
    designs: list[Looks | str | None] = []
    names: dict[str, None] = {}
    for folder in folders:
        experiment = or_nothing(read_mapping, folder / "experiment.yaml", notes) or experiment_of(folder)
        baseline = baseline or str(experiment.get("baseline") or "")
        found = [*from_folders(folder, notes)] or [*from_parquet(folder, notes)]
        designs += [design_of(experiment.get("seeds"), folder, notes)] if found else []
        if not found:
            notes.append(describe_foreign(folder))
        schemes = experiment.get("schemes")
        rank = {str(name): place for place, name in enumerate(schemes)} if isinstance(schemes, dict | list) else {}
        names |= dict.fromkeys(rank)
        trials += sorted(found, key=lambda trial: _order(trial.row, rank))
    if not trials:
        raise ValueError("\n".join(map(line, notes)))
    trials = _once(trials, notes)
    design = common(designs, notes)
    looks = design if isinstance(design, Looks) else None
    seeds = looks.model_dump(mode="json") if looks else design
    about = {"baseline": baseline, "schemes": list(names), "seeds": seeds}

    with ExitStack() as open_files:
        paths = {name: work / f"{name}.parquet" for name in SCHEMAS}
        long = {name: schema for name, schema in SCHEMAS.items() if name != "trials"}
        writers = {name: open_files.enter_context(pq.ParquetWriter(paths[name], long[name])) for name in long}
        for parts in _read(trials, notes):
            for name, table in parts.items():
                if table.num_rows:
                    writers[name].write_table(table.unify_dictionaries().combine_chunks())
    rows = pa.Table.from_pylist([trial.row for trial in trials], SCHEMAS["trials"])
    metadata = (rows.schema.metadata or {}) | {EXPERIMENT_KEY: json.dumps(about).encode()}
    pq.write_table(rows.replace_schema_metadata(metadata), paths["trials"])
    sources = {trial.row["trial"]: trial.folder for trial in trials if not trial.stored}
    return Tables(work, rows.to_pandas(), sources, notes, baseline or None, looks)


def _read(trials: list[StoredTrial], notes: list[str]) -> Iterator[LongTables]:
    """The long tables in parts, in the order of the trials; completes the rows of the trials."""
    threads = os.cpu_count() or 1
    with ThreadPoolExecutor(threads) as pool:
        for tables, run in itertools.groupby(trials, key=lambda trial: trial.folder if trial.stored else None):
            if tables:
                yield from read_stored(tables, [trial.row["trial"] for trial in run], notes)
                continue
            blocks = [list(block) for _, block in itertools.groupby(run, key=_network)]
            batches = [batch for block in blocks for batch in _batches(block)]
            for start in range(0, len(batches), threads):
                for parts, found in pool.map(_read_batch, batches[start : start + threads]):
                    notes += found
                    yield parts


def _network(trial: StoredTrial) -> tuple[str, ...]:
    """The key of trials whose epochs have the same layers in the same order."""
    return tuple(trial.row[key] for key in ("dataset", "model", "variant"))


def _batches(trials: list[StoredTrial]) -> Iterator[list[StoredTrial]]:
    """Batches of trials that are read at once, bounded in number and bytes."""
    batch: list[StoredTrial] = []
    held = 0
    for trial in trials:
        size = sum(_size(trial.folder / name) for name in KEYS)
        if batch and (len(batch) == _BATCH or held + size > _BATCH_BYTES):
            yield batch
            batch, held = [], 0
        batch.append(trial)
        held += size
    if batch:
        yield batch


def _size(path: Path) -> int:
    try:
        return path.lstat().st_size
    except OSError:
        return 0


def _read_batch(trials: list[StoredTrial]) -> tuple[LongTables, list[str]]:
    """The long tables of trials of the same network, and notes; damage in one trial does not affect the others."""
    notes: list[str] = []
    try:
        return long_tables(trials, notes), notes
    except (ValueError, TypeError, OSError) as error:  # those of pyarrow are among them
        if len(trials) == 1:
            return {}, [f"{trials[0].folder}: epochs and cycles are left out ({line(error)})"]
    single = [_read_batch([trial]) for trial in trials]
    parts = {
        name: pa.concat_tables([schema.empty_table(), *(tables[name] for tables, _ in single if tables)])
        for name, schema in SCHEMAS.items()
        if name != "trials"
    }
    return parts, [note for _, found in single for note in found]


def _once(trials: list[StoredTrial], notes: list[str]) -> list[StoredTrial]:
    """Keep one of the trials with the same name, preferably a finished one."""
    kept: dict[str, StoredTrial] = {}
    data: dict[str, set[str]] = {}
    for trial in trials:
        name = trial.row["trial"]
        data.setdefault(name, set()).update(filter(None, [trial.row["data_digest"]]))
        if name not in kept or (trial.row["status"] == "done" != kept[name].row["status"]):
            kept[name] = trial
    if len(kept) < len(trials):
        notes.append(f"{len(trials) - len(kept)} of the trials are in more than one folder: counted once")
    if others := sum(len(digests) > 1 for digests in data.values()):
        notes.append(
            f"{others} trials in more than one folder were trained on different data there, and one of each is left"
            " out: report on each folder by itself"
        )
    return list(kept.values())


def _natural(text: str) -> tuple[tuple[int, float, str], ...]:
    """A sort key that puts `x=0.5` before `x=10`."""
    parts = re.split(r"(\d+(?:\.\d+)?(?:e[-+]?\d+)?)", text)
    return tuple((0, float(part), "") if place % 2 else (1, 0.0, part) for place, part in enumerate(parts))


def _order(row: dict[str, Any], rank: dict[str, int]) -> tuple[Any, ...]:
    scheme = row["scheme"]  # the user's name, and grid values after it
    place = next((rank[name] for name in rank if f"{scheme} ".startswith(f"{name} ")), len(rank))
    names = [_natural(row[key]) for key in ("dataset", "model", "variant")]
    return (*names, place, _natural(scheme), row["seed"], row["trial"])
