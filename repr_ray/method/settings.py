"""What can be set about the method. No torch here, so that a config is checked before torch is imported."""

from inspect import signature
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from repr_ray.components import ByKind, ByName, Component, Settings
from repr_ray.method.schedule import Schedule

WEIGHT_SCORES = ("orthogonality", "magnitude_l1", "magnitude_l2", "random")
DATA_SCORES = ("activation", "apoz", "gradient", "taylor", "hessian", "oracle")
SCORE = ByName(
    "score",
    {name: f"repr_ray.method.scores:{name}" for name in WEIGHT_SCORES}
    | {name: f"repr_ray.method.data_scores:{name}" for name in DATA_SCORES},
)
"""Scores by name. A function of `weight` and `generator`, or of a `measurement` on images; both modules say more."""

DIRECTION = ByName(
    "direction",
    {
        name: f"repr_ray.method.directions:{name}"
        for name in (
            *("null_space", "null_space_basis", "survivors_basis", "qr_column"),
            *("relaxed", "default", "old", "zero"),
        )
    },
)
"""Directions by name: functions of `kernel`, `dropped`, `generator` and `clip`; the module says more."""


class Ranking(Settings):
    """How filters are scored. A larger score is dropped sooner under `order: worst`.

    `normalise`, `aggregate` and `chance_normalised` are variants of `orthogonality`. `split` and `images` say what
    the launcher hands to scores that need data: by default held-out images to `oracle`, training images to the
    others, and a quarter of them, never more than 10,000. Test images are never used.
    """

    score: Annotated[str, SCORE] = "orthogonality"
    order: Literal["worst", "inverse"] = "worst"
    normalise: Literal["row", "frobenius"] = "row"
    aggregate: Literal["mean_abs", "abs_mean", "signed_mean"] = "mean_abs"
    chance_normalised: bool = False
    split: Literal["train", "validation"] | None = None
    images: Annotated[int, Field(ge=1)] | None = None

    @property
    def needs_data(self) -> bool:
        """Whether the score is measured on images."""
        if self.score in SCORE.builtin:
            return self.score in DATA_SCORES
        return next(iter(signature(SCORE.get(self.score)).parameters)) == "measurement"

    @property
    def data_split(self) -> Literal["train", "validation"]:
        """The split a score that needs data is measured on."""
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
    """Which of the ranked filters are dropped.

    `count` is how many: the floor of prune_ratio x filters, or those with a score strictly above the matching
    percentile, as the siahuat0727 code does. These filters are `all` of those in convolutions that can lose any, or
    only the `droppable` ones, of the layers that `layers` and `exclude` leave.
    """

    scope: Literal["global", "layer"] = "global"
    layers: tuple[str, ...] = Field(default=(), description="the only layers dropped from, by name; empty for all")
    exclude: tuple[str, ...] = Field(
        default=(), description="layers never dropped from, by name; `first` is the first convolution"
    )
    max_per_layer: Annotated[float, Field(gt=0, le=1)] = Field(
        default=0.9, description="the largest share dropped from one layer; its last filter always stays"
    )
    count: Literal["floor", "percentile"] = "floor"
    prune_ratio_of: Literal["all", "droppable"] = "all"


class Reinit(Settings):
    """How dropped filters come back.

    Directions: random vectors or basis vectors of the null space of [old values; survivors], basis vectors of that of
    the survivors alone, the author's column of Q, orthogonal to the most overlapping filters alone, PyTorch's
    default, the old value, zero. `last_resort` is for filters that the direction has no room for. `scale` holds for
    all but `old` and `zero`: `drawn` leaves unit vectors (and the default's own size), `clip` bounds weights by
    1/sqrt(fan_in) without leaving the null space, `clip_entrywise` bounds them one by one, `survivors` gives the
    median norm of the survivors; `gain` multiplies. `next_layer` is for the channels that the new filters feed, in
    all filters of the layer that reads them, new ones too.
    """

    direction: Annotated[str, DIRECTION] = "null_space"
    last_resort: Literal["default", "zero"] = "default"
    scale: Literal["drawn", "clip", "clip_entrywise", "unit", "survivors"] = "clip"
    gain: Annotated[float, Field(gt=0)] = 1.0
    next_layer: Literal["keep", "zero", "default"] = "keep"
    bias: Literal["zero", "default", "keep"] = "zero"
    optimizer_state: Literal["reset", "keep"] = "reset"
    norm_state: Literal["reset", "keep"] = "reset"


class SchemeSettings(Component):
    """A training scheme."""

    family: ClassVar[str] = "scheme"
    given: ClassVar[frozenset[str]] = frozenset({"model", "optimizer", "settings", "epochs", "seed"})

    @classmethod
    def accept(cls, target: Any) -> None:
        """A scheme has the hooks of repr_ray.Scheme."""
        if not hasattr(target, "start_epoch"):
            raise ValueError(f"{target.__name__} is no scheme: a scheme is a subclass of repr_ray.Scheme")

    def check(self, epochs: int, held_out: int, compact: bool) -> None:
        """Raise ValueError for settings that do not fit a training of `epochs` with `held_out` validation images.

        `compact` asks for S2 on a smaller copy of the network.
        """

    def scheme(self, model: Any, optimizer: Any, epochs: int, seed: int = 0) -> Any:
        """The scheme (repr_ray.Scheme) attached to a model and its optimizer."""
        return self.build(model, optimizer, epochs=epochs, seed=seed)

    @property
    def ranking_images(self) -> tuple[Literal["train", "validation"], int | None] | None:
        """The split whose images the scheme ranks filters with, and how many; None when it needs no images."""
        return None


class StandardSettings(SchemeSettings):
    """Plain training: the baseline, with nothing to set."""

    builds: ClassVar[str] = "repr_ray.method.scheme:Scheme"

    kind: Literal["standard"] = "standard"


class RePrSettings(SchemeSettings):
    """RePr, Prakash et al., CVPR 2019, arXiv 1811.07275. Defaults are the paper's.

    Inverse pruning is `ranking: {order: inverse}`. With `bias: unmasked` only the kernel of a dropped filter is held
    at zero: its bias, gamma and beta go on training, and it emits a constant, as in the siahuat0727 code. With
    `last_cycle: cut`, as there, a last cycle begins even where the training ends before or with its S2, with filters
    dropped; by default every cycle is whole, and the full network trains after it.
    """

    builds: ClassVar[str] = "repr_ray.method.repr:RePr"

    kind: Literal["repr"] = "repr"
    s1: Annotated[int, Field(ge=1)] = 20
    s2: Annotated[int, Field(ge=1)] = 10
    cycles: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="how often to drop and bring back; as often as fits when not given"
    )
    last_cycle: Literal["whole", "cut"] = "whole"
    prune_ratio: Annotated[float, Field(gt=0, lt=1)] = 0.3
    bias: Literal["masked", "unmasked"] = "masked"
    ranking: Ranking = Ranking()
    selection: Selection = Selection()
    reinit: Reinit = Reinit()

    def check(self, epochs: int, held_out: int, compact: bool) -> None:
        """Cycles fit into the training, and there are images for a ranking that needs them."""
        Schedule.fit(epochs, self.s1, self.s2, self.cycles, self.last_cycle)
        if self.bias == "unmasked" and compact:
            raise ValueError(
                "bias: unmasked: dropped filters emit a constant, and train.compact_sub_network trains without them;"
                " set bias: masked, or turn that off"
            )
        if self.ranking.needs_data and self.ranking.data_split == "validation" and not held_out:
            raise ValueError(
                f"ranking: {self.ranking.score} is measured on held-out images, there are none; set"
                " data.validation_images"
            )

    @property
    def ranking_images(self) -> tuple[Literal["train", "validation"], int | None] | None:
        """What the ranking asks for."""
        return (self.ranking.data_split, self.ranking.images) if self.ranking.needs_data else None


Scheme = Annotated[SchemeSettings, ByKind()]
