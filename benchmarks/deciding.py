"""Cost and error rates of verdicts, by simulation: python -m benchmarks.deciding

Simulates studies, decides them with the code that decides real ones, stores the rates in docs/statistics.json and
writes the tables of docs/statistics.md. Every number comes from a fixed random seed: no machine changes it.
"""

import argparse
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from repr_ray.results.decide import VERDICTS, decide
from repr_ray.results.effects import beats
from repr_ray.results.power import seeds_to_differ, seeds_to_equal
from repr_ray.results.sequential import Array, bounds

DOCS = Path(__file__).parents[1] / "docs"
LOOKS = (6, 10, 15, 20)
FIXED = (20,)
STUDIES = 20_000

Row = dict[str, Any]


def _collapsing(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    return rng.standard_normal(shape) - 50 * (rng.random(shape) < 0.05)


RUNS: dict[str, Callable[[np.random.Generator, tuple[int, ...]], Array]] = {
    "normal": lambda rng, shape: rng.standard_normal(shape),
    "Laplace": lambda rng, shape: rng.laplace(0, np.sqrt(0.5), shape),
    "t, 3 degrees": lambda rng, shape: rng.standard_t(3, shape) / np.sqrt(3),
    "skewed (exponential)": lambda rng, shape: 1 - rng.standard_exponential(shape),
    "normal, 5% collapse": _collapsing,
}
"""Distributions of the accuracies of a scheme's runs."""


def differences(schemes: int, effect: float, runs: str, seeds: int, studies: int = STUDIES) -> Array:
    """Shape (studies, schemes, seeds), less a baseline that the schemes share.

    Their standard deviation is 1, except for collapsing runs.
    """
    rng = np.random.default_rng([schemes, seeds, round(100 * effect)])
    drawn = RUNS[runs](rng, (studies, schemes + 1, seeds)) / np.sqrt(2)
    return drawn[:, 1:] - drawn[:, :1] + effect


def simulate(
    looks: Sequence[int], schemes: int, effect: float, margin: float | None = None, runs: str = "normal"
) -> Row:
    """Rates over many studies whose schemes all have the same effect; margin and effect in standard deviations."""
    found = decide(differences(schemes, effect, runs, max(looks)), bounds(tuple(looks)), margin)
    said = {name: found.verdict == code for code, name in enumerate(VERDICTS)}
    wrong = np.zeros(found.verdict.shape, dtype=bool)
    if effect == 0:
        wrong |= said["better"] | said["worse"]
    if effect > 0:
        wrong |= said["worse"]
    if margin is not None and effect >= margin:
        wrong |= said["practically equal"]
    holds = (found.low <= effect) & (effect <= found.high)
    trained = found.seeds.sum(axis=-1) + found.seeds.max(axis=-1)  # the baseline as long as any scheme
    return {
        "looks": list(looks),
        "schemes": schemes,
        "margin": margin,
        "effect": effect,
        "runs": runs,
        **{name: float(where.mean()) for name, where in said.items()},
        "some wrong": float(wrong.any(axis=-1).mean()),
        "interval holds": float(holds.mean()),
        "seeds": float(found.seeds.mean()),
        "trained": float(trained.mean()),
        "fewer": float(1 - trained.mean() / (max(FIXED) * (schemes + 1))),
    }


def uncorrected() -> Row:
    """Error rate of a plain t-test at 5% at every look."""
    drawn = differences(1, 0.0, "normal", max(LOOKS))[:, 0]
    p = [stats.ttest_1samp(drawn[:, :look], 0, axis=-1).pvalue for look in LOOKS]
    return {"some wrong": float((np.min(p, axis=0) <= 0.05).mean())}


def odds(seeds: int, effect: float, studies: int = 1000) -> Row:
    """Coverage of the bootstrap interval of the probability that one run beats another."""
    rng = np.random.default_rng([seeds, round(100 * effect)])
    truth = stats.norm.cdf(effect)
    found = [
        beats(rng.standard_normal(seeds) + effect * np.sqrt(2), rng.standard_normal(seeds)) for _ in range(studies)
    ]
    holds = np.mean([low <= truth <= high for _, low, high in found])
    return {"seeds": seeds, "effect": effect, "truth": float(truth), "interval holds": float(holds)}


def planned(effect: float, margin: float | None = None) -> Row:
    """Share of studies with the seeds that `--power` names which reach the verdict."""
    seeds = seeds_to_equal(margin, 1.0, 0.05) if margin else seeds_to_differ(effect, 1.0, 0.05)
    if seeds is None:
        raise ValueError(f"effect {effect}, margin {margin}: no number of seeds is enough")
    rates = simulate((seeds,), 1, effect, margin)
    reached = rates["practically equal" if margin else "better"]
    return {"effect": effect, "margin": margin, "seeds": seeds, "reached": reached}


def measure() -> dict[str, list[Row]]:
    """All sections of the page; about a minute."""
    return {
        "bounds": [{"looks": list(looks), "nominal": bounds(looks).nominal(0.05)} for looks in _DESIGNS],
        "uncorrected": [uncorrected()],
        "errors": [
            *(simulate(looks, 1, 0.0) for looks in _DESIGNS),
            *(simulate(LOOKS, schemes, 0.0, margin) for schemes in (1, 3, 10) for margin in (None, 0.5)),
            *(simulate(LOOKS, 3, 0.0, None, runs) for runs in RUNS if runs != "normal"),
        ],
        "equality": [
            *(simulate(LOOKS, schemes, margin, margin) for schemes in (1, 3) for margin in (0.5, 1.0, 2.0)),
            *(simulate(LOOKS, 1, 1.0, 1.0, runs) for runs in RUNS if runs != "normal"),
        ],
        "cost": [
            simulate(looks, schemes, effect, margin)
            for schemes in (1, 3)
            for margin in (None, 1.0)
            for effect in (0.0, 0.5, 1.0, 2.0)
            for looks in (LOOKS, FIXED)
        ],
        "odds": [odds(seeds, effect) for seeds in (6, 10, 20) for effect in (0.0, 0.5, 1.0)],
        "planned": [
            *(planned(effect) for effect in (0.5, 1.0, 2.0)),
            *(planned(0.0, margin) for margin in (0.5, 1.0, 2.0)),
        ],
    }


_DESIGNS = [LOOKS, FIXED, (6, 10), (10, 20), (6, 8, 10, 12, 14, 16, 18, 20), (3, 5, 8)]

Column = tuple[str, Callable[[Row], str]]


def _percent(name: str) -> Column:
    return name, lambda row: f"{100 * row[name]:.1f}%"


def _plain(name: str, digits: int = 0) -> Column:
    return name, lambda row: "none" if row[name] is None else f"{row[name]:.{digits}f}"


_LOOKS: Column = ("looks", lambda row: ", ".join(map(str, row["looks"])))
_RUNS: Column = ("runs", lambda row: row["runs"])
_EFFECT, _MARGIN, _SCHEMES = _plain("effect", 1), _plain("margin", 1), _plain("schemes")
COLUMNS: dict[str, list[Column]] = {
    "bounds": [_LOOKS, ("level of each t-test", lambda row: f"{row['nominal']:.4f}")],
    "uncorrected": [_percent("some wrong")],
    "errors": [_RUNS, _LOOKS, _SCHEMES, _MARGIN, _percent("some wrong"), _percent("interval holds")],
    "equality": [_RUNS, _SCHEMES, _MARGIN, _EFFECT, _percent("some wrong"), _percent("interval holds")],
    "cost": [
        _LOOKS,
        _SCHEMES,
        _MARGIN,
        _EFFECT,
        *(_percent(name) for name in ("better", "practically equal", "cannot tell")),
        _plain("seeds", 1),
        ("runs trained", lambda row: f"{row['trained']:.1f}"),
        ("fewer than fixed", lambda row: f"{100 * row['fewer']:.0f}%"),
    ],
    "odds": [_plain("seeds"), _EFFECT, _percent("truth"), _percent("interval holds")],
    "planned": [_EFFECT, _MARGIN, _plain("seeds"), _percent("reached")],
}


def page(text: str, sections: dict[str, list[Row]]) -> str:
    """The page with every table between its markers made again."""
    for name, columns in COLUMNS.items():
        lines = ["| " + " | ".join(title for title, _ in columns) + " |", "|" + "---:|" * len(columns)]
        lines += ["| " + " | ".join(say(row) for _, say in columns) + " |" for row in sections[name]]
        made = "\n".join([f"<!-- {name} -->", *lines, f"<!-- end {name} -->"])
        pattern = rf"<!-- {name} -->.*?<!-- end {name} -->"
        text, count = re.subn(pattern, lambda _, made=made: made, text, flags=re.DOTALL)
        if count != 1:
            raise ValueError(f"docs/statistics.md: {count} places for the table {name}")
    return text


def main() -> None:
    """Simulate, store, and write the page's tables."""
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    sections = measure()
    path = DOCS / "statistics.md"
    path.write_text(page(path.read_text(), sections))
    (DOCS / "statistics.json").write_text(json.dumps(sections, indent=1) + "\n")
    for row in sections["cost"]:
        print(" ".join(say(row) for _, say in COLUMNS["cost"]))


if __name__ == "__main__":
    main()
