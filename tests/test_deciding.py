"""docs/statistics.md says what the simulations said, and the simulations say it again."""

import json

import pytest

from benchmarks.deciding import DOCS, LOOKS, STUDIES, page, simulate

SECTIONS = json.loads((DOCS / "statistics.json").read_text())


def test_the_page_shows_the_stored_tables() -> None:
    text = (DOCS / "statistics.md").read_text()
    assert page(text, SECTIONS) == text
    changed = json.loads(json.dumps(SECTIONS))
    changed["errors"][0]["some wrong"] = 0.123
    assert "12.3%" in page(text, changed)


@pytest.mark.parametrize(("section", "place"), [("errors", 6), ("equality", 1), ("cost", 4)])
def test_a_stored_row_is_simulated_again(section: str, place: int) -> None:
    row = SECTIONS[section][place]
    again = simulate(row["looks"], row["schemes"], row["effect"], row["margin"], row["runs"])
    assert again.pop("looks") == row["looks"]
    assert again == pytest.approx({name: value for name, value in row.items() if name != "looks"})


def test_verdicts_are_wrong_as_rarely_as_promised() -> None:
    assert STUDIES == 20_000
    for row in SECTIONS["errors"]:
        assert row["some wrong"] <= 0.052, row
    assert max(row["some wrong"] for row in SECTIONS["equality"]) <= 0.052
    assert all(row["interval holds"] >= 0.948 for row in SECTIONS["errors"])


def test_looks_train_at_least_40_percent_fewer_runs_at_one_standard_deviation() -> None:
    by_looks = [row for row in SECTIONS["cost"] if row["looks"] == list(LOOKS) and row["effect"] == 1.0]
    alone = [row for row in by_looks if row["schemes"] == 1]
    assert alone and all(row["fewer"] >= 0.4 for row in alone)


def test_power_is_as_planned() -> None:
    for row in SECTIONS["planned"]:
        assert 0.79 <= row["reached"] <= 0.95, row
