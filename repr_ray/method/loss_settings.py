"""Settings of losses, without torch, so that a config is checked before torch is imported.

A scheme has one: `schemes.NAME.loss: {kind: ...}`. To add one, write a settings class here that names what it builds,
a subclass of `LossTerm`. A plug-in is `loss: {kind: my_module:Mine}`.
"""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from repr_ray.components import ByKind, Component, Count

Weight = Annotated[float, Field(ge=0)]


class LossSettings(Component):
    """A loss."""

    family: ClassVar[str] = "loss"
    given: ClassVar[frozenset[str]] = frozenset({"model"})

    penalises: ClassVar[bool] = False
    """Whether it is a penalty on weights."""

    needs_teacher: ClassVar[bool] = False
    """Whether it needs a teacher, a network that is trained first."""

    @classmethod
    def accept(cls, target: Any) -> None:
        """Accept subclasses of repr_ray.LossTerm."""
        if not hasattr(target, "penalty"):
            raise ValueError(f"{target.__name__} is not a loss: a loss is a subclass of repr_ray.LossTerm")


class LabelSmoothingSettings(LossSettings):
    """Cross entropy with a share `smoothing` of each label spread over all classes, arXiv 1512.00567, section 7.

    The share is the paper's for ImageNet.
    """

    builds: ClassVar[str] = "repr_ray.method.losses:LabelSmoothing"

    kind: Literal["label_smoothing"]
    smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """share of a label that is spread evenly over all classes"""


class DistillationSettings(LossSettings):
    """Distillation from the baseline's network of the same seed, at the end of its training.

    The loss is (1 - `alpha`) CE + `alpha` T^2 KL(teacher || student), both softened by the `temperature` T. By
    default as born-again networks with labels (arXiv 1805.04770, section 3): the same network, T = 1, and both losses
    have the same weight, as the source names none. Knowledge distillation (arXiv 1503.02531) takes T from 2 to 20.
    """

    builds: ClassVar[str] = "repr_ray.method.losses:Distillation"
    needs_teacher: ClassVar[bool] = True

    kind: Literal["distillation"]
    alpha: Annotated[float, Field(gt=0, le=1)] = 0.5
    """weight of the teacher's part of the loss; the labels' part has the rest"""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """divisor of the logits of both networks"""


class OrthogonalitySettings(LossSettings):
    """Cross entropy + `weight` x sum over convolutions of sum|W^W^T - I|, the orthogonality loss of arXiv 1811.07275.

    The rows of W^ are the filters, scaled to length 1; the weight is that of the paper.
    """

    builds: ClassVar[str] = "repr_ray.method.losses:Orthogonality"
    penalises: ClassVar[bool] = True

    kind: Literal["orthogonality"]
    weight: Weight = 0.01
    """weight of the penalty"""


class SripSettings(LossSettings):
    """Cross entropy + `weight` x sum over layers of sigma(W^T W - I)^2, arXiv 1810.09102, eqs. 7 and 8.

    The columns of W are the filters of a convolution, or the outputs of a linear layer; sigma is the spectral norm,
    by two steps of the power iteration from a random vector. From each epoch of `decay` on, the weight is multiplied
    by its factor. By default the weight is as in the paper's section 4, for a training of 200 epochs: 0.1,
    from epoch 20 on 1e-3, then 1e-4, 1e-6 and 0. The authors' code (VITA-Group/Orthogonality-in-CNNs) begins with
    0.01 and multiplies by 1e-3, 1e-4, 1e-6 and 0 at the same epochs; of a layer with more filters than weights a
    filter it takes W W^T, which is smaller and can be I.
    """

    builds: ClassVar[str] = "repr_ray.method.losses:Srip"
    earlier_defaults: ClassVar[Mapping[str, Any]] = {"decay": [[20, 1e-3], [50, 1e-4], [70, 1e-6], [120, 0.0]]}
    penalises: ClassVar[bool] = True

    kind: Literal["srip"]
    weight: Weight = 0.1
    """weight of the penalty at the beginning"""
    decay: tuple[tuple[Count, Weight], ...] = ((20, 1e-2), (50, 1e-3), (70, 1e-5), (120, 0.0))
    """pairs of an epoch (counted from 0) and the factor of the weight from then on; by default as in the paper, which
    trains 200 epochs"""

    @model_validator(mode="after")
    def _ascending(self) -> "SripSettings":
        epochs = [epoch for epoch, _ in self.decay]
        if epochs != sorted(set(epochs)):
            raise ValueError(f"decay: epochs must ascend, not {', '.join(map(str, epochs))}")
        return self


class OcnnSettings(LossSettings):
    """Cross entropy + `weight` x sum over convolutions of ||Conv(K, K) - I_0||^2, arXiv 1911.12207, eq. 9.

    K is convolved with itself at the layer's stride S, padded by floor((k - 1) / S) S; I_0 is the identity at the
    centre. The first convolution is left out. The authors' code (samaonline/Orthogonal-Convolutional-Neural-Networks)
    has the weight 0.1 by default, 0.5 in its command for ResNet-50, and takes the norm without the square:
    `squared: false`.
    """

    builds: ClassVar[str] = "repr_ray.method.losses:Ocnn"
    penalises: ClassVar[bool] = True

    kind: Literal["ocnn"]
    weight: Weight = 0.1
    """weight of the penalty"""
    squared: bool = True
    """square the norm; the authors' code does not"""


Loss = Annotated[LossSettings, ByKind()]
