"""Facts of the data sets that are known by name: a source that differs is refused."""

from collections.abc import Mapping
from dataclasses import dataclass

MISSPELT = {"cra": "crab"}  # a class name on the Hugging Face hub (CIFAR-100), and the right one


@dataclass(frozen=True)
class Facts:
    """A published data set. Sizes are in pixels, None where images differ; `labels` are class names in their order.

    `torchvision` is the name of its class there, `source` the hint if torchvision has none, `label` the column of its
    classes in Parquet files if it has another name. `tail`: validation images are the last ones of the training set;
    for other names they are drawn by class.
    """

    classes: int
    channels: int
    size: int | None
    train: int
    test: int
    labels: tuple[str, ...] = ()
    torchvision: str = ""
    source: str = ""
    label: str = "label"
    tail: bool = False


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split())


_DIGITS = _names("0 1 2 3 4 5 6 7 8 9")
_FASHION = ("T-shirt/top", *_names("Trouser Pullover Dress Coat Sandal Shirt Sneaker Bag"), "Ankle boot")
_CIFAR10 = _names("airplane automobile bird cat deer dog frog horse ship truck")
_CIFAR100 = _names(
    "apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel"
    " can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur"
    " dolphin elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion"
    " lizard lobster man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree"
    " pear pickup_truck pine_tree plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea"
    " seal shark shrew skunk skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table"
    " tank telephone television tiger tractor train trout tulip turtle wardrobe whale willow_tree wolf woman"
    " worm"
)

FACTS: Mapping[str, Facts] = {
    "digits": Facts(10, 1, 8, 1_437, 360, _DIGITS, tail=True),
    "cifar10": Facts(10, 3, 32, 50_000, 10_000, _CIFAR10, "CIFAR10", tail=True),
    "cifar100": Facts(100, 3, 32, 50_000, 10_000, _CIFAR100, "CIFAR100", label="fine_label", tail=True),
    "mnist": Facts(10, 1, 28, 60_000, 10_000, _DIGITS, "MNIST"),
    "fashion_mnist": Facts(10, 1, 28, 60_000, 10_000, _FASHION, "FashionMNIST"),
    "svhn": Facts(10, 3, 32, 73_257, 26_032, _DIGITS, "SVHN"),
    "stl10": Facts(
        10, 3, 96, 5_000, 8_000, _names("airplane bird car cat deer dog horse monkey ship truck"), "STL10"
    ),
    "tiny_imagenet": Facts(200, 3, 64, 100_000, 10_000, source="hf:zh-plus/tiny-imagenet"),
    "imagenette": Facts(10, 3, None, 9_469, 3_925, torchvision="Imagenette"),
    "imagenet": Facts(1_000, 3, None, 1_281_167, 50_000, source="hf:ILSVRC/imagenet-1k"),
}
"""To add a data set, add a line. Other names need `data.source`, from which their facts are read."""
