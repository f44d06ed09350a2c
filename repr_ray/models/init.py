"""What networks share: initialisations other than PyTorch's own, and the end of those for CIFAR."""

from torch import nn


def truncated_normal_(model: nn.Module, std: float = 0.04) -> None:
    """Weights from a normal distribution cut off at two standard deviations, biases zero, as in the author's code."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.trunc_normal_(module.weight, std=std, a=-2 * std, b=2 * std)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def he_normal_(model: nn.Module) -> None:
    """Convolutions after He et al. (arXiv 1502.01852), fan out, as the networks of CIFAR papers are initialised."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def finish_(model: nn.Sequential, inputs: int, classes: int, dropout: float) -> nn.Sequential:
    """Append global average pooling, dropout and a linear layer, and initialise all convolutions."""
    model.add_module("average", nn.AdaptiveAvgPool2d(1))
    model.add_module("flatten", nn.Flatten())
    if dropout:
        model.add_module("dropout", nn.Dropout(dropout))
    model.add_module("linear", nn.Linear(inputs, classes))
    he_normal_(model)
    return model
