"""What a source holds, in one line for a dry run: nothing is downloaded, and nothing large is read."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

from repr_ray.data.copying import LARGEST as MOST_DECODED
from repr_ray.data.copying import bytes_of
from repr_ray.data.decoded import known_facts, load
from repr_ray.data.images import look, reason
from repr_ray.data.source import Rows, Source
from repr_ray.data.sources import source_of
from repr_ray.data.split import check_classes, check_labels, choose, divide
from repr_ray.storage.folder import redact
from repr_ray.study.data import SOURCES, Data

LARGEST = 2_000_000_000  # bytes of a source that a dry run reads
COLOUR = 3  # channels assumed for images that have not been read


def describe(data: Data) -> str:
    """Splits, classes and the first image, or why they were not looked at. Raises ConfigError as a launch would."""
    facts = known_facts(data) if data.kind != "hf" else None
    if facts:
        encoded = facts.get("encoded")
        channels = encoded["train"]["channels"] if encoded else facts["files"]["train_images"][0][-1]
        sizes = f"{facts['size']} x {facts['size']} pixels, {_channels(channels)}"
        sizes += f"; {'packed' if encoded else 'decoded'} already"
        loaded = load(data)
        counts = {split: facts["files"][f"{split}_labels"][0][0] for split in facts["counts"]}
        notes = [*loaded.notes, *filter(None, [loaded.warning])]
        return _line(data, counts, facts["classes"], facts["names"], "; ".join([sizes, *notes]))
    if (known := SOURCES.get(data.kind)) and known.unseen:
        return _later(data, known.unseen)
    source, _ = source_of(data)
    if data.kind == "folder" and (size := _bytes(source)) > LARGEST:
        return _later(data, f"{size / 1e9:,.0f} GB")
    with tempfile.TemporaryDirectory() as scratch:
        found = source.read(Path(scratch))
        chosen, notes = choose(found, data)
        classes, names = check_labels(chosen, found, data)
        for split, rows in chosen.items():
            check_classes({"train": "training"}.get(split, split), rows.labels, classes, names, data)
        divide(chosen["train"].labels, data, 0)
        first = "; ".join(f"{split} begins with {_first(rows)}" for split, rows in chosen.items())
    counts = {split: len(rows.labels) for split, rows in chosen.items()}
    return _line(data, counts, classes, names, "; ".join([first, *notes]))


def copy_bytes(data: Data) -> int | None:
    """Bytes that the copy of a data set takes on each machine, 0 where it is there already, None if not known yet."""
    if data.kind != "hf" and known_facts(data):
        return 0
    known, source = data.facts, source_of(data)[0] if data.kind == "folder" else None
    size, channels = data.size or (known and known.size), data.channels or (known.channels if known else COLOUR)
    counts = {"train": known.train, "test": known.test} if known else {}
    if data.store != "stream":
        if not counts and source and size and _bytes(source) <= LARGEST:
            with tempfile.TemporaryDirectory() as scratch:
                chosen, _ = choose(source.read(Path(scratch)), data)
                counts = {split: len(rows.labels) for split, rows in chosen.items()}
        if not (counts and size):
            return None
        if (decoded := bytes_of(data, counts, channels, size)) <= MOST_DECODED or data.store == "memory_map":
            return decoded
    return _bytes(source) if source else None


def _bytes(source: Source) -> int:
    return sum(entry[1] for entry in source.stamps)


def _later(data: Data, reason: str) -> str:
    return f"data: {data.name} from {redact(data.source)}: not read ({reason}); a launch reads it before it trains"


def _first(rows: Rows) -> str:
    try:
        image = rows.image(0)
        found = look(image)
        image.load()
    except Exception as error:  # decoders raise errors of many types
        return f"{rows.where(0)}: {reason(error)}"
    return f"{rows.where(0)}: {found.width} x {found.height} pixels, {_channels(found.channels)}"


def _channels(count: int) -> str:
    return "grey" if count == 1 else "colour"


def _line(data: Data, counts: dict[str, int], classes: int, names: Sequence[str], rest: str) -> str:
    splits = ", ".join(f"{count:,} {split}" for split, count in counts.items())
    called = f" ({', '.join(names[:5])}{', ...' if len(names) > 5 else ''})" if names else ""
    return f"data: {data.name}: {splits} images of {classes} classes{called}; {rest}"
