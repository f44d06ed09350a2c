"""The published recipes do what their sources do, on fixed random weights, by oracles of their own.

The oracles are written from the description of each source: NumPy and SciPy, float64, nothing of the package.
"""

from dataclasses import dataclass

import numpy as np
import oracle
import pytest
import scipy.linalg
import torch
from support import ROOT
from torch import nn

from repr_ray import RePr
from repr_ray.config import Experiment, load
from repr_ray.method.settings import RePrSettings
from repr_ray.plan import plan

RECIPES = ROOT / "configs" / "recipes"
Kernels = dict[str, np.ndarray]


@dataclass
class Cycle:
    """Kernels (J x d) before the drop and after the return, dropped filters, biases before, between and after."""

    before: Kernels
    dropped: dict[str, np.ndarray]
    after: Kernels
    biases: list[Kernels]


def recipe(name: str) -> Experiment:
    return load(RECIPES / f"{name}.yaml")


def one_cycle(name: str, orthogonal_first: bool = False) -> Cycle:
    """Drop and bring back once with a recipe's settings, with random biases and no training in between."""
    experiment = recipe(name)
    torch.manual_seed(0)
    model = experiment.model.network(10, 3, 32)
    convs = {n: m for n, m in model.named_modules() if isinstance(m, nn.Conv2d)}
    for n, conv in convs.items():
        nn.init.normal_(conv.bias)
        if orthogonal_first and n == "conv1":  # so that a global ranking chooses the others
            nn.init.orthogonal_(conv.weight)
    settings = experiment.schemes["repr"]
    assert isinstance(settings, RePrSettings)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    scheme = RePr(model, optimizer, settings, epochs=experiment.train.epochs)

    def kernels() -> Kernels:
        return {n: m.weight.detach().double().flatten(1).numpy().copy() for n, m in convs.items()}

    def biases() -> Kernels:
        return {n: m.bias.detach().numpy().copy() for n, m in convs.items()}

    before, seen = kernels(), [biases()]
    for epoch in range(settings.s1 + 1):
        scheme.start_epoch(epoch)
    dropped = {n: mask.numpy().copy() for n, mask in scheme.dropped.items()}
    assert all(not kernels()[n][mask].any() for n, mask in dropped.items())
    seen.append(biases())
    for epoch in range(settings.s1 + 1, settings.s1 + settings.s2 + 1):
        scheme.start_epoch(epoch)
    return Cycle(before, dropped, kernels(), [*seen, biases()])


def as_masks(flat: np.ndarray, kernels: Kernels) -> dict[str, np.ndarray]:
    ends = np.cumsum([len(k) for k in kernels.values()])[:-1]
    return dict(zip(kernels, np.split(flat, ends), strict=True))


def assert_same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert {n: m.tolist() for n, m in found.items()} == {n: m.tolist() for n, m in expected.items()}


@pytest.mark.parametrize("orthogonal_first", [False, True])
def test_the_paper(orthogonal_first: bool) -> None:
    cycle = one_cycle("paper", orthogonal_first)
    scores = {n: oracle.orthogonality(k) for n, k in cycle.before.items()}
    expected = oracle.worst(scores, 0.3, {n: 32 for n in scores})  # noqa: C420
    assert {n: set(np.flatnonzero(m).tolist()) for n, m in cycle.dropped.items()} == expected
    for n, mask in cycle.dropped.items():
        np.testing.assert_array_equal(cycle.after[n][~mask], cycle.before[n][~mask])
        if mask.any() and n != "conv1":
            complement = oracle.complement(cycle.before[n])
            np.testing.assert_allclose(cycle.after[n][mask] @ complement, cycle.after[n][mask], atol=1e-6)
        if mask.any():
            assert np.abs(cycle.after[n][mask]).max() <= cycle.after[n].shape[1] ** -0.5 + 1e-6


@pytest.mark.parametrize("orthogonal_first", [False, True])
def test_the_authors_code(orthogonal_first: bool) -> None:
    """Layer / its norm, products without the diagonal, |mean|, the first half; then column f of Q, signed by R."""
    cycle = one_cycle("author_code", orthogonal_first)
    scores = []
    for kernel in cycle.before.values():
        columns = kernel.T / np.sqrt((kernel**2).sum())
        products = columns.T @ columns
        scores += np.abs((products - np.diag(np.diag(products))).mean(axis=0)).tolist()
    chosen = sorted(range(96), key=lambda f: scores[f], reverse=True)[: int(96 * 50 / 100)]
    assert_same(cycle.dropped, as_masks(np.isin(np.arange(96), chosen), cycle.before))
    for n, mask in cycle.dropped.items():
        q, r = scipy.linalg.qr(cycle.before[n].T, mode="economic")
        np.testing.assert_allclose(cycle.after[n][mask], (q * np.sign(np.diag(r))).T[mask], atol=1e-6)
        np.testing.assert_array_equal(cycle.after[n][~mask], cycle.before[n][~mask])
        assert not cycle.biases[1][n][mask].any()  # nothing comes through the mask,
        np.testing.assert_array_equal(cycle.biases[2][n], cycle.biases[0][n])  # and the old bias is under it


@pytest.mark.parametrize("name", ["siahuat0727", "siahuat0727_noaug"])
@pytest.mark.parametrize("orthogonal_first", [False, True])
def test_siahuat0727(name: str, orthogonal_first: bool) -> None:
    """Strictly above the percentile; trailing columns of the pivoted QR, clipped; the rest stays zero."""
    cycle = one_cycle(name, orthogonal_first)
    scores = []
    for kernel in cycle.before.values():
        rows = kernel / np.linalg.norm(kernel, axis=1, keepdims=True)
        scores += (np.abs(rows @ rows.T - np.eye(32)).sum(1) / 32).tolist()
    above = np.array(scores) > np.percentile(scores, 70)
    assert above.sum() == 29
    assert_same(cycle.dropped, as_masks(above, cycle.before))
    for n, mask in cycle.dropped.items():
        np.testing.assert_array_equal(cycle.biases[1][n], cycle.biases[0][n])  # the bias is not masked
        np.testing.assert_array_equal(cycle.biases[2][n], cycle.biases[0][n])
        np.testing.assert_array_equal(cycle.after[n][~mask], cycle.before[n][~mask])
        if not mask.any():
            continue
        current = np.where(mask[:, None], 0, cycle.before[n])
        stacked = np.vstack([cycle.before[n][mask], current])
        q, r, _ = scipy.linalg.qr(stacked.T, mode="full", pivoting=True)
        rank = int((np.abs(np.diag(r)) > 1e-7).sum())
        null, bound = q[:, rank:].T[: mask.sum()], stacked.shape[1] ** -0.5
        expected = np.zeros((mask.sum(), stacked.shape[1]))
        expected[: len(null)] = null.clip(-bound, bound)
        np.testing.assert_allclose(cycle.after[n][mask], expected, atol=1e-6)
        if n == "conv1":  # 32 filters in 27 dimensions: no basis vector for anybody
            assert not cycle.after[n][mask].any()


def test_schedules_and_data() -> None:
    """When each recipe drops and brings back, and on how many images it trains."""
    drops, images = {}, {}
    for path in sorted(RECIPES.glob("*.yaml")):
        experiment = load(path)
        settings = experiment.schemes["repr"]
        assert isinstance(settings, RePrSettings) and plan(experiment)
        model = experiment.model.network(10, 3, 32)
        scheme = RePr(model, torch.optim.SGD(model.parameters(), 0.1), settings, epochs=experiment.train.epochs)
        drops[path.stem] = [e for e in range(experiment.train.epochs) if scheme.schedule.drops_at(e)]
        images[path.stem] = 50_000 - experiment.data.validation_images
    assert drops == {
        "author_code": list(range(20, 360, 40)),
        "paper": [20, 50, 80],
        "siahuat0727": [20, 50, 80],
        "siahuat0727_noaug": [20, 50, 80, 110, 140, 170],
    }
    assert images == {"author_code": 45_000, "paper": 45_000, "siahuat0727": 50_000, "siahuat0727_noaug": 50_000}
    assert recipe("author_code").train.epochs == 199 + 9 * 20


def test_zeroing_is_the_authors_output_mask() -> None:
    """Under plain SGD a mask after ReLU, with the old value underneath, trains the others to the same weights."""
    x, y = torch.randn(32, 3, 8, 8), torch.randint(0, 10, (32,))
    mask = torch.tensor([True, False, True, False])
    ends = []
    for masked_output in (True, False):
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 10)
        )
        if masked_output:
            model[1].register_forward_hook(lambda m, i, out: out * ~mask.view(1, -1, 1, 1))
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        for _ in range(5):
            with torch.no_grad():
                if not masked_output:
                    model[0].weight[mask] = 0
                    model[0].bias[mask] = 0
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
        ends.append(model)
    torch.testing.assert_close(ends[0][0].weight[~mask], ends[1][0].weight[~mask])
    for i in (2, 5):
        torch.testing.assert_close(ends[0][i].weight, ends[1][i].weight)
    torch.manual_seed(0)
    assert torch.equal(ends[0][0].weight[mask], nn.Conv2d(3, 4, 3).weight[mask])  # it never moved
