"""What can be set about an optimizer. `train.optimizer: {kind: my_module:Mine}` takes a torch optimizer class.

To add one: a settings class here that names the optimizer class, whose arguments are the settings' fields.
"""

from collections.abc import Iterable
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from repr_ray.components import ByKind, Component, Fraction


class OptimizerSettings(Component):
    """An optimizer."""

    family: ClassVar[str] = "optimizer"
    given: ClassVar[frozenset[str]] = frozenset({"params", "lr", "fused"})

    learning_rate: Annotated[float, Field(gt=0)] = Field(
        default=0.01,
        description="the learning rate before the schedule",
    )

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
    momentum: Fraction = Field(default=0.0, description="share of the last update that is added")
    weight_decay: Annotated[float, Field(ge=0)] = Field(default=0.0, description="L2 penalty on all parameters")
    nesterov: bool = Field(default=False, description="Nesterov's momentum")

    @property
    def momenta(self) -> int:
        """One with momentum."""
        return int(self.momentum > 0)


class _Adaptive(OptimizerSettings):
    learning_rate: Annotated[float, Field(gt=0)] = Field(
        default=0.001,
        description="the learning rate before the schedule",
    )
    betas: tuple[Fraction, Fraction] = Field(
        default=(0.9, 0.999),
        description="decay of the averages of gradients and of their squares",
    )
    weight_decay: Annotated[float, Field(ge=0)] = Field(
        default=0.0,
        description="L2 penalty (adam), or decay of the weights themselves (adamw)",
    )


class Adam(_Adaptive):
    """Adam (arXiv 1412.6980)."""

    builds: ClassVar[str] = "torch.optim:Adam"

    kind: Literal["adam"]


class AdamW(_Adaptive):
    """Adam with decoupled weight decay (arXiv 1711.05101)."""

    builds: ClassVar[str] = "torch.optim:AdamW"

    kind: Literal["adamw"]


class RmsProp(OptimizerSettings):
    """RMSprop, as torch has it."""

    builds: ClassVar[str] = "torch.optim:RMSprop"

    kind: Literal["rmsprop"]
    alpha: Fraction = Field(default=0.99, description="decay of the mean of squared gradients")
    momentum: Fraction = Field(default=0.0, description="share of the last update that the next one keeps")
    weight_decay: Annotated[float, Field(ge=0)] = Field(default=0.0, description="L2 penalty on all parameters")
    centered: bool = Field(default=False, description="divide by the standard deviation of gradients")

    @property
    def momenta(self) -> int:
        """One, one more with momentum, and one more when centered."""
        return 1 + int(self.momentum > 0) + int(self.centered)


Optimizer = Annotated[OptimizerSettings, ByKind()]
