"""Convolutions for which oneDNN writes past its memory, so that a training crashes, or is wrong without a word.

oneDNN 3.13, which torch 2.15 comes with, does so on x86 processors that have AVX2 and not AVX-512: in the gradient with
respect to the weights of a 1 x 1 convolution with a stride and fewer than eight input channels, in channels_last.
Re-parameterised networks of timm (MobileOne, RepVGG) begin with one. Where pictures and weights are contiguous, torch
takes another way; torch.compile chooses channels_last by itself.
"""

from __future__ import annotations

import os

import torch
from torch import nn

from kdsweep.system.environment import cpu_features

# oneDNN's blocks of channels on AVX2.
CHANNELS = 8

# The parts of AVX-512 without which oneDNN takes its code for AVX2.
AVX512 = {"avx512f", "avx512bw", "avx512vl", "avx512dq"}


def overrun(net: nn.Module, precision: str, device: torch.device) -> str | None:
    """Returns the name of the first convolution whose weights this machine can't train in channels_last, or None."""
    if device.type != "cpu" or precision != "fp32" or not takes_avx2():
        return None
    return next((name for name, module in net.named_modules() if _is_overrun(module)), None)


def takes_avx2() -> bool:
    """Returns whether oneDNN takes its code for AVX2: by what the processor has, or as the environment says."""
    chosen = os.environ.get("ONEDNN_MAX_CPU_ISA") or os.environ.get("DNNL_MAX_CPU_ISA") or ""
    features = set(cpu_features())
    return "avx2" in features and (chosen.upper().startswith("AVX2") or not features >= AVX512)


def _is_overrun(module: nn.Module) -> bool:
    if not isinstance(module, nn.Conv2d) or not module.weight.requires_grad or module.groups > 1:
        return False
    return module.kernel_size == (1, 1) and module.stride != (1, 1) and module.in_channels < CHANNELS
