"""Folders: Parquet files through Hugging Face `datasets`, a folder per class, or torchvision's own files."""

import hashlib
import json
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from repr_ray.data.source import SPLIT_NAMES, UNLABELLED, FileRows, Rows, Source, Splits, wrong
from repr_ray.data.sources.parquet import read_parquet, refuse_wrong_layout
from repr_ray.data.sources.torchvision import read_torchvision
from repr_ray.study.config import ConfigError
from repr_ray.study.data import OF_PARQUET, Data

IMAGES = (".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".gif")
OTHER_IMAGES = (".tif", ".tiff", ".heic", ".heif", ".avif", ".jp2", ".jxl", ".ppm", ".pgm", ".pbm", ".tga")
_LIKE_A_SPLIT = re.compile(
    r"(train(ing)?|test(ing)?|val(id(ation)?)?|dev)([ _-]?(set|data|images?|split|\d+))?", re.I
)


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
        refuse_wrong_layout(path, parquet, data)
        return Source(lambda scratch: read_parquet(path, data, scratch), found)
    if columns := [field for field in OF_PARQUET if getattr(data, field)]:
        raise wrong(data, f"has no Parquet files, and data.{columns[0]} names a part of one; leave it out")
    if pictures:
        return Source(lambda scratch: _read_class_folders(path, data), found)
    if data.facts and (name := data.facts.torchvision) and count:
        return Source(lambda scratch: read_torchvision(data, name, path, download=False), found)
    raise wrong(data, "holds neither Parquet files nor folders of JPEG, PNG or WebP images")


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
                raise wrong(data, path, "is a broken link") from None
            if stat.S_ISDIR(status.st_mode):
                if os.path.realpath(path) in (here, *above):
                    raise wrong(data, path, "is a link to a folder that contains it")
                yield from _files(path, data, (here, *above))
            elif stat.S_ISREG(status.st_mode):
                yield path, status
            else:
                raise wrong(data, path, "is a pipe, socket or device, not a file")
    except OSError as error:
        raise wrong(data, error.filename or folder, error.strerror or error) from None


def _read_class_folders(root: Path, data: Data) -> Splits:
    """`SPLIT/CLASS/**/IMAGE`, or `CLASS/**/IMAGE` if no folder has the name of a split."""
    every = [file for file, _ in _files(root, data)]
    if unread := [file for file in every if file.suffix.lower() in OTHER_IMAGES]:
        read = ", ".join(kind.removeprefix(".") for kind in IMAGES)
        raise wrong(
            data, unread[0], f"{len(unread):,} images of such formats are not read, only {read}; convert them"
        )
    files = [file for file in every if file.suffix.lower() in IMAGES]
    parts = [file.relative_to(root).parts for file in files]
    by_split: dict[str, list[tuple[str, Path]]] = {}
    splits = {first for first, *rest in parts if rest} & {*SPLIT_NAMES, *(name for _, name in data.splits if name)}
    alike = sorted({first for first, *rest in parts if len(rest) > 1 and _LIKE_A_SPLIT.fullmatch(first)} - splits)
    if len(alike) > 1 and not splits:
        raise wrong(
            data,
            f"{', '.join(alike)} look like splits, not classes; set them, as in data.splits.test={alike[0]}",
        )
    for file, (first, *rest) in zip(files, parts, strict=True):
        if splits and first not in splits:
            raise wrong(
                data,
                file,
                f"is in none of the split folders {', '.join(sorted(splits))}; put every class into one of them",
            )
        inside = rest if splits else [first, *rest]
        label = inside[0] if len(inside) > 1 else ""
        by_split.setdefault(first if splits else "train", []).append((label, file))
    names = tuple(sorted({label for entries in by_split.values() for label, _ in entries if label}))
    if not names:
        raise wrong(data, "its images are not in folders of classes")
    place = {name: number for number, name in enumerate(names)} | {"": UNLABELLED}
    rows: dict[str, Rows] = {}
    for split, entries in by_split.items():
        if len({not label for label, _ in entries}) > 1:
            raise wrong(
                data, next(file for label, file in entries if not label), "is in no class folder, unlike others"
            )
        entries.sort(key=lambda entry: (place[entry[0]], entry[1]))
        labels = np.asarray([place[label] for label, _ in entries], dtype=np.int64)
        rows[split] = FileRows([file for _, file in entries], labels)
    return Splits(rows, names)
