"""A class and a function; kdsweep takes both."""

from torch import Tensor, nn

from tinynets.blocks import block


class TinyNet(nn.Module):
    """Three convolutions and a linear layer.

    Args:
        num_classes: The number of classes, which kdsweep gives.
        width: The number of maps of the first convolution.
    """

    def __init__(self, num_classes: int, width: int = 16) -> None:
        super().__init__()
        self.body = nn.Sequential(block(3, width), block(width, 2 * width, stride=2), block(2 * width, 4 * width, 2))
        self.fc = nn.Linear(4 * width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Computes logits (B, num_classes) of normalised pictures (B, 3, H, W)."""
        return self.fc(self.body(x).mean((2, 3)))


def wide_net(n_classes: int, dropout: float = 0.1) -> nn.Module:
    """Returns a wider network, the teacher; kdsweep gives the number of classes under this name too."""
    body = TinyNet(num_classes=n_classes, width=32).body
    return nn.Sequential(body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(dropout), nn.Linear(128, n_classes))
