"""Time to decode a data set, and to load the decoded copy.

python -m benchmarks.data [--source FOLDER] [--rounds 3]: CIFAR-10 as Parquet in a folder, else 60,000 random pictures
of its size. Every load is in a process of its own, as a trial's would be.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.tables import CPU, spread, table, write
from benchmarks.trials import write_random_cifar

_LOAD = """
import sys
from time import perf_counter
from repr_ray.study.config import Data
from repr_ray.data.decoded import load
started = perf_counter()
decoded = load(Data(name="cifar10", partial=True, source=sys.argv[1]))
print(perf_counter() - started)
"""


def main() -> None:
    """Load with an empty cache and with a full one, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--source", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    first, later = [], []
    with tempfile.TemporaryDirectory() as folder:
        source = args.source or Path(folder)
        if not args.source:
            write_random_cifar(source, 50_000, 10_000)
        for number in range(args.rounds):
            cache = f"{folder}/cache{number}"
            first.append(_load(source, cache))
            later.append(_load(source, cache))
    rows = [("first: decoded from PNG", spread(first)), ("afterwards: a memory map", spread(later))]
    what = "CIFAR-10" if args.source else "random pictures"
    lines = [f"60,000 images, {what}; n = {args.rounds}.", "", *table(("", "seconds"), rows)]
    write("data", "Loading a data set", lines, CPU, os.cpu_count() or 1)


def _load(source: Path, cache: str) -> float:
    command = [sys.executable, "-c", _LOAD, str(source)]
    environment = os.environ | {"REPR_RAY_CACHE": cache}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


if __name__ == "__main__":
    main()
