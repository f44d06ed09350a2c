"""Plug-ins of every family: what is accepted, what is refused, and what a result says about them."""

import importlib
import json
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
import yaml
from support import EXAMPLES, ROOT, TINY, example_override, launch, results_of, rows, write_config

from repr_ray import estimate, plug_ins, report
from repr_ray import launch as launch_module
from repr_ray.components import Component
from repr_ray.data.decoded import load as load_images
from repr_ray.data.describe import describe
from repr_ray.method.settings import RePrSettings
from repr_ray.runners import local
from repr_ray.study.config import ConfigError, Experiment
from repr_ray.study.plan import Trial, plan
from repr_ray.study.reading import load, validate
from repr_ray.training.check import check
from repr_ray.training.setup import set_up

Write = Callable[[str, str], Path]
CPU = torch.device("cpu")
STANDARD = {"kind": "standard"}

MINE = '''
"""One plug-in of every family."""
import torch
from torch import nn
from pydantic import Field
from repr_ray import RePr, RePrSettings, Scheme, SchemeSettings


class Shrink(Scheme):
    class Settings(SchemeSettings):
        every: int = Field(default=10, ge=1)

    def start_epoch(self, epoch, *_):
        with torch.no_grad():
            torch._foreach_mul_(list(self.model.parameters()), 0.5)
        return []


class Plain(Scheme):
    """Settings as keyword arguments."""

    def __init__(
        self, model, optimizer, settings=None, *, epochs, seed=0, example=None, decay: float = 0.1, twice=False
    ):
        super().__init__(model, optimizer, epochs=epochs, seed=seed, example=example)
        self.decay = decay

    def penalty(self):
        return self.decay * sum(p.square().sum() for p in self.model.parameters())


class Mild(RePr):
    class Settings(RePrSettings):
        softness: float = 0.5

    def loss(self, logits, labels, images):
        return super().loss(logits * self.settings.softness, labels, images)


def smallest(weight, generator):
    return -weight.flatten(1).abs().amin(1)


def loud(measurement):
    return measurement.mean_of_maps(lambda z: z.abs().mean((2, 3)))


def flat(kernel, dropped, generator, clip):
    return torch.full((int(dropped.sum()), kernel.shape[1]), 0.01, dtype=torch.float64)


def net(classes: int, channels: int, width: int = 4, *, deep: bool = False):
    return nn.Sequential(nn.Conv2d(channels, width, 3), nn.ReLU(), nn.Conv2d(width, 8, 3), nn.AdaptiveAvgPool2d(1),
                         nn.Flatten(), nn.Linear(8, classes))


class Net(nn.Module):
    def __init__(self, num_classes: int = 1000, **options):
        super().__init__()
        self.options = options
        self.conv, self.out = nn.Conv2d(1, options.get("width", 4), 3), nn.LazyLinear(num_classes)
        self(torch.zeros(1, 1, 8, 8))

    def forward(self, x):
        return self.out(self.conv(x).relu().mean((2, 3)))


class Slow(torch.optim.SGD):
    def __init__(self, params, lr, drag: float = 0.1):
        super().__init__(params, lr=lr * drag)


def zigzag(base, step, steps_per_epoch, epochs, depth: float = 0.5):
    return base * (depth if step % 2 else 1)


NOTHING = 3
'''


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Write]:
    """Write a module into the working folder. Plug-ins of other tests are unknown, and its own afterwards."""
    before, kinds = set(sys.modules), {family: dict(family.kinds) for family in Component.__subclasses__()}
    for family in kinds:
        family.kinds = {name: kind for name, kind in family.kinds.items() if ":" not in name}
    for name in {*plug_ins.used.values()}:
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(plug_ins, "used", {})

    def module(name: str, source: str) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)
        importlib.invalidate_caches()
        return path

    yield module
    for family, known in kinds.items():
        family.kinds = known
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def experiment(**changes: Any) -> Experiment:
    """The tiny experiment, two epochs long and with standard training alone, with dotted changes."""
    raw = TINY | {"train": TINY["train"] | {"epochs": 2}, "schemes": {"standard": STANDARD}}
    for key, value in changes.items():
        if isinstance(value, dict) and key in ("train", "data"):
            value = raw[key] | value
        raw = raw | {key: value}
    return validate(raw, "mine")


def trained(folder: Path, experiment: Experiment) -> tuple[list[Trial], dict[str, dict[str, Any]]]:
    trials = plan(experiment)
    for trial in trials:
        check(trial)
    local.run(trials, folder, lambda message: None, {})
    for error in folder.glob("trials/*/error.json"):
        raise AssertionError(json.loads(error.read_text())["traceback"])
    return trials, results_of(folder)


def test_one_of_every_family_trains_together(write: Write, tmp_path: Path) -> None:
    write("mine.py", MINE)
    repr_ = {"s1": 1, "s2": 1, "prune_ratio": 0.3}
    everything = experiment(
        model={"kind": "mine:net", "width": 8},
        train={
            "epochs": 3,
            "optimizer": {"kind": "mine:Slow", "learning_rate": 0.05, "drag": 0.5},
            "schedule": {"kind": "mine:zigzag"},
        },
        schemes={
            "standard": STANDARD,
            "shrink": {"kind": "mine:Shrink", "every": 3},
            "plain": {"kind": "mine:Plain", "decay": 0.2},
            "mild": {"kind": "mine:Mild", "softness": 0.9, **repr_},
            "weights": {"kind": "repr", "ranking": {"score": "mine:smallest"}, **repr_},
            "images": {
                "kind": "repr",
                "ranking": {"score": "mine:loud"},
                "reinit": {"direction": "mine:flat"},
                **repr_,
            },
        },
    )
    trials, results = trained(tmp_path / "r", everything)
    assert len({result["checksum"] for result in results.values()}) == len(trials) == 6, "each changes the training"
    assert {trial.model.label for trial in trials} == {"net-width=8"}
    assert all("mine:net" in r["plug_ins"] for r in results.values())
    assert {s.kind for s in everything.schemes.values()} >= {"mine:Mild", "repr"}
    assert RePrSettings.kinds["repr"] is RePrSettings, "a subclass of RePr's settings is no other kind of repr"
    digests = {t.scheme: set(t.plug_ins) for t in trials}
    assert digests["images"] == {"mine:net", "mine:Slow", "mine:zigzag", "mine:loud", "mine:flat"}


def test_the_examples_train_together(write: Write, tmp_path: Path) -> None:
    """Each with the override that its first lines name; they are short enough to be read at a glance."""
    for name in EXAMPLES:
        source = (ROOT / "examples" / f"{name}.py").read_text()
        assert source.count("\n") <= 30, name
        write(f"{name}.py", source)
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(TINY | {"train": TINY["train"] | {"epochs": 10}}))
    trials, results = trained(tmp_path / "r", load("tiny.yaml", [example_override(name) for name in EXAMPLES]))
    assert {name.partition(":")[0] for result in results.values() for name in result["plug_ins"]} == set(EXAMPLES)
    assert len({result["checksum"] for result in results.values()}) == len(trials) == 4


@pytest.mark.parametrize(
    ("model", "attribute"),
    [
        ({"kind": "mine:Net"}, {}),
        ({"kind": "mine:Net", "width": 6, "note": "any keyword"}, {"width": 6, "note": "any keyword"}),
    ],
)
def test_a_class_that_takes_any_keyword(write: Write, model: dict[str, Any], attribute: dict[str, Any]) -> None:
    write("mine.py", MINE)
    [trial] = plan(experiment(model=model))
    assert set_up(trial, CPU).model.options == attribute


BAD: list[tuple[dict[str, Any], str]] = [
    ({"schemes": {"s": {"kind": "mine:Shrink", "evry": 5}}}, "schemes.s.evry: unknown field; did you mean every?"),
    ({"schemes": {"s": {"kind": "mine:Shrink", "every": 0}}}, "schemes.s.every=0: input should be greater than or"),
    ({"schemes": {"s": {"kind": "mine:Shrink", "every": "soon"}}}, "schemes.s.every='soon': expected an integer"),
    ({"schemes": {"s": {"kind": "mine:Plain", "dcay": 1}}}, "schemes.s.dcay: unknown field; did you mean decay?"),
    ({"schemes": {"s": {"kind": "mine:Mild", "softnes": 1}}}, "schemes.s.softnes: unknown field; did you mean soft"),
    ({"schemes": {"s": {"kind": "mine:Mild", "s1": 0}}}, "schemes.s.s1=0: input should be greater"),
    ({"schemes": {"s": {"kind": "mine:net"}}}, "schemes.s.kind='mine:net': net is not a scheme"),
    ({"model": {"kind": "mine:net", "widht": 3}}, "model.widht: unknown field; did you mean width?"),
    ({"model": {"kind": "mine:net", "width": "wide"}}, "model.width='wide': expected an integer"),
    ({"model": {"kind": "mine:net", "classes": 3}}, "model.classes: unknown field"),
    ({"model": {"kind": "mine:nett"}}, "module mine has no nett; did you mean net?"),
    ({"model": {"kind": "mine:NOTHING"}}, "mine:NOTHING is not a class or function"),
    ({"model": {"kind": "nowhere:net"}}, "there is no module nowhere in "),
    ({"model": {"kind": "package.nowhere:net"}}, "there is no module package.nowhere in "),
    ({"model": {"kind": "raises:net"}}, "plug-in raises: raises.py:2: ZeroDivisionError: division by zero"),
    ({"model": {"kind": "syntax:net"}}, "plug-in syntax: syntax.py:1: SyntaxError"),
    ({"model": {"kind": "imports:net"}}, "plug-in imports: No module named 'not_installed'"),
    ({"model": {"kind": "convnt"}}, "my_module:name for one of your own; did you mean convnet?"),
    ({"model": {"kind": "a:b:c"}}, "my_module:name for one of your own"),
    ({"model": {"kind": ":net"}}, "my_module:name for one of your own"),
    ({"model": {"kind": "../mine:net"}}, "my_module:name for one of your own"),
    ({"model": {"kind": ["mine:net"]}}, "a kind is a name"),
    (
        {"train": {"optimizer": {"kind": "mine:Slow", "dragg": 1}}},
        "train.optimizer.dragg: unknown field; did you mean",
    ),
    ({"train": {"schedule": {"kind": "mine:zigzag", "dept": 1}}}, "train.schedule.dept: unknown field; did you mean"),
    (
        {"schemes": {"r": {"kind": "repr", "ranking": {"score": "mine:smalest"}}}},
        "has no smalest; did you mean small",
    ),
    ({"schemes": {"r": {"kind": "repr", "reinit": {"direction": "mine:NOTHING"}}}}, "is not a class or function"),
]


@pytest.mark.parametrize(("changes", "message"), BAD, ids=[message[:50] for _, message in BAD])
def test_what_is_wrong_with_a_plug_in_is_one_line(write: Write, changes: dict[str, Any], message: str) -> None:
    write("mine.py", MINE)
    write("raises.py", "x = 1\nx / 0\n")
    write("syntax.py", "def net(:\n")
    write("imports.py", "import not_installed\n")
    write("package/__init__.py", "")
    with pytest.raises(ConfigError) as caught:
        experiment(**changes)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("mine: ")


NETWORKS = {
    "tuple": ("return lambda x: x", "made function, expected torch.nn.Module"),
    "flat": (
        "return nn.Flatten()",
        "gives (2, 64) for images (2, 1, 8, 8), expected logits (2, 10): one number per class",
    ),
    "maps": ("return nn.Conv2d(1, classes, 3)", "gives (2, 10, 6, 6)"),
    "two": ("return nn.GRU(8, classes)", "cannot take images (2, 1, 8, 8): "),
    "wrong": (
        "return nn.Sequential(nn.Flatten(), nn.Linear(5, classes))",
        "mat1 and mat2 shapes cannot be multiplied",
    ),
    "raises": ("raise KeyError('here')", "plug-in nets:net: KeyError: 'here'"),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_that_gives_no_logits_is_refused_before_training(write: Write, name: str) -> None:
    body, message = NETWORKS[name]
    write("nets.py", f"from torch import nn\n\ndef net(classes):\n    {body}\n")
    [trial] = plan(experiment(model={"kind": "nets:net"}))
    with pytest.raises(ConfigError) as caught:
        check(trial)
    assert str(caught.value).startswith("standard: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("source", "changes", "message"),
    [
        (
            "def f(params, lr): return 3",
            {"train": {"optimizer": {"kind": "own:f"}}},
            "expected torch.optim.Optimizer",
        ),
        ("def f(params): pass", {"train": {"optimizer": {"kind": "own:f"}}}, "made NoneType, expected torch.optim"),
        (
            "def f(base, step, *_): return -1.0",
            {"train": {"schedule": {"kind": "own:f"}}},
            "-1.0 is not a learning rate",
        ),
        (
            "def f(base, step, *_): return base / (1 - (step > 0))",
            {"train": {"schedule": {"kind": "own:f"}}},
            "ZeroDivisionError",
        ),
        (
            "def f(base, step, steps_per_epoch, epochs): return base if step == 0 else float('nan')",
            {"train": {"schedule": {"kind": "own:f"}}},
            "nan is not a learning rate (epoch 2)",
        ),
        (
            "class f(Scheme):\n    def state_dict(self): return {'me': type(self)}",
            {"schemes": {"s": {"kind": "own:f"}}},
            "s: plug-in own:f: ValueError: state_dict() cannot be saved and read again (UnpicklingError",
        ),
        ("def f(base): return 1.0", {"train": {"schedule": {"kind": "own:f"}}}, "TypeError: f() takes 1 positional"),
        (
            "class f(Scheme):\n    def loss(self, logits, labels, images): return logits.sum(1)",
            {"schemes": {"s": {"kind": "own:f"}}},
            "plug-in own:f: a loss is one number, summed over the batch; found (2,)",
        ),
        (
            "class f(Scheme):\n    def loss(self, logits): return logits.sum()",
            {"schemes": {"s": {"kind": "own:f"}}},
            "takes 2 positional arguments but 4 were given",
        ),
        (
            "class f(LossTerm):\n    def loss(self, logits, labels, images): return labels",
            {"schemes": {"s": {"kind": "standard", "loss": {"kind": "own:f"}}}},
            "s: plug-in own:f: a loss is one number, summed over the batch; found (2,)",
        ),
        (
            "class f(LossTerm):\n    def __init__(self, model, strength: float): 1 / 0",
            {"schemes": {"s": {"kind": "standard", "loss": {"kind": "own:f", "strength": 1}}}},
            "s: plug-in own:f: ZeroDivisionError: division by zero",
        ),
        ("class f:\n    start_epoch = 1", {"schemes": {"s": {"kind": "own:f"}}}, "TypeError"),
    ],
)
def test_components_of_the_wrong_kind_are_refused_before_training(
    write: Write, source: str, changes: dict[str, Any], message: str
) -> None:
    write("own.py", f"from repr_ray import LossTerm, Scheme\n\n{source}\n")
    with pytest.raises(ConfigError) as caught:
        [check(trial) for trial in plan(experiment(**changes))]
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


SHORT = {"kind": "repr", "s1": 1, "s2": 1, "cycles": 1}

WIDE = """
import torch
from torch import nn
from repr_ray import RePr

class Wide(nn.Module):
    def __init__(self, classes: int, channels: int):
        super().__init__()
        self.conv, self.more = nn.Conv2d(channels, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.out = nn.Linear(8, classes)

    def forward(self, x):
        x = self.conv(x).relu().view(len(x), 8, -1).view(len(x), 8, 8, 8)
        return self.out(self.more(x).relu().mean((2, 3)))

class Pulled(RePr):
    def penalty(self):
        return self.model[0].weight.square().sum()

class Picky(torch.optim.SGD):
    def __init__(self, params, lr, style: str = "plain", *, wanted: int = 1):
        super().__init__(params, lr=lr)
"""


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": {"kind": "wide:Wide"}}, "train.compact_sub_network: compact sub-network: "),
        ({"train": {"optimizer": {"kind": "wide:Picky"}}}, "Picky cannot be made from parameter groups alone (TypeE"),
        ({"schemes": {"r": SHORT | {"kind": "wide:Pulled"}}}, "train.compact_sub_network: a penalty is on weights"),
    ],
)
def test_what_cannot_be_made_smaller_is_refused_before_training(
    write: Write, changes: dict[str, Any], message: str
) -> None:
    write("wide.py", WIDE)
    for compact in (True, False):
        train = {"epochs": 3, "compact_sub_network": compact} | changes.get("train", {})
        [trial] = plan(experiment(**{"schemes": {"r": SHORT}} | changes | {"train": train}))
        if not compact:
            check(trial)
            continue
        with pytest.raises(ConfigError) as caught:
            check(trial)
        assert message in str(caught.value) and str(caught.value).endswith("to false")
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return 3", "data.source=own:f: made int, expected repr_ray.data.source.Source"),
        ("raise KeyError('x')", "data.source=own:f: KeyError: 'x'"),
        ("return Source(lambda scratch: [])", "data.source=own:f: made list, expected repr_ray.data.source.Splits"),
        ("return Source(lambda scratch: 1 / 0)", "data.source=own:f: ZeroDivisionError: division by zero"),
    ],
)
def test_a_source_that_gives_no_images_is_refused(write: Write, body: str, message: str) -> None:
    write("own.py", f"from repr_ray.data.source import Source\n\ndef f(data):\n    {body}\n")
    [trial] = plan(experiment(data={"name": "mine", "source": "own:f"}))
    with pytest.raises(ConfigError) as caught:
        load_images(trial.data)
    assert str(caught.value) == message
    with pytest.raises(ConfigError, match="module own has no g"):
        experiment(data={"name": "mine", "source": "own:g"})
    with pytest.raises(ConfigError, match="there is no module nowhere"):
        experiment(data={"name": "mine", "source": "nowhere:f"})


def test_a_dry_run_takes_no_stamps_of_a_source_for_sizes(write: Write) -> None:
    text = (ROOT / "examples" / "negatives.py").read_text()
    write("stamped.py", text.replace("Source(read)", "Source(read, ['v2', 3])"))
    [trial] = plan(experiment(data={"name": "mine", "source": "stamped:negatives"}))
    assert "10 classes" in describe(trial.data)


def test_a_source_that_changed_is_read_again(write: Write) -> None:
    source = (ROOT / "examples" / "negatives.py").read_text()
    data = {"name": "negatives", "source": "changing:negatives", "validation_images": 100}
    counts = []
    for text in (source, source.replace("255 - np", "np")):
        write("changing.py", text)
        sys.modules.pop("changing", None)
        [trial] = plan(experiment(data=data))
        counts.append(load_images(trial.data).digest)
        assert trial.plug_ins.keys() == {"changing:negatives"}
    assert len(set(counts)) == 2


HOOKS = {
    "start_epoch": "start_epoch(self, epoch, *_)",
    "penalty": "penalty(self)",
    "before_step": "before_step(self)",
    "after_step": "after_step(self)",
    "state_dict": "state_dict(self)",
}


@pytest.mark.parametrize("hook", HOOKS)
def test_an_exception_in_a_hook_names_the_plug_in(write: Write, tmp_path: Path, hook: str) -> None:
    write(
        "bad.py", f"from repr_ray import Scheme\n\nclass Bad(Scheme):\n    def {HOOKS[hook]}:\n        return [][0]\n"
    )
    local.run(plan(experiment(schemes={"bad": {"kind": "bad:Bad"}})), tmp_path / "r", lambda message: None, {})
    [error] = (tmp_path / "r").glob("trials/*/error.json")
    assert json.loads(error.read_text())["message"] == "plug-in bad:Bad: IndexError: list index out of range"


def test_a_checkpoint_that_could_not_be_read_again_is_not_written(write: Write, tmp_path: Path) -> None:
    state = "def state_dict(self):\n        return super().state_dict() | {'me': type(self)}"
    write("bad.py", f"import torch\n\nclass Bad(torch.optim.SGD):\n    {state}\n")
    train = {"epochs": 3, "optimizer": {"kind": "bad:Bad", "learning_rate": 0.1}}
    local.run(plan(experiment(train=train)), tmp_path / "r", lambda message: None, {})
    [error] = (tmp_path / "r").glob("trials/*/error.json")
    assert "state_dict() cannot be saved and read again" in json.loads(error.read_text())["message"]
    assert not [*(tmp_path / "r").glob("trials/*/checkpoint*")]


@pytest.mark.parametrize(
    ("ranking", "reinit", "message"),
    [
        (
            "def f(weight, generator): return weight",
            {},
            "score own:f: layer conv1: found shape (8, 1, 3, 3), expected 8",
        ),
        ("def f(weight, generator): return weight.sum((1, 2, 3)) / 0", {}, "found infinite or no numbers"),
        ("def f(weight, generator): return 1", {}, "found int"),
        ("def f(measurement): return {}", {}, "found NoneType"),
        ("def f(weight): return weight", {}, "TypeError: f() takes 1 positional argument but 2 were given"),
        ("def f(kernel, *_): return kernel[:, :2]", {"direction": "own:f"}, "direction own:f: found shape"),
    ],
)
def test_a_score_or_direction_of_the_wrong_shape_is_refused_before_training(
    write: Write, tmp_path: Path, ranking: str, reinit: dict[str, str], message: str
) -> None:
    write("own.py", f"{ranking}\n")
    scheme = {"kind": "repr", "s1": 1, "s2": 1, "ranking": {} if reinit else {"score": "own:f"}, "reinit": reinit}
    trials = plan(experiment(schemes={"r": scheme}, train={"epochs": 3}))
    with pytest.raises(ConfigError, match=r"^r: plug-in own:f: ") as caught:
        check(trials[0])
    assert message in str(caught.value) and "\n" not in str(caught.value)
    local.run(trials, tmp_path / "r", lambda message: None, {})  # in a trial it would fail in one line as well
    [error] = (tmp_path / "r").glob("trials/*/error.json")
    assert message in json.loads(error.read_text())["message"]


def test_an_installed_package_registers_short_names(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write("mine.py", MINE)
    points = "[repr_ray.model]\ntinynet = mine:net\n[repr_ray.score]\nsmallest = mine : smallest\n"
    write("tinynet-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tinynet\nVersion: 1.0\n")
    write("tinynet-1.0.dist-info/entry_points.txt", points)
    plug_ins._installed.cache_clear()
    monkeypatch.setattr(plug_ins, "_installed", plug_ins._installed.__wrapped__)
    scheme = {"kind": "repr", "s1": 1, "s2": 1, "ranking": {"score": "smallest"}}
    found = experiment(model={"kind": "tinynet", "width": 6}, schemes={"r": scheme}, train={"epochs": 3})
    trials, results = trained(tmp_path / "r", found)
    assert trials[0].model.label == "tinynet-width=6"
    assert set(results[trials[0].name]["plug_ins"]) == {"tinynet", "smallest"}
    with pytest.raises(ConfigError, match="did you mean tinynet"):
        experiment(model={"kind": "tinynt"})
    jsonschema.validate(found.model_dump(mode="json"), Experiment.model_json_schema())


def test_an_installed_package_registers_a_source(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    write("negatives.py", (ROOT / "examples" / "negatives.py").read_text())
    write("negatives-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: negatives\nVersion: 1.0\n")
    write("negatives-1.0.dist-info/entry_points.txt", "[repr_ray.source]\nnegative-digits = negatives:negatives\n")
    plug_ins._installed.cache_clear()
    monkeypatch.setattr(plug_ins, "_installed", plug_ins._installed.__wrapped__)
    data = experiment(data={"name": "negatives", "source": "negative-digits", "train_images": 512}).data
    assert data.source == "negative-digits"
    assert len(load_images(data).train) == 512
    assert set(plug_ins.digests(data.model_dump())) == {"negative-digits"}


@pytest.fixture
def trained_once(write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """A launch with a plug-in that imports another module; called, it forgets both and launches again."""
    write("helper.py", "FACTOR = 0.5\n")
    write("mine.py", f"import helper\n{MINE}")
    config = write_config(tmp_path, schemes={"shrink": {"kind": "mine:Shrink"}}, baseline="shrink")

    def again(*more: str) -> tuple[int, str]:
        for name in ("mine", "helper"):
            sys.modules.pop(name, None)
        importlib.invalidate_caches()
        for family in Component.__subclasses__():
            family.kinds = {name: kind for name, kind in family.kinds.items() if ":" not in name}
        status = launch_module.main(
            ["--runner", "local", "--config", str(config), "--results", str(tmp_path / "r"), *more]
        )
        return status, "".join(capsys.readouterr())

    assert again()[0] == 0
    return again


@pytest.mark.parametrize("file", ["mine.py", "helper.py"])
def test_a_plug_in_that_changed_is_refused_with_the_way_out(
    write: Write, tmp_path: Path, file: str, trained_once: Callable[..., tuple[int, str]]
) -> None:
    status, told = trained_once()
    assert (status, "done already" in told) == (0, True)
    path = tmp_path / file
    former = path.read_text()
    path.write_text(f"{former}\nNEW = 1\n")
    status, told = trained_once()
    assert status == 2
    assert "plug-in mine:Shrink: its source has changed since" in told
    assert "bring the former one back, or choose another name=" in told
    assert trained_once("name=other")[0] == 0, "the way out"
    path.write_text(former)
    assert trained_once()[0] == 0, "the other way out"


def test_pickled_settings_are_found_by_name_in_another_process(write: Write, tmp_path: Path) -> None:
    source = (
        "class Shrink:\n    start_epoch = print\n    def __init__(self, every=2): pass\n\ndef net(width=3): pass\n"
    )
    write("mine.py", source)
    [trial] = plan(experiment(schemes={"s": {"kind": "mine:Shrink", "every": 3}}, model={"kind": "mine:net"}))
    (tmp_path / "trial.pickle").write_bytes(pickle.dumps(trial))
    read = "import pickle; t = pickle.load(open('trial.pickle', 'rb')); print(t.settings, t.name, t.plug_ins)"

    def other() -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-c", read], capture_output=True, text=True, cwd=tmp_path, check=False)

    assert other().stdout.split() == f"{trial.settings} {trial.name} {trial.plug_ins}".split()
    write("mine.py", f"{source}\n# changed\n")
    assert "plug-in mine:net: this node has another version of mine than the launcher" in other().stderr


def test_the_report_imports_no_plug_in(write: Write, tmp_path: Path) -> None:
    path = write("mine.py", MINE)
    trained(tmp_path / "r", experiment(schemes={"s": {"kind": "mine:Shrink"}}))
    path.write_text("raise SystemExit('imported')\n")
    sys.modules.pop("mine")
    report.report([tmp_path / "r"])
    assert "mine" not in sys.modules
    assert (tmp_path / "r" / "comparison.md").exists()


@pytest.mark.slow
def test_ray_trains_plug_ins_of_the_working_folder_and_names_them(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(MINE)
    (tmp_path / "bad.py").write_text(
        "from repr_ray import Scheme\n\nclass Bad(Scheme):\n    def penalty(self):\n        return [][0]\n"
    )
    config = write_config(
        tmp_path,
        model={"kind": "mine:net"},
        schemes={"standard": STANDARD, "mild": {"kind": "mine:Mild", "s1": 2, "s2": 2}, "bad": {"kind": "bad:Bad"}},
    )
    done = launch("--config", config, "--results", tmp_path / "ray", cwd=tmp_path)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "plug-in bad:Bad: IndexError: list index out of range" in done.stdout
    alone = launch("--config", config, "--results", tmp_path / "local", "--runner", "local", cwd=tmp_path)
    assert "plug-in bad:Bad: IndexError: list index out of range" in alone.stdout
    found, expected = results_of(tmp_path / "ray/tiny"), results_of(tmp_path / "local/tiny")
    assert len(found) == 2
    for trial in expected:
        assert found[trial]["checksum"] == expected[trial]["checksum"]
        assert found[trial]["plug_ins"] == expected[trial]["plug_ins"]
        assert rows(tmp_path / "ray/tiny", trial, "epochs") == rows(tmp_path / "local/tiny", trial, "epochs")


CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=[path.stem for path in CONFIGS])
def test_the_schema_accepts_what_is_shipped(path: Path) -> None:
    schema = Experiment.model_json_schema()
    jsonschema.validate(yaml.safe_load(path.read_text()), schema)
    jsonschema.validate(load(path).model_dump(mode="json"), schema)


@pytest.mark.parametrize(
    ("change", "fits"),
    [
        ({"model": {"kind": "mine:net", "anything": 3}}, True),
        ({"schemes": {"s": {"kind": "pkg.mine:Shrink"}}}, True),
        ({"schemes": {"r": {"kind": "repr", "ranking": {"score": "mine:peak"}}}}, True),
        ({"schemes": {"r": {"kind": "repr", "ranking": {"score": "orthogonalty"}}}}, False),
        ({"schemes": {"r": {"kind": "repr", "prune_rtio": 0.3}}}, False),
        ({"schemes": {"r": {"s1": 3}}}, False),
        ({"model": {"kind": "resnt"}}, False),
        ({"model": {"kind": "resnet", "depth": "deep"}}, False),
        ({"train": {"epochs": 0}}, False),
        ({"nmae": "x"}, False),
    ],
)
def test_the_schema_refuses_what_a_config_cannot_hold(change: dict[str, Any], fits: bool) -> None:
    valid = jsonschema.Draft202012Validator(Experiment.model_json_schema()).is_valid(TINY | change)
    assert valid == fits


CAREFUL = """
import torch
from torch import nn


def net(*, classes: int, channels: int, limit: float = 1.0) -> nn.Module:
    if float(torch.ones(2).sum()) > limit:
        raise ZeroDivisionError("oh no")
    return nn.Sequential(nn.Conv2d(channels, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, classes))
"""


def test_a_network_that_reads_values_or_raises(
    write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its size is known as any other's, and what it raises is a line of the launch, with nothing trained."""
    write("careful.py", CAREFUL)
    [one] = plan(experiment(model={"kind": "careful:net", "limit": 3.0}))
    assert estimate.size(one.model, one.data) == estimate.Size(4 * 9 + 4 + 4 * 10 + 10, 0, 1)
    config = write_config(tmp_path, schemes={"standard": STANDARD}, model={"kind": "careful:net"})
    arguments = ["--config", str(config), "--results", str(tmp_path / "r"), "--runner", "local"]
    assert launch_module.main(arguments) == 2
    assert "plug-in careful:net: ZeroDivisionError: oh no" in capsys.readouterr().err
    assert not (tmp_path / "r" / "tiny" / "trials").exists()
