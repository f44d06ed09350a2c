"""Grids as tables: a row and a column a value, everything but the seed."""

import tempfile
from pathlib import Path

import pytest
from rich.console import Console
from studies import make_experiment, make_trial

from repr_ray.results import store, tables
from repr_ray.results.compare import Comparison, compare
from repr_ray.results.grids import LEGEND, grid_sheets, grids
from repr_ray.results.plots.grid import ablations


def compared(folder: Path) -> Comparison:
    with tempfile.TemporaryDirectory() as work:
        return compare(store.gather([folder], Path(work)))


def own_grid(folder: Path, *fields: tuple[str, tuple[float, ...]]) -> Path:
    """A scheme over its own fields, six seeds; accuracy grows with the first and falls with the second."""
    values = {f"repr {fields[0][0]}={a} {fields[1][0]}={b}": (a, b) for a in fields[0][1] for b in fields[1][1]}
    grid = {name: [0.7 + a / 10 - b / 1000 + seed / 1e4 for seed in range(6)] for name, (a, b) in values.items()}
    return make_experiment(folder, {"standard": [0.7 + seed / 1e4 for seed in range(6)]} | grid)


def test_a_schemes_own_fields(tmp_path: Path) -> None:
    comparison = compared(own_grid(tmp_path / "x", ("prune_ratio", (0.1, 0.2, 0.3)), ("s2", (2, 10))))
    [(title, sheet)] = grid_sheets(comparison).items()
    assert title == "Grid of s2 and prune_ratio"
    assert [column.name for column in sheet.columns] == [
        "s2",
        "prune_ratio=0.1",
        "prune_ratio=0.2",
        "prune_ratio=0.3",
    ]
    assert [row[0].text for row in sheet.rows] == ["2", "10"], "by size, not by letters"
    assert [cell.text for cell in sheet.rows[0][1:]] == ["70.8 (+0.8*)", "71.8 (+1.8*)", "72.8 (+2.8*)"]
    table = comparison.table.set_index("scheme")["test_accuracy_mean"]
    assert sheet.rows[1][3].value == table["repr prune_ratio=0.3 s2=10"]
    assert set(sheet.headings) == {"repr · cifar10 · convnet-3x32"}
    text = tables.markdown_sheet(sheet)
    assert text.count("72.8 (+2.8\\*)") == 1 and tables.markdown(LEGEND) in text
    assert r"72.8 (+2.8*)" in tables.latex_sheet(sheet)


def test_an_axis_may_have_a_hyphen(tmp_path: Path) -> None:
    folder = tmp_path / "x"
    for seed in range(3):
        for name, more in (("a", 0.0), ("b", 0.1)):
            for size in (16, 32):
                for scheme in ("standard", "repr"):
                    variant = f"my-axis={name} train.batch_size={size}"
                    make_trial(folder, scheme=scheme, seed=seed, accuracy=0.7 + more + seed / 1e4, variant=variant)
    [(_, sheet)] = grid_sheets(compared(folder)).items()
    shown = {cell.text for row in sheet.rows for cell in row[1:]}
    assert {text[:4] for text in shown} == {"70.0", "80.0"}


def test_fields_around_the_schemes(tmp_path: Path) -> None:
    """A block a scheme, the baseline among them, beside its own level; what is missing is a dash."""
    folder = tmp_path / "x"
    for seed in range(3):
        for noise in (0.0, 0.2, 0.4):
            for decay in (0.0, 0.001):
                for scheme, more in (("standard", 0.0), ("repr", noise / 10)):
                    if (scheme, noise, decay) != ("repr", 0.4, 0.001):
                        variant = f"data.label_noise={noise} train.optimizer.weight_decay={decay}"
                        accuracy = 0.7 - noise / 2 + more + seed / 1e4
                        make_trial(folder, scheme=scheme, seed=seed, accuracy=accuracy, variant=variant)
    comparison = compared(folder)
    [(title, sheet)] = grid_sheets(comparison).items()
    assert title == "Grid of weight_decay and label_noise"
    blocks = {}
    for heading, row in zip(sheet.headings, sheet.rows, strict=True):
        blocks.setdefault(heading.split(" ")[0], []).append([cell.text for cell in row])
    assert blocks["standard"] == [["0.0", "70.0", "60.0", "50.0"], ["0.001", "70.0", "60.0", "50.0"]]
    assert blocks["repr"] == [
        ["0.0", "70.0 (+0.0)", "62.0 (+2.0)", "54.0 (+4.0)"],
        ["0.001", *blocks["repr"][0][1:3], tables.NONE],
    ]
    assert [grid.scheme for grid in grids(comparison)] == ["repr"]


def test_wide_grids_go_on_below(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ratios = tuple(round(0.05 * k, 2) for k in range(1, 13))
    [sheet] = grid_sheets(compared(own_grid(tmp_path / "x", ("prune_ratio", ratios), ("s2", (2, 10))))).values()
    tables.print_sheet(Console(width=80), sheet)
    printed = capsys.readouterr().out
    assert all(f"0.{k:02}".rstrip("0") in printed for k in (5, 35, 60))
    assert max(map(len, printed.splitlines())) <= 80
    assert printed.count("repr · cifar10") == 3 or printed.count("repr · cifar10") == 2


def test_a_run_without_the_grid_beside_one_with_it(tmp_path: Path) -> None:
    """Each picture has the settings that name its fields; nothing is made up for the others."""
    grid = {f"repr prune_ratio={p}": [0.7, 0.71, 0.7] for p in (0.1, 0.2)}
    other = {f"repr s1={s}": [0.72, 0.7, 0.7] for s in (5, 10)}
    comparison = compared(make_experiment(tmp_path / "x", {"standard": [0.7] * 3, "repr": [0.7] * 3} | grid | other))
    found = {tuple(grid.levels): len(grid.points) for grid in grids(comparison)}
    assert found == {("prune_ratio",): 2, ("s1",): 2}
    assert len(list(ablations(comparison))) == 2


def test_a_line_is_no_grid(tmp_path: Path) -> None:
    grid = {f"repr prune_ratio={p}": [0.7, 0.71] for p in (0.1, 0.2)}
    assert not grid_sheets(compared(make_experiment(tmp_path / "x", {"standard": [0.7, 0.71]} | grid)))


def test_fields_of_damaged_trials(tmp_path: Path) -> None:
    """One field is the end of another, and of many fields every trial has its own values: no product of all."""
    folder = tmp_path / "x"
    for seed in range(12):
        fields = [f"field{k}={seed}" for k in range(14)]
        variant = " ".join([f"epochs={seed}", f"train.epochs={seed + 1}", *fields])
        make_trial(folder, scheme="standard", seed=seed, accuracy=0.7, variant=variant)
    [(title, sheet)] = grid_sheets(compared(folder)).items()
    assert "train.epochs" in title
    assert len(sheet.rows) == 12
