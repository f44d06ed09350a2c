"""What an experiment is: frozen, validated settings from YAML and `key=value` overrides. Imports no torch."""

import difflib
import re
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

import yaml
from pydantic import Discriminator, Field, Tag, ValidationError, field_validator, model_validator

import repr_ray.method.rivals.settings  # noqa: F401 - its kinds
from repr_ray.components import ByName, Component, Count, Fraction, Natural, Settings, is_path
from repr_ray.documents import DEEPEST, read_yaml
from repr_ray.facts import FACTS, NAMED_SOURCES, Facts
from repr_ray.method.settings import Scheme
from repr_ray.models.settings import ConvNet, Model
from repr_ray.optim.optimizers import Optimizer, Sgd
from repr_ray.optim.rates import Constant, Rate
from repr_ray.tuning import Tuning

Seed = Annotated[int, Field(ge=0, lt=2**63)]
Share = Annotated[float, Field(ge=0, le=1)]
PositiveShare = Annotated[float, Field(gt=0, le=1)]
Positive = Annotated[float, Field(gt=0, le=1_000)]
Side = Annotated[int, Field(ge=1, le=4_096)]


class ConfigError(ValueError):
    """Input that cannot be used: one line per error, each naming the field and the way out."""


SOURCE = ByName("source", {})
"""Sources of one's own: functions from `Data` to a `repr_ray.data.source.Source`."""


class ChannelStatistics(Settings):
    """What images are normalised by, a number a channel: (pixel - mean) / std, with pixels from 0 to 1."""

    mean: tuple[Annotated[float, Field(ge=0, le=1)], ...] = Field(description="one number a channel")
    std: tuple[Annotated[float, Field(ge=1e-6, le=1)], ...] = Field(description="one number a channel")

    @model_validator(mode="after")
    def _one_a_channel(self) -> "ChannelStatistics":
        if len(self.mean) != len(self.std):
            raise ValueError(f"{len(self.mean)} means and {len(self.std)} standard deviations: give one a channel")
        return self


class Splits(Settings):
    """What splits are called in a source, where they are not to be found out."""

    train: str | None = Field(default=None, description="to train on")
    validation: str | None = Field(default=None, description="to hold out")
    test: str | None = Field(default=None, description="to test on")


class RandomResizedCrop(Settings):
    """A part of the image of a random area and shape, scaled to `data.size`."""

    scale: tuple[PositiveShare, PositiveShare] = Field(
        default=(0.08, 1.0), description="the least and the largest share of the image's area"
    )
    ratio: tuple[Positive, Positive] = Field(
        default=(3 / 4, 4 / 3), description="the least and the largest width, in heights"
    )

    @model_validator(mode="after")
    def _ordered(self) -> "RandomResizedCrop":
        return _ordered(self)


class ColorJitter(Settings):
    """Random factors for brightness, contrast and saturation, then a turn of the hue. Grey images have no colour."""

    brightness: Share = Field(default=0.0, description="factors within 1 plus or minus this")
    contrast: Share = Field(default=0.0, description="factors within 1 plus or minus this")
    saturation: Share = Field(default=0.0, description="factors within 1 plus or minus this")
    hue: Annotated[float, Field(ge=0, le=0.5)] = Field(default=0.0, description="share of the circle, either way")


class RandAugment(Settings):
    """Operations out of fourteen, all of one magnitude (arXiv 1909.13719)."""

    kind: Literal["rand_augment"]
    operations: Annotated[int, Field(ge=1, le=10)] = Field(default=2, description="how many, one after another")
    magnitude: Annotated[int, Field(ge=0, le=30)] = Field(default=9, description="of each, from 0 to 30")


class TrivialAugment(Settings):
    """One of fourteen operations at a random magnitude, from a wide range (arXiv 2103.10158)."""

    kind: Literal["trivial_augment"]


class RandomErasing(Settings):
    """A rectangle of a random area and shape becomes the mean colour (arXiv 1708.04896)."""

    probability: Share = Field(default=0.5, description="share of the images it is done to")
    scale: tuple[PositiveShare, PositiveShare] = Field(
        default=(0.02, 0.33), description="the least and the largest share of the image's area"
    )
    ratio: tuple[Positive, Positive] = Field(
        default=(0.3, 3.3), description="the least and the largest height, in widths"
    )

    @model_validator(mode="after")
    def _ordered(self) -> "RandomErasing":
        return _ordered(self)


Ranges = TypeVar("Ranges", RandomResizedCrop, RandomErasing)


def _ordered(ranges: Ranges) -> Ranges:
    for field in ("scale", "ratio"):
        least, largest = getattr(ranges, field)
        if least > largest:
            raise ValueError(f"{field}: the smaller number first")
    return ranges


class Augment(Settings):
    """What is done to training images beside `data.crop_padding` and `data.flip`, in this order."""

    random_resized_crop: RandomResizedCrop | None = Field(
        default=None, description="in place of `data.crop_padding`; needs `data.size`"
    )
    policy: Annotated[RandAugment | TrivialAugment, Field(discriminator="kind")] | None = Field(
        default=None, description="random operations on colour and shape"
    )
    color_jitter: ColorJitter | None = Field(default=None, description="random colours")
    random_erasing: RandomErasing | None = Field(default=None, description="random rectangles")
    cutout: Side | None = Field(
        default=None, description="side of a square that becomes the mean colour (arXiv 1708.04552)"
    )
    mixup: Annotated[float, Field(ge=0, le=100)] = Field(
        default=0.0, description="alpha of the Beta distribution that shares come from (arXiv 1710.09412)"
    )
    cutmix: Annotated[float, Field(ge=0, le=100)] = Field(
        default=0.0, description="the same for areas (arXiv 1905.04899); with `mixup` an image gets one of them"
    )


class Data(Settings):
    """A data set, how it is split, and what is done to its training images."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=60)] = Field(
        description=(
            f"the data set: of {', '.join(FACTS)} it is known what the source has to hold, any other name needs a"
            " source and is read as it is found"
        )
    )
    source: str = Field(
        default="torchvision",
        description=(
            "`torchvision` (downloaded when missing), `torchvision:CLASS`, `digits`, `hf:OWNER/NAME[@REVISION]`, or a"
            " folder or URL: of Parquet, of one folder a class (below `train`, `val`, `test`, or none), or of"
            " torchvision's own files; or one of your own, `my_module:name`"
        ),
    )
    image: str | None = Field(default=None, description="the column of images in Parquet, where it is not found")
    label: str | None = Field(default=None, description="the column of labels in Parquet, where it is not found")
    splits: Splits = Field(default=Splits(), description="what the source calls its splits")
    partial: bool = Field(
        default=False,
        description="allow fewer images or classes than the name says, and splits without an image of some class",
    )
    channels: Literal[1, 3] | None = Field(default=None, description="make images grey (1) or coloured (3)")
    size: Side | None = Field(
        default=None, description="side of the square that networks get; needed where images differ in size"
    )
    resize: Side | None = Field(
        default=None, description="what the shorter side is scaled to before the crop; `size` when not given"
    )
    evaluation_resize: Side | None = Field(
        default=None, description="the same for validation and test images, cropped from the middle"
    )
    test_share: Annotated[float, Field(gt=0, lt=1)] = Field(
        default=0.2, description="share of the images, drawn by class, to test on where the source has no test split"
    )
    skip_damaged: Natural = Field(default=0, description="images that may be left out because they cannot be decoded")
    train_images: Count | None = Field(
        default=None, description="training images, the first of what validation leaves; all of these when not given"
    )
    validation_images: Natural = Field(
        default=0,
        description=(
            "images held out for validation, drawn by class; for digits, cifar10 and cifar100 the last ones of the"
            " training set"
        ),
    )
    split_by_seed: bool = Field(default=False, description="draw the validation images by class, anew for each seed")
    label_noise: Fraction = Field(
        default=0.0, description="share of the training labels that become another class, drawn by the seed"
    )
    crop_padding: Annotated[int, Field(ge=0, le=1_000)] = Field(
        default=0, description="pixels that training images are padded by before a random crop"
    )
    flip: bool = Field(default=False, description="mirror half of the training images")
    augment: Augment = Field(default=Augment(), description="more that is done to training images")
    normalise: Annotated[
        Annotated[Literal["channel", "none"], Tag("name")] | Annotated[ChannelStatistics, Tag("statistics")],
        Discriminator(lambda value: "name" if isinstance(value, str) else "statistics"),
    ] = Field(
        default="channel",
        description="by the mean and deviation of each channel over the training set, by given ones, or not at all",
    )

    @field_validator("source")
    @classmethod
    def _absolute(cls, source: str) -> str:
        """Workers have other working directories."""
        if not source.isprintable():
            raise ValueError("a path or URL has no control characters")
        if source in NAMED_SOURCES or "://" in source:
            return source
        kind, colon, rest = source.partition(":")
        if colon and kind in _SOURCE_FORMS:
            pattern, form = _SOURCE_FORMS[kind]
            if not re.fullmatch(pattern, rest):
                raise ValueError(f"expected {form}")
            return source
        if is_path(source) and not Path(source).exists():
            SOURCE.get(source)
            return source
        try:
            return str(Path(source).expanduser().resolve())
        except (OSError, RuntimeError) as error:
            raise ValueError(str(error)) from None

    @property
    def facts(self) -> Facts | None:
        """What is known of a data set of this name."""
        return FACTS.get(self.name)

    @model_validator(mode="after")
    def _fits_together(self) -> "Data":
        """Refuse what has no effect: it would be taken for something that was done."""
        if self.source == "torchvision" and self.name != "digits" and not (self.facts and self.facts.torchvision):
            if self.facts:
                raise ValueError(f"source: torchvision has no {self.name}; name {self.facts.source}, or a folder")
            near = difflib.get_close_matches(self.name, FACTS, n=1)
            raise ValueError(
                f"name={self.name!r} is none of {', '.join(map(repr, FACTS))}"
                + (f"; did you mean {near[0]}?" if near else "")
                + "; of other images name the source as well"
            )
        if self.name == "digits" and self.source not in NAMED_SOURCES:
            raise ValueError(f"source={self.source}: digits come with scikit-learn; leave the source out")
        if self.source.partition(":")[0] in NAMED_SOURCES:
            named = {"image": self.image, "label": self.label, "splits": self.splits != Splits()}
            if has_no_effect := [field for field, value in named.items() if value]:
                raise ValueError(f"{has_no_effect[0]}: {self.source} has no columns or splits to name; leave it out")
        elif self.splits.train and self.splits.train in (self.splits.test, self.splits.validation):
            raise ValueError(f"splits: {self.splits.train} is trained on, and cannot be held out as well")
        for field in ("resize", "evaluation_resize"):
            side = getattr(self, field)
            if side is not None and (self.size is None or side < self.size):
                raise ValueError(f"{field}={side}: crops of data.size={self.size} are taken from it")
        if self.split_by_seed and not self.validation_images:
            raise ValueError("split_by_seed: there are no validation images to draw; set data.validation_images")
        if self.augment.random_resized_crop and (self.crop_padding or self.size is None):
            raise ValueError(
                "augment.random_resized_crop: needs data.size, and takes the place of data.crop_padding"
                if self.size is None
                else "crop_padding: augment.random_resized_crop takes its place; leave one of them out"
            )
        return self


_SOURCE_FORMS = {
    "torchvision": (r"[A-Za-z]\w*", "torchvision:CLASS, as in torchvision:FashionMNIST"),
    "hf": (r"[\w.-]+/[\w.-]+(@[\w./-]+)?", "hf:OWNER/NAME or hf:OWNER/NAME@REVISION"),
}


class Train(Settings):
    """Optimisation."""

    epochs: Count = Field(description="passes over the training images")
    batch_size: Count = Field(default=128, description="images of a step, over all workers together")
    optimizer: Optimizer = Field(default=Sgd(), description="the optimizer and its learning rate")
    schedule: Rate = Field(default=Constant(), description="how the learning rate changes over the training")
    precision: Literal["auto", "bf16", "fp32"] = Field(
        default="auto",
        description=(
            "of forward and backward passes; `auto` is bf16 where the hardware multiplies it faster, else fp32"
        ),
    )
    evaluate_every: Count = Field(
        default=1,
        description="epochs between two evaluations; the last epoch is always evaluated",
    )
    sync_batch_norm: bool = Field(
        default=False,
        description="share the statistics of batch norm between workers (GPUs only)",
    )
    compact_sub_network: bool = Field(
        default=False,
        description=(
            "train S2 on a smaller copy of the network, equal to the masked one up to floating-point order: "
            "faster on the paper's nets with a global ranking (benchmarks/README.md)"
        ),
    )
    deterministic: bool = Field(
        default=False,
        description="use PyTorch's deterministic algorithms, which are slower, also on a GPU",
    )


class Resources(Settings):
    """Where and how a trial runs: nothing in here changes its result beyond floating-point order."""

    workers: Count = Field(default=1, description="ranks that train one trial together (DistributedDataParallel)")
    cpus_per_worker: Count = Field(default=1, description="threads of a rank")
    gpus_per_worker: Natural | Literal["auto"] = Field(
        default="auto",
        description="GPUs of a rank; `auto` is one where there are any, else none",
    )
    trials_per_gpu: Count | Literal["auto"] = Field(
        default=1,
        description=(
            "trials of one worker that share a GPU; `auto` is as many as its memory and the cores beside it hold"
        ),
    )
    concurrent: Count | None = Field(
        default=None,
        description="the most trials that run at once; as many as fit when not given",
    )
    wait_minutes: Annotated[float, Field(ge=0)] = Field(
        default=30.0,
        description="how long a launch waits for a cluster that cannot hold a trial",
    )
    checkpoint_every: Count | Literal["auto"] = Field(
        default="auto",
        description="epochs between two checkpoints; `auto` is as often as costs half a percent of the time",
    )
    cuda_graph: bool = Field(
        default=False,
        description="record the training step of a one-worker trial on a GPU once, and replay it",
    )

    @field_validator("gpus_per_worker", mode="before")
    @classmethod
    def _whole(cls, gpus: Any) -> Any:
        if isinstance(gpus, float) and not gpus.is_integer():
            raise ValueError("whole GPUs; with resources.trials_per_gpu=4 four trials of one worker share one")
        return gpus


class Looks(Settings):
    """Seeds until decided: 0, 1, 2, ... are added look by look, and a scheme with a verdict gets no more."""

    looks: Annotated[tuple[Annotated[int, Field(ge=3, le=1_000)], ...], Field(min_length=1, max_length=100)] = Field(
        description=(
            "numbers of seeds after which the study is looked at, named in advance: the bounds are computed for "
            "them (docs/statistics.md)"
        ),
    )
    margin: Annotated[float, Field(gt=0, le=100)] | None = Field(
        default=None,
        description=(
            "a scheme whose whole interval lies within this many percentage points of the baseline is practically "
            "equal; without a margin no scheme is"
        ),
    )

    @field_validator("looks")
    @classmethod
    def _increasing(cls, looks: tuple[int, ...]) -> tuple[int, ...]:
        if list(looks) != sorted(set(looks)):
            raise ValueError("numbers of seeds that increase, such as [6, 10, 15, 20]")
        return looks


class Experiment(Settings):
    """One study: every scheme with every seed, over an optional grid of `dotted.field: [values]`."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)] = Field(
        description="the folder of the results, and the study's name in tables",
    )
    seeds: Annotated[
        Annotated[tuple[Seed, ...], Field(min_length=1), Tag("list")] | Annotated[Looks, Tag("until_decided")],
        Discriminator(lambda value: "until_decided" if isinstance(value, dict | Looks) else "list"),
    ] = Field(description="the seeds that every scheme is trained with, or when to look until it is decided")
    data: Data = Field(description="the images")
    model: Model = Field(default=ConvNet(), description="the network")
    train: Train = Field(description="the training, the same for all schemes")
    schemes: Annotated[dict[str, Scheme], Field(min_length=1)] = Field(
        description="the ways of training that are compared, by the names they have in tables",
    )
    grid: dict[str, Annotated[tuple[Any, ...], Field(min_length=1)]] = Field(
        default_factory=dict,
        description=(
            "`dotted.field: [values]`: every combination of the values is trained, for example `model.width: [16, "
            "32]`"
        ),
    )
    tuning: Tuning | None = Field(
        default=None, description="settings that are chosen for every scheme, by validation, before the comparison"
    )
    baseline: str = Field(default="standard", description="the scheme that the others are compared with")
    resources: Resources = Field(default=Resources(), description="where and how a trial runs")
    most_trials: Count = Field(
        default=10_000,
        description="a study of more trials is refused, so that a grid with a typing error is not started",
    )

    @property
    def every_seed(self) -> tuple[int, ...]:
        """All the seeds that the experiment may take."""
        return tuple(range(self.seeds.looks[-1])) if isinstance(self.seeds, Looks) else self.seeds

    @model_validator(mode="after")
    def _fits_together(self) -> "Experiment":
        if len(set(self.every_seed)) < len(self.every_seed):
            raise ValueError("seeds: each seed once")
        if self.baseline not in (*self.schemes, "standard"):  # by default there need not be one
            raise ValueError(f"baseline: {self.baseline!r} is no scheme; there are {', '.join(self.schemes)}")
        if isinstance(self.seeds, Looks) and (self.baseline not in self.schemes or len(self.schemes) < 2):
            raise ValueError(
                f"seeds: looks compare schemes with the baseline {self.baseline!r}; have it and another in schemes,"
                " or give a list of seeds"
            )
        if self.tuning:
            self._check_tuning(self.tuning)
        for name, scheme in self.schemes.items():
            if not name or not name.isprintable():
                raise ValueError(f"schemes: {name!r} is no name for tables: no control characters, and not empty")
            try:
                scheme.check(self.train.epochs, self.data.validation_images, self.train.compact_sub_network)
            except ValueError as error:
                raise ValueError(f"schemes.{name}: {error}") from None
        r = self.resources
        if r.trials_per_gpu != 1 and (r.workers > 1 or r.gpus_per_worker not in (1, "auto")):
            raise ValueError(
                f"resources.trials_per_gpu={r.trials_per_gpu}: trials of resources.workers=1 and"
                " resources.gpus_per_worker=1 share GPUs (NCCL wants a GPU per rank); leave those at one"
            )
        if r.workers > self.train.batch_size:
            raise ValueError(
                f"train.batch_size={self.train.batch_size} is shared by resources.workers="
                f"{r.workers}: give each worker at least one image"
            )
        return self

    def _check_tuning(self, tuning: Tuning) -> None:
        """Tuning chooses by validation images, with seeds of its own, for schemes that there are."""
        if not self.data.validation_images:
            raise ValueError("tuning: settings are chosen by validation accuracy; set data.validation_images")
        if both := sorted(set(tuning.seeds) & set(self.every_seed)):
            raise ValueError(f"tuning.seeds: {both[0]} is a seed of the comparison too; choose others")
        if unknown := [name for name in tuning.schemes if name not in self.schemes]:
            raise ValueError(f"tuning.schemes: no scheme {unknown[0]!r}; there are {', '.join(self.schemes)}")
        for field in tuning.space:
            if field.partition(".")[0] not in ("data", "model", "train"):
                raise ValueError(f"tuning.space: {field}: fields of data, model and train; others in tuning.schemes")
        if shared := [field for name in self.schemes for field in tuning.of(name) if field in self.grid]:
            raise ValueError(f"tuning: {shared[0]} is in the grid too; it is either compared or tuned")


def load(path: str | Path, overrides: list[str] | None = None) -> Experiment:
    """Read an experiment from YAML, a file or a shipped config by its name, apply `key=value` overrides, validate.

    Raises ConfigError with one line per error.
    """
    try:
        raw = read_yaml(_found(path).read_text())
    except OSError as error:
        raise ConfigError(f"--config {path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"--config {path}: not YAML: {_in_words(' '.join(str(error).split()))}") from None
    if not isinstance(raw, dict):
        raise ConfigError(f"--config {path}: expected a mapping of settings, found {type(raw).__name__}")
    for override in overrides or []:
        key, separator, text = override.partition("=")
        if not separator or not key:
            raise ConfigError(f"{_in_words(override)}: expected key=value, for example train.epochs=50")
        try:
            value = read_yaml(text)
        except yaml.YAMLError as error:
            reason = _in_words(" ".join(str(error).split()))
            raise ConfigError(f"{_in_words(override)}: the value is not YAML ({reason}); quote it") from None
        if key.count(".") > DEEPEST:
            raise ConfigError(f"{_in_words(override)}: no field lies {key.count('.'):,} levels deep")
        raw = replace(raw, key, value)
    return validate(raw, str(path))


def shipped() -> dict[str, Path]:
    """The configs that come with the package, by name: quickstart, recipes/paper, ..."""
    package = Path(__file__).parent
    folders = (package / "configs", package.parent / "configs")  # as installed, and in a checkout
    folder = next((f for f in folders if (f / "quickstart.yaml").is_file()), folders[0])
    return {path.relative_to(folder).with_suffix("").as_posix(): path for path in sorted(folder.rglob("*.yaml"))}


def _found(path: str | Path) -> Path:
    """The file of a config: `path` itself, else the shipped one of this name."""
    if Path(path).exists() or Path(path).suffix in (".yaml", ".yml"):
        return Path(path)
    known = shipped()
    if str(path) not in known:
        near = difflib.get_close_matches(str(path), known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
        raise ConfigError(
            f"--config {_in_words(str(path))}: no such file, and no shipped config of this name; {hint}"
        )
    return known[str(path)]


def replace(raw: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    """A copy of nested settings with the dotted `key` set; blocks on the way are made where missing.

    A key that is there and has dots itself, such as a scheme's name, is found first.
    """
    first = owner(raw, key) or key.partition(".")[0]
    rest = key[len(first) + 1 :]
    if rest:
        block = raw.get(first)
        block = block if isinstance(block, dict) else {}
        value = {**block, rest: value} if first == "grid" else replace(block, rest, value)  # a grid's keys are dotted
    return {**raw, first: value}


def owner(names: Iterable[Any], key: str) -> str:
    """The longest of some names that the dotted `key` is or begins with; empty where there is none."""
    return max((n for n in names if isinstance(n, str) and f"{key}.".startswith(f"{n}.")), key=len, default="")


def validate(raw: dict[str, Any], where: str) -> Experiment:
    """Raises ConfigError with one line per error: where, what, the value, and a near match where there is one."""
    try:
        experiment = Experiment.model_validate(raw)
    except ValidationError as error:
        wrong: dict[str, dict[str, None]] = {}
        errors = error.errors(include_url=False, include_input=False)
        inside = {one["loc"][:depth] for one in errors for depth in range(len(one["loc"]))}
        for one in [one for one in errors if one["loc"] not in inside][:MOST_ERRORS]:  # of nested ones the innermost
            field, message = _what_is_wrong(one, raw)
            wrong.setdefault(field, {})[message] = None
        lines = [
            f"{field}: {', or '.join(messages)}" if field else ", ".join(messages)
            for field, messages in wrong.items()
        ]
        if (more := len(errors) - MOST_ERRORS) > 0:
            lines.append(f"and {more:,} more errors")
        raise ConfigError("\n".join(f"{where}: {_in_words(line, 1_000)}" for line in lines)) from None
    for field, value in _read_as_numbers(raw, experiment, ()):
        raise ConfigError(f"{where}: {field}={value}: expected a number")
    return experiment


def _read_as_numbers(raw: Any, read: Any, path: tuple[str, ...]) -> Iterator[tuple[str, bool]]:
    """The fields where `true` or `false` was read as a number: to pydantic, as to Python, True is 1."""
    if isinstance(raw, bool) and not isinstance(read, bool):
        yield ".".join(path), raw
    elif isinstance(raw, dict):
        for key, value in raw.items():
            yield from _read_as_numbers(
                value, read[key] if isinstance(read, dict) else getattr(read, key), (*path, key)
            )
    elif isinstance(raw, list | tuple) and isinstance(read, tuple):
        for index, pair in enumerate(zip(raw, read, strict=True)):
            yield from _read_as_numbers(*pair, (*path, str(index)))


MOST_ERRORS = 20
"""Errors of a config that are told one by one."""


def _in_words(text: str, longest: int = 200) -> str:
    """A text on one line of a reasonable length, control characters escaped."""
    shown = text if len(text) <= longest else f"{text[: longest // 2]} ... {text[-longest // 4 :]}"
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in shown)


def _what_is_wrong(error: Any, raw: Any) -> tuple[str, str]:
    """The field, with its value where that is wrong, and the message."""
    path: list[str] = []
    classes: list[type[Settings]] = [Experiment]
    for part in error["loc"]:
        inside = [c.model_fields[part].annotation for c in classes if part in c.model_fields]
        is_tag = not inside and not (isinstance(raw, dict | list) and _has(raw, part))
        if not classes and not _has(raw, part):
            break  # a branch of `int | "auto"`
        if is_tag:  # the branch of a union, which the user did not write
            continue
        path.append(str(part))
        raw = raw[part] if _has(raw, part) else None
        if inside:
            classes = [c for annotation in inside for c in _settings_in(annotation)]
        classes = [_of_kind(c, raw) for c in classes]
    field, message = ".".join(path), error["msg"].removeprefix("Value error, ")
    if error["type"] == "extra_forbidden":
        names = [name for c in classes for name in c.model_fields]
        known = ", ".join(dict.fromkeys(names))
        near = _nearest(path[-1], names)
        return field, "unknown field" + (f"; did you mean {near}?" if near else f"; there are {known}")
    if error["type"] == "kind_missing":
        return field, message
    if error["type"] == "missing":
        return field, "missing"
    if not field:
        return "", message
    if isinstance(raw, dict) and any(re.split(r"\W", message)[0] in c.model_fields for c in classes):
        return "", f"{field}.{message}"  # of fields that do not go together: the message names them
    return f"{field}={_in_words(repr(raw))}", f"{message[0].lower()}{message[1:]}"


_SYNONYMS = {
    "lr": "learning_rate",
    "wd": "weight_decay",
    "bs": "batch_size",
    "batch": "batch_size",
    "num_epochs": "epochs",
    "max_epochs": "epochs",
    "opt": "optimizer",
    "optim": "optimizer",
    "scheduler": "schedule",
    "lr_schedule": "schedule",
    "lr_scheduler": "schedule",
    "dtype": "precision",
    "amp": "precision",
    "pool_size": "pool",
    "padding": "crop_padding",
    "ratio": "prune_ratio",
    "sparsity": "prune_ratio",
    "gpus": "gpus_per_worker",
    "num_gpus": "gpus_per_worker",
    "cpus": "cpus_per_worker",
    "num_workers": "workers",
    "dataset": "data",
    "arch": "model",
    "net": "model",
    "network": "model",
}
"""What others call a field."""


def _nearest(name: str, names: list[str]) -> str | None:
    """The field that `name` stands for or is close to: one of `names`, else one anywhere in an experiment."""
    if len(name) > 50:
        return None
    meant = name.lower().replace("-", "_")
    everywhere = _fields()
    for known in (dict(zip(names, names, strict=True)), everywhere):
        if (same := _SYNONYMS.get(meant, meant)) in known:
            return known[same]
        if near := difflib.get_close_matches(meant, known, n=1, cutoff=0.6 if known is not everywhere else 0.8):
            return known[near[0]]
    return None


@cache
def _fields() -> dict[str, str]:
    """The fields of an experiment by their last names: `learning_rate` is `train.optimizer.learning_rate`."""
    found: dict[str, str] = {}
    level: list[tuple[str, type[Settings]]] = [("", Experiment)]
    while level:
        for prefix, settings in level:
            for name in settings.model_fields:
                found.setdefault(name, f"{prefix}{name}")
        level = [
            (f"{prefix}{name}.{'NAME.' if name == 'schemes' else ''}", inner)
            for prefix, settings in level
            for name, field in settings.model_fields.items()
            for family in _settings_in(field.annotation)
            for inner in ([*family.kinds.values()] if issubclass(family, Component) else [family])
        ]
    return found


def _has(raw: Any, part: Any) -> bool:
    return (isinstance(raw, dict) and part in raw) or (
        isinstance(raw, list | tuple) and isinstance(part, int) and part < len(raw)
    )


def _of_kind(settings: type[Settings], raw: Any) -> type[Settings]:
    """The settings class of the kind that `raw` names, where `settings` is a family."""
    if issubclass(settings, Component) and isinstance(raw, dict) and isinstance(raw.get("kind"), str):
        return settings.kinds.get(raw["kind"], settings)
    return settings


def _settings_in(annotation: Any) -> list[type[Settings]]:
    """All settings classes an annotation mentions."""
    if isinstance(annotation, type) and issubclass(annotation, Settings):
        return [annotation]
    return [found for argument in get_args(annotation) for found in _settings_in(argument)]
