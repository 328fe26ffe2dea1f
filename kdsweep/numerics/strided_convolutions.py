"""Convolutions for which oneDNN writes past its memory, so that a training crashes, or is wrong without a word.

oneDNN 3.13, which torch 2.15 comes with, does so on x86 processors in the gradient with respect to the weights of a 1 x
1 convolution with a stride, in channels_last, if a picture has fewer channels than a register of the processor takes
numbers: 16 with AVX-512, and 8 with AVX2. Re-parameterised networks of timm (MobileOne, RepVGG) begin with one. Where
pictures and weights are contiguous, torch takes another way; torch.compile chooses channels_last by itself.
"""

from __future__ import annotations

import os

import torch
from torch import nn

from kdsweep.system.environment import cpu_features

# The parts of AVX-512 without which oneDNN takes its code for AVX2.
AVX512 = {"avx512f", "avx512bw", "avx512vl", "avx512dq"}


def overrun(net: nn.Module, precision: str, device: torch.device) -> str | None:
    """Returns the name of the first convolution whose weights this machine can't train in channels_last, or None."""
    if device.type != "cpu":
        return None
    channels = too_few(precision)
    return next((name for name, module in net.named_modules() if _is_overrun(module, channels)), None)


def too_few(precision: str) -> int:
    """Returns the number of channels from which on oneDNN is right: by what the processor has, and the environment."""
    chosen = os.environ.get("ONEDNN_MAX_CPU_ISA") or os.environ.get("DNNL_MAX_CPU_ISA") or ""
    features = set(cpu_features())
    if features >= AVX512 and not chosen.upper().startswith("AVX2"):
        return 16
    # Without AVX-512 torch doesn't ask oneDNN in bf16.
    return 8 if "avx2" in features and precision == "fp32" else 0


def _is_overrun(module: nn.Module, channels: int) -> bool:
    if not isinstance(module, nn.Conv2d) or not module.weight.requires_grad or module.groups > 1:
        return False
    return module.kernel_size == (1, 1) and module.stride != (1, 1) and module.in_channels < channels
