"""The published recipes do what their sources do, over whole training runs, by the oracles of published.py."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import published
import pytest
import torch
from support import ROOT
from torch import Tensor, nn

from repr_ray import RePr
from repr_ray.method.settings import RePrSettings
from repr_ray.study.plan import plan
from repr_ray.study.reading import load

RECIPES = ROOT / "configs" / "recipes"
PARTS = {"running_mean": "mean", "running_var": "variance"}
LAYERS = ("conv1", "conv2", "conv3")
RUNS = {  # the oracle of each scheme, and its cycles: None as often as training lasts
    ("paper", "repr"): (published.Paper, 3),
    ("author_code", "repr"): (published.AuthorsCode, 9),
    ("siahuat0727", "repr"): (published.Reproduction, None),
    ("siahuat0727", "repr-zero-init"): (published.ReproductionZeroInit, None),
    ("siahuat0727_noaug", "repr"): (published.Reproduction, None),
    ("siahuat0727_noaug", "repr-zero-init"): (published.ReproductionZeroInit, None),
    ("siahuat0727_writeup", "repr"): (published.WriteUp, None),
    ("siahuat0727_writeup", "repr-inverse"): (published.WriteUpInverse, None),
    ("siahuat0727_writeup", "repr-next-kept"): (published.WriteUpNextKept, None),
}
DROPS = {
    "author_code": list(range(20, 360, 40)),
    "paper": [20, 50, 80],
    "siahuat0727": [20, 50, 80],
    "siahuat0727_noaug": [20, 50, 80, 110, 140, 170],
    "siahuat0727_writeup": [20, 50, 80],
}


def arrays(tensors: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    """Under the oracles' names: conv1.weight (J x d), conv1.bias, conv1.gamma, ..., linear.weight."""
    found = {}
    for name, tensor in tensors.items():
        layer, part = name.split(".")
        if part == "num_batches_tracked":
            continue
        if layer.startswith("norm"):
            layer, part = f"conv{layer[4:]}", {"weight": "gamma", "bias": "beta"}.get(part) or PARTS[part]
        found[f"{layer}.{part}"] = tensor.double().flatten(1).numpy() if tensor.dim() > 1 else tensor.double().numpy()
    return found


class Gradients:
    """Made-up gradients: noise, and a direction that changes and that a layer's filters share, more or less.

    They make the layers overlap in turn, so that every layer loses filters.
    """

    def __init__(self, model: nn.Module) -> None:
        rng = np.random.default_rng(1)
        self.rng, self.model = rng, model
        self.fixed = {n: rng.standard_normal(p.numel()).astype(np.float32) for n, p in model.named_parameters()}

    def __call__(self, epoch: int) -> dict[str, Tensor]:
        made = {}
        for place, (name, parameter) in enumerate(self.model.named_parameters()):
            size = len(parameter)
            noise = np.roll(self.fixed[name], 17 * epoch).reshape(size, -1) * self.rng.uniform(0.01, 0.03)
            if parameter.dim() == 4:
                shared = self.rng.standard_normal(noise.shape[1]) * (
                    0.15 if epoch // 10 % 3 == place // 2 % 3 else 0.01
                )
                noise = noise + self.rng.uniform(-0.5, 1, size)[:, None] * shared
            made[name] = parameter.grad = torch.from_numpy(noise.astype(np.float32)).view_as(parameter)
        return made


@pytest.mark.parametrize(
    ("name", "scheme", "epochs"),
    [
        *(pytest.param(*run, None, id="-".join(run)) for run in RUNS),
        pytest.param("siahuat0727", "repr-zero-init", 85, id="siahuat0727-that-ends-in-a-cycle"),
    ],
)
def test_a_whole_run_is_the_published_procedure(name: str, scheme: str, epochs: int | None) -> None:
    """Scores, dropped filters and all parameters in every cycle; what is drawn at random is checked by rule."""
    overrides = [f"train.epochs={epochs}"] if epochs else []
    experiment, (oracle, cycles) = load(RECIPES / f"{name}.yaml", overrides), RUNS[name, scheme]
    settings = experiment.schemes[scheme]
    assert isinstance(settings, RePrSettings)
    torch.manual_seed(0)
    model = experiment.model.network(10, 3, 32)
    for module in model.modules():  # so that what starts again can be seen
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                nn.init.uniform_(tensor, 0.5, 0.9)
    optimizer = torch.optim.SGD(model.parameters(), 0.5)
    run = RePr(model, optimizer, settings, epochs=experiment.train.epochs)
    gradients = Gradients(model)
    source: Any = oracle(
        params={key: value.copy() for key, value in arrays(model.state_dict()).items()},
        layers=LAYERS,
        epochs=experiment.train.epochs,
        rate=0.5,
        s1=20,
        s2=20 if name == "author_code" else 10,
        cycles=cycles,
        ratio=0.5 if name == "author_code" else 0.3,
    )
    drops = []
    for epoch in range(experiment.train.epochs):
        events = run.start_epoch(epoch)
        drops += [epoch] if events and events[0].event == "drop" else []
        source.start_epoch(epoch, arrays(model.state_dict()))
        if events and events[0].event == "drop":
            scores = np.concatenate([event.scores for event in events])
            expected = [source.score(source.before[f"{layer}.weight"]) for layer in LAYERS]
            np.testing.assert_allclose(scores, np.concatenate(expected), atol=1e-6)
            for event in events:
                np.testing.assert_array_equal(np.array(event.dropped, bool), source.dropped[event.layer])
        if events:
            compare(arrays(model.state_dict()), source.params)
        source.step(arrays(gradients(epoch)))
        optimizer.step()
        run.after_step()
    compare(arrays(model.state_dict()), source.params)
    assert drops == DROPS[name]
    assert all(sum(layer) for layer in zip(*source.counts, strict=True)), source.counts


def compare(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        np.testing.assert_allclose(found[key], value, atol=2e-5, err_msg=key)


def test_every_recipe_is_held_to_its_source() -> None:
    """Each of its schemes has an oracle, and each trains on as many images as the source."""
    found = {path.stem: load(path) for path in RECIPES.glob("*.yaml")}
    assert {(name, s) for name, e in found.items() for s in e.schemes if s != "standard"} == set(RUNS)
    images = {name: 50_000 - experiment.data.validation_images for name, experiment in found.items()}
    assert images == {name: 45_000 if name in ("author_code", "paper") else 50_000 for name in DROPS}
    assert all(experiment.train.precision == "fp32" for experiment in found.values())
    assert found["author_code"].train.epochs == 199 + 9 * 20


def test_the_runs_that_a_header_names_plan() -> None:
    """`data.crop_padding=0 name=...` in a header is an override as it stands there."""
    named = 0
    for path in RECIPES.glob("*.yaml"):
        for line in re.findall(r"^#.*?((?:\S+=\S+ )+name=\S+)$", path.read_text(), flags=re.M):
            assert plan(load(path, line.split()))
            named += 1
    assert named == 2


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
