"""Generated results folders, with the files that training writes."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

LAYERS = {"features.0.conv": 8, "features.1.conv": 8, "features.2.conv": 8}


def make_trial(
    results: Path,
    *,
    scheme: str = "standard",
    seed: int = 0,
    accuracy: float = 0.7,
    dataset: str = "cifar10",
    model: str = "convnet-3x32",
    variant: str = "",
    epochs: int = 12,
    done: int | None = None,
    error: str | None = None,
    status: str = "failed",
    settings: Mapping[str, Any] | None = None,
    tuned: Mapping[str, Any] | None = None,
    stage: str = "",
    layers: Mapping[str, int] = LAYERS,
    cycle: tuple[int, int] = (3, 2),
    collapsed: int | None = None,
    validation: bool = True,
    log_lines: int = 12,
) -> Path:
    """Write a trial folder whose last test accuracy is exactly `accuracy`; `done` epochs of it, or all.

    `settings` has fields of the settings' blocks, `tuned` those of the experiment that tuning tried or has chosen.
    """
    rng = np.random.default_rng([seed, len(scheme), epochs])
    order = "inverse" if scheme.startswith("inverse") else "worst"
    method: dict[str, Any] = {"kind": "standard"}
    if not scheme.startswith("standard"):
        method = {"kind": "repr", "s1": cycle[0], "s2": cycle[1], "prune_ratio": 0.3}
        method["ranking"] = {"score": "orthogonality", "order": order}
    blocks: dict[str, Any] = {
        "data": {"name": dataset, "source": "torchvision", "train_images": None, "crop_padding": 4, "flip": True},
        "model": {"kind": "convnet", "depth": 3, "width": 32},
        "train": {"epochs": epochs, "batch_size": 128, "optimizer": {"kind": "sgd", "learning_rate": 0.01}},
        "scheme": method,
    }
    for dotted, value in (settings or {}).items():
        block, _, key = dotted.partition(".")
        blocks[block][key] = value
    slug = "-".join(part for part in (model, dataset, scheme, variant, stage) if part)
    slug = "".join(c if c.isalnum() or c in ".=-" else "_" for c in slug)
    fingerprint = hashlib.sha256(json.dumps([slug, blocks], sort_keys=True).encode()).hexdigest()[:8]
    folder = results / "trials" / f"{slug}-s{seed}-{fingerprint}"
    folder.mkdir(parents=True)
    config = {
        "name": folder.name,
        "experiment": results.name,
        "dataset": dataset,
        "model": model,
        "scheme": scheme,
        "variant": variant,
        "seed": seed,
        "fingerprint": fingerprint,
        "epochs": epochs,
        "settings": blocks,
        "resources": {"workers": 1, "cpus": 2},
    } | ({"tuned": dict(tuned)} if tuned else {})
    config |= {"stage": stage} if stage else {}
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    finished = epochs if done is None else done
    if finished:
        lines = _epochs(rng, finished, epochs, accuracy, scheme, layers, cycle, validation)
        (folder / "epochs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        if not scheme.startswith("standard"):
            events = _events(rng, finished, layers, cycle)
            (folder / "cycles.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
        log = [f"epoch {line['epoch']} test accuracy {line['test_accuracy']:.4f}" for line in lines]
        (folder / "log.txt").write_text("\n".join(log[-log_lines:]) + "\n")
    if error is not None:
        failure = {"status": status, "message": error, "epoch": finished, "traceback": "Traceback ...\n" + error}
        (folder / "error.json").write_text(json.dumps(failure))
    elif finished == epochs:
        result = {
            "status": "done",
            "started": "2025-01-01T10:00:00+00:00",
            "finished": "2025-01-01T10:01:00+00:00",
            "wall_seconds": 60.0 + seed,
            "images_per_second": 1000.0 + seed,
            "collapsed_epoch": collapsed,
            "precision": "fp32",
            "workers": 1,
            "threads": 2,
            "checksum": "c0ffee",
            "parameters": 20_000,
            "versions": {"python": "3.11.7", "torch": "2.15.0"},
            "commit": "0123456789abcdef",
            "hardware": {"cpu": "test CPU", "cores": 2, "gpu": None},
            "command": "python -m repr_ray.launch --config configs/quickstart.yaml",
        }
        (folder / "result.json").write_text(json.dumps(result))
    return folder


def _epochs(
    rng: np.random.Generator,
    done: int,
    planned: int,
    accuracy: float,
    scheme: str,
    layers: Mapping[str, int],
    cycle: tuple[int, int],
    validation: bool,
) -> list[dict[str, Any]]:
    s1, s2 = cycle
    rise = 1 - np.exp(-4 * np.arange(1, planned + 1) / planned)
    test = 0.1 + (accuracy - 0.1) * rise / rise[-1] + rng.normal(0, 0.004, planned) * (rise[-1] - rise)
    lines = []
    for epoch in range(done):
        dips = not scheme.startswith("standard") and epoch % (s1 + s2) >= s1
        if dips and epoch < planned - 1:
            test[epoch] -= 0.06
        value = float(test[epoch])
        lines.append(
            {
                "epoch": epoch,
                "phase": "sub" if dips else "full",
                "cycle": epoch // (s1 + s2),
                "train_loss": 2.3 * (1 - value) - 0.1,
                "train_accuracy": min(1.0, value + 0.08 * rise[epoch]),
                "val_loss": 2.3 * (1 - value) if validation else None,
                "val_accuracy": value + 0.001 * (epoch % 2) if validation else None,
                "test_loss": 2.3 * (1 - value),
                "test_accuracy": accuracy if epoch == planned - 1 else value,
                "learning_rate": 0.01,
                "filters_dropped": sum(layers.values()) // 3 if dips else 0,
                "images_per_second": 1000.0,
                "seconds": 5.0,
                "layers": {
                    name: {
                        "overlap": 0.3 / (1 + k) - 0.002 * epoch * dips + 0.05 * rise[epoch],
                        "dropped": count // 3 if dips else 0,
                        "filters": count,
                    }
                    for k, (name, count) in enumerate(layers.items())
                },
            }
        )
    return lines


def _events(
    rng: np.random.Generator, done: int, layers: Mapping[str, int], cycle: tuple[int, int]
) -> list[dict[str, Any]]:
    s1, s2 = cycle
    events = []
    for start in range(s1, done, s1 + s2):
        masks = {}
        for k, (name, count) in enumerate(layers.items()):
            scores = rng.gamma(4, 0.04 / (1 + k), count)
            masks[name] = (scores >= np.sort(scores)[-max(1, count // 3)]).astype(int).tolist()
            common = {"cycle": start // (s1 + s2), "layer": name, "dropped": masks[name]}
            overlap = {"overlap_before": 0.3, "overlap_after": 0.2}
            events.append(common | overlap | {"event": "drop", "epoch": start, "scores": scores.round(6).tolist()})
        if start + s2 < done:
            for name, mask in masks.items():
                common = {"cycle": start // (s1 + s2), "layer": name, "dropped": mask}
                extra = {"largest_cos": 1e-7, "relaxed": 0, "last_resort": 0}
                events.append(common | extra | {"event": "reinit", "epoch": start + s2, "scores": None})
    return events


def make_experiment(
    results: Path, accuracies: Mapping[str, Sequence[float]], baseline: str = "standard", **trial: Any
) -> Path:
    """Write a results folder: a scheme's last test accuracies, one a seed from 0."""
    results.mkdir(parents=True, exist_ok=True)
    experiment = {
        "name": results.name,
        "baseline": baseline,
        "seeds": max(map(len, accuracies.values()), default=0),
        "schemes": {scheme.split(" ")[0]: {} for scheme in accuracies},
    }
    (results / "experiment.yaml").write_text(yaml.safe_dump(experiment, sort_keys=False))
    for scheme, values in accuracies.items():
        for seed, accuracy in enumerate(values):
            make_trial(results, scheme=scheme, seed=seed, accuracy=accuracy, **trial)
    return results
