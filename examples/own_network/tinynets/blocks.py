"""What the networks are made of."""

from torch import nn


def block(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    """Returns a convolution of 3x3 with batch normalisation and a ReLU."""
    convolution = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))
