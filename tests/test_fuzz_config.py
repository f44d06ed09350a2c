"""Configs made at random, most of them wrong: each gives trials, or a few short lines, and neither takes long."""

import copy
import os
import random
from pathlib import Path
from time import monotonic, process_time
from typing import Any

import pytest
import yaml
from support import ROOT, TINY

from repr_ray.mistakes import MOST_ERRORS
from repr_ray.study.config import ConfigError
from repr_ray.study.plan import plan
from repr_ray.study.reading import load

SECONDS = float(os.environ.get("REPR_RAY_FUZZ_SECONDS", "10"))
"""How long to try; `make fuzz` takes longer."""

LONGEST = 1.5
"""Seconds of processor time that a config may take; plans of many trials have a test of their own."""

CONFIGS = [TINY, *(yaml.safe_load(path.read_text()) for path in sorted((ROOT / "configs").glob("*.yaml")))]

ODD: list[Any] = [
    *(None, True, False, 0, -1, 1, 2.5, 10**9, 10**30, -(10**400), 1e308, float("inf"), float("nan"), -0.0),
    *("", " ", "x", "0", "1e-2", "auto", "repr", "a.b", "../x", "\x1b[31m", "\u202e", "\ud800", "é" * 300, "9" * 500),
    *([], [[]], [None], [True], [1, 1], ["x"] * 50, {}, {"kind": "repr"}, {"kind": None}, {"kind": ["repr"]}),
    *({"kind": "nowhere:Nothing"}, {"kind": "os:system"}, {"a.b": {"kind": "standard"}}, {1: 2}, {None: None}),
    *(b"x", {"x"}, range(3), list(range(300))),
]
WORDS = ["seeds", "grid", "kind", "lr", "epochs", "schemes.repr.s1", "a.b", "train", "x" * 400, "\n", "", 1, None]
TEXTS = [
    "[" * 3000,
    "&a [*a]",
    "a: &a [*a, *a]",
    "9" * 5000,
    "!!python/name:os.system x",
    "{a: 1, a: 2}",
    "\0",
    "? {}",
]


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of everything in nested mappings and lists."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(found for key, child in inner for found in places(child, (*path, key)))]


def mutate(raw: dict[str, Any], rng: random.Random) -> None:
    """Change, add, copy or remove something somewhere."""
    *above, last = rng.choice([path for path in places(raw) if path])
    block: Any = raw
    for key in above:
        block = block[key]
    what = rng.randrange(5)
    if what == 0:
        del block[last]
    elif what == 1 and isinstance(block, dict):
        block[rng.choice(WORDS)] = copy.deepcopy(rng.choice(ODD))
    elif what == 2:
        source: Any = raw
        for key in rng.choice([path for path in places(raw) if path]):
            source = source[key]
        block[last] = copy.deepcopy(source)
    elif what == 3 and isinstance(block[last], int | float) and not isinstance(block[last], bool):
        block[last] = block[last] * rng.choice([-1, 0, 2, 10, 1e3, 1e12])
    else:
        block[last] = copy.deepcopy(rng.choice(ODD))


def override(rng: random.Random) -> str:
    """A `key=value` of the command line."""
    field = rng.choice(
        ["train.epochs", "seeds", "grid.train.batch_size", "grid.schemes.repr.s1", "grid", "model", ""]
    )
    key = rng.choice([field, f"{field}.{rng.choice(WORDS)}", ".".join(rng.choices("ab", k=200)), "no equals sign"])
    return f"{key}={rng.choice([*TEXTS, *map(str, ODD)])}"


@pytest.mark.fuzz
@pytest.mark.parametrize("seed", [0])
def test_random_configs(tmp_path: Path, seed: int) -> None:
    rng, until, path = random.Random(seed), monotonic() + SECONDS, tmp_path / "x.yaml"
    tried = planned = 0
    while monotonic() < until:
        raw = copy.deepcopy(rng.choice(CONFIGS))
        for _ in range(rng.randint(0, 3)):
            mutate(raw, rng)
        text = yaml.dump(raw, allow_unicode=rng.random() < 0.5) if rng.random() < 0.95 else rng.choice(TEXTS)
        path.write_text(text, errors="surrogateescape" if "\ud800" not in text else "replace")
        overrides = [override(rng) for _ in range(rng.choice([0, 0, 1, 2]))]
        began = process_time()
        try:
            planned += bool(plan(load(path, overrides)))
        except ConfigError as error:
            lines = str(error).split("\n")
            assert len(lines) <= MOST_ERRORS + 1, (text, overrides)
            assert all(line.isprintable() and 0 < len(line) < 2_500 for line in lines), (lines, text, overrides)
        except BaseException as error:
            raise AssertionError(f"{type(error).__name__}: {error}\n{text}\n{overrides}") from error
        assert process_time() - began < LONGEST, (text, overrides)
        tried += 1
    print(f"{tried} configs, {planned} of them planned")
    assert tried > 5 * SECONDS
    assert 0.02 < planned / tried < 0.9
