"""Blocks of trials that are compared with each other, and groups of trials that differ in the seed alone."""

import json
from typing import Any

import pandas as pd

from repr_ray.records import flatten
from repr_ray.results.settings import whole

BLOCK = ["dataset", "model", "variant"]
GROUP = [*BLOCK, "scheme"]


def unambiguous(trials: pd.DataFrame, baseline: str, notes: list[str]) -> pd.DataFrame:
    """Add differing settings to the variant or scheme if one name has several settings or data.

    Settings of a scheme that differ between variants are added too, except for the baseline, which keeps its name.
    Values that tuning chose are added only if one scheme has several in a block, as in joined experiments.
    """
    trials = trials.copy()
    texts = trials["settings"] + "\n" + trials["tuned"] + "\n" + trials["scheme"]
    blocks = texts.map({text: _untuned(*text.split("\n", 2)) for text in texts.unique()})
    shared = blocks.map(_without_scheme)
    scheme = blocks.map(lambda block: block.get("scheme") or {})
    base = trials["scheme"] == baseline
    own, others = scheme.where(base, None), scheme.where(~base, None)
    everywhere = [name for name in GROUP if name != "variant"]
    chosen = trials["tuned"].map(json.loads)
    for column, within, parts in (
        ("variant", BLOCK, shared),
        ("scheme", GROUP, own),
        ("scheme", everywhere, others),
        ("scheme", GROUP, chosen),
    ):
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


def _untuned(settings: str, tuned: str, scheme: str) -> dict[str, Any]:
    """All settings without those tuned for each scheme: schemes are compared at their chosen values."""
    block = whole(json.loads(settings))
    for field in json.loads(tuned):
        *path, last = _stored_as(field, scheme).split(".")
        inner: Any = block
        for part in path:
            inner = inner.get(part) if isinstance(inner, dict) else None
        if isinstance(inner, dict):
            inner.pop(last, None)
    return block


def _stored_as(field: str, scheme: str) -> str:
    """The dotted field of a trial's settings that a field of an experiment sets: `schemes.NAME.x` is `scheme.x`.

    `scheme` is the trial's label: the name of its scheme, which may have dots, and values of a grid.
    """
    first, _, rest = field.partition(".")
    if first != "schemes":
        return field
    places = [place for place, character in enumerate(rest) if character == "."]
    return next((f"scheme{rest[p:]}" for p in places if f"{scheme} ".startswith(f"{rest[:p]} ")), field)


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


def one_a_seed(trials: pd.DataFrame, notes: list[str]) -> pd.DataFrame:
    """Keep one of the trials with the same settings and seed, preferably a finished one."""
    first = trials.assign(open=trials["status"] != "done").sort_values("open", kind="stable")
    kept = trials.loc[first.drop_duplicates([*GROUP, "seed"]).index.sort_values()]
    again = trials["trial"][~trials.index.isin(kept.index)]
    notes.extend(f"{name} has the settings and the seed of another trial: left out" for name in again)
    return kept
