"""How long a report takes, and how much memory: python -m benchmarks.report [--trials 2000] [--epochs 200]

Generates result files as the training side leaves them (20 schemes x 10 seeds a block, three layers of 32 filters,
cycles of 20 + 10 epochs), then makes the whole report in a process of its own. The limits are 30 s and 2 GB for 2,000
trials of 200 epochs. Last figures: results/report.md.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import yaml

SCHEMES, SEEDS = 20, 10
LAYERS = ("conv1", "conv2", "conv3")
FILTERS = 32
S1, S2 = 20, 10


def generate(results: Path, trials: int, epochs: int) -> int:
    """Write `trials` finished trials; returns their bytes."""
    results.mkdir(parents=True)
    names = ["standard", *(f"repr prune_ratio={0.02 * k:.2f}" for k in range(1, SCHEMES))]
    experiment = {"name": results.name, "baseline": "standard", "schemes": {"standard": {}, "repr": {}}}
    (results / "experiment.yaml").write_text(yaml.safe_dump(experiment))
    rng, size = np.random.default_rng(0), 0
    for number in range(trials):
        block, place = divmod(number, SCHEMES * SEEDS)
        scheme, seed = names[place // SEEDS], place % SEEDS
        variant = f"train.optimizer.learning_rate={0.01 * (block + 1):.2f}"
        for name, text in _trial(rng, scheme, variant, seed, epochs).items():
            path = results / "trials" / f"convnet-3x32-cifar10-{number:05d}" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
            size += len(text)
    return size


def _trial(rng: np.random.Generator, scheme: str, variant: str, seed: int, epochs: int) -> dict[str, str]:
    pruned = scheme != "standard"
    method: dict[str, Any] = {"kind": "repr" if pruned else "standard", "scheme": scheme}
    config = {
        "experiment": "scale",
        "dataset": "cifar10",
        "model": "convnet-3x32",
        "scheme": scheme,
        "variant": variant,
        "seed": seed,
        "fingerprint": "00000000",
        "epochs": epochs,
        "settings": {
            "data": {"name": "cifar10"},
            "model": {"depth": 3},
            "train": {"rate": variant},
            "scheme": method,
        },
        "resources": {"workers": 1},
    }
    curve = 0.72 * (1 - np.exp(-np.arange(1, epochs + 1) / 20)) + rng.normal(0, 0.004, epochs)
    lines, events, dropped = [], [], {}
    for epoch, test in enumerate(curve.round(4).tolist()):
        cycle, within = divmod(epoch, S1 + S2)
        sub = pruned and within >= S1
        if pruned and within in (S1, 0) and epoch:
            event = "drop" if within == S1 else "reinit"
            for layer in LAYERS:
                scores = rng.random(FILTERS).round(6).tolist() if event == "drop" else None
                dropped[layer] = [int(s > 0.7) for s in scores] if scores else dropped[layer]
                common = {"cycle": cycle - (event == "reinit"), "event": event, "epoch": epoch, "layer": layer}
                overlap = {"overlap_before": 0.2, "overlap_after": 0.1}
                events.append(common | overlap | {"scores": scores, "dropped": dropped[layer]})
        off = {layer: sum(dropped.get(layer, [])) * sub for layer in LAYERS}
        lines.append(
            {"epoch": epoch, "phase": "sub" if sub else "full", "cycle": cycle}
            | {"train_loss": 2.3 - 2 * test, "train_accuracy": test + 0.05, "val_loss": None, "val_accuracy": None}
            | {"test_loss": 2.3 - 1.9 * test, "test_accuracy": test, "learning_rate": 0.01}
            | {"filters_dropped": sum(off.values()), "images_per_second": 2000.0, "seconds": 25.0}
            | {"layers": {k: {"overlap": 0.2, "dropped": off[k], "filters": FILTERS} for k in LAYERS}}
        )
    result = {"status": "done", "wall_seconds": 25.0 * epochs, "images_per_second": 2000.0, "precision": "bf16"}
    result |= {"workers": 1, "threads": 2, "versions": {"torch": "2"}, "commit": "0", "command": "launch"}
    return {
        "config.yaml": yaml.safe_dump(config, sort_keys=False),
        "epochs.jsonl": "".join(json.dumps(line) + "\n" for line in lines),
        "cycles.jsonl": "".join(json.dumps(event) + "\n" for event in events),
        "log.txt": "".join(f"epoch {k} test accuracy {test:.4f}\n" for k, test in enumerate(curve)),
        "result.json": json.dumps(result),
    }


def _cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def main() -> None:
    """Generate, report, and print time, memory and the size of the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--trials", type=int, default=2000)
    parser.add_argument("--epochs", type=int, default=200)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder) / "scale"
        size = generate(results, options.trials, options.epochs)
        # As after an installation: the first run compiles every module, later ones find the byte code.
        environment = os.environ | {
            "PYTHONPYCACHEPREFIX": str(Path(folder) / "bytecode"),
            "PYTHONDONTWRITEBYTECODE": "",
        }
        command = [sys.executable, "-m", "repr_ray.report", str(results)]
        runs = []
        for _ in range(2):
            load, before, start = os.getloadavg()[0], _cpu_seconds(), time.monotonic()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment)
            seconds = time.monotonic() - start
            runs.append(f"{seconds:.1f} s, {_cpu_seconds() - before:.1f} s of CPU, load average {load:.1f} before")
        memory = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
        page = (results / "report.html").stat().st_size
    figures = {
        "Trials x epochs": f"{options.trials:,} x {options.epochs}",
        "Result files": f"{size / 1e6:.0f} MB",
        "First run after an installation": runs[0],
        "From then on": runs[1],
        "Memory of the largest process": f"{memory / 1e6:.2f} GB",
        "report.html": f"{page / 1e6:.1f} MB",
        "Cores": str(os.cpu_count()),
        "Versions": ", ".join(f"{name} {version(name)}" for name in ("pandas", "pyarrow", "matplotlib", "scipy")),
    }
    table = "".join(f"| {name} | {value} |\n" for name, value in figures.items())
    text = f"# Report\n\n`python -m benchmarks.report`\n\n| | |\n|---|---|\n{table}"
    (Path(__file__).parent / "results" / "report.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
