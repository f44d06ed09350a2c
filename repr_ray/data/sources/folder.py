"""Folders: Parquet files through Hugging Face `datasets`, a folder per class, or torchvision's own files."""

import hashlib
import json
import os
import re
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from repr_ray.data.source import SPLIT_NAMES, FileRows, Rows, Source, Splits, open_bytes
from repr_ray.data.sources.torchvision import read_torchvision
from repr_ray.storage.folder import redact
from repr_ray.storage.text import listed
from repr_ray.study.config import ConfigError
from repr_ray.study.data import OF_PARQUET, Data

IMAGES = (".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".gif")
OTHER_IMAGES = (".tif", ".tiff", ".heic", ".heif", ".avif", ".jp2", ".jxl", ".ppm", ".pgm", ".pbm", ".tga")
UNLABELLED = -1
_LIKE_A_SPLIT = re.compile(
    r"(train(ing)?|test(ing)?|val(id(ation)?)?|dev)([ _-]?(set|data|images?|split|\d+))?", re.I
)
DEEPEST = 3
"""Parts of the path of a Parquet file below its data set's folder: configuration/split/file at most."""


def folder(data: Data) -> Source:
    """A folder on this machine."""
    path = Path(data.source)
    try:
        if not path.is_dir():
            raise ConfigError(f"data.source={data.source}: there is no such folder")
    except OSError as error:
        raise ConfigError(f"data.source={data.source}: {error.strerror}") from None
    return folder_at(path, data)


def folder_at(path: Path, data: Data) -> Source:
    """The source in a folder. Its stamps cover every file in it but hidden ones. Raises ConfigError."""
    parquet, pictures, count, size, stamps = list[Path](), False, 0, 0, hashlib.sha256()
    for file, status in _files(path, data):  # of which there may be millions, in every trial
        count, size = count + 1, size + status.st_size
        stamps.update(json.dumps([str(file.relative_to(path)), status.st_size, status.st_mtime_ns]).encode())
        kind = file.suffix.lower()
        parquet += [file] if kind == ".parquet" else []
        pictures = pictures or kind in IMAGES
    found = [[count, size, stamps.hexdigest()]]
    if parquet:
        names = [file.relative_to(path) for file in parquet]
        # to lay out a tree as large as a home folder would take many minutes
        if deep := [name for name in names if len(name.parts) > DEEPEST]:
            raise _error(data, deep[0], "lies too deep; name the folder of the data set itself")
        _refuse_incomplete(path, parquet, data)
        return Source(lambda scratch: _read_parquet(path, data, scratch), found)
    if columns := [field for field in OF_PARQUET if getattr(data, field)]:
        raise _error(data, f"has no Parquet files, and data.{columns[0]} names a part of one; leave it out")
    if pictures:
        return Source(lambda scratch: _read_class_folders(path, data), found)
    if data.facts and (name := data.facts.torchvision) and count:
        return Source(lambda scratch: read_torchvision(data, name, path, download=False), found)
    raise _error(data, "holds neither Parquet files nor folders of JPEG, PNG or WebP images")


def _error(data: Data, *parts: object) -> ConfigError:
    """One line that names the source, and the file or column."""
    text = ": ".join(" ".join(str(part).split()) for part in parts)
    return ConfigError(f"data.source={redact(data.source)}: {''.join(c if c.isprintable() else '?' for c in text)}")


def _files(folder: Path, data: Data, above: tuple[str, ...] = ()) -> Iterator[tuple[Path, os.stat_result]]:
    """Every regular file below a folder, in order; links are followed unless they form a circle."""
    here = os.path.realpath(folder)
    try:
        with os.scandir(folder) as entries:
            found = sorted(entry.name for entry in entries if not entry.name.startswith("."))
        for name in found:
            path = folder / name
            try:
                status = path.stat()
            except (FileNotFoundError, RuntimeError):
                raise _error(data, path, "is a link to nothing") from None
            if stat.S_ISDIR(status.st_mode):
                if os.path.realpath(path) in (here, *above):
                    raise _error(data, path, "is a link to a folder that it lies in")
                yield from _files(path, data, (here, *above))
            elif stat.S_ISREG(status.st_mode):
                yield path, status
            else:
                raise _error(data, path, "is a pipe, socket or device, not a file")
    except OSError as error:
        raise _error(data, error.filename or folder, error.strerror or error) from None


def _refuse_incomplete(root: Path, files: Sequence[Path], data: Data) -> None:
    """Raise ConfigError if a shard is missing, or if a file is a copy of another."""
    shards: dict[tuple[Path, str, int], set[int]] = {}
    for file in files:
        if re.search(r"( \(\d+\)| copy( \d+)?|~)\.parquet$", file.name, re.IGNORECASE):
            raise _error(
                data, file.relative_to(root), "looks like a copy of another file; move it away, or rename it"
            )
        if match := re.fullmatch(r"(.*)-(\d+)-of-(\d+)\.parquet", file.name):
            shards.setdefault((file.parent, match[1], int(match[3])), set()).add(int(match[2]))
    for (parent, prefix, count), there in shards.items():
        if missing := count - len(there & set(range(count))):
            name = (parent / f"{prefix}-*-of-{count:05}.parquet").relative_to(root)
            raise _error(data, name, f"{missing} of {count} files are missing")


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


def _read_parquet(root: Path, data: Data, scratch: Path) -> Splits:
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    import datasets
    import pyarrow as pa
    import pyarrow.compute as pc

    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    try:
        builder = datasets.load_dataset_builder(str(root), data.configuration, cache_dir=str(scratch))
        found = {str(split): [Path(name) for name in names] for split, names in builder.config.data_files.items()}
    except Exception as error:  # the library's, fsspec's and pyarrow's
        if (known := _configurations(root)) and data.configuration not in known:
            there = f"it has the configurations {', '.join(known)}; set one, as in data.configuration={known[0]}"
            raise _error(data, there) from None
        raise _error(data, f"cannot be laid out as a data set ({_first_line(error)})") from None
    for file in (file for files in found.values() for file in files):
        if not Path(os.path.normpath(file)).is_relative_to(os.path.normpath(root)):  # of `..`; links are followed
            raise _error(data, file, "is named by the README, and does not lie in this folder")
        if file.suffix.lower() != ".parquet":
            raise _error(data, file, "is not a Parquet file, others are; keep files of one kind here")
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
        raise _error(data, f"columns {image}, {label}: the files do not fit together ({reason})") from None
    rows: dict[str, Rows] = {}
    names = next(iter(named.values()), ())
    if _is_text(next(iter(tables.values())).data.column(label).type):  # classes in alphabetical order
        names = tuple(
            sorted({text for table in tables.values() for text in table.data.column(label).unique().to_pylist()})
        )
    for split, table in tables.items():
        if isinstance(table.features[image], datasets.Image):
            table = table.cast_column(image, datasets.Image(decode=False))
        column = table.data.column(label)
        texts = pc.index_in(column, pa.array(names, column.type)) if _is_text(column.type) else column
        labels = texts.to_numpy().astype(np.int64)
        of_file = np.repeat(np.arange(len(found[split])), [counts[file] for file in found[split]])
        for place, file in enumerate(found[split]):
            if (own := named.get(file, names)) != names:  # the same classes in another order
                here = (of_file == place) & (labels >= 0) & (labels < len(own))
                labels[here] = np.asarray([names.index(name) for name in own])[labels[here]]
        rows[split] = _ParquetRows(
            table.select_columns([image]),
            image,
            labels,
            [(str(file.relative_to(root)), counts[file]) for file in found[split]],
        )
    return Splits(rows, names)


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
                        raise _error(data, name, f"column {column} holds {here}, in {other} {there}")
                if names := _class_names(schema, label):
                    named[file] = names
                    known, other = next(iter(named.values())), next(iter(named)).relative_to(root)
                    if sorted(names) != sorted(known):
                        told = f"{listed(names, 5)}; in {other} {listed(known, 5)}"
                        raise _error(data, name, f"column {label} has the classes {told}: give both the same")
                if counts[file] == 0:
                    raise _error(data, name, f"column {label} has no rows")
                groups = (opened.read_row_group(g, columns=[label]) for g in range(opened.num_row_groups))
                if nulls := sum(group[label].null_count for group in groups):
                    raise _error(data, name, f"column {label} is empty in {nulls:,} rows; fill or remove them")
        except ConfigError:
            raise
        except Exception as error:  # any damage
            raise _error(data, name, f"is damaged ({_first_line(error)}); fetch that file again") from None
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
        raise _error(data, name, _which("image", images, "images (bytes, or a struct of them)", schema.names))
    if label is None:
        raise _error(data, name, _which("label", labels, "labels (whole numbers)", schema.names))
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
            raise _error(data, name, f"there is {count} column {column}; there are {', '.join(schema.names)}")
    if not _holds_images(kind := schema.field(image).type):
        raise _error(data, name, f"column {image} holds {kind}, not images: bytes, or a struct with a field bytes")
    if not _holds_labels(kind := schema.field(label).type):
        raise _error(
            data, name, f"column {label} holds {kind}; labels are whole numbers from 0, or texts: convert it"
        )


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

    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _require_readable(root: Path, file: Path, data: Data) -> None:
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(file) as opened:
            for _ in opened.iter_batches(1_000):
                pass
    except Exception as error:
        raise _error(
            data, file.relative_to(root), f"is damaged ({_first_line(error)}); fetch that file again"
        ) from None


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:300]}"


def _read_class_folders(root: Path, data: Data) -> Splits:
    """`SPLIT/CLASS/**/IMAGE`, or `CLASS/**/IMAGE` if no folder has the name of a split."""
    every = [file for file, _ in _files(root, data)]
    if unread := [file for file in every if file.suffix.lower() in OTHER_IMAGES]:
        read = ", ".join(kind.removeprefix(".") for kind in IMAGES)
        raise _error(
            data, unread[0], f"{len(unread):,} images of such formats are not read, only {read}; convert them"
        )
    files = [file for file in every if file.suffix.lower() in IMAGES]
    parts = [file.relative_to(root).parts for file in files]
    by_split: dict[str, list[tuple[str, Path]]] = {}
    splits = {first for first, *rest in parts if rest} & {*SPLIT_NAMES, *(name for _, name in data.splits if name)}
    alike = sorted({first for first, *rest in parts if len(rest) > 1 and _LIKE_A_SPLIT.fullmatch(first)} - splits)
    if len(alike) > 1 and not splits:
        raise _error(
            data,
            f"{', '.join(alike)} look like splits, not classes; set them, as in data.splits.test={alike[0]}",
        )
    for file, (first, *rest) in zip(files, parts, strict=True):
        if splits and first not in splits:
            raise _error(
                data,
                file,
                f"lies in none of the split folders {', '.join(sorted(splits))}; put every class into one of them",
            )
        inside = rest if splits else [first, *rest]
        label = inside[0] if len(inside) > 1 else ""
        by_split.setdefault(first if splits else "train", []).append((label, file))
    names = tuple(sorted({label for entries in by_split.values() for label, _ in entries if label}))
    if not names:
        raise _error(data, "its images lie in no folders of classes")
    place = {name: number for number, name in enumerate(names)} | {"": UNLABELLED}
    rows: dict[str, Rows] = {}
    for split, entries in by_split.items():
        if len({not label for label, _ in entries}) > 1:
            raise _error(
                data, next(file for label, file in entries if not label), "lies in no class folder, others do"
            )
        entries.sort(key=lambda entry: (place[entry[0]], entry[1]))
        labels = np.asarray([place[label] for label, _ in entries], dtype=np.int64)
        rows[split] = FileRows([file for _, file in entries], labels)
    return Splits(rows, names)
