"""What torch and PEFT keep private of the modules that tuners meet."""

from __future__ import annotations

import torch
from torch import nn


# What sharded tensors have: FSDP's, ZeRO-3's.
SHARDED = ("device_mesh", "ds_id")


def is_batch_norm(module: nn.Module) -> bool:
    """Whether a module keeps running statistics of what it sees in training mode."""
    return isinstance(module, nn.modules.batchnorm._BatchNorm)


def freeze_feature_encoder(feature_encoder: nn.Module) -> None:
    """Freeze the convolutions of a wav2vec2-type model, and stop them from marking their input for a backward pass."""
    feature_encoder._freeze_parameters()


def is_sharded(tensor: torch.Tensor) -> bool:
    """Whether a process holds only a part of the tensor, by FSDP or ZeRO-3."""
    return any(hasattr(tensor, name) for name in SHARDED)
