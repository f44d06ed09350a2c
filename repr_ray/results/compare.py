"""The comparison of every scheme with the baseline, paired by seed.

Differences are of last-epoch test accuracy between trials of the same data, model, training settings and
seed. The interval is Student's t over three differences or more (scipy.stats.ttest_1samp), p the exact two-sided
sign-flip test (scipy.stats.permutation_test), corrected by Holm over all comparisons that
are made together: every scheme of every data set, model and variant. A scheme is called better or worse only if the
interval excludes 0 and the corrected p is at most 0.05. With six pairs or more, but too few for the corrected exact p
to reach 0.05, the corrected p of the paired t-test is used instead, and the sentence says so.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from repr_ray.records import flatten
from repr_ray.results.by_looks import judge, said_of
from repr_ray.results.decide import LEVEL
from repr_ray.results.design import Design
from repr_ray.results.power import seeds_needed
from repr_ray.results.sequential import Array, holm
from repr_ray.results.settings import whole
from repr_ray.results.store import UNFINISHED, Tables

BLOCK = ["dataset", "model", "variant"]
GROUP = [*BLOCK, "scheme"]
FEWEST_FOR_INTERVAL = 3  # pairs below which no interval is computed
_FEWEST = 6  # pairs below which there is no verdict: no exact two-sided test reaches 0.05 with five
_EXACT = 20  # pairs up to which all 2^n sign flips are enumerated


@dataclass(frozen=True)
class Comparison:
    """The comparison and its data.

    `table` has one row per data set, model, variant and scheme, the baseline first; accuracies and differences
    are fractions from 0 to 1 (0.01 is one percentage point), times seconds. `pairs` has one row per scheme and
    seed with its `difference` to the baseline. `trials` is the stored table with `variant` and `scheme` made
    unambiguous.
    """

    baseline: str
    table: pd.DataFrame
    pairs: pd.DataFrame
    trials: pd.DataFrame
    notes: list[str]
    unfinished: int
    design: Design | None = None  # of seeds that were added until decided

    @cached_property
    def answers(self) -> list[str]:
        """A sentence for every scheme that is not the baseline."""
        varying = [key for key in BLOCK if self.table[key].nunique() > 1]
        rows = records(self.table[~self.table["is_baseline"]])
        still_open = sum(row["verdict"] == "cannot tell" for row in rows)
        return [
            _sentence(row, self.baseline, [row[key] for key in varying if row[key]], self.differences(row))
            + _what_it_takes(seeds_needed(row, still_open, self.design))
            for row in rows
        ]

    def differences(self, row: dict[str, Any]) -> list[float]:
        """The paired differences behind a row of the table, by seed."""
        found = (self.pairs[GROUP] == [row[key] for key in GROUP]).all(axis=1)
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
    compared = tables.trials[tables.trials["stage"] != "tuning"]
    trials = _one_a_seed(_unambiguous(compared, baseline, notes), notes)
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
        notes.append(said_of(tables.design))
    table = pd.DataFrame(rows, columns=COLUMNS).astype(_KINDS)
    for column in ("missing_seeds", "verdict"):
        table[column] = table[column].astype(object).fillna("")
    unfinished = int(trials["status"].isin(UNFINISHED).sum())
    return Comparison(baseline, table, joined.reset_index(drop=True), trials, notes, unfinished, tables.design)


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

    Exact to 20 pairs; beyond that from a million random flips of a fixed seed.
    """
    from scipy import stats

    result = stats.permutation_test(
        (differences,),
        lambda sample, axis: sample.mean(axis),
        permutation_type="samples",
        n_resamples=2**_EXACT,
        batch=4096,
        axis=-1,
        rng=0,
    )
    return np.atleast_1d(result.pvalue)


def records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows of a table as dictionaries."""
    return [{str(key): value for key, value in row.items()} for row in table.to_dict("records")]


def _unambiguous(trials: pd.DataFrame, baseline: str, notes: list[str]) -> pd.DataFrame:
    """Add differing settings to the variant or scheme if one name has several settings or data.

    Settings of a scheme that differ between variants are added too, except for the baseline, which keeps its name.
    """
    trials = trials.copy()
    texts = trials["settings"].fillna("{}") + "\n" + trials["tuned"].fillna("{}")
    blocks = texts.map({text: _untuned(*map(json.loads, text.split("\n"))) for text in texts.unique()})
    shared = blocks.map(_without_scheme)
    scheme = blocks.map(lambda block: block.get("scheme") or {})
    base = trials["scheme"] == baseline
    own, others = scheme.where(base, None), scheme.where(~base, None)
    everywhere = [name for name in GROUP if name != "variant"]
    for column, within, parts in (("variant", BLOCK, shared), ("scheme", GROUP, own), ("scheme", everywhere, others)):
        texts = parts.map(lambda part: json.dumps(part, sort_keys=True))
        labels = trials[column].copy()
        for rows in trials.groupby(within, sort=False).groups.values():
            if texts[rows].nunique() > 1:
                flat = {text: flatten(json.loads(text)) for text in texts[rows].unique()}
                names = sorted({name for part in flat.values() for name in part})
                differ = [n for n in names if len({repr(part.get(n)) for part in flat.values()}) > 1]
                said = {t: " ".join(f"{n}={part.get(n)}" for n in differ) for t, part in flat.items()}
                labels[rows] = (trials.loc[rows, column] + " " + texts[rows].map(said)).str.strip()
        trials[column] = labels
    return _by_data(trials, notes)


def _untuned(settings: dict[str, Any], tuned: dict[str, Any]) -> dict[str, Any]:
    """All settings without those tuned for each scheme: schemes are compared at their chosen values."""
    block = whole(settings)
    for field in tuned:
        *path, last = field.split(".")
        inner: Any = block
        for part in path:
            inner = inner.get(part) if isinstance(inner, dict) else None
        if isinstance(inner, dict):
            inner.pop(last, None)
    return block


def _without_scheme(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings that schemes share, without the source of the data."""
    data = {key: value for key, value in (settings.get("data") or {}).items() if key != "source"}
    return {key: data if key == "data" else value for key, value in settings.items() if key != "scheme"}


def _by_data(trials: pd.DataFrame, notes: list[str]) -> pd.DataFrame:
    """Add the digest of the data to the variant if trials of a block were trained on different data."""
    variant = trials["variant"].copy()
    for rows in trials.groupby(BLOCK, sort=False).groups.values():
        digests = trials.loc[rows, "data_digest"].fillna("unknown")
        if digests[digests != "unknown"].nunique() > 1:
            variant[rows] = (trials.loc[rows, "variant"] + " data=" + digests.str[:8]).str.strip()
            counts = ", ".join(f"{count} on {digest[:8]}" for digest, count in digests.value_counts().items())
            where = " ".join(part for part in (trials.loc[rows[0], name] for name in BLOCK) if part)
            notes.append(f"{where}: trials were trained on different data ({counts}), and are kept apart")
    return trials.assign(variant=variant)


def _one_a_seed(trials: pd.DataFrame, notes: list[str]) -> pd.DataFrame:
    """Keep one of the trials with the same settings and seed, preferably a finished one."""
    first = trials.assign(open=trials["status"] != "done").sort_values("open", kind="stable")
    kept = trials.loc[first.drop_duplicates([*GROUP, "seed"]).index.sort_values()]
    again = trials["trial"][~trials.index.isin(kept.index)]
    notes.extend(f"{name} has the settings and the seed of another trial: left out" for name in again)
    return kept


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

    if len(differences) < _FEWEST:
        return 1.0
    if np.ptp(differences) == 0:
        return float(differences[0] == 0)
    return float(stats.ttest_1samp(differences, 0.0).pvalue)


def points(fraction: float, signed: bool = False) -> str:
    """A fraction in percentage points with one decimal and a true minus sign."""
    return f"{100 * fraction:{'+' if signed else ''}.1f}".replace("-", "\N{MINUS SIGN}")


def _sentence(row: dict[str, Any], baseline: str, block: Sequence[str], seeds: Sequence[float]) -> str:
    where = f" on {', '.join(block)}" if block else ""
    scheme, verdict = row["scheme"], row["verdict"]
    if not row["n"]:
        return f"No trial of {scheme}{where} has finished yet ({row['status']})."
    if pd.isna(row["pairs"]):
        return f"There is no {baseline} to compare {scheme} with{where}."
    unsure = f"Cannot tell yet whether {scheme} is better or worse than {baseline}{where}"
    if row["pairs"] < 2:
        return f"{unsure}: {'a single paired seed' if row['pairs'] else 'no paired seed'}."
    fallen = f" {row['collapsed']} of {row['n']} {scheme} trials collapsed." if row["collapsed"] else ""
    if row["pairs"] < FEWEST_FOR_INTERVAL:
        return f"{unsure}: {' and '.join(points(value, True) for value in seeds)} points in two seeds.{fallen}"
    difference = points(row["difference_mean"], True)
    if not pd.isna(row["looked"]) and not row["looked"]:
        return f"{unsure}: {difference} points in {row['pairs']} seeds, the first look is still to come."
    found = f"{difference} points ({_evidence(row)}).{fallen}"
    if verdict == "cannot tell" and not pd.isna(row["margin"]):
        what = "better or worse than, or practically equal to,"
        return f"Cannot tell yet whether {scheme} is {what} {baseline}{where}: {found}"
    if verdict == "cannot tell":
        return f"{unsure}: {found}"
    if verdict == "practically equal":
        margin = points(row["margin"])
        return f"{scheme} is practically equal to {baseline}{where}, within {margin} points: {found}"
    size = points(abs(row["difference_mean"]))
    return f"{scheme} is {size} points {verdict} than {baseline}{where} ({_evidence(row)}).{fallen}"


def _evidence(row: dict[str, Any]) -> str:
    """Interval, number of seeds and p values in words."""
    looks = not pd.isna(row["looked"])
    over, seen = (" over all looks", f"look at {row['looked']} seeds") if looks else ("", f"n={row['pairs']}")
    low, high = points(row["difference_low"], True), points(row["difference_high"], True)
    said = f"95% interval{over} {low} to {high}, {seen}, p={row['p']:.2g}"
    if row["p_holm"] > row["p"]:
        said += f", {row['p_holm']:.2g} after Holm's correction{'' if looks else ' over all comparisons'}"
    if row["p_holm_smallest"] > LEVEL:
        said += f"; n is too small to reach {LEVEL}"
        if row["verdict"] != "cannot tell":
            said += " in the exact test, judged by the interval's t-test"
    return said


def _what_it_takes(needed: dict[str, float]) -> str:
    """The total number of seeds that a verdict would need; empty if none is needed or known."""
    differ, equal = needed["seeds_to_differ"], needed["seeds_to_equal"]
    said = [] if np.isnan(differ) else [f"{differ:.0f} for a difference of this size"]
    said += [] if np.isnan(equal) else [f"{equal:.0f} for practical equality, if there is none"]
    return f" Seeds that this would take: about {' or '.join(said)}." if said else ""
