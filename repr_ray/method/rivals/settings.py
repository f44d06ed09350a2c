"""Settings of the rivals of RePr, without torch, so that a config is checked before torch is imported."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from repr_ray.components import Count, Fraction
from repr_ray.method.schedule import Phase
from repr_ray.method.settings import SchemeSettings

ProperFraction = Annotated[float, Field(gt=0, lt=1)]


class DSDSettings(SchemeSettings):
    """Dense-sparse-dense training, arXiv 1607.04381: one pass, by default a third of the training for each phase.

    Before epoch `sparse_at` the `sparsity` share of the smallest weights of each convolution and linear layer is
    set to zero and kept there; from epoch `dense_at` all weights train again, at `final_rate` times the rate.
    Defaults are the paper's: the same share of every layer, a tenth of the rate (section 2), not the first
    convolution (section 4), 30% (tables 2 to 4; section 2 recommends 25% to 50%). The paper trains each phase
    until it converges, ResNets for 90, 45 and 45 epochs. In its tables the sparse phase also has a lower rate than
    the first phase; set this by a schedule of the rate.
    """

    builds: ClassVar[str] = "repr_ray.method.rivals.dsd:DSD"
    earlier_defaults: ClassVar[Mapping[str, Any]] = {"exclude": []}

    kind: Literal["dsd"] = "dsd"
    sparsity: ProperFraction = 0.3
    """share of each layer's weights that are kept at zero"""
    sparse_at: Count | None = None
    """epoch, counted from 0, before which the smallest weights become zero; by default after a third of the training
    """
    dense_at: Count | None = None
    """epoch from which all weights train again; by default after two thirds of the training"""
    final_rate: Annotated[float, Field(gt=0)] = 0.1
    """factor of the learning rate from then on"""

    exclude: tuple[str, ...] = ("first",)
    """names of layers that are never masked; `first` is the first convolution"""

    def phases(self, epochs: int) -> tuple[int, int]:
        """The first sparse epoch and the first dense one after it. Raises ValueError if they do not fit."""
        sparse = self.sparse_at or max(1, epochs // 3)
        dense = self.dense_at or max(sparse + 1, 2 * epochs // 3)
        if not sparse < dense < epochs:
            raise ValueError(
                f"sparse_at={sparse} and dense_at={dense}: a training of {epochs} epochs needs"
                " 0 < sparse_at < dense_at < epochs"
            )
        return sparse, dense

    def check(self, epochs: int, held_out: int, compact: bool) -> None:
        """Check that three phases fit into the training."""
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
    the smallest L2 norm is set to zero; they continue to train. As in the authors' code (he-y/soft-filter-pruning):
    after every epoch, in every layer, the share rounded down; its runs on ImageNet zero 30%. Unlike this, that code
    also prunes once before the training, and by default skips the 1x1 convolutions of shortcuts.
    """

    builds: ClassVar[str] = "repr_ray.method.rivals.soft_filter_pruning:SoftFilterPruning"

    kind: Literal["soft_filter_pruning"] = "soft_filter_pruning"
    prune_ratio: ProperFraction = 0.3
    """share of each layer's filters that are set to zero"""
    every: Count = 1
    """epochs between two prunings"""

    def place(self, epoch: int, epochs: int) -> tuple[Phase, int]:
        """The place since filters last became zero."""
        return "full", epoch % self.every


class ReinitialisingSettings(SchemeSettings):
    """A part of the network is re-initialised."""

    optimizer_state: Literal["reset", "keep"] = "reset"
    """optimizer state (momentum, Adam's averages) of what is re-initialised"""


class RenewalSettings(ReinitialisingSettings):
    """A part of the network is re-initialised after every `every` epochs, unless fewer than that are left."""

    generations: ClassVar[int] = 10
    """Parts of the training if `every` is not given and divides it; its share is rounded down to whole epochs."""

    every: Count | None = None
    """epochs between two re-initialisations; by default a fixed share of the training, rounded down"""

    def interval(self, epochs: int) -> int:
        """Epochs between two re-initialisations. Raises ValueError if there would be none."""
        every = self.every or max(1, epochs // self.generations)
        if 2 * every > epochs:
            raise ValueError(f"every={every}: nothing is done in {epochs} epochs; train longer, or lower every")
        return every

    def check(self, epochs: int, held_out: int, compact: bool) -> None:
        """Check that there is a re-initialisation."""
        super().check(epochs, held_out, compact)
        self.interval(epochs)

    def place(self, epoch: int, epochs: int) -> tuple[Phase, int]:
        """The place in a generation; the last one is longer, if the training is no multiple of `every`."""
        every = self.interval(epochs)
        return "full", epoch - min(epoch // every, epochs // every - 1) * every


class ShrinkPerturbSettings(RenewalSettings):
    """Shrink and perturb, arXiv 1910.08475, section 4.

    Every parameter becomes `shrink` times itself plus `perturb` times that of a newly initialised network. The
    strengths are those that arXiv 2206.10011 uses on a fixed data set; the source does this whenever data is added.
    Avalanche's implementation has the same defaults.
    """

    builds: ClassVar[str] = "repr_ray.method.rivals.renewal:ShrinkPerturb"

    kind: Literal["shrink_perturb"] = "shrink_perturb"
    shrink: Annotated[float, Field(ge=0, le=1)] = 0.4
    """factor of every parameter"""
    perturb: Annotated[float, Field(ge=0)] = 0.1
    """factor of the parameters of a newly initialised network, which are added"""


class LaterLayerForgettingSettings(RenewalSettings):
    """Later-layer forgetting, arXiv 2202.00155, section 3.2: layers are re-initialised from `from_layer` on.

    The layer is given by its name, or by that of the block that it begins; by default the second half of the layers,
    in the order of the network's modules, is re-initialised: table 1 has layer 10 or 14 of ResNet-18, where its third
    and its fourth block begin, and 3, 8 or 10 generations after the first. As in the authors' code
    (hlml/fortuitous_forgetting) batch norms are not re-initialised. Here generations are parts of one training, by
    default tenths; there each has 200 epochs, a schedule of the rate, and a new optimizer for all layers.
    """

    builds: ClassVar[str] = "repr_ray.method.rivals.renewal:LaterLayerForgetting"
    earlier_defaults: ClassVar[Mapping[str, Any]] = {"batch_norm": "reset"}

    kind: Literal["later_layer_forgetting"] = "later_layer_forgetting"
    from_layer: str | None = None
    """first layer that is re-initialised, by its name or that of its block; by default the second half of them"""
    batch_norm: Literal["keep", "reset"] = "keep"
    """batch norms among these layers, with their running statistics"""


class RifleSettings(RenewalSettings):
    """RIFLE, arXiv 2007.03349: the last layer, the classifier, is re-initialised.

    By default this is done after each quarter of the training but the last.

    The authors' script (lixingjian/RIFLE) does this once in 40 epochs of fine-tuning, their second implementation
    one to three times. In both the layer keeps its momentum, `optimizer_state: keep`; the script's option of a
    cyclic rate for this layer alone is not offered.
    """

    generations: ClassVar[int] = 4

    builds: ClassVar[str] = "repr_ray.method.rivals.renewal:Rifle"

    kind: Literal["rifle"] = "rifle"


class ContinualBackpropSettings(ReinitialisingSettings):
    """Continual backpropagation, arXiv 2306.13812, algorithm 1 (arXiv 2108.06325); a unit is a filter.

    A filter's utility is u <- `decay` u + (1 - `decay`) mean|h| sum|w_out|. In every step the share
    `replacement_rate` of a layer's filters that are older than `maturity` steps is due to be replaced, one at a
    time, by new ones with outgoing weights of zero: those of least utility. Rate and decay are the defaults of
    the authors' code (GnT), the maturity is that of its incremental CIFAR-100, where the rate is 1e-5.
    """

    builds: ClassVar[str] = "repr_ray.method.rivals.continual_backprop:ContinualBackprop"

    kind: Literal["continual_backprop"] = "continual_backprop"
    replacement_rate: ProperFraction = 1e-4
    """share of a layer's mature filters that is replaced per step"""
    decay: Fraction = 0.99
    """decay per step of the average of a filter's utility"""
    maturity: Count = 1_000
    """steps before a new filter may be replaced"""


class ReDoSettings(ReinitialisingSettings):
    """ReDo, arXiv 2302.12902, algorithm 1; a unit is a filter.

    Every `every` steps filters whose mean |activation| over the batch is at most `threshold` times the layer's mean
    are dormant (definition 3.1): they are re-initialised, and their outgoing weights become zero. The class in the
    authors' code has other defaults: a threshold of 0, which only dead units reach, every 200,000 steps.
    """

    builds: ClassVar[str] = "repr_ray.method.rivals.redo:ReDo"

    kind: Literal["redo"] = "redo"
    threshold: Annotated[float, Field(ge=0)] = 0.025
    """a filter is dormant if its mean |activation| is at most this times the layer's mean"""
    every: Count = 1_000
    """steps between two checks"""
