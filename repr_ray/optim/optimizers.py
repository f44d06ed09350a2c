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

    learning_rate: Annotated[float, Field(gt=0)] = 0.01

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
    momentum: Fraction = 0.0
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    nesterov: bool = False

    @property
    def momenta(self) -> int:
        """One with momentum."""
        return int(self.momentum > 0)


class _Adaptive(OptimizerSettings):
    learning_rate: Annotated[float, Field(gt=0)] = 0.001
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    weight_decay: Annotated[float, Field(ge=0)] = 0.0


class Adam(_Adaptive):
    """Adam (arXiv 1412.6980)."""

    builds: ClassVar[str] = "torch.optim:Adam"

    kind: Literal["adam"]


class AdamW(_Adaptive):
    """Adam with decoupled weight decay (arXiv 1711.05101)."""

    builds: ClassVar[str] = "torch.optim:AdamW"

    kind: Literal["adamw"]


Optimizer = Annotated[OptimizerSettings, ByKind()]
