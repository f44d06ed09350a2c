"""What can be set about the method. No torch here, so that a config is checked before torch is imported."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field


class Settings(BaseModel):
    """Frozen, and an unknown field is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Ranking(Settings):
    """How filters are scored. A larger score is dropped sooner under `order: worst`."""

    score: Literal["orthogonality", "magnitude_l1", "magnitude_l2", "random"] = "orthogonality"
    order: Literal["worst", "inverse"] = "worst"


class Selection(Settings):
    """Which of the ranked filters are dropped."""

    scope: Literal["global", "layer"] = "global"
    exclude: tuple[str, ...] = Field(
        default=(), description="layers never dropped from, by name; `first` is the first convolution"
    )
    max_per_layer: Annotated[float, Field(gt=0, lt=1)] = 0.9


class Reinit(Settings):
    """How dropped filters come back."""

    direction: Literal["null_space", "default"] = "null_space"
    scale: Literal["drawn", "clip"] = "clip"
    next_layer: Literal["keep", "zero", "default"] = "keep"
    bias: Literal["zero", "default", "keep"] = "zero"
    optimizer_state: Literal["reset", "keep"] = "reset"
    norm_state: Literal["reset", "keep"] = "reset"


class StandardSettings(Settings):
    """Plain training: the baseline, with nothing to set."""

    kind: Literal["standard"] = "standard"


class RePrSettings(Settings):
    """RePr, Prakash et al., CVPR 2019, arXiv 1811.07275. Defaults are the paper's.

    Inverse pruning is `ranking: {order: inverse}`.
    """

    kind: Literal["repr"] = "repr"
    s1: Annotated[int, Field(ge=1)] = 20
    s2: Annotated[int, Field(ge=1)] = 10
    cycles: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="how often to drop and bring back; as often as fits when not given"
    )
    prune_ratio: Annotated[float, Field(gt=0, lt=1)] = 0.3
    ranking: Ranking = Ranking()
    selection: Selection = Selection()
    reinit: Reinit = Reinit()
