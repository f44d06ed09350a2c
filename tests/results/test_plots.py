"""Pictures: every kind, from the numbers in the tables, for small studies, long grids, deep and unfinished ones."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image
from studies import make_experiment, make_trial

from repr_ray.results import plots, store
from repr_ray.results.compare import compare
from repr_ray.results.plots import style
from repr_ray.results.plots.block import Block
from repr_ray.results.plots.grid import ablations

Make = Callable[..., Path]
BASE = [0.70, 0.71, 0.72]


def drawn(tmp_path: Path, *folders: Path, **options: int) -> dict[str, plots.Picture]:
    work = tmp_path / "work"
    work.mkdir()
    tables = store.gather(folders, work)
    return {p.png.stem: p for p in plots.draw(tables, compare(tables), tmp_path / "plots", **options)}


def figure(tmp_path: Path, results: Path, kind: str) -> Figure:
    work = tmp_path / "work"
    work.mkdir()
    tables = store.gather([results], work)
    comparison = compare(tables)
    block = Block("x", comparison, comparison.table, comparison.trials, tables)
    made = plots.KINDS[kind](block)
    assert made is not None
    return made[0]


def test_every_kind_as_png_and_svg(experiment: Make, tmp_path: Path) -> None:
    pictures = drawn(tmp_path, experiment({"standard": BASE, "repr": BASE, "_$x$<b>": BASE}))
    assert list(pictures) == ["differences", "curves", "filters", "scores", "overlap"]
    for picture in pictures.values():
        with Image.open(picture.png) as image:
            assert len(image.convert("RGB").getcolors(1 << 20) or []) > 10  # not an empty page
            assert image.info["Software"] == "repr_ray"
            assert image.convert("RGB").getpixel((0, 0)) == (255, 255, 255)
        assert "<svg" in picture.svg.read_text()
        assert len(picture.alt) > 40
    assert "_$x$&lt;b&gt;" in pictures["curves"].svg.read_text()


def test_curves_are_means_with_phases_shaded(experiment: Make, tmp_path: Path) -> None:
    results = experiment({"standard": BASE, "repr": BASE})
    train, test, *_ = figure(tmp_path, results, "curves").axes
    assert (train.get_title(), test.get_title()) == ("Training accuracy", "Test accuracy")
    low, high = test.get_ylim()
    assert high - low < train.get_ylim()[1] - train.get_ylim()[0]  # on a scale of its own
    standard, _ = test.get_lines()
    assert standard.get_ydata()[-1] == pytest.approx(np.mean(BASE))
    shaded = [(patch.get_x(), patch.get_x() + patch.get_width()) for patch in test.patches]
    assert shaded == [(3.5, 5.5), (8.5, 10.5)]  # epochs count from 1
    assert standard.get_xdata().tolist() == list(range(1, 13))
    seeds = [line for collection in test.collections for line in getattr(collection, "get_segments", list)()]
    assert sum(len(line) == 12 for line in seeds) == 6


def test_schemes_differ_in_grey_too() -> None:
    for looks in (style.COLOURS, style.DASHES, style.MARKERS):
        assert len(set(map(str, looks))) == len(style.COLOURS)


def test_differences_show_every_seed(experiment: Make, tmp_path: Path) -> None:
    results = experiment({"standard": BASE, "repr": [0.72, 0.72, 0.75]})
    [axis] = figure(tmp_path, results, "differences").axes
    points = [line for line in axis.get_lines() if line.get_marker() == "o"]
    assert points[0].get_xdata() == pytest.approx([2.0, 1.0, 3.0])
    [mean] = [line for line in axis.get_lines() if line.get_marker() == "D"]
    assert mean.get_xdata() == pytest.approx([2.0])


def test_filters_show_what_was_dropped(experiment: Make, tmp_path: Path) -> None:
    results = experiment({"standard": BASE[:1], "repr": BASE[:1]})
    [axis] = figure(tmp_path, results, "filters").axes
    image = np.asarray(axis.images[0].get_array())
    assert image.shape == (24, 2)  # three layers of eight filters, two cycles of one seed
    assert image.sum(0).tolist() == [6, 6]
    assert [label.get_text() for label in axis.get_yticklabels()] == [f"features.{k}.conv" for k in range(3)]


def test_a_long_grid_has_a_panel_a_scheme(tmp_path: Path) -> None:
    grid = {
        f"repr prune_ratio={p} s2={s}": [0.7 + p / 50, 0.71 + p / 50] for p in (0.1, 0.2, 0.3, 0.4) for s in (2, 5)
    }
    results = make_experiment(tmp_path / "grid", {"standard": [0.7, 0.71]} | grid, epochs=8)
    pictures = drawn(tmp_path, results)
    assert list(pictures) == ["ablation-01", "differences", "accuracy", "loss", "filters", "scores", "overlap"]
    assert "the highest is +0.8 at prune_ratio 0.4" in pictures["ablation-01"].alt
    texts = re.findall(r">([^<>]+)</text>", pictures["accuracy"].svg.read_text())
    assert sum(text.endswith("%") for text in texts) >= 2 * 4  # both rows of panels
    assert {f"repr prune_ratio={p} s2=2" for p in (0.1, 0.4)} <= set(texts)


def test_curves_name_every_axis_and_no_phase_that_is_not_there(experiment: Make, tmp_path: Path) -> None:
    made = figure(tmp_path, experiment({"standard": BASE, "other": BASE}, cycle=(20, 20)), "curves")
    assert [axis.get_ylabel() for axis in made.axes] == ["Accuracy"] * 2 + ["Loss, nats per image"] * 2
    assert all(axis.get_xticks().size for axis in made.axes)
    [legend] = made.legends
    assert [text.get_text() for text in legend.get_texts()] == ["standard", "other"]


@pytest.mark.parametrize("kind", [kind for kind in plots.KINDS if kind != "differences"])  # its rows have names
def test_every_picture_says_what_its_axes_are(experiment: Make, tmp_path: Path, kind: str) -> None:
    many = {"standard": BASE} | {f"repr{n}": BASE for n in range(8)}  # for a panel a scheme
    made = figure(
        tmp_path, experiment(many if kind in ("accuracy", "loss") else {"standard": BASE, "repr": BASE}), kind
    )
    upright = [text.get_text() for text in made.texts if text.get_rotation() == 90]
    across = [text.get_text() for text in made.texts if text.get_rotation() == 0]
    assert any(across)
    assert any(upright) or all(axis.get_ylabel() for axis in made.axes)


@pytest.mark.parametrize("validation", [True, False])
def test_a_heat_map_shows_validation_with_test_beside_it(tmp_path: Path, validation: bool) -> None:
    grid = {f"repr prune_ratio={p} s2={s}": [0.7 + p / 50, 0.71] for p in (0.1, 0.2) for s in (2, 5)}
    schemes = {"standard": [0.7, 0.71]} | grid
    results = make_experiment(tmp_path / "grid", schemes, epochs=8, validation=validation)
    (tmp_path / "work").mkdir()
    found = compare(store.gather([results], tmp_path / "work"))
    [(made, _, _)] = ablations(found)
    assert [axis.get_title() for axis in made.axes] == ["validation", "test"][not validation :]
    table = found.table[~found.table["is_baseline"]]
    for axis, column in zip(made.axes, ["val_accuracy_mean", "difference_mean"][not validation :], strict=True):
        image = np.asarray(axis.images[0].get_array(), dtype=float)
        assert sorted(image.ravel()) == pytest.approx(sorted(100 * table[column]))


def test_an_ablation_over_one_field_is_a_line(tmp_path: Path) -> None:
    grid = {f"repr ranking.score={name}": [0.7, 0.71] for name in ("random", "magnitude")}
    results = make_experiment(tmp_path / "grid", {"standard": [0.7, 0.71]} | grid, epochs=8)
    assert "ranking.score" in drawn(tmp_path, results)["ablation-01"].title


def test_levels_over_decades_have_a_logarithmic_axis(tmp_path: Path) -> None:
    grid = {f"repr rate={rate}": [0.7, 0.71] for rate in (0.001, 0.01, 0.1)}
    results = make_experiment(tmp_path / "grid", {"standard": [0.7, 0.71]} | grid, epochs=8)
    (tmp_path / "work").mkdir()
    [(made, _, _)] = ablations(compare(store.gather([results], tmp_path / "work")))
    assert [axis.get_ylabel().split()[0] for axis in made.axes] == ["validation", "test:"]
    for axis in made.axes:
        assert axis.get_xscale() == "log"
        assert axis.get_xticks().tolist() == pytest.approx([0.001, 0.01, 0.1])


def test_several_blocks_and_the_limit_on_them(tmp_path: Path) -> None:
    schemes = {"standard": BASE[:2], "repr": BASE[:2]}
    folders = [
        make_experiment(tmp_path / f"lr{rate}", schemes, epochs=8, variant=f"lr={rate}", settings={"train.lr": rate})
        for rate in (1, 2, 3)
    ]
    pictures = drawn(tmp_path, *folders, schemes=2, workers=1)
    assert sum("differences" in name for name in pictures) == 3
    assert sum("curves" in name for name in pictures) == 1
    assert "01-cifar10-convnet-3x32-lr=1-curves" in pictures
    assert "ablation-01" in pictures


@pytest.mark.slow
def test_several_processes_draw_the_same(tmp_path: Path) -> None:
    schemes = {"standard": BASE[:1], "repr": BASE[:1]}
    folders = [make_experiment(tmp_path / name, schemes, epochs=6, dataset=name) for name in "abcd"]
    work = tmp_path / "work"
    work.mkdir()
    tables = store.gather(folders, work)
    one = plots.draw(tables, compare(tables), tmp_path / "one", workers=1)
    two = plots.draw(tables, compare(tables), tmp_path / "two", workers=2)
    assert len(one) == 4 * 5 + 1  # and one over the data sets
    assert [p.png.read_bytes() for p in one] == [p.png.read_bytes() for p in two]
    assert [p.svg.read_bytes() for p in one] == [p.svg.read_bytes() for p in two]


def test_unfinished_and_diverged_trials_draw(experiment: Make, tmp_path: Path) -> None:
    results = experiment({"standard": [0.7]}, validation=False)
    make_trial(results, scheme="repr", done=2)
    make_trial(results, scheme="repr", seed=1, done=0)
    pictures = drawn(tmp_path, results)
    assert list(pictures) == ["curves", "overlap"]


def test_equal_trials_have_no_band(experiment: Make, tmp_path: Path) -> None:
    results = experiment({"standard": [0.7]})
    [folder] = (results / "trials").iterdir()
    other = make_trial(results, seed=1)
    (other / "epochs.jsonl").write_bytes((folder / "epochs.jsonl").read_bytes())
    _, test, *_ = figure(tmp_path, results, "curves").axes
    assert test.get_lines()[0].get_ydata()[-1] == pytest.approx(0.7)


def test_nothing_to_draw(experiment: Make, tmp_path: Path) -> None:
    results = experiment({})
    make_trial(results, done=0)
    assert drawn(tmp_path, results) == {}


def test_schemes_of_few_and_of_many_cycles_have_their_own_columns(experiment: Make, tmp_path: Path) -> None:
    """No empty columns for the cycles of another scheme, and no cycle of a scheme is passed over for another's."""
    results = experiment({"standard": BASE, "repr": BASE}, epochs=12)
    for seed in range(len(BASE)):
        make_trial(results, scheme="often", seed=seed, epochs=12, cycle=(1, 1))
    made = figure(tmp_path, results, "filters")
    columns = [axis.images[0].get_array().shape[1] for axis in made.axes]
    assert columns == [2 * len(BASE), 6 * len(BASE)]
    assert not any(np.ma.getmaskarray(axis.images[0].get_array()).any() for axis in made.axes)
    few, many = figure(results, results, "scores").axes
    places = [len({round(float(x), 6) for x in line.get_xdata()}) for axis in (few, many) for line in axis.lines[:1]]
    assert places == [2 * 3, 4 * 3]  # of three layers


@pytest.mark.parametrize("other", ["a-rival", "z-rival"])
def test_schemes_that_drop_nothing_are_beside_those_that_do(experiment: Make, tmp_path: Path, other: str) -> None:
    """Whatever the alphabetical order of their names."""
    results = experiment({"standard": BASE, "repr": BASE})
    for seed in range(len(BASE)):
        path = make_trial(results, scheme=other, seed=seed) / "cycles.jsonl"
        path.write_text(path.read_text().replace('"drop"', '"mask"').replace('"reinit"', '"unmask"'))
    made = drawn(tmp_path, results)
    assert "repr" in made["filters"].alt and other not in made["filters"].alt and "scores" in made
