"""The interface of training schemes, and standard training, which uses the same code path."""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.optim import Optimizer

from repr_ray.method.compact import SubNetwork
from repr_ray.method.events import LayerEvent
from repr_ray.method.filters import unwrap
from repr_ray.method.loss_settings import LossSettings
from repr_ray.method.losses import LossTerm
from repr_ray.method.measurement import FiltersDone, RankingBatches
from repr_ray.method.schedule import Phase
from repr_ray.method.scores import overlap, zero_filters
from repr_ray.method.settings import SchemeSettings, StandardSettings
from repr_ray.mistakes import in_words


class Scheme:
    """Standard training: nothing is dropped. The interface of every scheme, whose hooks are all optional.

    `start_epoch` is called before the first batch of every epoch, `loss` and `penalty` give the objective of a step,
    `before_step` is called between its backward pass and the optimizer's step, `after_step` after that, and
    `end_epoch` after the last batch, before evaluation. A subclass declares its settings in a nested class
    `Settings(SchemeSettings)`, reads them from `self.settings`, and prepares itself in `attach`.
    """

    Settings: ClassVar[type[SchemeSettings]] = StandardSettings

    recorded: ClassVar[bool] = True
    """Whether `after_step` does the same in every step, so that a CUDA graph may record it with the step."""

    term: LossTerm = LossTerm()
    """The loss; set by `settings.loss`."""

    fresh: Callable[[], nn.Module] | None = None
    """Builds an untrained network like the model, for schemes that re-initialise parts of it."""

    epoch = -1

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        settings: SchemeSettings | None = None,
        *,
        epochs: int,
        seed: int = 0,
        example: Any = None,
        **fields: Any,
    ) -> None:
        """Attach to a model and its optimizer; `epochs` is the length of the whole training.

        `fields` replace those of `settings`. `example` is an input of the network, or a tuple of them; schemes that
        follow filters through the network need it if that takes no square images. Raises ValueError for fields that
        do not fit.
        """
        kind = type(settings) if isinstance(settings, self.Settings) else self.Settings
        given = (settings.model_dump() if settings else {}) | fields
        try:
            self.settings: Any = kind(**given)
        except ValidationError as error:
            raise ValueError("; ".join(in_words(error, given, kind))) from None
        self.model = unwrap(model)
        self.optimizer = optimizer
        self.epochs = epochs
        self.seed = seed
        if self.settings.loss:
            self.carry(self.settings.loss)
        self.attach(example)

    def attach(self, example: Any) -> None:
        """Prepare for the first epoch, with the arguments of the constructor as attributes.

        Raises ValueError if the scheme does not fit the model, its optimizer or the length of the training.
        """

    @property
    def phase(self) -> Phase:
        """`full` or `sub`: whether the whole network trains in this epoch."""
        return "full"

    @property
    def watching(self) -> bool:
        """Whether its hooks on the model do anything in the next step; a CUDA graph is recorded for either case."""
        return False

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
        """The layers whose filters are never dropped, with the reasons."""
        return {}

    @property
    def filters_dropped(self) -> int:
        """How many filters are dropped in this epoch."""
        return sum(int(mask.sum()) for mask in self.dropped.values())

    @property
    def rate_factor(self) -> float:
        """The factor of this epoch's learning rate."""
        return 1.0

    def start_epoch(
        self, epoch: int, batches: RankingBatches | None = None, progress: FiltersDone | None = None
    ) -> list[LayerEvent]:
        """Run what is due before this epoch, equally on all ranks; returns an event per layer (on rank 0).

        `batches()` returns an iterator of this rank's (images, labels) on the model's device, for rankings that need
        data: training or held-out images, never those of the test set. `progress(done, total)` is called with
        the number of filters ranked or brought back so far, and that of all.
        """
        self.epoch = epoch
        self.term.start_epoch(epoch)
        return []

    def end_epoch(self) -> list[LayerEvent]:
        """Run what is due after this epoch's last step, equally on all ranks; returns events like `start_epoch`."""
        return []

    def loss(self, logits: Tensor, labels: Tensor, images: Tensor) -> Tensor:
        """The loss of a batch, summed over its images: float32 logits (n x classes), labels (n), images (n x ...)."""
        return self.term.loss(logits, labels, images)

    def penalty(self) -> Tensor | None:
        """A term of the weights that is added to the mean loss over a batch; None for none."""
        return self.term.penalty()

    def objective(self, logits: Tensor, labels: Tensor, images: Tensor) -> Tensor:
        """The objective for your own loop: the mean loss over a batch, plus the penalty; at least in float32."""
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        mean, penalty = self.loss(logits, labels, images) / len(labels), self.penalty()
        return mean if penalty is None else mean + penalty

    def carry(self, loss: LossSettings) -> None:
        """Train with a loss term. Raises ValueError if the scheme has its own loss or penalty."""
        self.term = loss.build(self.model)
        for part in ("loss", "penalty"):
            if part in self.term.changes and getattr(type(self), part) is not getattr(Scheme, part):
                raise ValueError(
                    f"loss: {loss.kind}: {type(self).__name__} has a {part} of its own; remove one of them"
                )

    def before_step(self) -> None:
        """Change gradients before the optimizer's step."""

    def after_step(self) -> None:
        """Restore what an optimizer step must not change."""

    def sub_network(self) -> SubNetwork | None:
        """The network without its dropped filters, to train in its place for an epoch; None with none dropped."""
        return None

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to resume between two steps."""
        return {"epoch": self.epoch, "seed": int(self.seed)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume from `state_dict()`. Raises ValueError for a state of another seed."""
        if state.get("seed", self.seed) != self.seed:  # earlier versions saved none
            raise ValueError(f"state: it was saved with seed={state['seed']}, this scheme has seed={self.seed}")
        self.epoch = state.get("epoch", -1)
        if self.epoch >= 0:
            self.term.start_epoch(self.epoch)

    def event(
        self, event: str, layer: str, weight: Tensor, dropped: Tensor, overlap_before: float | None, **more: Any
    ) -> LayerEvent:
        """What happened to the filters `dropped`, bool (J), of a layer with this `weight` (J x ...), for the tables.

        `more` are other fields of `LayerEvent`.
        """
        return LayerEvent(
            cycle=more.pop("cycle", self.cycle),
            event=event,
            epoch=self.epoch,
            layer=layer,
            dropped=tuple(dropped.int().tolist()),
            overlap_before=overlap_before,
            overlap_after=overlap(weight),
            zero=zero_filters(weight),
            **more,
        )

    def _enter(self, epoch: int) -> None:
        """Begin an epoch. Raises ValueError if one was skipped."""
        if epoch != self.epoch + 1:
            raise ValueError(
                f"start_epoch({epoch}) after epoch {self.epoch}: call it once for every epoch in order"
                " (and load_state_dict first when resuming)"
            )
        self.epoch = epoch
        self.term.start_epoch(epoch)
