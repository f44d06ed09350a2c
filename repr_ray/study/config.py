"""The settings of an experiment, frozen and validated. Imports no torch."""

import itertools
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

import repr_ray.method.rivals.settings  # noqa: F401 - its kinds
from repr_ray.components import Count, Natural, Settings
from repr_ray.method.settings import AnyScheme
from repr_ray.models.settings import ConvNet, Model
from repr_ray.optim.optimizers import Optimizer, Sgd
from repr_ray.optim.rates import Constant, Rate
from repr_ray.study.data import Data
from repr_ray.study.tuning import Seed, Tuning


class ConfigError(ValueError):
    """Input that cannot be used: one line per error, each naming the field and the way out."""


class Train(Settings):
    """Optimisation."""

    epochs: Count
    """passes over the training images"""
    batch_size: Count = 128
    """images of a step, over all workers"""
    optimizer: Optimizer = Sgd()
    """the optimizer and its learning rate"""
    schedule: Rate = Constant()
    """learning-rate schedule"""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """precision of forward and backward passes; `auto` is bf16 if the hardware multiplies it faster, else fp32;
    fp32 as well on a CPU if images become so small in the network that weights of a kernel read nothing but padding,
    for which PyTorch's bf16 gradients are wrong"""
    ema: Annotated[float, Field(gt=0, lt=1)] | None = None
    """decay per step of an exponential moving average of the weights, which is evaluated beside them, for example
    0.999; none by default"""
    evaluate_every: Count = 1
    """epochs between two evaluations; the last epoch is always evaluated"""
    sync_batch_norm: bool = False
    """share the statistics of batch norm between workers (GPUs only)"""
    compact_sub_network: bool = False
    """train S2 on a smaller copy of the network, equal to the masked one up to floating-point order: faster on the
    paper's nets with a global ranking (benchmarks/README.md)"""
    deterministic: bool = False
    """use PyTorch's deterministic algorithms, which are slower, also on a GPU"""

    @model_validator(mode="after")
    def _averages_whole_networks(self) -> "Train":
        if self.ema is not None and self.compact_sub_network:
            raise ValueError(
                "ema: the average is of the whole network after every step; turn compact_sub_network off"
            )
        return self


class Resources(Settings):
    """Where and how a trial runs. Nothing here changes its result beyond floating-point order."""

    workers: Count = 1
    """ranks that train one trial together (DistributedDataParallel)"""
    cpus_per_worker: Count = 1
    """threads of a rank"""
    gpus_per_worker: Natural | Literal["auto"] = "auto"
    """GPUs of a rank; `auto` is one if the cluster has GPUs, else none"""
    trials_per_gpu: Count | Literal["auto"] = 1
    """one-worker trials that share a GPU; `auto` is as many as its memory and the machine's cores allow"""
    concurrent: Count | None = None
    """largest number of trials at once; by default as many as fit"""
    wait_minutes: Annotated[float, Field(ge=0)] = 30.0
    """how long a launch waits for a cluster that cannot hold a trial"""
    checkpoint_every: Count | Literal["auto"] = "auto"
    """epochs between two checkpoints; `auto` spends half a percent of the time on them"""
    hour_price: Annotated[float, Field(ge=0)] | None = None
    """price of an hour of one GPU, or of one core, for the estimate of a dry run"""
    cuda_graph: bool = False
    """record the training step of a one-worker trial on a GPU as a CUDA graph, and replay it"""

    @field_validator("gpus_per_worker", mode="before")
    @classmethod
    def _whole(cls, gpus: Any) -> Any:
        if isinstance(gpus, float) and not gpus.is_integer():
            raise ValueError("whole GPUs; with resources.trials_per_gpu=4 four trials of one worker share one")
        return gpus


class Looks(Settings):
    """Seeds 0, 1, 2, ... are added look by look until every scheme has a verdict."""

    looks: Annotated[tuple[Annotated[int, Field(ge=3, le=1_000)], ...], Field(min_length=1, max_length=100)]
    """numbers of seeds at each look, fixed in advance: the bounds are computed for them (docs/statistics.md)"""
    margin: Annotated[float, Field(gt=0, le=100)] | None = None
    """a scheme whose whole interval lies within this many percentage points of the baseline is practically equal;
    without a margin this verdict is not given"""

    @field_validator("looks")
    @classmethod
    def _increasing(cls, looks: tuple[int, ...]) -> tuple[int, ...]:
        if list(looks) != sorted(set(looks)):
            raise ValueError("numbers of seeds that increase, such as [6, 10, 15, 20]")
        return looks


Axis = Annotated[
    Annotated[tuple[Any, ...], Field(min_length=1), Tag("values")]
    | Annotated[dict[str, dict[str, Any]], Field(min_length=1), Tag("names")],
    Discriminator(lambda value: "names" if isinstance(value, dict) else "values"),
]
"""The values of a field of a grid, or named ones that each set several fields of data, model and train."""


class Experiment(Settings):
    """One study: every scheme with every seed, over an optional grid of `dotted.field: [values]`."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)]
    """the folder of the results, and the study's name in tables"""
    seeds: Annotated[
        Annotated[tuple[Seed, ...], Field(min_length=1), Tag("list")] | Annotated[Looks, Tag("until_decided")],
        Discriminator(lambda value: "until_decided" if isinstance(value, dict | Looks) else "list"),
    ]
    """seeds of every scheme, or the looks at which the study may be decided"""
    data: Data
    """the images"""
    model: Model = ConvNet()
    """the network"""
    train: Train
    """the training, the same for all schemes"""
    schemes: Annotated[dict[str, AnyScheme], Field(min_length=1)]
    """the schemes that are compared, by their names in tables"""
    grid: dict[str, Axis] = Field(default_factory=dict)
    """`dotted.field: [values]`: every combination of the values is trained, for example `model.width: [16, 32]`; or,
    where a value sets several fields, `name: {value: {dotted.field: ...}}` with names of your own"""
    tuning: Tuning | None = None
    """tuning of every scheme by validation accuracy before the comparison"""
    baseline: str = "standard"
    """the scheme that the others are compared with"""
    resources: Resources = Resources()
    """where and how a trial runs"""
    most_trials: Count = 10_000
    """largest number of trials; more are refused, as by a typing error in a grid"""

    @property
    def every_seed(self) -> tuple[int, ...]:
        """All the seeds that the experiment may take."""
        return tuple(range(self.seeds.looks[-1])) if isinstance(self.seeds, Looks) else self.seeds

    @property
    def varied(self) -> list[str]:
        """The dotted fields that the grid sets, once for each axis that does."""
        axes = (axis.values() if isinstance(axis, dict) else [[key]] for key, axis in self.grid.items())
        return [field for axis in axes for field in dict.fromkeys(itertools.chain(*axis))]

    @model_validator(mode="after")
    def _fits_together(self) -> "Experiment":
        if len(set(self.every_seed)) < len(self.every_seed):
            raise ValueError("seeds: each seed once")
        if self.baseline not in (*self.schemes, "standard"):  # the default need not exist
            raise ValueError(f"baseline: {self.baseline!r} is not a scheme; there are {', '.join(self.schemes)}")
        if isinstance(self.seeds, Looks) and (self.baseline not in self.schemes or len(self.schemes) < 2):
            raise ValueError(
                f"seeds: looks compare schemes with the baseline {self.baseline!r}; name it and another one in"
                " schemes, or give a list of seeds"
            )
        if self.tuning:
            self._check_tuning(self.tuning)
        for name, scheme in self.schemes.items():
            if not name or not name.isprintable():
                raise ValueError(
                    f"schemes: {name!r} cannot be a name in tables: it is empty or has control characters"
                )
            try:
                scheme.check(self.train.epochs, self.data.validation_images, self.train.compact_sub_network)
            except ValueError as error:
                raise ValueError(f"schemes.{name}: {error}") from None
        r = self.resources
        if r.trials_per_gpu != 1 and (r.workers > 1 or r.gpus_per_worker not in (1, "auto")):
            raise ValueError(
                f"resources.trials_per_gpu={r.trials_per_gpu}: trials of resources.workers=1 and"
                " resources.gpus_per_worker=1 share GPUs (NCCL needs a GPU per rank); leave those at one"
            )
        if r.workers > self.train.batch_size:
            raise ValueError(
                f"train.batch_size={self.train.batch_size} is shared by resources.workers="
                f"{r.workers}: give each worker at least one image"
            )
        return self

    def _check_tuning(self, tuning: Tuning) -> None:
        """Raise ValueError unless tuning fits the training, and has its own seeds and existing schemes."""
        tuning.check(self.data.validation_images, self.train.epochs, self.train.evaluate_every)
        if both := sorted(set(tuning.seeds) & set(self.every_seed)):
            raise ValueError(f"tuning.seeds: {both[0]} is a seed of the comparison too; choose others")
        if unknown := [name for name in tuning.schemes if name not in self.schemes]:
            raise ValueError(f"tuning.schemes: no scheme {unknown[0]!r}; there are {', '.join(self.schemes)}")
        for field in tuning.space:
            if field.partition(".")[0] not in ("data", "model", "train"):
                raise ValueError(f"tuning.space: {field}: fields of data, model and train; others in tuning.schemes")
        if shared := [field for name in self.schemes for field in tuning.of(name) if field in self.varied]:
            raise ValueError(f"tuning: {shared[0]} is in the grid too; it is either compared or tuned")
