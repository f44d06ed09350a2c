"""Losses beside their formulas in NumPy, written out in loops."""

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from repr_ray.method import losses
from repr_ray.method.loss_settings import LossSettings
from repr_ray.method.scheme import Scheme

LOGITS = torch.randn(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
LABELS = torch.tensor([0, 3, 1, 1, 2])
IMAGES = torch.zeros(5, 1, 2, 2)


def network(stride: int = 1, kernel: int = 3) -> nn.Module:
    torch.manual_seed(2)
    return nn.Sequential(
        *(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Conv2d(3, 4, kernel, stride)),
        *(nn.ReLU(), nn.Conv2d(4, 4, 3, groups=2), nn.Flatten(), nn.Linear(4, 4)),
    ).double()


def weights(model: nn.Module, kind: type[nn.Module]) -> list[np.ndarray]:
    """Those of layers that are not grouped."""
    layers = [m for m in model.modules() if isinstance(m, kind) and getattr(m, "groups", 1) == 1]
    return [m.weight.detach().numpy() for m in layers]


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def test_label_smoothing() -> None:
    target = np.full((5, 4), 0.2 / 4)
    target[np.arange(5), LABELS] += 0.8
    expected = -(target * np.log(softmax(LOGITS.numpy()))).sum()
    assert float(losses.LabelSmoothing(network(), 0.2).loss(LOGITS, LABELS, IMAGES)) == pytest.approx(expected)


@pytest.mark.parametrize(("alpha", "temperature"), [(0.5, 1.0), (0.9, 4.0), (1.0, 2.0)])
def test_distillation(alpha: float, temperature: float) -> None:
    teacher = LOGITS.flip(0) * 2
    term = losses.Distillation(network(), alpha, temperature)
    term.teacher = lambda images: teacher
    p, q = (softmax(x.numpy() / temperature) for x in (teacher, LOGITS))
    entropy = -np.log(softmax(LOGITS.numpy()))[np.arange(5), LABELS].sum()
    expected = (1 - alpha) * entropy + alpha * temperature**2 * (p * np.log(p / q)).sum()
    assert float(term.loss(LOGITS, LABELS, IMAGES)) == pytest.approx(expected, rel=1e-12)


def test_distillation_without_a_teacher() -> None:
    with pytest.raises(ValueError, match=r"distillation: set `scheme\.term\.teacher`"):
        losses.Distillation(network(), 0.5, 1.0).loss(LOGITS, LABELS, IMAGES)


def test_orthogonality() -> None:
    """Filters of zeros, as dropped ones are, overlap with none, and have no slope."""
    model = network()
    with torch.no_grad():
        model[2].weight[1] = 0.0
    expected = 0.0
    for kernel in weights(model, nn.Conv2d):
        rows = kernel.reshape(len(kernel), -1)
        for i, j in itertools.product(range(len(rows)), repeat=2):
            norms = np.linalg.norm(rows[i]) * np.linalg.norm(rows[j])
            expected += abs((rows[i] @ rows[j] / norms if norms else 0.0) - (i == j))
    penalty = losses.Orthogonality(model, 0.01).penalty()
    assert float(penalty.detach()) == pytest.approx(0.01 * expected)
    penalty.backward()
    assert model[2].weight.grad.isfinite().all() and not model[2].weight.grad[1].any()
    assert model[2].weight.grad.any() and model[4].weight.grad is None


def test_srip() -> None:
    """Two steps of the power iteration from the vector that is drawn, and the weight of each epoch."""
    model = network()
    term = losses.Srip(model, 0.1, ((2, 0.5), (4, 0.0)))
    for epoch, factor in ((0, 1.0), (1, 1.0), (2, 0.5), (3, 0.5), (4, 0.0)):
        term.start_epoch(epoch)
        torch.manual_seed(epoch)
        value = float(term.penalty().detach())
        torch.manual_seed(epoch)
        expected = 0.0
        for weight in weights(model, nn.Conv2d) + weights(model, nn.Linear):
            rows = weight.reshape(len(weight), -1)
            gram = rows @ rows.T - np.eye(len(rows))
            u = gram @ torch.randn(len(rows), dtype=torch.float64).numpy()
            expected += np.linalg.norm(gram @ u) ** 2 / np.linalg.norm(u) ** 2
        assert value == pytest.approx(0.1 * factor * expected, rel=1e-6)


@pytest.mark.parametrize(("stride", "kernel"), [(1, 3), (2, 3), (3, 3), (2, 5), (1, 1)])
@pytest.mark.parametrize("squared", [True, False])
def test_ocnn(stride: int, kernel: int, squared: bool) -> None:
    """Inner products of filters with those shifted by multiples of the stride; 1 only for a filter with itself."""
    model = network(stride, kernel)
    weight = weights(model, nn.Conv2d)[1]
    shifts = range(-((kernel - 1) // stride), (kernel - 1) // stride + 1)
    total = 0.0
    for i, j in itertools.product(range(4), repeat=2):
        for a, b in itertools.product(shifts, repeat=2):
            product = 0.0
            for y, x in itertools.product(range(kernel), repeat=2):
                at = (y + a * stride, x + b * stride)
                if all(0 <= place < kernel for place in at):
                    product += weight[i][:, at[0], at[1]] @ weight[j][:, y, x]
            total += (product - (i == j and a == b == 0)) ** 2
    expected = 0.1 * (total if squared else np.sqrt(total))
    assert float(losses.Ocnn(model, 0.1, squared).penalty().detach()) == pytest.approx(expected)


def test_ocnn_needs_a_second_convolution() -> None:
    with pytest.raises(ValueError, match="no convolution but the first"):
        losses.Ocnn(nn.Sequential(nn.Conv2d(1, 3, 3)), 0.1, True)


@pytest.mark.parametrize("kind", ["orthogonality", "srip", "ocnn"])
def test_a_penalty_is_computed_in_full_precision(kind: str) -> None:
    def value(enabled: bool) -> Tensor:
        torch.manual_seed(0)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            return penalty.penalty().detach()

    penalty = LossSettings.kinds[kind](kind=kind).build(network().float())
    assert torch.equal(value(True), value(False))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_an_objective_is_as_exact_as_the_network(dtype: torch.dtype) -> None:
    """Of a network in float64 it is in float64, of any other one in float32."""
    model = network()
    scheme = Scheme(model, torch.optim.SGD(model.parameters()), epochs=1)
    logits, full = LOGITS.to(dtype), torch.float64 if dtype == torch.float64 else torch.float32
    expected = F.cross_entropy(logits.to(full), LABELS, reduction="sum") / 5
    torch.testing.assert_close(scheme.objective(logits, LABELS, IMAGES), expected, rtol=1e-15, atol=0)


def test_cross_entropy_is_what_there_is_without_a_loss() -> None:
    term = losses.LossTerm()
    assert term.changes == frozenset() and term.penalty() is None
    assert torch.equal(term.loss(LOGITS, LABELS, IMAGES), F.cross_entropy(LOGITS, LABELS, reduction="sum"))
