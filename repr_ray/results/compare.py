"""The comparison of every scheme with the baseline, paired by seed.

Differences are of last-epoch test accuracy between trials of the same data, model, training settings and seed. The
interval is Student's t over three differences or more (scipy.stats.ttest_1samp), p the exact two-sided sign-flip test
(scipy.stats.permutation_test), corrected by Holm over all comparisons that are made together: every scheme of every
data set, model and variant. A scheme is called better or worse only if the interval excludes 0 and the corrected p is
at most 0.05. With six pairs or more, but too few for the corrected exact p to reach 0.05, the corrected p of the
paired t-test is used instead, beside the exact p without a correction, and the sentence says so.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from repr_ray.results.blocks import BLOCK, GROUP, one_a_seed, unambiguous
from repr_ray.results.by_looks import judge, note_on
from repr_ray.results.decide import FEWEST, FEWEST_FOR_INTERVAL, LEVEL
from repr_ray.results.power import seeds_needed
from repr_ray.results.sequential import Array, holm
from repr_ray.results.store import UNFINISHED, Tables
from repr_ray.results.words import seeds_text, sentence
from repr_ray.study.config import Looks

_EXACT = 20  # pairs up to which all 2^n sign flips are enumerated
_NOISE = 1e-10  # of a mean of differences: means of counts of images that differ are farther apart


@dataclass(frozen=True)
class Comparison:
    """The comparison and its data.

    `table` has one row per data set, model, variant and scheme, the baseline first; accuracies and differences
    are fractions from 0 to 1 (0.01 is one percentage point), times seconds. `pairs` has one row per scheme and
    seed with its `difference` to the baseline. `trials` is the stored table with `variant` and `scheme` made
    unambiguous. `unfinished` is how many of `planned` trials, those of tuning included, have not ended.
    """

    baseline: str
    table: pd.DataFrame
    pairs: pd.DataFrame
    trials: pd.DataFrame
    notes: list[str]
    unfinished: int
    planned: int
    design: Looks | None = None  # of seeds that were added until decided

    @cached_property
    def answers(self) -> list[str]:
        """A sentence for every scheme that is not the baseline."""
        varying = [key for key in BLOCK if self.table[key].nunique() > 1]
        return [
            sentence(row, self.baseline, [row[key] for key in varying if row[key]], self.differences(row))
            + seeds_text(seeds_needed(row, self.still_open, self.design))
            for row in records(self.table[~self.table["is_baseline"]])
        ]

    @property
    def still_open(self) -> int:
        """The number of comparisons that have no verdict yet."""
        return int((self.table["verdict"] == "cannot tell").sum())

    def differences(self, row: dict[str, Any]) -> list[float]:
        """The paired differences behind a row of the table, by seed; after a look those of its seeds."""
        found = (self.pairs[GROUP] == [row[key] for key in GROUP]).all(axis=1)
        if not pd.isna(row["looked"]) and row["looked"]:
            found &= self.pairs["seed"] < row["looked"]
        return [float(value) for value in self.pairs.loc[found, "difference"]]

    @property
    def answer(self) -> str:
        """The answer in a sentence; several comparisons are counted."""
        if len(self.answers) < 2:
            return " ".join(self.answers) or f"There is nothing yet to compare with {self.baseline}."
        verdicts = self.table["verdict"].value_counts()
        better, worse, equal = (verdicts.get(name, 0) for name in ("better", "worse", "practically equal"))
        rest = len(self.answers) - better - worse - equal
        also = f", {equal} practically equal" if equal or self.table["margin"].notna().any() else ""
        return (
            f"Of {len(self.answers)} comparisons with {self.baseline}, {better} came out better and {worse}"
            f" worse{also}; for {rest} it cannot be told yet."
        )


def compare(tables: Tables, baseline: str | None = None) -> Comparison:
    """Compare the schemes of the gathered trials with `baseline` (else the experiments' own, or `standard`)."""
    baseline = baseline or tables.baseline or "standard"
    notes: list[str] = []
    of_tuning = tables.trials["stage"] == "tuning"
    trials = one_a_seed(unambiguous(tables.trials[~of_tuning], baseline, notes), notes)
    rows: list[dict[str, Any]] = []
    pairs: list[pd.DataFrame] = []
    for _, block in trials.groupby(BLOCK, sort=False):
        key = {name: str(block[name].iloc[0]) for name in BLOCK}
        where = " ".join(filter(None, key.values()))
        groups = {str(scheme): group for scheme, group in block.groupby("scheme", sort=False)}
        base = groups.pop(baseline, None)
        if base is None:
            notes.append(f"{where}: no trial of the baseline {baseline!r}, the schemes are {', '.join(groups)}")
        else:
            rows.append(_describe(base) | {"is_baseline": True})
        for scheme, group in groups.items():
            row = _describe(group) | {"is_baseline": False}
            if base is not None:
                paired = _pair(group, base)
                pairs.append(paired.assign(**key, scheme=scheme))
                row |= {"pairs": len(paired), "missing_seeds": _missing(group, base, paired["seed"])}
                row |= _interval("difference", paired["difference"].to_numpy())
                if set(group["epochs"]) != set(base["epochs"]):
                    notes.append(f"{where}: {scheme} and {baseline} do not train the same number of epochs")
            rows.append(row)
        if len(mixed := sorted(set(block["precision"].dropna()))) > 1:
            notes.append(f"{where}: trials of different precision are compared ({', '.join(mixed)})")
        if lost := int((block["status"] == "diverged").sum()):
            notes.append(f"{where}: {lost} diverged trials have no last-epoch accuracy; the means are of the others")
    tested = [row for row in rows if "pairs" in row]
    _test(tested, [paired["difference"].to_numpy() for paired in pairs])
    columns = [*GROUP, "seed", "difference"]
    joined = pd.concat(pairs)[columns] if pairs else pd.DataFrame(columns=columns)
    if tables.design:
        judge(tested, joined, trials, baseline, tables.design)
        notes.append(note_on(tables.design))
    table = pd.DataFrame(rows, columns=COLUMNS).astype(_KINDS)
    for column in ("missing_seeds", "verdict"):
        table[column] = table[column].astype(object).fillna("")
    statuses = pd.concat([trials["status"], tables.trials.loc[of_tuning, "status"]])
    unfinished = int(statuses.isin(UNFINISHED).sum())
    pairs_of_all = joined.reset_index(drop=True)
    return Comparison(baseline, table, pairs_of_all, trials, notes, unfinished, len(statuses), tables.design)


_MEASURES = (
    *("test_accuracy", "val_accuracy", "best_val_test_accuracy", "selected_on_test_accuracy"),
    *("ema_test_accuracy", "ema_val_accuracy"),
)
_PARTS = ("mean", "sd", "low", "high")
_STATUS = ["done", "running", "waiting", "failed", "collapsed"]
COLUMNS = [
    *(*GROUP, "is_baseline", "epochs", "n"),
    *(f"{name}_{part}" for name in _MEASURES for part in _PARTS),
    *("pairs", "missing_seeds", *(f"difference_{part}" for part in _PARTS)),
    *("p", "p_exact", "p_smallest", "p_holm", "p_holm_smallest", "p_equal_holm"),
    *("looked", "margin", "verdict", "generalisation_gap", "wall_seconds", "images_per_second", "precision"),
    *(*_STATUS, "status"),
]
"""Columns of the comparison table. `low` and `high` are ends of 95% intervals of the mean; `p_smallest` and
`p_holm_smallest` are the smallest p possible with this number of pairs; `val_accuracy` is that of the last epoch,
`best_val_test_accuracy` the test accuracy in the epoch of best validation accuracy, `selected_on_test` the best
epoch by the test set itself, and `ema_*` those of the averaged weights in the last epoch, with `train.ema`."""
_KINDS = (
    dict.fromkeys(["n", *_STATUS], "int64")
    | {"pairs": "Int64", "looked": "Int64", "margin": "float64", "p_exact": "boolean", "is_baseline": "bool"}
    | {name: "float64" for name in COLUMNS if name.startswith(("p_s", "p_h", "p_eq")) or name == "p"}
    | {name: "float64" for name in COLUMNS if name.endswith(("_mean", "_sd", "_low", "_high"))}
    | dict.fromkeys(["generalisation_gap", "wall_seconds", "images_per_second"], "float64")
)


def interval(values: Array) -> tuple[float, float]:
    """The 95% t-interval of the mean of `values`; NaN for fewer than three, the point itself where all are equal."""
    from scipy import stats

    if len(values) < FEWEST_FOR_INTERVAL:
        return float("nan"), float("nan")
    if np.ptp(values) == 0:
        return float(values[0]), float(values[0])
    low, high = stats.ttest_1samp(values, 0).confidence_interval(1 - LEVEL)
    return float(low), float(high)


def sign_flip(differences: Array) -> Array:
    """Two-sided sign-flip p of paired differences, shape (tests, pairs) -> (tests,).

    Exact to 20 pairs; beyond that from a million random flips of a fixed seed. Flips whose mean is equal but for
    rounding count as equal: the tolerance of scipy is too narrow where the mean is small beside the differences.
    """
    from scipy import stats

    as_far = np.abs(differences.mean(axis=-1)) - _NOISE
    result = stats.permutation_test(
        (differences,),
        lambda sample, axis: (np.abs(sample.mean(axis)) >= as_far).astype(float),
        permutation_type="samples",
        alternative="greater",
        n_resamples=2**_EXACT,
        batch=4096,
        axis=-1,
        rng=0,
    )
    return np.atleast_1d(result.pvalue)


def records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows of a table as dictionaries."""
    return [{str(key): value for key, value in row.items()} for row in table.to_dict("records")]


def finished(group: pd.DataFrame) -> pd.DataFrame:
    """Trials with a last-epoch test accuracy, including collapsed ones: without them a mean would be too high."""
    return group[(group["status"] == "done") & group["test_accuracy"].notna()]


def _describe(group: pd.DataFrame) -> dict[str, Any]:
    done = finished(group)
    row: dict[str, Any] = {key: group[key].iloc[0] for key in GROUP}
    row |= {"epochs": "/".join(str(int(e)) for e in sorted(group["epochs"].dropna().unique())), "n": len(done)}
    done = done.assign(selected_on_test_accuracy=done["best_test_accuracy"])
    for name in _MEASURES:
        row |= _interval(name, done[name].dropna().to_numpy())
    row["generalisation_gap"] = (done["train_accuracy"] - done["test_accuracy"]).mean()
    row |= {key: done[key].mean() for key in ("wall_seconds", "images_per_second")}
    row["precision"] = ", ".join(sorted(set(done["precision"].dropna())))
    counts = group["status"].value_counts()
    row |= {key: int(counts.get(key, 0)) for key in ("done", *UNFINISHED)}
    row["failed"] = len(group) - sum(row[key] for key in ("done", *UNFINISHED))
    collapsed = done.set_index("seed")["collapsed_epoch"].dropna()
    row["collapsed"] = len(collapsed)
    said = [f"{count} {status}" for status, count in counts.items()]
    said += [f"seed {seed} collapsed in epoch {epoch + 1:.0f}" for seed, epoch in collapsed.items()]
    running = group[group["status"] == "running"]
    if len(running):
        done_epochs, planned = running["epochs_done"].sum(), running["epochs"].sum()
        said = [f"{text} ({done_epochs / planned:.0%})" if "running" in text else text for text in said]
    row["status"] = ", ".join(said)
    return row


def _interval(name: str, values: Array) -> dict[str, float]:
    low, high = interval(values)
    mean = float(values.mean()) if len(values) else float("nan")
    if low == high:  # the mean of equal values may be rounded beyond them
        mean = low
    sd = float(values.std(ddof=1)) if len(values) > 1 else float("nan")
    return {f"{name}_mean": mean, f"{name}_sd": sd, f"{name}_low": low, f"{name}_high": high}


def _pair(group: pd.DataFrame, base: pd.DataFrame) -> pd.DataFrame:
    """Differences to the baseline of the seeds that both have finished."""
    ours, theirs = (finished(part).set_index("seed")["test_accuracy"] for part in (group, base))
    # Accuracies are counts over a test set: rounding makes equal differences equal.
    difference = (ours - theirs).dropna().sort_index().round(12)
    return pd.DataFrame({"seed": difference.index, "difference": difference.to_numpy()})


def _missing(group: pd.DataFrame, base: pd.DataFrame, paired: Iterable[int]) -> str:
    """The seeds without a pair, by reason."""
    by_reason: dict[str, list[str]] = {}
    for seed in sorted((set(group["seed"]) | set(base["seed"])) - set(paired)):
        reasons = []
        for part, who in ((group, ""), (base, f"{base['scheme'].iloc[0]} ")):
            status = part.loc[part["seed"] == seed, "status"].tolist()
            if not status or status[0] != "done":
                reasons.append(f"{who}{status[0] if status else 'not planned'}")
        by_reason.setdefault(", ".join(reasons) or "no test accuracy", []).append(str(seed))
    return "; ".join(f"{', '.join(seeds)} ({reason})" for reason, seeds in by_reason.items())


def _test(tested: Sequence[dict[str, Any]], differences: Sequence[Array]) -> None:
    """Add p values and verdicts to all rows that are compared with a baseline, by their paired differences."""
    by_n: dict[int, list[int]] = {}
    for place, paired in enumerate(differences):
        by_n.setdefault(len(paired), []).append(place)
    for n, places in by_n.items():
        stacked = np.array([differences[place] for place in places])
        p = sign_flip(stacked) if n > 1 else np.full(len(places), 1.0 if n else np.nan)
        for place, value in zip(places, p, strict=True):
            tested[place] |= {"p": float(value), "p_exact": n <= _EXACT, "p_smallest": min(1.0, 2 / 2**n)}
    by_flip = holm([row["p"] for row in tested])
    for row, corrected in zip(tested, by_flip, strict=True):
        row |= {"p_holm": corrected, "p_holm_smallest": min(1.0, len(tested) * row["p_smallest"])}
    by_t = by_flip
    if any(row["p_holm_smallest"] > LEVEL for row in tested):
        by_t = holm([_paired_t(paired) for paired in differences])
    for row, exact, t in zip(tested, by_flip, by_t, strict=True):
        low, high = row["difference_low"], row["difference_high"]
        decisive = exact if row["p_holm_smallest"] <= LEVEL else t
        sure = max(decisive, row["p"]) <= LEVEL and (low > 0 or high < 0)
        row["verdict"] = "cannot tell" if not sure else "better" if low > 0 else "worse"


def _paired_t(differences: Array) -> float:
    """p of the t-test of the interval; used where the corrected exact test needs more seeds."""
    from scipy import stats

    if len(differences) < FEWEST:
        return 1.0
    if np.ptp(differences) == 0:
        return float(differences[0] == 0)
    return float(stats.ttest_1samp(differences, 0.0).pvalue)
