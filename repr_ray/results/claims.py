"""Published numbers beside measured ones.

A claim is a row of CSV: source, dataset, model, scheme, metric (test_error, test_accuracy or best_test_accuracy,
in percent), value, and, if known, `settings` that the source states (`train.epochs=100 ...`), the `recipe` with all
other settings (a shipped config, `recipes/paper`, or a `.yaml` beside the file), and a note. A match is exact if all
our settings are those of the recipe, and no other scheme of ours has the same; otherwise it is approximate, and the
remark lists the differences. Schemes are named by their settings, not by the user: `standard`, `repr`, `repr-random`
for RePr with another score, `repr-inverse`; with a loss of its own `orthogonality` or `distillation+repr`; `ban` for
born-again networks. A claim is reproduced if our whole 95% interval lies within one percentage point of it, not
reproduced if the whole interval lies outside, and undecided otherwise. If the source also has standard training, the
gain over it is compared in the same way, by the interval of the paired difference.
"""

import json
import re
from collections import Counter
from importlib import resources
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from repr_ray.results.blocks import BLOCK, GROUP
from repr_ray.results.compare import Comparison, records
from repr_ray.results.decide import FEWEST_FOR_INTERVAL
from repr_ray.results.settings import comparable, trials_of

MARGIN = 0.01  # how far from a published accuracy or gain still counts as reproduced
UNDECIDED = "cannot tell yet"
_LISTED = 8  # settings that differ
_NEEDED = ["source", "dataset", "model", "scheme", "metric", "value"]
_METRICS = {
    "test_error": "test_accuracy",
    "test_accuracy": "test_accuracy",
    "best_test_accuracy": "selected_on_test_accuracy",
}
# Published networks under our labels. The paper's have batch norm, by their numbers of parameters.
_LABELS = {("paper", f"convnet-{depth}x32"): f"convnet-{depth}x32-bn" for depth in (3, 8, 13, 18)}
_LABELS |= {("paper", name): f"torchvision-{name}" for name in ("resnet18", "resnet34", "resnet50", "vgg16")}
_LABELS[("siahuat0727", "convnet-3x32-nopool")] = "convnet-3x32"
_LABELS[("SweetWind1996", "convnet-3x32")] = "convnet-3x32 with layers that are not stated"
COLUMNS = [
    *(*GROUP, "source", "quantity"),
    *("claimed", "measured", "measured_low", "measured_high", "n", "verdict", "match", "remark"),
]
"""Columns of the table of claims; accuracies and gains are fractions."""


def load(path: Path | None = None) -> pd.DataFrame:
    """Read a file of claims, or the package's own. Raises ValueError with the line at fault."""
    source = path or resources.files("repr_ray.results") / "data" / "claims.csv"
    try:
        with source.open("r", encoding="utf-8") as file:
            claims = pd.read_csv(file, dtype=str, keep_default_na=False)
    except (OSError, ValueError) as error:
        raise ValueError(f"claims {source}: {error}") from None
    if missing := [name for name in _NEEDED if name not in claims]:
        raise ValueError(f"claims {source}: lacks the columns {', '.join(missing)}")
    if unknown := sorted(set(claims["metric"]) - set(_METRICS)):
        raise ValueError(f"claims {source}: unknown metric {', '.join(unknown)}; known are {', '.join(_METRICS)}")
    value = pd.to_numeric(claims["value"], errors="coerce")
    if value.isna().any():
        row = int(value.isna().to_numpy().argmax())
        raise ValueError(f"claims {source}: value={claims['value'].iloc[row]!r} in row {row + 1} is not a number")
    accuracy = (value / 100).where(claims["metric"] != "test_error", 1 - value / 100)
    optional = {name: claims.get(name, pd.Series("", claims.index)) for name in ("settings", "recipe", "note")}
    if path:  # the user's config lies beside the file
        beside = optional["recipe"].map(lambda name: str(path.parent / name) if name.endswith(".yaml") else name)
        optional["recipe"] = beside
    claims = claims.assign(accuracy=accuracy.round(6), measure=claims["metric"].map(_METRICS), **optional)
    # The paper gives some numbers in two tables, once as an error and once as an accuracy.
    return claims.drop_duplicates(["source", "dataset", "model", "scheme", "measure", "accuracy"])


def sources() -> pd.DataFrame:
    """The sources of the package's own claims: source, reference, address."""
    with (resources.files("repr_ray.results") / "data" / "sources.csv").open("r", encoding="utf-8") as file:
        return pd.read_csv(file)


def check(comparison: Comparison, claims: pd.DataFrame) -> pd.DataFrame:
    """Every claim that matches a row of the comparison, with a verdict. See `COLUMNS`."""
    texts = comparison.trials.groupby(GROUP)["settings"].first()
    standards = dict(iter(claims[claims["scheme"] == "standard"].groupby(_NEEDED[:3])))
    of_standard = [_partner(row, standards.get(tuple(row[key] for key in _NEEDED[:3]))) for row in records(claims)]
    claims = claims.assign(standard=pd.Series(of_standard, claims.index, dtype=float))

    def published(block: dict[str, Any], scheme: str) -> tuple[str, dict[str, Any]]:
        """The published name and the settings of a scheme of a block of trials."""
        settings = comparable(json.loads(texts[(*(block[key] for key in BLOCK), scheme)] or "{}"))
        return _published_name(scheme, settings), settings

    rows = []
    for ours in records(comparison.table[comparison.table["n"] > 0]):
        scheme, used = published(ours, ours["scheme"])
        matches = claims[(claims["dataset"] == ours["dataset"]) & (claims["scheme"] == scheme)]
        for claim in records(matches):
            model = _differs(claim["source"], claim["model"], ours["model"])
            if model is None:
                continue
            remark = "; ".join(filter(None, [model, *_differences(claim, used, bool(model))]))
            row = {key: ours[key] for key in GROUP} | {"source": claim["source"], "remark": remark}
            row["published"] = scheme
            row["match"] = "approximate" if remark else "exact"
            quantity = "best on test" if claim["measure"].startswith("selected") else "accuracy"
            rows.append(row | _judge(quantity, claim["accuracy"], ours, claim["measure"], ours["n"], not remark))
            if quantity == "best on test" or pd.isna(claim["standard"]) or pd.isna(ours["pairs"]):
                continue  # ours are differences of the last epoch
            if published(ours, comparison.baseline)[0] == "standard":
                gain = round(claim["accuracy"] - claim["standard"], 6)
                rows.append(row | _judge("gain", gain, ours, "difference", ours["pairs"], not remark))
    return pd.DataFrame(_one_each(rows), columns=COLUMNS)


def by_match(claims: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The claims with a verdict, and the approximate ones."""
    exact = claims["match"] == "exact"
    return claims[exact], claims[~exact]


def _one_each(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows; matches that share a claim become approximate, since their schemes differ in something unknown."""

    def claim(row: dict[str, Any]) -> tuple[Any, ...]:
        return tuple(row[key] for key in ("source", "dataset", "model", "published", "quantity", "claimed", "match"))

    counts = Counter(map(claim, rows))
    shared = {"match": "approximate", "verdict": UNDECIDED, "remark": "another scheme here has the same settings"}
    return [row | shared if row["match"] == "exact" and counts[claim(row)] > 1 else row for row in rows]


def _judge(quantity: str, claimed: float, ours: dict[str, Any], measure: str, n: int, exact: bool) -> dict[str, Any]:
    """Remove the verdict where settings differ from the published ones: it is another experiment."""
    mean, low, high = (ours[f"{measure}_{part}"] for part in ("mean", "low", "high"))
    verdict = UNDECIDED
    judged = exact and n >= FEWEST_FOR_INTERVAL
    if judged and claimed - MARGIN <= low and high <= claimed + MARGIN:
        verdict = "reproduced"
    elif judged and (high < claimed - MARGIN or low > claimed + MARGIN):
        verdict = "not reproduced"
    measured = {"measured": mean, "measured_low": low, "measured_high": high, "n": int(n)}
    return {"quantity": quantity, "claimed": claimed, "verdict": verdict} | measured


def _published_name(scheme: str, settings: dict[str, Any]) -> str:
    """The name in publications of a scheme with these flat settings."""
    kind = settings.get("scheme.kind", scheme)
    if loss := settings.get("scheme.loss.kind"):
        born_again = loss == "distillation" and settings.get("scheme.loss.temperature", 1.0) == 1
        carried = "ban" if born_again else str(loss)
        without = {name: value for name, value in settings.items() if not name.startswith("scheme.loss")}
        name = _published_name(scheme, without)
        return carried if name == "standard" else f"{carried}+{name}"
    if kind != "repr":
        return str(kind)
    score = str(settings.get("scheme.ranking.score", "orthogonality")).removesuffix("_l1").removesuffix("_l2")
    name = "repr" if score == "orthogonality" else f"repr-{score}"
    return name if settings.get("scheme.ranking.order", "worst") == "worst" else f"{name}-inverse"


def _differs(source: str, model: str, label: str) -> str | None:
    """The difference between our network and the published one: empty if there is none, None for another network."""
    published = _LABELS.get((source, model), model)
    if label == published:
        return ""
    size = re.compile(r"convnet-\d+x\d+")
    ours, theirs = size.match(label), size.match(published)
    if not ours or not theirs or ours.group() != theirs.group():
        return None
    return f"the published network is {published}"


def _differences(claim: dict[str, Any], used: dict[str, Any], other_network: bool) -> list[str]:
    """Our flat settings that differ from those of the source, and from those of its recipe."""
    parts = (part.split("=", 1) for part in claim["settings"].split())
    stated = {name: yaml.safe_load(value) for name, value in parts}
    differs = [name for name, value in stated.items() if name in used and used[name] != value]
    said = [f"{_used(name, used[name])} here, {_value(name, stated[name])} published" for name in differs]
    recipe = _cell(claim, stated)
    if recipe is None:
        return [
            *said,
            f"the recipe {claim['recipe']} is not here" if claim["recipe"] else "its other settings are not known",
        ]
    missing = object()
    names = [name for name in recipe | used if recipe.get(name, missing) != used.get(name, missing)]
    names = [name for name in names if name not in stated and not (other_network and name.startswith("model."))]
    rest = [f"{_used(n, used.get(n))} here, {_value(n, recipe.get(n))} in its recipe" for n in names[:_LISTED]]
    return [*said, *rest, *([f"and {len(names) - _LISTED} more"] if len(names) > _LISTED else [])]


def _cell(claim: dict[str, Any], stated: dict[str, Any]) -> dict[str, Any] | None:
    """The flat settings of the claim's recipe."""
    network = _LABELS.get((claim["source"], claim["model"]), claim["model"])
    wanted = (claim["dataset"], network, claim["scheme"])
    known = trials_of(claim["recipe"]) if claim["recipe"] else ()
    found = [settings for *cell, settings in known if tuple(cell) == wanted]
    return next((s for s in found if all(s.get(name, value) == value for name, value in stated.items())), None)


def _used(name: str, value: Any) -> str:
    return f"{name.removeprefix('scheme.')} {_value(name, value)}"


def _value(name: str, value: Any) -> str:
    """A value in words, also for a setting that is not given."""
    nothing = {"data.train_images": "all", "scheme.cycles": "as many as fit"}.get(name, "not set")
    return nothing if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _partner(claim: dict[str, Any], standards: pd.DataFrame | None) -> float | None:
    """The accuracy the same source gives for standard training in the same setting."""
    if claim["scheme"] == "standard" or standards is None:
        return None
    standards = standards[standards["measure"] == claim["measure"]]
    if len(standards) > 1:  # several settings: the note begins with the same words
        begins = standards["note"].str.split(";").str[0]
        standards = standards[begins == claim["note"].split(";")[0]]
    return float(standards["accuracy"].iloc[0]) if len(standards) == 1 else None
