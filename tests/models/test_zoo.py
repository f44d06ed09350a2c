"""Networks of torchvision and timm from a config: names, options, weights from a file, and what is refused."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import nn

from repr_ray.models.settings import Timm, Torchvision


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
    for content in (of_ten, {"state_dict": of_ten}, {"model": of_ten, "epoch": 3}):
        torch.save(content, tmp_path / "w.pt")
        model = build("torchvision", name="squeezenet1_1", weights=str(tmp_path / "w.pt"))
        own = model.state_dict()
        same = {
            name for name in own if own[name].shape == of_ten[name].shape and torch.equal(own[name], of_ten[name])
        }
        assert own.keys() - same == {"classifier.1.weight", "classifier.1.bias"}
    with torch.device("meta"):
        build("torchvision", name="squeezenet1_1", weights=str(tmp_path / "w.pt"))


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
