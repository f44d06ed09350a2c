"""A scheme with its own loss: RePr with a penalty on confident predictions (arXiv 1701.06548).

`repr-ray launch 'schemes.confidence={kind: confidence:Confidence, s1: 6, s2: 3, beta: 0.1}'`
"""

from pydantic import Field
from torch import Tensor

from repr_ray import RePr, RePrSettings


class Confidence(RePr):
    """RePr whose loss is cross-entropy minus `beta` times the entropy of the predictions."""

    class Settings(RePrSettings):
        """RePr's settings and one more."""

        beta: float = Field(default=0.1, ge=0, description="weight of the entropy")

    settings: Settings

    def loss(self, logits: Tensor, labels: Tensor, images: Tensor) -> Tensor:
        """The loss, summed over the batch: logits (n x classes), labels (n)."""
        log_p = logits.log_softmax(1)
        return super().loss(logits, labels, images) + self.settings.beta * (log_p.exp() * log_p).sum()
