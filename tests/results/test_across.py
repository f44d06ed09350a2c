"""Schemes over data sets and networks, against the worked examples of Demsar (JMLR 7, 2006)."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from repr_ray.results.across import Across, across
from repr_ray.results.plots.datasets import overview
from repr_ray.results.plots.style import save, styled

# Table 6 there: AUC of C4.5 with m, cf, both tuned. Two voting results that are printed alike differ in rank there.
NAMES = ["C4.5", "m", "cf", "m+cf"]
AUC = [
    [0.763, 0.768, 0.771, 0.798],
    [0.599, 0.591, 0.590, 0.569],
    [0.954, 0.971, 0.968, 0.967],
    [0.628, 0.661, 0.654, 0.657],
    [0.882, 0.888, 0.886, 0.898],
    [0.936, 0.931, 0.916, 0.931],
    [0.661, 0.668, 0.609, 0.685],
    [0.583, 0.583, 0.563, 0.625],
    [0.775, 0.838, 0.866, 0.875],
    [1.0, 1.0, 1.0, 1.0],
    [0.940, 0.962, 0.965, 0.962],
    [0.619, 0.666, 0.614, 0.669],
    [0.972, 0.981, 0.97501, 0.975],
    [0.957, 0.978, 0.946, 0.970],
]


def table(
    values: list[list[float]], names: list[str], variants: int = 1, baseline: str | None = None
) -> pd.DataFrame:
    """Rows of a comparison: a data set a line, on two networks in turn; all schemes have the same seeds."""
    base = names.index(baseline or names[0])
    return pd.DataFrame(
        {
            "dataset": f"data{row // 2}",
            "model": f"net{row % 2}",
            "variant": f"v={variant}" if variants > 1 else "",
            "scheme": name,
            "test_accuracy_mean": value + 0.001 * variant,
            "difference_mean": np.nan if name == names[base] else value - line[base],
        }
        for row, line in enumerate(values)
        for variant in range(variants)
        for name, value in zip(names, line, strict=True)
    )


def of(values: list[list[float]], names: list[str], baseline: str | None = None, variants: int = 1) -> Across:
    found = across(table(values, names, variants, baseline), baseline or names[0])
    assert found is not None
    return found


def test_a_scheme_with_fewer_seeds_is_compared_over_its_own() -> None:
    """Looks train the baseline on; its later seeds were worse, and say nothing about the scheme."""
    values = [[0.70, 0.69], [0.80, 0.79], [0.60, 0.59]]
    rows = table(values, ["standard", "repr"])
    later = rows["scheme"] == "standard"
    rows.loc[later, "test_accuracy_mean"] -= 0.05
    found = across(rows, "standard")
    assert found is not None
    assert found.differences["repr"].tolist() == pytest.approx([-0.01] * 3)
    assert found.table.set_index("scheme").loc["repr", ["rank", "ahead"]].tolist() == [2.0, 0]


def test_friedman_and_nemenyi_of_demsars_example() -> None:
    found = of(AUC, NAMES)
    ranks = found.table.set_index("scheme")["rank"]
    assert ranks[NAMES].tolist() == pytest.approx([3.143, 2.000, 2.893, 1.964], abs=5e-4)
    assert found.critical == pytest.approx(1.25, abs=0.005)  # "the critical difference is 2.569 ... = 1.25"
    assert found.test.startswith("Friedman")
    # "9.28", to which scipy adds the correction for ties
    assert 12 * 14 / (4 * 5) * (np.sum(ranks**2) - 4 * 5**2 / 4) == pytest.approx(9.28, abs=0.01)
    assert found.p == pytest.approx(stats.friedmanchisquare(*np.transpose(AUC)).pvalue)
    assert found.p < stats.chi2.sf(9.28, 3)
    assert found.table["scheme"].tolist()[0] == "m+cf"
    sure = found.table[(found.table["rank"] - ranks["C4.5"]).abs() > found.critical]["p_baseline"]
    assert (sure <= 0.05).all() and (found.table["p_baseline"].drop(sure.index).dropna() > 0.05).all()
    assert found.table.set_index("scheme").loc["C4.5", "difference_mean"] == 0


def test_p_is_never_zero() -> None:
    found = of([[0.7 + row / 1000, 0.8, 0.9] for row in range(60)], ["standard", "a", "b"])
    assert 0 < found.table.set_index("scheme").loc["b", "p_baseline"] <= 1e-12


def test_wilcoxon_of_demsars_example() -> None:
    found = of([line[:2] for line in AUC], NAMES[:2])
    differences = found.differences["m"].to_numpy().round(12)
    assert stats.wilcoxon(differences, zero_method="zsplit").statistic == 12  # "T = 12"
    assert found.test.startswith("Wilcoxon")
    assert 0.005 < found.p < 0.02
    row = found.table.set_index("scheme").loc["m"]
    assert (row["ahead"], row["of"]) == (10, 14)
    assert np.isnan(found.critical)


def test_wilcoxon_is_exact_for_few_data_sets() -> None:
    found = of([[0.5, 0.51], [0.6, 0.62], [0.7, 0.73], [0.8, 0.84], [0.4, 0.45]], ["standard", "repr"])
    assert found.p == pytest.approx(2 / 2**5)
    assert any("too few: p cannot go below 0.062" in note for note in found.notes)
    assert of([[0.5, 0.5], [0.6, 0.6]], ["standard", "repr"]).p == 1


def test_variants_are_no_further_data_sets() -> None:
    once, thrice = of(AUC, NAMES), of(AUC, NAMES, variants=3)
    assert len(thrice.accuracies) == 14
    assert (thrice.p, thrice.critical) == pytest.approx((once.p, once.critical))
    assert any("42 rows make 14" in note for note in thrice.notes)


def test_seeds_are_no_data_sets() -> None:
    assert across(table([AUC[0]], NAMES), "C4.5") is None
    assert across(table([AUC[0]], NAMES, variants=5), "C4.5") is None


def test_what_has_gaps_is_left_out() -> None:
    rows = table([*AUC, [0.5, 0.6, 0.7, 0.8]], NAMES)
    lacking = rows[~((rows["scheme"] == "cf") & (rows.index > 4 * 8))]  # on 9 of 15
    lacking = lacking[
        ~(lacking["dataset"].eq("data0") & lacking["model"].eq("net0") & lacking["scheme"].isin(["m", "m+cf"]))
    ]
    found = across(lacking, "C4.5")
    assert found is not None
    assert found.accuracies.shape == (14, 3)
    assert len(found.notes) == 2
    assert across(rows, "none") is None
    assert across(rows[rows["scheme"] == "C4.5"], "C4.5") is None


def test_pictures_over_data_sets(tmp_path: Path) -> None:
    with styled():
        made = {
            name: save(figure, tmp_path / name, title, alt) for name, figure, title, alt in overview(of(AUC, NAMES))
        }
        pair = [name for name, *_ in overview(of([line[:2] for line in AUC], NAMES[:2]))]
    assert list(made) == ["critical-difference", "differences-map"]
    assert "m+cf 1.96; m 2.00" in made["critical-difference"].alt
    assert all(picture.png.stat().st_size > 1000 and picture.svg.exists() for picture in made.values())
    assert pair == ["differences-map"]  # no Nemenyi for a single scheme
