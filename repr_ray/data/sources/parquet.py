"""Parquet files of images, through Hugging Face `datasets`."""

import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from repr_ray.data.source import UNLABELLED, Rows, Splits, open_bytes, plain_names, wrong
from repr_ray.storage.text import listed
from repr_ray.study.config import ConfigError
from repr_ray.study.data import Data

DEEPEST = 3
"""Parts of the path of a Parquet file below its data set's folder: configuration/split/file at most."""


def refuse_wrong_layout(root: Path, files: Sequence[Path], data: Data) -> None:
    """Raise ConfigError for files that lie too deep, for a missing shard, and for a copy of another file."""
    names = [file.relative_to(root) for file in files]
    # to lay out a tree as large as a home folder would take many minutes
    if deep := [name for name in names if len(name.parts) > DEEPEST]:
        raise wrong(data, deep[0], "is too deep below the folder; name the folder of the data set itself")
    shards: dict[tuple[Path, str, int], set[int]] = {}
    for file in files:
        if re.search(r"( \(\d+\)| copy( \d+)?|~)\.parquet$", file.name, re.IGNORECASE):
            raise wrong(data, file.relative_to(root), "looks like a copy of another file; move it away, or rename it")
        if match := re.fullmatch(r"(.*)-(\d+)-of-(\d+)\.parquet", file.name):
            shards.setdefault((file.parent, match[1], int(match[3])), set()).add(int(match[2]))
    for (parent, prefix, count), there in shards.items():
        if missing := count - len(there & set(range(count))):
            name = (parent / f"{prefix}-*-of-{count:05}.parquet").relative_to(root)
            raise wrong(data, name, f"{missing} of {count} files are missing")


@dataclass(frozen=True)
class _ParquetRows:
    """Encoded images in the rows of Parquet files, as `datasets` maps them into memory."""

    table: Any
    column: str
    labels: NDArray[np.int64]
    files: Sequence[tuple[str, int]]

    def encoded(self, index: int) -> bytes:
        value = self.table[index][self.column]
        found: bytes | None = value.get("bytes") if isinstance(value, dict) else value
        if not found:
            raise ValueError("holds no bytes")
        return found

    def image(self, index: int) -> Image.Image:
        return open_bytes(self.encoded(index))

    def where(self, index: int) -> str:
        for name, rows in self.files:
            if index < rows:
                return f"{name}, row {index}, column {self.column}"
            index -= rows
        return f"row {index}, column {self.column}"


def read_parquet(root: Path, data: Data, scratch: Path) -> Splits:
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    import datasets

    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    try:
        builder = datasets.load_dataset_builder(str(root), data.configuration, cache_dir=str(scratch))
        found = {str(split): [Path(name) for name in names] for split, names in builder.config.data_files.items()}
    except Exception as error:  # the library's, fsspec's and pyarrow's
        if (known := _configurations(root)) and data.configuration not in known:
            there = f"it has the configurations {', '.join(known)}; set one, as in data.configuration={known[0]}"
            raise wrong(data, there) from None
        raise wrong(data, f"cannot be laid out as a data set ({_first_line(error)})") from None
    for file in (file for files in found.values() for file in files):
        if not Path(os.path.normpath(file)).is_relative_to(os.path.normpath(root)):  # of `..`; links are followed
            raise wrong(data, file, "is named by the README, but is outside this folder")
        if file.suffix.lower() != ".parquet":
            raise wrong(data, file, "is not a Parquet file, others are; keep files of one kind here")
    every = [file for files in found.values() for file in files]
    image, label, counts, named = _check_files(root, every, data)
    try:
        builder = datasets.load_dataset_builder(
            "parquet",
            data_files={split: [str(file) for file in files] for split, files in found.items()},
            columns=[image, label],
            cache_dir=str(scratch),
        )
        builder.download_and_prepare()
        tables = {split: builder.as_dataset(split) for split in found}
    except Exception as error:
        for file in every:
            _require_readable(root, file, data)
        reason = _first_line(error.__cause__ or error)
        raise wrong(data, f"columns {image}, {label}: the files do not fit together ({reason})") from None
    rows: dict[str, Rows] = {}
    columns = {split: _plain_column(table.data.column(label)) for split, table in tables.items()}
    names = max(named.values(), key=len, default=()) or _of_texts(list(columns.values()), data)
    for split, table in tables.items():
        if isinstance(table.features[image], datasets.Image):
            table = table.cast_column(image, datasets.Image(decode=False))
        orders = [(counts[file], named.get(file, names)) for file in found[split]]
        rows[split] = _ParquetRows(
            table.select_columns([image]),
            image,
            _labels(columns[split], names, orders),
            [(str(file.relative_to(root)), counts[file]) for file in found[split]],
        )
    return Splits(rows, names)


def _plain_column(column: Any) -> Any:
    """Texts as one type of text."""
    import pyarrow as pa

    return column.cast(pa.string()) if _is_text(column.type) else column


def _of_texts(columns: Sequence[Any], data: Data) -> tuple[str, ...]:
    """The classes of columns of texts: in the given or published order, else the alphabet's; empty for numbers."""
    if not _is_text(columns[0].type):
        return ()
    found = {text for column in columns for text in column.unique().to_pylist() if text}
    known = [data.classes if isinstance(data.classes, tuple) else (), data.facts.labels if data.facts else ()]
    return next((order for order in known if set(order) == found), tuple(sorted(found)))


def _labels(column: Any, names: tuple[str, ...], orders: Sequence[tuple[int, tuple[str, ...]]]) -> NDArray[np.int64]:
    """Labels as places in `names`, -1 for an empty text.

    `orders` has the rows and the names of each file, which may have another order.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    if _is_text(column.type):
        column = pc.fill_null(pc.index_in(column, pa.array(names, pa.string())), UNLABELLED)
    labels = column.to_numpy().astype(np.int64)
    place = {name: number for number, name in enumerate(plain_names(names))}
    start = 0
    for rows, own in orders:
        part = labels[start : start + rows]
        if own != names:
            known = (part >= 0) & (part < len(own))
            part[known] = np.asarray([place[name] for name in plain_names(own)])[part[known]]
        start += rows
    return labels


def _configurations(root: Path) -> list[str]:
    """The configurations of the data set in a folder, as its README names them; empty if it cannot be read."""
    import datasets

    try:
        return list(datasets.get_dataset_config_names(str(root)))
    except Exception:
        return []


def _check_files(
    root: Path, files: Sequence[Path], data: Data
) -> tuple[str, str, dict[Path, int], dict[Path, tuple[str, ...]]]:
    """The image and label columns of all files, how many rows each file has, and its names of classes, if any.

    Raises ConfigError.
    """
    import pyarrow.parquet as pq

    image, label = "", ""
    first: Any = None
    counts: dict[Path, int] = {}
    named: dict[Path, tuple[str, ...]] = {}
    for file in files:
        name = file.relative_to(root)
        try:
            with pq.ParquetFile(file) as opened:
                schema, counts[file] = opened.schema_arrow, opened.metadata.num_rows
                if first is None:
                    image, label = _columns(schema, data, name)
                _check_types(schema, image, label, data, name)
                first = first or schema
                for column, alike in ((image, _is_bytes), (label, _is_text), (label, _is_whole)):
                    here, there = schema.field(column).type, first.field(column).type
                    if alike(here) != alike(there):
                        other = files[0].relative_to(root)
                        raise wrong(data, name, f"column {column} holds {here}, in {other} {there}")
                if _is_whole(schema.field(label).type) and (names := _class_names(schema, label)):
                    named[file] = names
                if counts[file] == 0:
                    raise wrong(data, name, f"column {label} has no rows")
                groups = (opened.read_row_group(g, columns=[label]) for g in range(opened.num_row_groups))
                if nulls := sum(group[label].null_count for group in groups):
                    raise wrong(data, name, f"column {label} is empty in {nulls:,} rows; fill or remove them")
        except ConfigError:
            raise
        except Exception as error:  # any damage
            raise wrong(data, name, f"is damaged ({_first_line(error)}); fetch that file again") from None
    most = max(named, key=lambda file: len(named[file]), default=None)
    for file, names in named.items():
        if most and not set(plain_names(names)) <= set(plain_names(named[most])):
            told = f"{listed(names, 5)}; in {most.relative_to(root)} {listed(named[most], 5)}"
            raise wrong(data, file.relative_to(root), f"column {label} has the classes {told}: give both the same")
    return image, label, counts, named


def _class_names(schema: Any, label: str) -> tuple[str, ...]:
    """The names of a column's classes in their order, as `datasets` stores them; empty without."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return tuple(map(str, features[label]["names"]))
    except (KeyError, TypeError, ValueError):
        return ()


def _columns(schema: Any, data: Data, name: Path) -> tuple[str, str]:
    """The columns of images and labels: the configured ones, those of usual names, or the only ones that fit."""
    images = [field.name for field in schema if _holds_images(field.type)]
    labels = [field.name for field in schema if _is_whole(field.type)]
    usual = ("label", "labels", "fine_label", "class", "target")
    image = data.image or _pick(schema.names, images, ("img", "image", "images"))
    label = data.label or _pick(schema.names, labels, (data.facts.label, *usual) if data.facts else usual)
    if image is None:
        raise wrong(data, name, _which("image", images, "images (bytes, or a struct of them)", schema.names))
    if label is None:
        raise wrong(data, name, _which("label", labels, "labels (whole numbers)", schema.names))
    return image, label


def _which(field: str, fitting: Sequence[str], what: str, names: Sequence[str]) -> str:
    found = f"columns {', '.join(fitting)} could all be it" if fitting else f"no column holds {what}"
    return f"{found}; there are {', '.join(names)}; name one as data.{field}"


def _pick(names: Sequence[str], fitting: Sequence[str], usual: Sequence[str]) -> str | None:
    """A column of a usual name, even if it does not fit, so that the error names it; else the only one that fits."""
    found = [name for name in usual if name in names]
    return found[0] if found else fitting[0] if len(fitting) == 1 else None


def _check_types(schema: Any, image: str, label: str, data: Data, name: Path) -> None:
    for column in (image, label):
        if schema.names.count(column) != 1:
            count = "more than one" if column in schema.names else "no"
            raise wrong(data, name, f"there is {count} column {column}; there are {', '.join(schema.names)}")
    if not _holds_images(kind := schema.field(image).type):
        raise wrong(data, name, f"column {image} holds {kind}, not images: bytes, or a struct with a field bytes")
    if not _holds_labels(kind := schema.field(label).type):
        raise wrong(data, name, f"column {label} holds {kind}; labels are whole numbers from 0, or texts: convert it")


def _holds_images(kind: Any) -> bool:
    import pyarrow as pa

    if pa.types.is_struct(kind):
        names = [kind.field(i).name for i in range(kind.num_fields)]
        return "bytes" in names and _is_bytes(kind.field("bytes").type)
    return _is_bytes(kind)


def _is_bytes(kind: Any) -> bool:
    import pyarrow as pa

    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _holds_labels(kind: Any) -> bool:
    import pyarrow as pa

    return _is_whole(kind) or _is_text(kind) or pa.types.is_boolean(kind)


def _is_whole(kind: Any) -> bool:
    import pyarrow as pa

    return pa.types.is_integer(kind)


def _is_text(kind: Any) -> bool:
    import pyarrow as pa

    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _require_readable(root: Path, file: Path, data: Data) -> None:
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(file) as opened:
            for _ in opened.iter_batches(1_000):
                pass
    except Exception as error:
        raise wrong(
            data, file.relative_to(root), f"is damaged ({_first_line(error)}); fetch that file again"
        ) from None


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:300]}"
