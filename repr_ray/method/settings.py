"""Settings of the method, without torch, so that a config is checked before torch is imported."""

from inspect import signature
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from repr_ray.components import ByKind, ByName, Component, Settings
from repr_ray.method.loss_settings import Loss
from repr_ray.method.schedule import Phase, Schedule

WEIGHT_SCORES = ("orthogonality", "magnitude_l1", "magnitude_l2", "random")
DATA_SCORES = ("activation", "apoz", "gradient", "taylor", "hessian", "oracle")
SCORE = ByName(
    "score",
    {name: f"repr_ray.method.scores:{name}" for name in WEIGHT_SCORES}
    | {name: f"repr_ray.method.data_scores:{name}" for name in DATA_SCORES},
)
"""Scores by name. A function of `weight` and `generator`, or of a `measurement` on images; see these modules."""

_DIRECTIONS = "null_space null_space_basis survivors_basis qr_column relaxed default old zero"
DIRECTION = ByName("direction", {name: f"repr_ray.method.directions:{name}" for name in _DIRECTIONS.split()})
"""Directions by name: functions of `kernel`, `dropped`, `generator` and `clip`; see that module."""


class Ranking(Settings):
    """How filters are scored."""

    score: Annotated[str, SCORE] = "orthogonality"
    """score of a filter, from its weights or measured on images; the largest scores are dropped first"""
    order: Literal["worst", "inverse"] = "worst"
    """`worst` drops the largest scores, `inverse` the smallest (inverse pruning)"""
    normalise: Literal["row", "frobenius"] = "row"
    """for orthogonality: scale each filter (`row`) or the layer (`frobenius`, the author's code) to norm 1"""
    aggregate: Literal["mean_abs", "abs_mean", "signed_mean"] = "mean_abs"
    """for orthogonality: mean of |cos|, |mean of cos| (the author's code), or mean of cos"""
    chance_normalised: bool = False
    """for orthogonality: divide by the score of random filters of the layer's shape, so that layers of different
    fan-in can be ranked together"""
    split: Literal["train", "validation"] | None = None
    """images on which the score is measured; by default validation images for `oracle`, training images for others;
    never test images"""
    images: Annotated[int, Field(ge=1)] | None = None
    """number of images on which the score is measured; by default all validation images, or a quarter of the
    training images; 10,000 at most"""

    @property
    def needs_data(self) -> bool:
        """Whether the score is measured on images."""
        if self.score in SCORE.builtin:
            return self.score in DATA_SCORES
        return next(iter(signature(SCORE.get(self.score)).parameters)) == "measurement"

    @property
    def data_split(self) -> Literal["train", "validation"]:
        """The split on which a score that needs data is measured."""
        return self.split or ("validation" if self.score == "oracle" else "train")

    @model_validator(mode="after")
    def _fits_together(self) -> "Ranking":
        variant = self.normalise != "row" or self.aggregate != "mean_abs"
        if self.score != "orthogonality" and (variant or self.chance_normalised):
            raise ValueError(
                f"normalise, aggregate and chance_normalised belong to score: orthogonality, not to {self.score}"
            )
        if variant and self.chance_normalised:
            raise ValueError("chance_normalised needs normalise: row and aggregate: mean_abs")
        if not self.needs_data and (self.split or self.images):
            raise ValueError(f"split and images belong to scores that need data, {self.score} needs none")
        return self


class Selection(Settings):
    """Which of the ranked filters are dropped."""

    scope: Literal["global", "layer"] = "global"
    """rank all filters together, or those of each layer"""
    layers: tuple[str, ...] = ()
    """names of the layers from which filters are dropped; empty for all"""
    exclude: tuple[str, ...] = ()
    """names of layers whose filters are never dropped; `first` is the first convolution"""
    max_per_layer: Annotated[float, Field(gt=0, le=1)] = 0.9
    """largest share of a layer that is dropped; one filter always stays"""
    count: Literal["floor", "percentile"] = "floor"
    """number of dropped filters: prune_ratio x filters rounded down, or all with a score strictly above the matching
    percentile, as in the siahuat0727 code"""
    prune_ratio_of: Literal["all", "droppable"] = "all"
    """the filters that the ratio refers to: `all` filters of convolutions that can lose any, or only the `droppable`
    ones, those of the layers that `layers` and `exclude` allow"""


class Reinit(Settings):
    """How dropped filters are re-initialised."""

    direction: Annotated[str, DIRECTION] = "null_space"
    """direction of new filters: random or basis vectors of the null space of [old values; survivors], basis vectors
    of the null space of the survivors, the author's column of Q, random vectors orthogonal to the most overlapping
    filters only, PyTorch's default, the old value, zero"""
    last_resort: Literal["default", "zero"] = "default"
    """initialisation of filters for which the null space has no dimension left"""
    scale: Literal["drawn", "clip", "clip_entrywise", "unit", "survivors"] = "clip"
    """size of new filters, except for directions `old` and `zero`: `drawn` keeps unit vectors (and the size of
    `default`), `clip` bounds weights by 1/sqrt(fan_in) within the null space, `clip_entrywise` bounds each weight
    alone, `unit` scales to norm 1, `survivors` to the median norm of the survivors,
    the smaller of two in the middle"""
    gain: Annotated[float, Field(gt=0)] = 1.0
    """factor of new filters, except for directions `old` and `zero`"""
    next_layer: Literal["keep", "zero", "default"] = "keep"
    """outgoing weights of new filters, in the next layer: keep them, set them to zero, or draw them by default"""
    bias: Literal["zero", "default", "keep"] = "zero"
    """the bias of a new filter"""
    optimizer_state: Literal["reset", "keep"] = "reset"
    """optimizer state (momentum, Adam's averages) of new filters"""
    norm_state: Literal["reset", "keep"] = "reset"
    """batch norm's gamma, beta and running statistics of new filters"""


class SchemeSettings(Component):
    """A training scheme. It trains with cross entropy, or with its `loss`."""

    family: ClassVar[str] = "scheme"
    given: ClassVar[frozenset[str]] = frozenset({"model", "optimizer", "settings", "epochs", "seed", "example"})

    loss: Loss | None = None
    """loss of the scheme; by default cross entropy"""

    @classmethod
    def accept(cls, target: Any) -> None:
        """Accept subclasses of repr_ray.Scheme."""
        if not hasattr(target, "start_epoch"):
            raise ValueError(f"{target.__name__} is not a scheme: a scheme is a subclass of repr_ray.Scheme")

    @property
    def needs_teacher(self) -> bool:
        """Whether it needs a teacher: the baseline's network, trained before."""
        return self.loss is not None and self.loss.needs_teacher

    def check(self, epochs: int, held_out: int, compact: bool) -> None:
        """Raise ValueError for settings that do not fit a training of `epochs` with `held_out` validation images.

        `compact`: S2 trains a smaller copy of the network.
        """
        if compact and self.loss and self.loss.penalises:
            raise ValueError(
                f"loss: {self.loss.kind} is a penalty on all weights, and train.compact_sub_network trains a network"
                " without some of them; set it to false"
            )

    def scheme(self, model: Any, optimizer: Any, epochs: int, seed: int = 0, example: Any = None) -> Any:
        """The scheme (repr_ray.Scheme) attached to a model, of which `example` is an input, and its optimizer."""
        made = self.build(model, optimizer, epochs=epochs, seed=seed, example=example)
        if self.loss:
            made.carry(self.loss)
        return made

    def place(self, epoch: int, epochs: int) -> tuple[Phase, int]:
        """The phase of an epoch (from 0) in a training of `epochs`, and the epochs of that phase before it.

        Tuning compares settings of a scheme before the last epoch only if they agree in both.
        """
        return "full", epoch

    @property
    def ranking_images(self) -> tuple[Literal["train", "validation"], int | None] | None:
        """The split whose images the scheme ranks filters with, and how many; None when it needs no images."""
        return None


class StandardSettings(SchemeSettings):
    """Standard training: the baseline, without settings."""

    builds: ClassVar[str] = "repr_ray.method.scheme:Scheme"

    kind: Literal["standard"] = "standard"


class RePrSettings(SchemeSettings):
    """RePr, Prakash et al., CVPR 2019, arXiv 1811.07275. Defaults are the paper's.

    Inverse pruning is `ranking: {order: inverse}`.
    """

    builds: ClassVar[str] = "repr_ray.method.repr:RePr"

    kind: Literal["repr"] = "repr"
    s1: Annotated[int, Field(ge=1)] = 20
    """epochs of training the whole network before filters are dropped"""
    s2: Annotated[int, Field(ge=1)] = 10
    """epochs of training the sub-network before the dropped filters come back"""
    cycles: Annotated[int, Field(ge=1)] | None = None
    """number of cycles of S1 and S2; by default as many as fit"""
    last_cycle: Literal["whole", "cut"] = "whole"
    """`whole`: the whole network trains after the last cycle; `cut`: the training may end in a last cycle, with
    filters dropped, as in the siahuat0727 code"""
    prune_ratio: Annotated[float, Field(gt=0, lt=1)] = 0.3
    """share of the filters that are dropped"""
    masked: Literal["filter", "kernel"] = "filter"
    """what is zero while a filter is dropped: `filter`: its kernel, bias, gamma and beta; `kernel`: its kernel alone,
    so that the others are trained and its output is a constant, as in the siahuat0727 code"""
    ranking: Ranking = Ranking()
    """how filters are scored"""
    selection: Selection = Selection()
    """which of the ranked filters are dropped"""
    reinit: Reinit = Reinit()
    """how dropped filters are re-initialised"""

    def check(self, epochs: int, held_out: int, compact: bool) -> None:
        """Check that cycles fit into the training, and that there are images for a ranking that needs them."""
        super().check(epochs, held_out, compact)
        Schedule.fit(epochs, self.s1, self.s2, self.cycles, self.last_cycle)
        if self.masked == "kernel" and compact:
            raise ValueError(
                "masked: kernel: dropped filters emit a constant, and train.compact_sub_network trains without them;"
                " set masked: filter, or train.compact_sub_network: false"
            )
        if self.ranking.needs_data and self.ranking.data_split == "validation" and not held_out:
            raise ValueError(
                f"ranking: {self.ranking.score} is measured on validation images, and there are none; set"
                " data.validation_images"
            )

    def place(self, epoch: int, epochs: int) -> tuple[Phase, int]:
        """The place in S1 or S2."""
        schedule = Schedule.fit(epochs, self.s1, self.s2, self.cycles, self.last_cycle)
        phase = schedule.phase(epoch)
        before = (e for e in range(epoch, 0, -1) if schedule.phase(e - 1) != phase)
        return phase, epoch - next(before, 0)

    @property
    def ranking_images(self) -> tuple[Literal["train", "validation"], int | None] | None:
        """The images of the ranking; None if it needs none."""
        return (self.ranking.data_split, self.ranking.images) if self.ranking.needs_data else None


AnyScheme = Annotated[SchemeSettings, ByKind()]
