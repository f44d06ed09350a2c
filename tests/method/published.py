"""The published procedures once more, as whole training runs: NumPy and SciPy in float64, nothing of the package.

Written from what the sources say and print, not from the code under test. A network is its arrays; an epoch is one
step of plain SGD along gradients that the test makes up. What a source draws at random is not predicted: it is taken
over from the run under test, once it has been checked for what the source says about it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import scipy.linalg
from numpy.typing import NDArray

Array = NDArray[np.float64]
Arrays = dict[str, Array]


@dataclass
class Published:
    """A run of 32-filter convolutions and one linear layer; `params` are kernels J x d, biases J, linear n x c*h*w.

    `cycles` of S1 + S2 epochs; None is the reproduction's schedule, which drops as long as the training lasts.
    """

    params: Arrays
    layers: tuple[str, ...]
    epochs: int
    rate: float
    s1: int
    s2: int
    cycles: int | None
    ratio: float
    dropped: dict[str, NDArray[np.bool_]] = field(default_factory=dict)
    before: Arrays = field(default_factory=dict)
    counts: list[list[int]] = field(default_factory=list)

    def drops_at(self, epoch: int) -> bool:
        limit = self.epochs if self.cycles is None else self.cycles * (self.s1 + self.s2)
        return epoch in range(self.s1, limit, self.s1 + self.s2)

    def returns_at(self, epoch: int) -> bool:
        limit = self.epochs if self.cycles is None else self.cycles * (self.s1 + self.s2) + 1
        return epoch in range(self.s1 + self.s2, limit, self.s1 + self.s2)

    def start_epoch(self, epoch: int, found: Mapping[str, Array]) -> None:
        """`found` are the arrays of the run under test after its own start of this epoch."""
        if self.drops_at(epoch):
            self.before = {name: value.copy() for name, value in self.params.items()}
            flat = np.concatenate([self.score(self.params[f"{name}.weight"]) for name in self.layers])
            self.dropped = dict(zip(self.layers, np.split(self.choose(flat), len(self.layers)), strict=True))
            self.counts.append([int(mask.sum()) for mask in self.dropped.values()])
            self.silence()
        if self.returns_at(epoch):
            self.bring_back(found)
            self.dropped = {}

    def step(self, gradients: Mapping[str, Array]) -> None:
        """One step of SGD; dropped filters do not move."""
        for name, gradient in gradients.items():
            self.params[name] -= self.rate * gradient
        if self.dropped:
            self.silence()

    def score(self, kernel: Array) -> Array:
        """The larger, the sooner dropped."""
        rows = kernel / np.linalg.norm(kernel, axis=1, keepdims=True)
        return np.abs(rows @ rows.T - np.eye(len(rows))).sum(1) / len(rows)

    def choose(self, scores: Array) -> NDArray[np.bool_]:
        """The worst of the whole network."""
        chosen = np.argsort(-scores, kind="stable")[: int(self.ratio * len(scores) + 1e-9)]
        return np.isin(np.arange(len(scores)), chosen)

    def silence(self) -> None:
        """Set to zero what a dropped filter must not have."""
        raise NotImplementedError

    def bring_back(self, found: Mapping[str, Array]) -> None:
        """Give dropped filters new values."""
        raise NotImplementedError


class Paper(Published):
    """The paper, with what its recipe says where the paper says nothing: norms and biases start again.

    New filters are random vectors of the null space of old values and survivors, none above 1/sqrt(d); where there is
    none, as in the first layer, they are orthogonal to their old value and what that overlapped most with.
    """

    cap = 0.9

    def choose(self, scores: Array) -> NDArray[np.bool_]:
        """The worst of the network, at most nine tenths of a layer."""
        size = len(scores) // len(self.layers)
        left, room = int(self.ratio * len(scores) + 1e-9), [int(self.cap * size)] * len(self.layers)
        chosen = np.zeros(len(scores), bool)
        for f in np.argsort(-scores, kind="stable"):
            if left and room[f // size]:
                chosen[f], left, room[f // size] = True, left - 1, room[f // size] - 1
        return chosen

    def silence(self) -> None:
        for layer, mask in self.dropped.items():
            for part in ("weight", "bias", "gamma", "beta"):
                self.params[f"{layer}.{part}"][mask] = 0

    def bring_back(self, found: Mapping[str, Array]) -> None:
        for layer, mask in self.dropped.items():
            new, old = found[f"{layer}.weight"][mask], self.before[f"{layer}.weight"][mask]
            everyone = np.vstack([old, self.params[f"{layer}.weight"][~mask]])
            d, k = everyone.shape[1], len(new)
            if k:
                assert np.abs(new).max() <= d**-0.5 + 1e-6 and (np.linalg.norm(new, axis=1) > 0.1).all()
            unit = everyone / np.linalg.norm(everyone, axis=1, keepdims=True)
            for f, row in enumerate(new):
                nearest = np.argsort(-np.abs(unit @ unit[f]), kind="stable")[: d // 2]
                avoided = unit if len(everyone) + k <= d else unit[nearest]
                assert np.abs(avoided @ row).max() < 1e-5 * np.linalg.norm(row)
            self.params[f"{layer}.weight"][mask] = new
            for part, value in (("bias", 0), ("gamma", 1), ("beta", 0), ("mean", 0), ("variance", 1)):
                self.params[f"{layer}.{part}"][mask] = value


class AuthorsCode(Published):
    """repr-ortho: a mask on the output of ReLU, with the old value underneath, where it gets no gradient.

    To compare, what is masked is shown as zero, and kept in `before`.
    """

    def score(self, kernel: Array) -> Array:
        columns = kernel.T / np.sqrt((kernel**2).sum())
        products = columns.T @ columns
        return np.abs((products - np.diag(np.diag(products))).mean(axis=0))

    def silence(self) -> None:
        for layer, mask in self.dropped.items():
            self.params[f"{layer}.weight"][mask] = 0
            self.params[f"{layer}.bias"][mask] = 0

    def bring_back(self, found: Mapping[str, Array]) -> None:
        """Column f of Q of the current layer, in which masked filters have their old values, signed by R."""
        for layer, mask in self.dropped.items():
            kernel = np.where(mask[:, None], self.before[f"{layer}.weight"], self.params[f"{layer}.weight"])
            q, r = scipy.linalg.qr(kernel.T, mode="economic")
            kernel[mask] = (q * np.sign(np.diag(r))).T[mask]
            self.params[f"{layer}.weight"] = kernel
            self.params[f"{layer}.bias"][mask] = self.before[f"{layer}.bias"][mask]


class Reproduction(Published):
    """siahuat0727/RePr: only the kernel of a dropped filter is zeroed and gets no gradient."""

    zero_init = False

    def choose(self, scores: Array) -> NDArray[np.bool_]:
        return scores > np.percentile(scores, 100 * (1 - self.ratio))

    def silence(self) -> None:
        for layer, mask in self.dropped.items():
            self.params[f"{layer}.weight"][mask] = 0

    def avoided(self, layer: str) -> Array:
        """Old values of the dropped above the current layer, in which they are rows of zeros."""
        return np.vstack([self.before[f"{layer}.weight"][self.dropped[layer]], self.params[f"{layer}.weight"]])

    def bring_back(self, found: Mapping[str, Array]) -> None:
        """Layer by layer: a basis vector each, clipped, uniform once there is none left; then the channels read."""
        previous = None
        for layer in (*self.layers, "linear"):
            weight = self.params[f"{layer}.weight"]
            if layer != "linear":
                rows = self.avoided(layer)
                q, r, _ = scipy.linalg.qr(rows.T, mode="full", pivoting=True)
                rank = int((np.abs(np.diag(r)) > np.finfo(np.float32).eps).sum())
                basis, bound = list(q[:, rank:].T), weight.shape[1] ** -0.5
                for f in np.flatnonzero(self.dropped[layer]):
                    if basis:
                        weight[f] = basis.pop(0).clip(-bound, bound)
                    else:
                        drawn = found[f"{layer}.weight"][f].copy()
                        if self.zero_init and previous is not None:  # zeroed already: nobody sees what was drawn
                            drawn[drawn == 0] = bound / 2
                        assert np.abs(drawn).max() <= bound and 0.3 < np.std(drawn) / bound < 0.9
                        weight[f] = drawn
            if previous is not None and self.zero_init:
                weight.reshape(len(weight), len(self.dropped[previous]), -1)[:, self.dropped[previous]] = 0
            previous = layer


class ReproductionZeroInit(Reproduction):
    """The reproduction with `--zero_init`."""

    zero_init = True


class WriteUp(Reproduction):
    """The write-up of it: the sign is kept, the current layer alone is avoided, channels are always zeroed."""

    zero_init = True

    def score(self, kernel: Array) -> Array:
        rows = kernel / np.linalg.norm(kernel, axis=1, keepdims=True)
        return (rows @ rows.T - np.eye(len(rows))).sum(1) / len(rows)

    def avoided(self, layer: str) -> Array:
        return self.params[f"{layer}.weight"]


class WriteUpInverse(WriteUp):
    """Its reverse run: the best are dropped."""

    def choose(self, scores: Array) -> NDArray[np.bool_]:
        return scores < np.percentile(scores, 100 * self.ratio)


class WriteUpNextKept(WriteUp):
    """Its run without zeroed channels."""

    zero_init = False
