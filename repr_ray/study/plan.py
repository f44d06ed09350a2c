"""The trials of an experiment, all known and named before anything runs."""

import dataclasses
import hashlib
import itertools
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from repr_ray.components import Settings
from repr_ray.method.settings import SchemeSettings
from repr_ray.models.settings import ModelSettings
from repr_ray.plug_ins import digests
from repr_ray.study.config import ConfigError, Experiment, Resources, Train
from repr_ray.study.data import Data
from repr_ray.study.reading import owner, replace, validate
from repr_ray.study.tuning import Tuning

_SHARED = ("data", "model", "train")  # blocks of settings that all schemes share

Level = tuple[str, dict[str, Any]]
"""A value on an axis of a grid: its text in labels, and the dotted fields that it sets."""

WEIGHTS = "model.weights"

LONGEST = 100  # bytes of a scheme's label in a folder name; file systems hold 255, the rest takes up to 70


@dataclass(frozen=True)
class Trial:
    """One training run. `scheme` and `variant` are the labels in tables, the rest is resolved settings.

    `scheme` carries the values of grid fields that belong to that scheme, `variant` those of all others. `stage` is
    `tuning` for a trial that tries a point of the search space; `tuned` has the values of that point, or of the one
    that was chosen. `teacher` is the trial whose network this one learns from; it is trained before. A trial with
    `until` pauses after that many epochs.
    """

    experiment: str
    scheme: str
    variant: str
    seed: int
    data: Data
    model: ModelSettings
    train: Train
    settings: SchemeSettings
    resources: Resources
    stage: str = ""
    tuned: tuple[tuple[str, Any], ...] = ()
    teacher: "Trial | None" = None
    until: int | None = None

    @property
    def last_epoch(self) -> int:
        """The epoch, counted from 1, after which it ends or pauses."""
        return self.until or self.train.epochs

    @property
    def fingerprint(self) -> str:
        """Eight hex digits of everything that changes the result; paths and hardware are not in it.

        Fields at their first defaults are left out, so a new setting does not invalidate existing results, and
        results made with an old default are not taken for those of a new one.
        """
        blocks = self._blocks().items()
        result: dict[str, Any] = {name: block.differing(exclude={"source", "partial"}) for name, block in blocks}
        kinds = [self.model.kind, self.train.optimizer.kind, self.train.schedule.kind, self.settings.kind]
        if self.teacher:
            result["teacher"] = self.teacher.fingerprint
        text = json.dumps(result | {"kinds": kinds, "seed": self.seed}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:8]

    @property
    def name(self) -> str:
        """Readable, a safe file name, unique to the result: convnet-3x32-cifar10-repr-s3-1a2b3c4d."""
        scheme = "".join(c if c.isalnum() or c in "._-=" else "-" for c in self.scheme)
        if len(scheme.encode()) > LONGEST:
            scheme = scheme.encode()[:LONGEST].decode(errors="ignore") + "~"
        return f"{self.model.label}-{self.data.name}-{scheme}-s{self.seed}-{self.fingerprint}"

    @property
    def plug_ins(self) -> dict[str, str]:
        """The digest of the source of each component that is not built in, by its name in the settings."""
        return digests(self._dumped())

    @property
    def source_digests(self) -> dict[str, str]:
        """The digests of `plug_ins`, and that of the file of weights that the network starts from."""
        file = getattr(self.model, "weights", None)
        return self.plug_ins | ({WEIGHTS: _digest_of(Path(file))} if file else {})

    def record(self) -> dict[str, Any]:
        """Plain values for config.yaml, without the name and the fingerprint."""
        teacher = self.teacher.name if self.teacher else ""
        given = {"stage": self.stage, "tuned": dict(self.tuned), "plug_ins": self.source_digests, "teacher": teacher}
        return {name: value for name, value in given.items() if value} | {
            "experiment": self.experiment,
            "dataset": self.data.name,
            "model": self.model.label,
            "scheme": self.scheme,
            "variant": self.variant,
            "seed": self.seed,
            "epochs": self.train.epochs,
            "settings": self._dumped(),
            "resources": self.resources.model_dump(mode="json"),
        }

    def _blocks(self) -> dict[str, Settings]:
        return {"data": self.data, "model": self.model, "train": self.train, "scheme": self.settings}

    def _dumped(self) -> dict[str, Any]:
        return {name: block.model_dump(mode="json") for name, block in self._blocks().items()}


@dataclass(frozen=True)
class Arm:
    """A scheme at one point of the grid, whose setting `experiment` has: its trials differ in the seed alone."""

    scheme: str
    label: str
    variant: str
    experiment: Experiment

    def trials(self, seeds: Iterable[int], values: Mapping[str, Any] | None = None, stage: str = "") -> list[Trial]:
        """A trial for each seed, with `values` of dotted fields that tuning tries or has chosen."""
        values = values or {}
        resolved = self.experiment
        if values:
            resolved = _resolve(resolved.model_dump(exclude={"grid", "seeds", "tuning"}) | {"seeds": [0]}, values)
        settings = resolved.schemes[self.scheme]

        trial = Trial(
            experiment=resolved.name,
            scheme=self.label,
            variant=self.variant,
            seed=0,
            data=resolved.data,
            model=resolved.model,
            train=resolved.train,
            settings=settings,
            resources=resolved.resources,
            stage=stage,
            tuned=tuple(values.items()),
        )
        if not settings.needs_teacher:
            return [dataclasses.replace(trial, seed=seed) for seed in seeds]
        teacher = dataclasses.replace(trial, scheme=resolved.baseline, settings=self._teaching(resolved))
        return [dataclasses.replace(trial, seed=s, teacher=dataclasses.replace(teacher, seed=s)) for s in seeds]

    def _teaching(self, resolved: Experiment) -> SchemeSettings:
        """The baseline's settings. Raises ConfigError if no trial of the baseline can be the teacher."""
        told = f"schemes.{self.scheme}.loss: it learns from the baseline's run of the same seed"
        baseline = resolved.schemes.get(resolved.baseline)
        if baseline is None:
            raise ConfigError(f"{told}, and there is no scheme {resolved.baseline}; add it, or name another baseline")
        if baseline.needs_teacher:
            raise ConfigError(f"{told}, which would need a teacher itself; name another baseline")
        if resolved.tuning:
            raise ConfigError(f"{told}, which tuning would change later; leave tuning out")
        return baseline


def arms(experiment: Experiment) -> list[Arm]:
    """Every scheme at every point of the grid.

    Raises ConfigError for a grid field that does not exist, a value that does not fit, or too many trials.
    """
    shared: dict[str, list[Level]] = {}
    own: dict[str, dict[str, list[Level]]] = {scheme: {} for scheme in experiment.schemes}
    for key, values in experiment.grid.items():
        block, _, rest = key.partition(".")
        if isinstance(values, dict):
            shared[key] = _named(key, values)
        elif block not in (*_SHARED, "schemes") or not rest:
            raise ConfigError(f"grid.{key}: only fields of data, model, train and schemes can vary")
        elif block != "schemes":
            shared[key] = [(f"{key}={value}", {key: value}) for value in values]
        elif not (scheme := owner(own, rest)):
            raise ConfigError(f"grid.{key}: no such scheme; there are {', '.join(experiment.schemes)}")
        else:
            field = key.removeprefix(f"schemes.{scheme}.")
            own[scheme][key] = [(f"{field}={value}", {key: value}) for value in values]
    if twice := [field for field in experiment.varied if experiment.varied.count(field) > 1]:
        raise ConfigError(f"grid: {twice[0]} varies twice; leave one of them out")
    tuning = experiment.tuning.budget * len(experiment.tuning.seeds) if experiment.tuning else 0
    count = (len(experiment.every_seed) + tuning) * _size(shared) * sum(map(_size, own.values()))
    if count > experiment.most_trials:
        raise ConfigError(
            f"grid: {count:,} trials, more than most_trials={experiment.most_trials:,};"
            " raise that, or take fewer seeds or values"
        )
    for key in own.get(experiment.baseline, ()):
        raise ConfigError(
            f"grid.{key}: {experiment.baseline} is the baseline, which can have one value only; name another"
            " baseline, or make a scheme for each value"
        )
    raw = experiment.model_dump(exclude={"grid", "seeds", "tuning"}) | {"seeds": [0]}
    if experiment.tuning:
        _assert_compared(raw, experiment, experiment.tuning)
    varied = {field.partition(".")[0] for field in experiment.varied}
    raw |= {block: getattr(experiment, block) for block in _SHARED if block not in varied}  # valid
    found = []
    for variant, point in _points(shared):
        for scheme in experiment.schemes:
            for own_text, own_point in _points(own[scheme]):
                label = " ".join(filter(None, [scheme, own_text]))
                resolved = _resolve(raw, point | own_point) if point | own_point else experiment
                if experiment.tuning:
                    _assert_tunable(resolved, experiment.tuning, f"{variant} {own_text}".strip())
                found.append(Arm(scheme, label, variant, resolved))
    return found


def _assert_tunable(resolved: Experiment, tuning: Tuning, where: str) -> None:
    """Raise ConfigError unless settings can be chosen at a point of the grid."""
    try:
        tuning.check(resolved.data.validation_images, resolved.train.epochs, resolved.train.evaluate_every)
    except ValueError as error:
        raise ConfigError(f"{error} (at {where})") from None


def _assert_compared(raw: dict[str, Any], experiment: Experiment, tuning: Tuning) -> None:
    """Raise ConfigError if schemes would not be compared at their choices: on other images, or other networks."""
    for field, values in tuning.space.items():
        for value in values.extremes if field.partition(".")[0] in ("data", "model") else ():
            chosen = _resolve(raw, {field: value})
            same = chosen.model.label == experiment.model.label
            if not same or chosen.data.images != experiment.data.images:
                raise ConfigError(
                    f"tuning.space: {field}: schemes with different values have different"
                    f" {'images' if same else 'networks'}, and are not compared; put it into the grid instead"
                )


def _named(key: str, values: Mapping[str, Mapping[str, Any]]) -> list[Level]:
    """The values of an axis that each set several fields. Raises ConfigError for a field that they cannot set."""
    if key.partition(".")[0] in (*_SHARED, "schemes"):
        raise ConfigError(
            f"grid.{key}: expected a list of values; to set several fields at once, choose a name that is no field"
        )
    for name in (key, *values):
        if not re.fullmatch(r"[\w.+-]+", name):
            raise ConfigError(f"grid.{key}: {name!r} cannot be a name in labels: use letters, digits, and . _ + -")
    for name, fields in values.items():
        if wrong := [field for field in fields if field.partition(".")[0] not in _SHARED or "." not in field]:
            raise ConfigError(f"grid.{key}.{name}: {wrong[0]}: only fields of data, model and train can vary here")
    return [(f"{key}={name}", dict(fields)) for name, fields in values.items()]


def plan(experiment: Experiment) -> list[Trial]:
    """Every trial of the comparison; seeds vary slowest, so that an unfinished study compares schemes.

    Raises ConfigError as `arms` does, and for two schemes that are the same.
    """
    every = [arm.trials(experiment.every_seed) for arm in arms(experiment)]
    return distinct([trial for of_seed in zip(*every, strict=True) for trial in of_seed])


def distinct(trials: list[Trial]) -> list[Trial]:
    """The trials. Raises ConfigError if two would share a folder."""
    folders: dict[str, Trial] = {}
    for trial in trials:
        other = folders.setdefault(trial.name.casefold(), trial)  # some file systems ignore case
        if other is not trial:
            raise ConfigError(
                f"schemes: {_called(other)!r} and {_called(trial)!r} have the same settings and one folder,"
                f" {trial.name}; give one another name, or leave it out"
            )
    return trials


def _digest_of(file: Path) -> str:
    """Sixteen hex digits of a file's content; empty if it cannot be read, which `check` reports."""
    try:
        return _digest_at(file, file.stat().st_mtime_ns)
    except OSError:
        return ""


@cache
def _digest_at(file: Path, mtime_ns: int) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()[:16]


def _called(trial: Trial) -> str:
    return f"{trial.scheme} {trial.variant}".strip()


def _size(axes: Mapping[str, Sequence[Level]]) -> int:
    return math.prod(map(len, axes.values()))


def _points(axes: Mapping[str, Sequence[Level]]) -> list[Level]:
    """Every combination of the values of some axes."""
    return [
        (
            " ".join(text for text, _ in point),
            {field: value for _, values in point for field, value in values.items()},
        )
        for point in itertools.product(*axes.values())
    ]


def _resolve(raw: dict[str, Any], point: Mapping[str, Any]) -> Experiment:
    for key, value in point.items():
        raw = replace(raw, key, value)
    return validate(raw, "grid")
