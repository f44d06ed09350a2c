"""RePr in a Lightning Trainer, an optional extra: `pip install 'repr-ray[lightning]'`.

    trainer = Trainer(max_epochs=100, callbacks=[RePrCallback(s1=20, s2=10, prune_ratio=0.3)])

The network is the LightningModule, or the attribute of it that `network` names.
"""

import importlib
import sys
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from repr_ray.method.events import LayerEvent
from repr_ray.method.repr import RePr

_package: Any = sys.modules.get("lightning.pytorch")
if _package is None:
    try:
        _package = importlib.import_module("pytorch_lightning")
    except ModuleNotFoundError:
        _package = importlib.import_module("lightning.pytorch")


class RePrCallback(_package.Callback):
    """Drops filters and brings them back while a Trainer trains; its state is in the Trainer's checkpoints.

    Settings are the fields of `repr_ray.RePrSettings`. `repr` is the scheme once training has started, `events` what
    it did. Scores measured on images take them from the training loader, as (images, labels). Raises ValueError for
    several optimizers, training without `max_epochs`, and what `RePr` raises ValueError for.
    """

    def __init__(self, network: str | None = None, seed: int = 0, example: Any = None, **settings: Any) -> None:
        super().__init__()
        self.network, self.seed, self.example, self.settings = network, seed, example, settings
        self.repr: RePr | None = None
        self.events: list[LayerEvent] = []
        self._saved: dict[str, Any] = {}
        self._hook: Any = None

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Attach to the network and its optimizer, and load the state of a checkpoint if there is one."""
        if len(trainer.optimizers) != 1:
            raise ValueError(f"RePrCallback: the Trainer has {len(trainer.optimizers)} optimizers; use a single one")
        if not trainer.max_epochs or trainer.max_epochs < 1:
            raise ValueError("RePrCallback: set Trainer(max_epochs=...), the cycles are computed from it")
        model: nn.Module = pl_module.get_submodule(self.network) if self.network else pl_module
        example = self.example if self.example is not None else getattr(pl_module, "example_input_array", None)
        self.repr = RePr(
            model, trainer.optimizers[0], epochs=trainer.max_epochs, seed=self.seed, example=example, **self.settings
        )
        if self._hook:
            self._hook.remove()
            self._hook = None
        if not pl_module.automatic_optimization:  # a training step may take several of the optimizer
            self._hook = trainer.optimizers[0].register_step_post_hook(lambda *_: self._attached().after_step())
        if self._saved:
            self.repr.load_state_dict(self._saved)
            self._saved = {}
            self.on_train_epoch_start(trainer, pl_module)  # Lightning does not after that of an epoch's last batch

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """Drop filters or bring them back when it is time."""
        if self._attached().epoch == trainer.current_epoch:  # begun before the checkpoint
            return

        def batches() -> Iterator[tuple[Tensor, Tensor]]:
            for batch in trainer.train_dataloader:
                images, labels = pl_module.transfer_batch_to_device(batch, pl_module.device, 0)
                yield images, labels

        self.events += self._attached().start_epoch(trainer.current_epoch, batches)

    def on_train_batch_end(self, *_: Any) -> None:
        """Keep dropped filters at zero after the optimizer's step."""
        self._attached().after_step()

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint of the Trainer keeps."""
        return self.repr.state_dict() if self.repr else self._saved

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from a checkpoint when training starts."""
        self._saved = state

    def _attached(self) -> RePr:
        if self.repr is None:
            raise ValueError("RePrCallback: training has not started")
        return self.repr
