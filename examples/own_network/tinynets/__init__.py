"""Two small networks, as anybody writes them in PyTorch. They know nothing of kdsweep."""

from tinynets.nets import TinyNet, wide_net

__all__ = ["TinyNet", "wide_net"]
