"""Settings of optimizers. `train.optimizer: {kind: my_module:Mine}` takes a torch optimizer class.

To add one: a settings class here that names the optimizer class, whose arguments are the settings' fields.
"""

from collections.abc import Iterable
from importlib.util import find_spec
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from repr_ray.components import ByKind, Component, Fraction

LearningRate = Annotated[float, Field(gt=0, description="the learning rate before the schedule")]
Momentum = Annotated[Fraction, Field(description="share of the last update that is added")]
Nesterov = Annotated[bool, Field(description="Nesterov's momentum")]
WeightDecay = Annotated[float, Field(ge=0, description="L2 penalty on all parameters")]


class OptimizerSettings(Component):
    """An optimizer."""

    family: ClassVar[str] = "optimizer"
    given: ClassVar[frozenset[str]] = frozenset({"params", "lr", "fused"})

    learning_rate: LearningRate = 0.01

    def optimizer(self, parameters: Iterable[Any]) -> Any:
        """The optimizer (torch.optim.Optimizer) over all parameters, fused into one kernel per step if it can be."""
        return self.build(parameters, lr=self.learning_rate, fused=True)

    @property
    def momenta(self) -> int:
        """Numbers that the optimizer keeps for each parameter."""
        return 2


class Sgd(OptimizerSettings):
    """Stochastic gradient descent."""

    builds: ClassVar[str] = "torch.optim:SGD"

    kind: Literal["sgd"] = "sgd"
    momentum: Momentum = 0.0
    weight_decay: WeightDecay = 0.0
    nesterov: Nesterov = False

    @property
    def momenta(self) -> int:
        return int(self.momentum > 0)


class _Adaptive(OptimizerSettings):
    learning_rate: LearningRate = 0.001
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    """decay of the averages of gradients and of their squares"""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """L2 penalty (adam), or decay of the weights themselves (adamw)"""


class Adam(_Adaptive):
    """Adam (arXiv 1412.6980)."""

    builds: ClassVar[str] = "torch.optim:Adam"

    kind: Literal["adam"]


class AdamW(_Adaptive):
    """Adam with decoupled weight decay (arXiv 1711.05101)."""

    builds: ClassVar[str] = "torch.optim:AdamW"

    kind: Literal["adamw"]


class RmsProp(OptimizerSettings):
    """RMSprop, of torch."""

    builds: ClassVar[str] = "torch.optim:RMSprop"

    kind: Literal["rmsprop"]
    alpha: Fraction = 0.99
    """decay of the mean of squared gradients"""
    momentum: Fraction = 0.0
    """share of the last update that the next one keeps"""
    weight_decay: WeightDecay = 0.0
    centered: bool = False
    """divide by the standard deviation of gradients"""

    @property
    def momenta(self) -> int:
        """One, one more with momentum, and one more when centered."""
        return 1 + int(self.momentum > 0) + int(self.centered)


class _OfTimm(OptimizerSettings):
    """An optimizer that torch lacks and timm has, which the optional extra `repr-ray[timm]` installs."""

    def optimizer(self, parameters: Iterable[Any]) -> Any:
        """See `OptimizerSettings.optimizer`. Raises ValueError, saying what to install, where timm is missing."""
        if find_spec("timm") is None:
            raise ValueError(f"train.optimizer.kind={self.kind}: needs timm; pip install 'repr-ray[timm]'")
        return super().optimizer(parameters)

    @property
    def momenta(self) -> int:
        return 1


class Lars(_OfTimm):
    """LARS (arXiv 1708.03888), of timm: each tensor's step is scaled by |weights| / |gradient|.

    The learning rate is the paper's global one, some hundred times that of SGD.
    """

    builds: ClassVar[str] = "timm.optim:Lars"

    kind: Literal["lars"]
    learning_rate: LearningRate = 1.0
    momentum: Momentum = 0.9
    weight_decay: Annotated[float, Field(ge=0)] = 5e-4
    """L2 penalty on all parameters; without one timm scales no step"""
    nesterov: Nesterov = False
    trust_coeff: Annotated[float, Field(gt=0)] = 0.001
    """the paper's eta"""


class Lion(_OfTimm):
    """Lion (arXiv 2302.06675), of timm: the sign of a mixture of gradient and average is the step.

    The paper takes a learning rate 3 to 10 times smaller than AdamW's, and a weight decay as many times larger.
    """

    builds: ClassVar[str] = "timm.optim:Lion"

    kind: Literal["lion"]
    learning_rate: LearningRate = 1e-4
    betas: tuple[Fraction, Fraction] = (0.9, 0.99)
    """weight of the average in a step, and its decay"""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """decay of the weights themselves"""


Optimizer = Annotated[OptimizerSettings, ByKind()]
