"""The sheets of a comparison: schemes, published claims, failed trials."""

from collections.abc import Callable, Iterable

import pandas as pd

from repr_ray.results.claims import MARGIN
from repr_ray.results.compare import BLOCK, FEWEST_FOR_INTERVAL, LEVEL, Comparison, points, records
from repr_ray.results.store import Failure
from repr_ray.results.tables.sheet import NONE, Cell, Column, Row, Sheet, bounded, heading, percent, rounded_time

LEGEND = (
    "Test: accuracy in the last epoch, mean ± sd over n seeds. Difference: percentage points to the baseline,"
    " paired by seed, with the 95% t-interval; of fewer than three pairs each seed's own. p: exact two-sided"
    f" sign-flip test; Holm p: corrected over all comparisons of this report; *: n too small to reach {LEVEL}. Val.:"
    " validation accuracy in the last epoch, to choose by. Test at best val. epoch: test accuracy in the epoch of"
    " best validation accuracy. Gap: training less test accuracy in the last epoch, points. Best on test: selected on"
    " the test set, not a fair estimate. Epochs and cycles count from 1 here, from 0 in the Parquet files."
)

LEGEND_BY_LOOKS = (
    "Test: accuracy in the last epoch, mean ± sd over n seeds. Difference: percentage points to the baseline, paired"
    " by seed, at the last look, with an interval that holds at all looks together with 95%. p: t-test, over all"
    " looks; Holm p: over all comparisons as well. Val.: validation accuracy in the last epoch, to choose by. Test"
    " at best val. epoch: test accuracy in the epoch of best validation accuracy. Gap: training less test accuracy"
    " in the last epoch, points. Best on test: selected on the test set, not a fair estimate. Epochs and cycles"
    " count from 1 here, from 0 in the Parquet files."
)

AVERAGE_LEGEND = "EMA: of the exponential moving average of the weights (train.ema), in the last epoch."

CLAIMS_LEGEND = (
    f"Reproduced: the whole 95% interval lies within {points(MARGIN)} point of the published value; not reproduced:"
    " all of it lies farther away. Gain: over standard training, paired by seed. Best on test: selected on"
    " the test set, as published. An approximate match differs as the note by its number says, and gets no verdict."
)


def comparison_sheet(comparison: Comparison) -> Sheet:
    """The comparison, accuracies in percent."""
    cells: list[list[Cell]] = []
    headings: list[str] = []
    averaged = comparison.table["ema_test_accuracy_mean"].notna().any()
    unpaired = (comparison.table["missing_seeds"] != "").any()
    hidden = [*([] if averaged else _OF_AVERAGE), *([] if unpaired else [_UNPAIRED])]
    columns = [(column, cell) for column, cell in _COLUMNS if column not in hidden]
    for _, block in comparison.table.groupby(BLOCK, sort=False):
        rows = records(block)
        precision = ", ".join(dict.fromkeys(row["precision"] for row in rows if row["precision"]))
        epochs = "/".join(dict.fromkeys(row["epochs"] for row in rows))
        headings += [" · ".join(filter(None, [heading(rows[0]), f"{epochs} epochs", precision]))] * len(rows)
        cells += [[cell(row) for _, cell in columns] for row in rows]
        for row, texts in zip(rows, cells[-len(rows) :], strict=True):
            if not row["is_baseline"] and not pd.isna(row["pairs"]) and row["pairs"] < FEWEST_FOR_INTERVAL:
                seeds = "; ".join(points(value, True) for value in comparison.differences(row)) or NONE
                texts[_DIFFERENCE] = Cell(seeds, row["difference_mean"])
    legends = [LEGEND if comparison.design is None else LEGEND_BY_LOOKS, *([AVERAGE_LEGEND] if averaged else [])]
    return Sheet([column for column, _ in columns], cells, headings, legends)


def claims_sheet(claims: pd.DataFrame) -> Sheet:
    """Published and measured values in percent, gains in points; one block per source."""
    names = ("Scheme", "Quantity", "Claimed", "Measured [95%]", "n", "Verdict", "Match")
    numbers = ("Claimed", "Measured [95%]", "n")
    remarks = list(dict.fromkeys(filter(None, claims["remark"])))
    rows, headings = [], []
    for row in records(claims):
        gain = row["quantity"] == "gain"
        match = f"{row['match']} ({remarks.index(row['remark']) + 1})" if row["remark"] else row["match"]
        measured = bounded(row["measured"], row["measured_low"], row["measured_high"], signed=gain)
        rows.append(
            [
                *(Cell(row[key], row[key]) for key in ("scheme", "quantity")),
                Cell(points(row["claimed"], gain), row["claimed"]),
                Cell(measured, row["measured"]),
                Cell(str(row["n"]), row["n"]),
                *(Cell(text, text) for text in (row["verdict"], match)),
            ]
        )
        headings.append(f"{row['source']}: {heading(row)}")
    footnotes = [f"({place}) {remark}" for place, remark in enumerate(remarks, 1)] + [CLAIMS_LEGEND]
    return Sheet([Column(name, number=name in numbers) for name in names], rows, headings, footnotes)


def failures_sheet(failures: Iterable[Failure]) -> Sheet:
    """The failed trials with the first line of each error."""
    columns = [Column(name, number=False) for name in ("Failed trial", "Status", "Epoch", "Error")]
    rows = [[f.trial, f.status, NONE if f.epoch is None else str(f.epoch + 1), f.message] for f in failures]
    return Sheet(columns, [[Cell(text, text) for text in row] for row in rows], [""] * len(rows))


def _accuracy(name: str) -> Callable[[Row], Cell]:
    return lambda row: Cell(percent(row[f"{name}_mean"], row[f"{name}_sd"]), row[f"{name}_mean"])


def _difference(row: Row) -> Cell:
    mean, low, high = (row[f"difference_{part}"] for part in ("mean", "low", "high"))
    return Cell("baseline" if row["is_baseline"] else bounded(mean, low, high), mean)


def _p(name: str) -> Callable[[Row], Cell]:
    def cell(row: Row) -> Cell:
        if pd.isna(row[name]):
            return Cell(NONE, row[name])
        mark = "*" if row[f"{name}_smallest"] > LEVEL else ""
        return Cell(f"{'' if row['p_exact'] else '≈'}{row[name]:.2g}{mark}", row[name])

    return cell


def _number(name: str, say: Callable[[float], str]) -> Callable[[Row], Cell]:
    return lambda row: Cell(NONE if pd.isna(row[name]) else say(row[name]), row[name])


def _text(name: str) -> Callable[[Row], Cell]:
    return lambda row: Cell(row[name], row[name])


_UNPAIRED = Column("Seeds without a pair", 6, number=False)
_OF_AVERAGE = (Column("EMA test, %", 3), Column("EMA val., %", 6))
_COLUMNS: list[tuple[Column, Callable[[Row], Cell]]] = [
    (Column("Scheme", number=False), _text("scheme")),
    (Column("n"), _number("n", "{:.0f}".format)),
    (Column("Test, %"), _accuracy("test_accuracy")),
    (Column("Difference [95%]"), _difference),
    (Column("p", 1), _p("p")),
    (Column("Holm p"), _p("p_holm")),
    (Column("Val., %", 2), _accuracy("val_accuracy")),
    (Column("Test at best val. epoch, %", 5), _accuracy("best_val_test_accuracy")),
    *zip(_OF_AVERAGE, map(_accuracy, ("ema_test_accuracy", "ema_val_accuracy")), strict=True),
    (Column("Gap", 4), _number("generalisation_gap", points)),
    (Column("Wall time", 3), _number("wall_seconds", rounded_time)),
    (Column("Images/s", 7), _number("images_per_second", "{:,.0f}".format)),
    (Column("Best on test (selection on test set), %", 9), _accuracy("selected_on_test_accuracy")),
    (Column("Status", number=False), _text("status")),
    (_UNPAIRED, _text("missing_seeds")),
]
_DIFFERENCE = [column.name for column, _ in _COLUMNS].index("Difference [95%]")
