"""What tensors of torch, torchao and DeepSpeed tell of themselves.

Relied upon: `Tensor._version`; `device_mesh` of FSDP's tensors and `ds_id` of ZeRO-3's; `__tensor_flatten__` of torchao's.
"""

from __future__ import annotations

import torch


def version_of(tensor: torch.Tensor) -> int:
    """Return a number that grows whenever the tensor's values are changed in place."""
    return tensor._version


def is_sharded(tensor: torch.Tensor) -> bool:
    """Whether each process holds a part of the tensor: under FSDP and ZeRO-3."""
    return hasattr(tensor, "device_mesh") or hasattr(tensor, "ds_id")


def inner_tensors(tensor: torch.Tensor) -> list[torch.Tensor]:
    """Return the tensors that a quantized one is made of; none for a plain tensor."""
    if not hasattr(tensor, "__tensor_flatten__"):
        return []
    names, _ = tensor.__tensor_flatten__()
    return [getattr(tensor, name) for name in names]
