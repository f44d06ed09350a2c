"""What can be set about the rivals of RePr. No torch here, so that a config is checked before torch is imported."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from repr_ray.components import Count, Fraction
from repr_ray.method.schedule import Phase
from repr_ray.method.settings import SchemeSettings

Share = Annotated[float, Field(gt=0, lt=1)]


class DSDSettings(SchemeSettings):
    """Dense-sparse-dense training, arXiv 1607.04381: one pass, by default a third of the training each.

    Before epoch `sparse_at` the `sparsity` share of the smallest weights of each convolution and linear layer is
    set to zero and held there; from epoch `dense_at` all train again, at `final_rate` times the learning rate.
    Defaults are the paper's: the same share of every layer, a tenth of the rate (section 2), not the first
    convolution (section 4), 30% (tables 2 to 4; section 2 recommends 25% to 50%). It trains each phase until it
    converges, ResNets for 90, 45 and 45 epochs; in its tables the sparse phase has a lower rate than the first too,
    which is a schedule of the rate.
    """

    builds: ClassVar[str] = "repr_ray.method.rivals.dsd:DSD"
    earlier_defaults: ClassVar[Mapping[str, Any]] = {"exclude": []}

    kind: Literal["dsd"] = "dsd"
    sparsity: Share = Field(default=0.3, description="share of each layer's weights that is held at zero")
    sparse_at: Count | None = Field(
        default=None,
        description=(
            "the epoch, counted from 0, before which the smallest weights become zero; a third of the training "
            "when not given"
        ),
    )
    dense_at: Count | None = Field(
        default=None,
        description="the epoch from which all weights train again; two thirds of the training when not given",
    )
    final_rate: Annotated[float, Field(gt=0)] = Field(
        default=0.1,
        description="what the learning rate is multiplied by from then on",
    )

    exclude: tuple[str, ...] = Field(
        default=("first",), description="layers that are never masked, by name; `first` is the first convolution"
    )

    def phases(self, epochs: int) -> tuple[int, int]:
        """The first sparse epoch and the first dense one after it. Raises ValueError when they do not fit."""
        sparse = self.sparse_at or max(1, epochs // 3)
        dense = self.dense_at or max(sparse + 1, 2 * epochs // 3)
        if not sparse < dense < epochs:
            raise ValueError(
                f"sparse_at={sparse} and dense_at={dense}: a training of {epochs} epochs needs"
                " 0 < sparse_at < dense_at < epochs"
            )
        return sparse, dense

    def check(self, epochs: int, held_out: int, compact: bool) -> None:
        """Three phases fit into the training."""
        super().check(epochs, held_out, compact)
        self.phases(epochs)

    def place(self, epoch: int, epochs: int) -> tuple[Phase, int]:
        """The place in the dense, the sparse or the second dense phase."""
        sparse, dense = self.phases(epochs)
        first = max(start for start in (0, sparse, dense) if start <= epoch)
        return "sub" if first == sparse else "full", epoch - first


class SoftFilterPruningSettings(SchemeSettings):
    """Soft filter pruning, arXiv 1808.06866, algorithm 1.

    After every `every` epochs, before the network is evaluated, the `prune_ratio` share of each layer's filters with
    the smallest L2 norm is set to zero; they go on training. As in the authors' code (he-y/soft-filter-pruning):
    after every epoch, in every layer, the share rounded down; its runs on ImageNet zero 30%. Different from it: it
    prunes once more before the training, and by default not the 1x1 convolutions of shortcuts.
    """

    builds: ClassVar[str] = "repr_ray.method.rivals.soft_filter_pruning:SoftFilterPruning"

    kind: Literal["soft_filter_pruning"] = "soft_filter_pruning"
    prune_ratio: Share = Field(default=0.3, description="share of each layer's filters that becomes zero")
    every: Count = Field(default=1, description="epochs between two times")

    def place(self, epoch: int, epochs: int) -> tuple[Phase, int]:
        """The place since filters last became zero."""
        return "full", epoch % self.every


class RenewalSettings(SchemeSettings):
    """Something starts anew before every `every` epochs, where as many are left; what, its subclasses say."""

    generations: ClassVar[int] = 10
    """Parts the training falls into where `every` is not given."""

    every: Count | None = Field(
        default=None,
        description="epochs between two times; a fixed part of the training when not given",
    )
    optimizer_state: Literal["reset", "keep"] = Field(
        default="reset",
        description="the optimizer's averages of what starts anew",
    )

    def interval(self, epochs: int) -> int:
        """Epochs between two beginnings. Raises ValueError where there would be none."""
        every = self.every or max(1, epochs // self.generations)
        if 2 * every > epochs:
            raise ValueError(f"every={every}: nothing is done in {epochs} epochs; train longer, or lower every")
        return every

    def check(self, epochs: int, held_out: int, compact: bool) -> None:
        """There is a second generation."""
        super().check(epochs, held_out, compact)
        self.interval(epochs)

    def place(self, epoch: int, epochs: int) -> tuple[Phase, int]:
        """The place in a generation."""
        return "full", epoch % self.interval(epochs)


class ShrinkPerturbSettings(RenewalSettings):
    """Shrink and perturb, arXiv 1910.08475, section 4.

    Every parameter becomes `shrink` times itself plus `perturb` times that of a network at its beginning. The
    strengths are those that arXiv 2206.10011 uses on a fixed data set; the source shrinks whenever data is added.
    Avalanche's implementation has the same two by default.
    """

    builds: ClassVar[str] = "repr_ray.method.rivals.renewal:ShrinkPerturb"

    kind: Literal["shrink_perturb"] = "shrink_perturb"
    shrink: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.4,
        description="what every parameter is multiplied by",
    )
    perturb: Annotated[float, Field(ge=0)] = Field(
        default=0.1,
        description="share of a fresh network's parameters that is added",
    )


class LaterLayerForgettingSettings(RenewalSettings):
    """Later-layer forgetting, arXiv 2202.00155, section 3.2: layers are re-initialised from `from_layer` on.

    The layer goes by its name, or by that of the block it begins; by default the second half of the layers, in the
    order in which the network has them, starts again: table 1 has layer 10 or 14 of ResNet-18, where its third and
    its fourth block begin, and 3, 8 or 10 generations after the first; here ten in all. As in the authors' code
    (hlml/fortuitous_forgetting) batch norms keep what they have. Different from it: generations divide one training,
    theirs have 200 epochs and a schedule of the rate each, and a new optimizer for all layers.
    """

    builds: ClassVar[str] = "repr_ray.method.rivals.renewal:LaterLayerForgetting"
    earlier_defaults: ClassVar[Mapping[str, Any]] = {"batch_norm": "reset"}

    kind: Literal["later_layer_forgetting"] = "later_layer_forgetting"
    from_layer: str | None = Field(
        default=None,
        description=(
            "the first layer that starts anew, by its name or that of its block; the second half when not given"
        ),
    )
    batch_norm: Literal["keep", "reset"] = Field(
        default="keep", description="the batch norms among these layers, with their running statistics"
    )


class RifleSettings(RenewalSettings):
    """RIFLE, arXiv 2007.03349: the last layer, the classifier, is re-initialised, by default three times.

    The authors' script (lixingjian/RIFLE) does it once in 40 epochs of fine-tuning, their second implementation tries
    once to three times. In both the layer keeps its momentum, `optimizer_state: keep`; the script's option of a
    cyclic rate for this layer alone is not offered.
    """

    generations: ClassVar[int] = 4

    builds: ClassVar[str] = "repr_ray.method.rivals.renewal:Rifle"

    kind: Literal["rifle"] = "rifle"


class ContinualBackpropSettings(SchemeSettings):
    """Continual backpropagation, arXiv 2306.13812, algorithm 1 (arXiv 2108.06325); a unit is a filter.

    A filter's utility is u <- `decay` u + (1 - `decay`) mean|h| sum|w_out|. In every step the share
    `replacement_rate` of a layer's filters that are older than `maturity` steps is due to be replaced, one at a
    time, by fresh ones whose outgoing weights are zero: those of least utility. Rate and decay are the defaults of
    the authors' code (GnT), the maturity is that of its incremental CIFAR-100, where the rate is 1e-5.
    """

    builds: ClassVar[str] = "repr_ray.method.rivals.continual_backprop:ContinualBackprop"

    kind: Literal["continual_backprop"] = "continual_backprop"
    replacement_rate: Share = Field(
        default=1e-4,
        description="share of a layer's mature filters that is due to be replaced in each step",
    )
    decay: Fraction = Field(default=0.99, description="of the average of a filter's utility, per step")
    maturity: Count = Field(default=1_000, description="steps before a new filter may be replaced")
    optimizer_state: Literal["reset", "keep"] = Field(
        default="reset",
        description="the optimizer's averages of new filters",
    )


class ReDoSettings(SchemeSettings):
    """ReDo, arXiv 2302.12902, algorithm 1; a unit is a filter.

    Every `every` steps filters whose mean |activation| over the batch is at most `threshold` times the layer's mean
    are dormant (definition 3.1): they are re-initialised, and their outgoing weights become zero. The class in the
    authors' code has other defaults: a threshold of 0, which only dead units reach, every 200,000 steps.
    """

    builds: ClassVar[str] = "repr_ray.method.rivals.redo:ReDo"

    kind: Literal["redo"] = "redo"
    threshold: Annotated[float, Field(ge=0)] = Field(
        default=0.025,
        description="a filter is dormant when its mean |activation| is at most this times the layer's mean",
    )
    every: Count = Field(default=1_000, description="steps between two times")
    optimizer_state: Literal["reset", "keep"] = Field(
        default="reset",
        description="the optimizer's averages of new filters",
    )
