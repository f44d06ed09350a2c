"""Networks of torchvision and timm from a config: names, options, weights from a file, and what is refused."""

import os
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import nn

from repr_ray.experiment import refuse_other_sources
from repr_ray.models.settings import Timm, Torchvision
from repr_ray.study.config import ConfigError
from repr_ray.study.plan import plan
from repr_ray.study.reading import validate
from repr_ray.training.folder import TrialFolder
from repr_ray.training.setup import set_up


def build(kind: str, classes: int = 4, channels: int = 3, size: int = 64, **fields: Any) -> nn.Module:
    settings = {"torchvision": Torchvision, "timm": Timm}[kind](kind=kind, **fields)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torchvision's, on how Inception will be initialised
        network: nn.Module = settings.network(classes, channels, size)
    return network


def test_every_classifier_of_torchvision_has_its_name() -> None:
    names = Torchvision.model_fields["name"].annotation.__args__
    assert sorted(names) == sorted(torchvision.models.list_models(module=torchvision.models))


@pytest.mark.parametrize("name", ["resnet18", "regnet_y_400mf", "shufflenet_v2_x0_5"])
def test_without_memory(name: str) -> None:
    with torch.device("meta"):
        model = build("torchvision", name=name)
    assert all(p.is_meta for p in model.parameters())


def test_options_pass_through_and_are_checked() -> None:
    assert build("torchvision", name="mobilenet_v2", options={"width_mult": 0.5}).last_channel == 1280
    wide, narrow = (
        sum(p.numel() for p in build("torchvision", name="resnet18", options=options).parameters())
        for options in ({"width_per_group": 64}, {"zero_init_residual": True})
    )
    assert wide == narrow
    for options, wrong in (
        ({"widht": 3}, r"model.options: mobilenet_v2: .*widht"),
        ({"num_classes": 3}, r"model.options.num_classes: the images and model.weights set it"),
    ):
        with pytest.raises(ValueError, match=wrong):
            build("torchvision", name="mobilenet_v2", options=options)
    with pytest.raises(ValueError, match="images of 3 channels, not 1"):
        build("torchvision", name="resnet18", channels=1)


def test_networks_of_timm() -> None:
    pytest.importorskip("timm")
    model = build("timm", name="resnet10t", channels=1, options={"drop_path_rate": 0.1})
    assert model(torch.zeros(2, 1, 64, 64)).shape == (2, 4)
    with pytest.raises(ValueError, match=r"model.name=resnet10q: timm has no such network; did you mean resnet"):
        build("timm", name="resnet10q")
    with pytest.raises(ValueError, match=r"model.options: resnet10t: .*nonsense"):
        build("timm", name="resnet10t", options={"nonsense": 1})
    with pytest.raises(ValueError, match=r"model.options.pretrained: the images and model.weights set it"):
        build("timm", name="resnet10t", options={"pretrained": True})


def test_timm_is_asked_for_by_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "timm", None)
    with pytest.raises(ValueError, match=r"pip install 'repr-ray\[timm\]'"):
        build("timm", name="resnet10t")


def test_weights_from_a_file(tmp_path: Path) -> None:
    torch.manual_seed(0)
    of_ten = build("torchvision", classes=10, name="squeezenet1_1").state_dict()
    parallel = {f"module.{name}": value for name, value in of_ten.items()}  # of DistributedDataParallel
    for content in (of_ten, {"state_dict": of_ten}, {"model": of_ten, "epoch": 3}, parallel):
        torch.save(content, tmp_path / "w.pt")
        model = build("torchvision", name="squeezenet1_1", weights=str(tmp_path / "w.pt"))
        own = model.state_dict()
        same = {
            name for name in own if own[name].shape == of_ten[name].shape and torch.equal(own[name], of_ten[name])
        }
        assert own.keys() - same == {"classifier.1.weight", "classifier.1.bias"}
    with torch.device("meta"):
        build("torchvision", name="squeezenet1_1", weights=str(tmp_path / "w.pt"))


PRETRAINED: dict[str, Any] = {
    "name": "pretrained",
    "seeds": [0],
    "train": {"epochs": 3, "batch_size": 32, "optimizer": {"kind": "sgd", "learning_rate": 0.01}},
    "schemes": {"rifle": {"kind": "rifle", "every": 1}, "perturb": {"kind": "shrink_perturb"}},
    "data": {"name": "digits", "size": 64, "channels": 3},
}


def test_layers_that_are_renewed_become_random_not_pretrained(tmp_path: Path) -> None:
    torch.manual_seed(0)
    saved = build("torchvision", classes=10, name="shufflenet_v2_x0_5").state_dict()
    torch.save(saved, tmp_path / "w.pt")
    model = {"kind": "torchvision", "name": "shufflenet_v2_x0_5", "weights": str(tmp_path / "w.pt")}
    for trial in plan(validate(PRETRAINED | {"model": model}, "pretrained")):
        one = set_up(trial, torch.device("cpu"))
        assert torch.equal(one.model.get_parameter("fc.weight"), saved["fc.weight"])
        assert one.scheme.fresh is not None
        anew = one.scheme.fresh().state_dict()
        assert not any(torch.equal(anew[name], saved[name]) for name in ("fc.weight", "conv1.0.weight"))


def test_weights_that_changed_are_refused_with_the_way_out(tmp_path: Path) -> None:
    """The name of a trial has the place of the file alone."""
    torch.save({"a": torch.zeros(1)}, tmp_path / "w.pt")
    model = {"kind": "torchvision", "name": "resnet18", "weights": str(tmp_path / "w.pt")}
    trial = plan(validate(PRETRAINED | {"model": model}, "pretrained"))[0]
    folder = TrialFolder(tmp_path, trial)
    folder.announce()
    (folder.path / "epochs.jsonl").write_text("{}\n")
    refuse_other_sources(tmp_path, [trial])
    torch.save({"a": torch.ones(1)}, tmp_path / "w.pt")
    os.utime(tmp_path / "w.pt", (1, 1))
    with pytest.raises(ConfigError, match=r"model\.weights: the file has changed since .* bring the former one back"):
        refuse_other_sources(tmp_path, [trial])


def test_files_that_are_no_weights_are_refused(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "ran",)

    cases: list[tuple[Any, str]] = [
        (Evil(), "cannot be read as weights"),
        ([1, 2], "no mapping of names to tensors"),
        ({"a": torch.zeros(1)}, "lacks classifier.1.bias, classifier.1.weight"),
    ]
    for content, wrong in cases:
        torch.save(content, tmp_path / "w.pt")
        with pytest.raises(ValueError, match=f"model.weights=.*w.pt: {wrong}"):
            build("torchvision", name="squeezenet1_1", weights=str(tmp_path / "w.pt"))
    assert not (tmp_path / "ran").exists()
    with pytest.raises(ValueError, match="cannot be read as weights: No such file"):
        build("torchvision", name="squeezenet1_1", weights=str(tmp_path / "none.pt"))
    for content in (b"", (tmp_path / "w.pt").read_bytes()[:300]):
        (tmp_path / "w.pt").write_bytes(content)
        with pytest.raises(ValueError, match=r"cannot be read as weights: it is empty, or its end is"):
            build("torchvision", name="squeezenet1_1", weights=str(tmp_path / "w.pt"))
    state = build("torchvision", name="squeezenet1_0").state_dict()
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(ValueError, match=r"model.weights=.*(lacks|has weights that|check model.name)"):
        build("torchvision", name="squeezenet1_1", weights=str(tmp_path / "w.pt"))


@pytest.mark.parametrize(
    "kind, name, size",
    [
        ("torchvision", "resnet18", 8),
        ("torchvision", "vit_b_16", 32),
        ("timm", "levit_conv_128s", 64),
        ("timm", "visformer_tiny", 64),
        ("timm", "tiny_vit_5m_224", 32),
        ("timm", "eva02_tiny_patch14_336", 28),
    ],
)
def test_a_network_is_made_for_the_size_of_the_images(kind: str, name: str, size: int) -> None:
    pytest.importorskip(kind)
    with torch.device("meta"):
        assert build(kind, name=name, size=size)(torch.empty(2, 3, size, size)).shape == (2, 4)


@pytest.mark.parametrize(
    "kind, name, size",
    [("torchvision", "alexnet", 32), ("torchvision", "maxvit_t", 64), ("timm", "coatnet_nano_rw_224", 40)],
)
def test_images_that_a_network_does_not_take_are_refused_by_name(kind: str, name: str, size: int) -> None:
    pytest.importorskip(kind)
    with torch.device("meta"), pytest.raises(ValueError, match=rf"data\.size: {name} takes no images of {size} x"):
        build(kind, name=name, size=size)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"features_only": True}, "it gives list for two images"),
        ({"global_pool": ""}, "reduction dim"),
        ({"drop_rate": "abc"}, "could not convert"),
        ({"drop_rate": 7.0}, "between 0 and 1"),
        ({"aux_logits": True}, "it gives GoogLeNetOutputs for two images"),
    ],
)
def test_options_that_leave_no_logits_are_refused_before_training(options: dict[str, Any], reason: str) -> None:
    pytest.importorskip("timm")
    kind, name = ("torchvision", "googlenet") if "aux_logits" in options else ("timm", "resnet10t")
    with torch.device("meta"), pytest.raises(ValueError, match=rf"model\.options: {name} cannot be .*{reason}"):
        build(kind, name=name, options=options)


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_networks_with_side_outputs_train_without_them(name: str) -> None:
    with torch.device("meta"):
        assert build("torchvision", name=name, size=96)(torch.empty(2, 3, 96, 96)).shape == (2, 4)
        with pytest.raises(ValueError, match=rf"data\.size: {name} takes no images of 2 x 2 .* such as 224,"):
            build("torchvision", name=name, size=2)


def test_an_option_may_be_a_list() -> None:
    pytest.importorskip("timm")
    layers = [1, 1, 1, 1]
    with torch.device("meta"):
        assert len(build("timm", name="resnet18", options={"layers": layers}).layer1) == 1
    label = Timm(kind="timm", name="resnet18", options={"layers": layers}).label
    assert label.startswith("timm-resnet18-layers=-1-1-1-1")


def test_trying_a_size_changes_no_initial_weights() -> None:
    torch.manual_seed(3)
    ours = build("torchvision", name="squeezenet1_1")
    torch.manual_seed(3)
    theirs = torchvision.models.squeezenet1_1(num_classes=4)
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(one, other)


def test_names_in_tables() -> None:
    assert Torchvision(kind="torchvision", name="resnet18").label == "torchvision-resnet18"
    label = Timm(kind="timm", name="resnet10t", options={"drop_rate": 0.1}, weights="/a/b c.pt").label
    assert label == "timm-resnet10t-drop_rate=0.1-from-b-c"
