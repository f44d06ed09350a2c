"""The sheets of a comparison: schemes, published claims, failed trials."""

from collections.abc import Callable, Iterable
from functools import partial

import pandas as pd

from repr_ray.results.blocks import BLOCK
from repr_ray.results.claims import MARGIN
from repr_ray.results.compare import Comparison, records
from repr_ray.results.decide import FEWEST, FEWEST_FOR_INTERVAL, LEVEL
from repr_ray.results.store import Failure
from repr_ray.results.tables.sheet import (
    NONE,
    Column,
    Entry,
    Row,
    Sheet,
    Shown,
    bounded,
    heading,
    number,
    percent,
    rounded_time,
    text,
)
from repr_ray.results.words import in_percent

_ACCURACIES = (
    " Val.: validation accuracy in the last epoch, to choose by. Test at best val. epoch: test accuracy in the epoch"
    " of best validation accuracy. Gap: training less test accuracy in the last epoch, points. Best on test: selected"
    " on the test set, not a fair estimate. Epochs and cycles count from 1 here, from 0 in the Parquet files."
)

LEGEND = (
    "Test: accuracy in the last epoch, mean ± sd over n seeds. Difference: percentage points to the baseline,"
    " paired by seed, with the 95% t-interval; of fewer than three pairs each seed's own. p: exact two-sided"
    f" sign-flip test (≈: over 20 pairs, from random flips); Holm p: corrected over all comparisons of this report;"
    f" *: n too small for this test to reach {LEVEL}, from {FEWEST} pairs on a verdict is that of the corrected"
    " paired t-test."
) + _ACCURACIES

LEGEND_BY_LOOKS = (
    "Test: accuracy in the last epoch, mean ± sd over n seeds. Difference: percentage points to the baseline, paired"
    " by seed, at the last look, with an interval that holds at all looks together with 95%. p: t-test, corrected"
    " over all looks by simulation (≈); Holm p: over all comparisons as well."
) + _ACCURACIES

AVERAGE_LEGEND = "EMA: of the exponential moving average of the weights (train.ema), in the last epoch."

CLAIMS_LEGEND = (
    f"Reproduced: the whole 95% interval lies within {in_percent(MARGIN)} point of the published value; not"
    " reproduced: all of it lies farther away. Gain: over standard training, paired by seed. Best on test: selected"
    " on the test set, as published. An approximate match differs as its note says, and gets no verdict."
)


def comparison_sheet(comparison: Comparison) -> Sheet:
    """The comparison, accuracies in percent."""
    averaged = comparison.table["ema_test_accuracy_mean"].notna().any()
    unpaired = (comparison.table["missing_seeds"] != "").any()
    rows: list[Row] = []
    headings: list[str] = []
    for _, block in comparison.table.groupby(BLOCK, sort=False):
        own = records(block)
        precision = ", ".join(dict.fromkeys(row["precision"] for row in own if row["precision"]))
        epochs = "/".join(dict.fromkeys(row["epochs"] for row in own))
        headings += [" · ".join(filter(None, [heading(own[0]), f"{epochs} epochs", precision]))] * len(own)
        rows += [row | {"differences": partial(comparison.differences, row)} for row in own]
    hidden = [*([] if averaged else _OF_AVERAGE), *([] if unpaired else [_UNPAIRED])]
    legends = [LEGEND if comparison.design is None else LEGEND_BY_LOOKS, *([AVERAGE_LEGEND] if averaged else [])]
    return Sheet.of([shown for shown in _COLUMNS if shown not in hidden], rows, headings, legends)


def claims_sheet(claims: pd.DataFrame) -> Sheet:
    """Published and measured values in percent, gains in points; one block per source."""
    remarks = list(dict.fromkeys(filter(None, claims["remark"])))

    def claimed(row: Row) -> Entry:
        return Entry(in_percent(row["claimed"], row["quantity"] == "gain"), row["claimed"])

    def measured(row: Row) -> Entry:
        ends = row["measured"], row["measured_low"], row["measured_high"]
        return Entry(bounded(*ends, signed=row["quantity"] == "gain"), row["measured"])

    def match(row: Row) -> Entry:
        said = f"{row['match']} ({remarks.index(row['remark']) + 1})" if row["remark"] else row["match"]
        return Entry(said, said)

    columns: list[Shown] = [
        (Column("Scheme", number=False), text("scheme")),
        (Column("Quantity", number=False), text("quantity")),
        (Column("Claimed"), claimed),
        (Column("Measured [95%]"), measured),
        (Column("n"), number("n", str)),
        (Column("Verdict", number=False), text("verdict")),
        (Column("Match", number=False), match),
    ]
    rows = records(claims)
    footnotes = [f"({place}) {remark}" for place, remark in enumerate(remarks, 1)] + [CLAIMS_LEGEND]
    return Sheet.of(columns, rows, (f"{row['source']}: {heading(row)}" for row in rows), footnotes)


def failures_sheet(failures: Iterable[Failure]) -> Sheet:
    """The failed trials with the first line of each error."""
    columns = [Column(name, number=False) for name in ("Failed trial", "Status", "Epoch", "Error")]
    rows = [[f.trial, f.status, NONE if f.epoch is None else str(f.epoch + 1), f.message] for f in failures]
    return Sheet(columns, [[Entry(said, said) for said in row] for row in rows], [""] * len(rows))


def difference(row: Row) -> Entry:
    """The difference to the baseline with its interval; of too few pairs for one, each seed's own `differences`."""
    mean, low, high = (row[f"difference_{part}"] for part in ("mean", "low", "high"))
    if row["is_baseline"]:
        return Entry("baseline", mean)
    if "differences" in row and not pd.isna(row["pairs"]) and row["pairs"] < FEWEST_FOR_INTERVAL:
        return Entry("; ".join(in_percent(value, True) for value in row["differences"]()) or NONE, mean)
    return Entry(bounded(mean, low, high), mean)


def _accuracy(name: str) -> Callable[[Row], Entry]:
    return lambda row: Entry(percent(row[f"{name}_mean"], row[f"{name}_sd"]), row[f"{name}_mean"])


def _p(name: str) -> Callable[[Row], Entry]:
    def cell(row: Row) -> Entry:
        if pd.isna(row[name]):
            return Entry(NONE, row[name])
        mark = "*" if row[f"{name}_smallest"] > LEVEL else ""
        return Entry(f"{'' if row['p_exact'] else '≈'}{row[name]:.2g}{mark}", row[name])

    return cell


_OF_AVERAGE: list[Shown] = [
    (Column("EMA test, %", 3), _accuracy("ema_test_accuracy")),
    (Column("EMA val., %", 6), _accuracy("ema_val_accuracy")),
]
_UNPAIRED: Shown = (Column("Seeds without a pair", 6, number=False), text("missing_seeds"))
_COLUMNS: list[Shown] = [
    (Column("Scheme", number=False), text("scheme")),
    (Column("n"), number("n", str)),
    (Column("Test, %"), _accuracy("test_accuracy")),
    (Column("Difference [95%]"), difference),
    (Column("p", 1), _p("p")),
    (Column("Holm p"), _p("p_holm")),
    (Column("Val., %", 2), _accuracy("val_accuracy")),
    (Column("Test at best val. epoch, %", 5), _accuracy("best_val_test_accuracy")),
    *_OF_AVERAGE,
    (Column("Gap", 4), number("generalisation_gap", in_percent)),
    (Column("Wall time", 3), number("wall_seconds", rounded_time)),
    (Column("Images/s", 7), number("images_per_second", "{:,.0f}".format)),
    (Column("Best on test (selection on test set), %", 9), _accuracy("selected_on_test_accuracy")),
    (Column("Status", number=False), text("status")),
    _UNPAIRED,
]
