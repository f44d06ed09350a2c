"""Trials to measure: settings, random images, a set-up that needs no data set, and stored results."""

import dataclasses
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

from repr_ray.data.decoded import Decoded, Split
from repr_ray.study.plan import Trial, plan
from repr_ray.study.reading import validate
from repr_ray.training.setup import set_up
from repr_ray.training.step import Setup

STANDARD = {"standard": {"kind": "standard"}}


def trials(
    model: dict[str, Any], data: dict[str, Any], train: dict[str, Any], schemes: dict[str, Any], **blocks: Any
) -> list[Trial]:
    """The trials of an experiment given as blocks; one seed unless `seeds` says otherwise."""
    raw = {"name": "benchmark", "seeds": [0], "model": model, "data": data, "train": train, "schemes": schemes}
    return plan(validate(raw | blocks, "benchmark"))


def run_on_ray(planned: Sequence[Trial], results: Path) -> None:
    """Train trials on a Ray cluster that is started for them."""
    from repr_ray.runners.ray import run  # not at the top: most benchmarks do without Ray
    from repr_ray.runners.ray_cluster import Connection

    with Connection(planned) as connection:
        connection.wait()
        run(planned, results, lambda message: None, {}, connection)


def cifar_trial(model: dict[str, Any], scheme: dict[str, Any] | None = None, **train: Any) -> Trial:
    """One trial on augmented CIFAR-10, batch 128."""
    data = {"name": "cifar10", "crop_padding": 4, "flip": True}
    schemes = {"scheme": scheme or {"kind": "standard"}}
    return trials(model, data, {"epochs": 1, "batch_size": 128, **train}, schemes, baseline="scheme")[0]


def random_images(count: int) -> Split:
    """Random images of CIFAR's size: speed does not depend on the content."""
    rng = np.random.default_rng(0)
    return Split(rng.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8), rng.integers(0, 10, count))


def set_up_on(trial: Trial, split: Split, precision: str, device: torch.device) -> Setup:
    """`repr_ray.training.setup.set_up` on given images, with the threads that are set."""
    threads = trial.resources.model_copy(update={"cpus_per_worker": torch.get_num_threads()})
    images = Decoded(split, split, split, np.full(3, 0.5), np.full(3, 0.25), 32, 10, (), "random")
    return set_up(dataclasses.replace(trial, resources=threads), device, precision, images)


def write_random_cifar(folder: Path, train: int, test: int) -> None:
    """A CIFAR-10 of random images, as Parquet in the Hugging Face layout."""
    for name, count in (("train", train), ("test", test)):
        split = random_images(count)
        rows = {"img": [{"bytes": _png(image)} for image in split.images], "label": split.labels}
        pq.write_table(pa.table(rows), folder / f"{name}-00000-of-00001.parquet")


def _png(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "png")
    return buffer.getvalue()


def results_of(folder: Path, planned: Sequence[Trial]) -> list[dict[str, Any]]:
    """result.json of every trial, in order."""
    return [json.loads((folder / "trials" / trial.name / "result.json").read_text()) for trial in planned]


def epochs_of(folder: Path, trial: Trial) -> list[dict[str, Any]]:
    """The rows of a trial's `epochs` table."""
    lines = (folder / "trials" / trial.name / "epochs.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]
