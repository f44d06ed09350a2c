"""A scheme: all weights shrink every few epochs, as in shrink and perturb (arXiv 1910.08475).

`repr-ray launch 'schemes.shrink={kind: shrink:Shrink, every: 5}'`
"""

from typing import Any

import torch
from pydantic import Field

from repr_ray import LayerEvent, Scheme, SchemeSettings


class Shrink(Scheme):
    """Every `every` epochs all weights are multiplied by `factor`."""

    class Settings(SchemeSettings):
        """Settings are checked before anything is trained."""

        every: int = Field(default=10, ge=1, description="epochs between two shrinkings")
        factor: float = Field(default=0.5, gt=0, le=1, description="factor of the weights")

    def start_epoch(self, epoch: int, *_: Any) -> list[LayerEvent]:
        """Shrink the weights if it is due."""
        if epoch and epoch % self.settings.every == 0:
            with torch.no_grad():
                torch._foreach_mul_(list(self.model.parameters()), self.settings.factor)
        return []
