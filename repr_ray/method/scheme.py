"""The interface of training schemes, and standard training, which walks the same path as all others."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from repr_ray.method.compact import SubNetwork
from repr_ray.method.events import LayerEvent
from repr_ray.method.filters import unwrap
from repr_ray.method.measurement import Batches, Progress
from repr_ray.method.schedule import Phase
from repr_ray.method.settings import SchemeSettings, StandardSettings


class Scheme:
    """Standard training: nothing is dropped. The interface of every scheme, whose hooks are all optional.

    `start_epoch` comes before the first batch of every epoch, `loss` and `penalty` make the objective of a step,
    `before_step` comes between its backward pass and the optimizer's step, `after_step` after that. A subclass has
    its settings in a nested class `Settings(SchemeSettings)`, and finds them in `self.settings`.
    """

    Settings: ClassVar[type[SchemeSettings]] = StandardSettings

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        settings: SchemeSettings | None = None,
        *,
        epochs: int,
        seed: int = 0,
        **fields: Any,
    ) -> None:
        """Attach to a model and its optimizer; `epochs` is the length of the whole training, in any `fields` differ
        from those of `settings`.
        """
        kind = type(settings) if isinstance(settings, self.Settings) else self.Settings
        self.settings: Any = kind(**(settings.model_dump() if settings else {}) | fields)
        self.model = unwrap(model)
        self.optimizer = optimizer
        self.epochs = epochs
        self.seed = seed

    @property
    def phase(self) -> Phase:
        """`full` or `sub`: whether the whole network trains in this epoch."""
        return "full"

    @property
    def cycle(self) -> int:
        """The cycle of this epoch, counting from 0."""
        return 0

    @property
    def dropped(self) -> Mapping[str, Tensor]:
        """The dropped filters of each layer, bool (J); layers that can lose none are left out."""
        return {}

    @property
    def left_out(self) -> Mapping[str, str]:
        """The convolutions filters are never dropped from, and why."""
        return {}

    @property
    def filters_dropped(self) -> int:
        """How many filters are dropped in this epoch."""
        return sum(int(mask.sum()) for mask in self.dropped.values())

    def start_epoch(
        self, epoch: int, batches: Batches | None = None, progress: Progress | None = None
    ) -> list[LayerEvent]:
        """Do what is due before this epoch, on all ranks alike; returns an event per layer (on rank 0).

        `batches()` gives an iterator of this rank's (images, labels) on the model's device, for rankings that need
        data: training or held-out images, never those of the test set. `progress(done, total)` is called with
        the number of filters ranked or brought back so far, and that of all.
        """
        return []

    def loss(self, logits: Tensor, labels: Tensor, images: Tensor) -> Tensor:
        """The loss of a batch, summed over its images: float32 logits (n x classes), labels (n), images (n x ...)."""
        return F.cross_entropy(logits, labels, reduction="sum")

    def penalty(self) -> Tensor | None:
        """What is added to the mean loss over a batch, from the weights alone; None adds nothing."""
        return None

    def before_step(self) -> None:
        """Change gradients before the optimizer sees them."""

    def after_step(self) -> None:
        """Restore what an optimizer step must not change."""

    def sub_network(self) -> SubNetwork | None:
        """The network without its dropped filters, to train in its place for an epoch; None with none dropped."""
        return None

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to resume between two epochs."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume from `state_dict()`."""
