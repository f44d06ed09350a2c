"""The state that an optimizer keeps for a parameter."""

from torch import Tensor
from torch.optim import Optimizer


def reset(optimizer: Optimizer, parameter: Tensor, mask: Tensor | None = None) -> None:
    """Zero the moments of a parameter, in place, where `mask` (broadcast to its shape) is true.

    Without a mask the whole state is reset, with the number of steps.
    """
    for state in optimizer.state.get(parameter, {}).values():
        if isinstance(state, Tensor) and (mask is None or state.shape == parameter.shape):
            state.zero_() if mask is None else state.masked_fill_(mask, 0.0)
