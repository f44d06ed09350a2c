"""A score: filters with a small largest weight are dropped first.

`repr-ray launch 'schemes.repr.ranking={score: peak:peak}'`
"""

import torch
from torch import Tensor


def peak(weight: Tensor, generator: torch.Generator) -> Tensor:
    """Minus the largest |weight| of each filter: weight (J x ...), scores (J); the largest score is dropped first."""
    return -weight.flatten(1).abs().amax(1)
