"""The phase of every epoch."""

from dataclasses import dataclass
from typing import Literal

Phase = Literal["full", "sub"]


@dataclass(frozen=True)
class Schedule:
    """RePr's cycles over a fixed number of epochs (paper, section 4 and figure 1).

    A cycle is `s1` epochs of the full network, then `s2` epochs of the sub-network. The epochs after the last cycle
    train the full network, so that re-initialised filters are always trained, unless the last cycle is cut. Epochs
    count from 0: with s1=20, s2=10 and 100 epochs the sub-network trains in 20-29, 50-59 and 80-89.
    """

    epochs: int
    s1: int
    s2: int
    cycles: int

    @classmethod
    def fit(
        cls, epochs: int, s1: int, s2: int, cycles: int | None = None, last_cycle: Literal["whole", "cut"] = "whole"
    ) -> "Schedule":
        """The given number of cycles, or as many as fit with an epoch after the last one.

        If the last cycle may be `cut`, one epoch of its S2 is enough; the training then ends with filters dropped.
        Raises ValueError when `cycles` (or a single one) does not fit.
        """
        cut = last_cycle == "cut"
        most = (epochs - 1 + (s2 if cut else 0)) // (s1 + s2)
        wanted = cycles if cycles is not None else max(1, most)
        needed = wanted * (s1 + s2) + 1 - (s2 if cut else 0)
        if needed > epochs:
            where = "to the first of the last S2" if cut else "and one epoch after the last"
            raise ValueError(
                f"{wanted} cycle{'s' * (wanted > 1)} of s1={s1} + s2={s2} epochs {where}"
                f" need {needed} epochs, there are {epochs}: train longer, or lower s1, s2 or cycles"
            )
        return cls(epochs, s1, s2, wanted)

    def cycle(self, epoch: int) -> int:
        """The cycle of an epoch; `cycles` for the epochs after the last cycle."""
        return min(epoch // (self.s1 + self.s2), self.cycles)

    def phase(self, epoch: int) -> Phase:
        """`sub` while filters are dropped, else `full`."""
        in_cycle = epoch < self.cycles * (self.s1 + self.s2)
        return "sub" if in_cycle and epoch % (self.s1 + self.s2) >= self.s1 else "full"

    def drops_at(self, epoch: int) -> bool:
        """Whether filters are dropped before this epoch."""
        return self.phase(epoch) == "sub" and self.phase(epoch - 1) == "full"

    def reinitialises_at(self, epoch: int) -> bool:
        """Whether the dropped filters come back before this epoch."""
        return epoch > 0 and self.phase(epoch) == "full" and self.phase(epoch - 1) == "sub"
