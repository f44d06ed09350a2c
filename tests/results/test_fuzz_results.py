"""Untrusted results folders: any damage in a trial gives a note, never a failed report."""

import contextlib
import json
import os
import random
import resource
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from studies import make_experiment, make_trial

from repr_ray.report import report
from repr_ray.results import store

SECONDS = float(os.environ.get("REPR_RAY_FUZZ_SECONDS", "6"))
"""How long to try; `make fuzz` takes longer."""

VALUES: list[Any] = [
    *(None, True, False, 0, -1, 1, 2**31, 2**53, 2**63 - 1, 2**63, -(2**63), 10**400, 0.5, -0.0, 1e30, 1e308, -1e308),
    *(float("nan"), float("inf"), float("-inf"), "", "x", "1", "nan", "=1+1", "\x1b[31m", "\u202e", "é" * 300),
    *("2025-13-45", "0001-01-01T00:00:00+00:00", "9999-12-31T23:59:59-14:00", [], {}, [1], {"a": 1}, {"": {}}),
    *([[[[[[]]]]]], {"kind": "os:system"}, "a" * 5000, ["x"] * 50, {str(k): k for k in range(50)}),
]
"""What may stand where something else belongs."""

BYTES = [
    *(
        b"",
        b"\x00",
        b"\xff\xfe",
        b"{",
        b"[" * 100_000,
        b'{"a":' * 50_000,
        b"- " * 50_000,
        b"9" * 5000,
        b"null",
        b"[]",
    ),
    *(b"&a [*a]", b"a: &a [x,x]\n" + b"".join(b"b%d: &b%d [*a,*a]\n" % (k, k) for k in range(40)), b"? [a]\n: b"),
    b"x0: &x0 [l,l]\n"
    + b"".join(b"x%d: &x%d [%s]\n" % (k, k, b",".join([b"*x%d" % (k - 1)] * 9)) for k in range(1, 9)),
    *(b"!!python/object/apply:os.system [x]", b"a: 2001-99-99"),
    b"\n".join(b'{"epoch": %d, "k%d": 1}' % (k, k) for k in range(3_000)),
    b'{"epoch": 0, "layers": {' + b",".join(b'"l%d": {"overlap": 1}' % k for k in range(20_000)) + b"}}",
]
"""What may stand in a file."""


def bend(value: Any, dice: random.Random) -> Any:
    """A value with something in it replaced, left out, or called by another name."""
    if isinstance(value, dict) and value and dice.random() < 0.85:
        key = dice.choice(list(value))
        change = dice.random()
        if change < 0.15:
            return {k: v for k, v in value.items() if k != key}
        if change < 0.25:
            return {dice.choice([*map(str, VALUES), 1, None]) if k == key else k: v for k, v in value.items()}
        return {**value, key: bend(value[key], dice)}
    if isinstance(value, list) and value and dice.random() < 0.7:
        place = dice.randrange(len(value))
        return [bend(v, dice) if k == place else v for k, v in enumerate(value)]
    return dice.choice(VALUES)


def in_text(path: Path, dice: random.Random) -> None:
    if path.suffix == ".yaml":
        path.write_text(yaml.safe_dump(bend(yaml.safe_load(path.read_text()), dice)))
        return
    lines = path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]
    for place in dice.sample(range(len(lines)), min(len(lines), dice.choice([1, 2, 50]))):
        lines[place] = json.dumps(bend(json.loads(lines[place]), dice))
    path.write_text("\n".join(lines))


CHUNKS = [b"", b"\x00", b"\xff", b'"', b"{", b"[", b"\n", b"9" * 30]


def in_bytes(path: Path, dice: random.Random) -> None:
    content = bytearray(path.read_bytes())
    for _ in range(dice.choice([1, 3, 30])):
        place = dice.randrange(len(content) + 1)
        content[place : place + dice.choice([0, 1, 5])] = dice.choice(
            [b"", b"\x00", b"\xff", b'"', b"{", b"[", b"\n", b"9" * 30]
        )
    path.write_bytes(content)


def other_bytes(path: Path, dice: random.Random) -> None:
    path.write_bytes(dice.choice(BYTES))


def cut(path: Path, dice: random.Random) -> None:
    path.write_bytes(path.read_bytes()[: dice.randrange(path.stat().st_size + 1)])


def something_else(path: Path, dice: random.Random) -> None:
    path.unlink()
    dice.choice(
        [lambda: path.symlink_to("/etc/passwd"), lambda: os.mkfifo(path), path.mkdir, lambda: path.symlink_to("x")]
    )()


WAYS: list[Callable[[Path, random.Random], None]] = [
    in_text,
    in_text,
    in_text,
    in_text,
    in_bytes,
    other_bytes,
    cut,
    something_else,
]


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    results = make_experiment(
        tmp_path_factory.mktemp("fuzz") / "study",
        {"standard": [0.70, 0.71, 0.72], "repr": [0.72, 0.73, 0.74]},
        epochs=8,
    )
    make_trial(results, scheme="repr", seed=3, done=2, error="boom", epochs=8)
    return results


def wound(results: Path, seed: int) -> tuple[str, Path]:
    """Change a file of one trial in one way."""
    dice = random.Random(seed)
    trial = dice.choice(sorted((results / "trials").iterdir()))
    path = dice.choice(sorted(path for path in trial.iterdir() if path.suffix != ".txt"))
    way = dice.choice(WAYS)
    way(path, dice)
    return f"seed {seed}: {way.__name__} of {path.name} in {trial.name}", trial


def peak_memory() -> int:
    """Kilobytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def memory_from_here_on() -> int:
    """Kilobytes in use; on Linux the peak counts anew, so that tests before this one hide nothing."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return peak_memory()


@pytest.mark.fuzz
def test_what_is_wrong_in_a_trial_costs_a_note_never_the_report(study: Path, tmp_path: Path) -> None:
    whole = report([study], output=tmp_path / "whole", formats=[]).trials.set_index("trial")["test_accuracy"]
    started, seed, before = time.monotonic(), 0, memory_from_here_on()
    while seed <= 5 or time.monotonic() - started < SECONDS:
        results = tmp_path / f"{seed}"
        shutil.copytree(study, results)
        what, wounded = wound(results, seed)
        began = time.monotonic()
        pages = seed % 25 == 24  # pictures take a second
        try:
            formats = ["md", "csv", "tex", *["html"] * pages]
            comparison = report([results], formats=formats, output=tmp_path / "out")
        except Exception as error:
            raise AssertionError(what) from error
        assert time.monotonic() - began < 30, what
        others = comparison.trials.set_index("trial")["test_accuracy"].drop(wounded.name, errors="ignore")
        pd.testing.assert_series_equal(others, whole.drop(wounded.name), check_index=True, obj=what)
        assert comparison.trials["test_accuracy"].dropna().between(0, 1).all(), what
        assert not [f for f in store.failures(results) if not f.message], what
        shutil.rmtree(results)
        shutil.rmtree(tmp_path / "out")
        seed += 1
    assert seed > 5
    assert peak_memory() - before < 1_000_000, "more than 1 GB"
